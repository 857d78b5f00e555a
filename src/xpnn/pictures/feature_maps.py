"""The output of every layer for one image."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnn.layers.base import Layer, Run
from xpnn.layers.containers import Container
from xpnn.train.trainer import Trainer


def feature_maps(trainer: Trainer, image: Any) -> list[tuple[str, Layer, np.ndarray[Any, Any]]]:
    """What each layer makes of an image, in prediction, on the trainer's backend.

    Args:
        trainer: with weights.
        image: `(H, W, C)`, as the trainer takes them.

    Returns:
        Path, layer and output (without N) of each layer, in the order of computation; containers are opened.
    """
    backend, found = trainer.backend, list[tuple[str, Layer, np.ndarray[Any, Any]]]()

    def watch(path: str, layer: Layer, y: Any) -> None:
        found.append((path, layer, np.array(backend.to_numpy(y))[0]))

    weights, stats = (
        {path: backend.asarray(a, trainer.dtype) for path, a in arrays.items()}
        for arrays in (trainer.weights, trainer.stats)
    )
    x = backend.asarray(np.asarray(image)[None], trainer.dtype)
    y, _, _ = trainer.model.apply(weights, stats, x, Run(backend.ops, watch=watch))
    if not isinstance(trainer.model, Container):
        watch("", trainer.model, y)
    return found
