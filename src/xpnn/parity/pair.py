"""What the comparisons of two backends start from: the backends, the batch, the state, and the last bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from typing import Any

import numpy as np

from xpnn import backend as backends
from xpnn import losses
from xpnn.backend import Backend
from xpnn.data.batches import Door
from xpnn.errors import NonFiniteError
from xpnn.layers.base import Layer
from xpnn.losses import Loss
from xpnn.parity.cases import Host
from xpnn.random import Stream
from xpnn.train import files

Arrays = Mapping[str, Any]
Weights = str | PathLike[str] | tuple[Arrays, Arrays] | None
"""A saved model's file, `(weights, stats)` by path, or None for the initial ones of the seed."""

FACTOR = 8.0
"""How much further than NumPy in the same dtype a result may stray whose inputs came with errors."""


def two(given: Sequence[str | Backend]) -> tuple[Backend, Backend]:
    """Two different backends, ready for use.

    Raises:
        BackendError: one cannot be used here.
        ValueError: not two, or twice the same.
    """
    if isinstance(given, str) or len(given) != 2:
        raise ValueError(f"backends={given!r}; expected two of them, e.g. ('numpy', 'torch')")
    a, b = (backends.get(one) for one in given)
    if (type(a), a.name, a.device_name) == (type(b), b.name, b.device_name):
        raise ValueError(f"both backends are {a!r}: one agrees with itself; give another one, or another device")
    return a, b


def label(backend: Backend, other: Backend) -> str:
    """What a table calls a backend: its name, with the device where that makes the difference."""
    return backend.name if backend.name != other.name else f"{backend.name}:{backend.device_name}"


@dataclass(frozen=True)
class Start:
    """Where a comparison starts, on the host; floats are float64 that `dtype` can hold."""

    model: Layer
    loss: Loss
    dtype: str
    images: Host
    targets: Host
    weights: dict[str, Host]
    stats: dict[str, Host]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        shape: tuple[int, ...] = self.images.shape[1:]
        return shape


def start(
    model: Layer,
    pair: tuple[Backend, Backend],
    images: Any,
    labels: Any,
    *,
    weights: Weights,
    loss: str | Loss,
    seed: int,
    dtype: str,
) -> Start:
    """Check data and state as a trainer does, and bring them to the host.

    Raises:
        ShapeError: data that do not fit the model, the loss or each other; labels out of range.
        NonFiniteError: images or weights that are not finite.
        FileFormatError: a file of weights that does not fit the model.
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model is a {type(model).__name__}; expected a layer, e.g. Sequential([...])")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}; expected 'float32' or 'float64'")
    loss = losses.get(loss)
    loss.check_model(model)
    for backend in pair:
        backend.asarray([], dtype)  # raises, with the backend's own remedy, where the device lacks it
    door = Door(pair[0], dtype, loss)
    x = door.images(images)
    in_shape = tuple(x.shape[1:])
    targets = door.targets(labels, x, model.shape(in_shape))
    door.finite(x, "images")
    drawn, still = model.init(in_shape, Stream(seed, "weights"))
    if isinstance(weights, tuple):
        w, s = weights
    else:
        w, s = (drawn, still) if weights is None else files.load_weights(weights, model, in_shape)
    for kind, wanted, came in (("weights", drawn, w), ("statistics", still, s)):
        if {k: np.shape(v) for k, v in wanted.items()} != {k: np.shape(v) for k, v in came.items()}:
            raise ValueError(f"these {kind} are not those of the model for samples of shape {in_shape}")
        if bad := [k for k, v in came.items() if not np.isfinite(v).all()]:
            raise NonFiniteError(f"{bad[0]} holds NaN or infinity: there is nothing to compare; take another state")
    host = targets if loss.classifies else targets.astype(np.float64)
    w, s = ({k: rounded(v, dtype) for k, v in tree.items()} for tree in (w, s))
    return Start(model, loss, dtype, rounded(pair[0].to_numpy(x), dtype), host, w, s)


def masks(model: Layer, in_shape: tuple[int, ...], seed: int, first: int, samples: int) -> dict[str, Host]:
    """The masks of a step, as a trainer draws them: by the number of each sample."""
    stream = Stream(seed, "draws")
    return {d.path: stream.child(d.path).mask(first, samples, d.shape, d.probability) for d in model.draws(in_shape)}


def rounded(a: Any, dtype: str) -> Host:
    """Rounded to `dtype`, as float64."""
    return np.asarray(a, dtype).astype(np.float64)


def nudged(a: Host, dtype: str, stream: Stream) -> Host:
    """Each number moved to one of its neighbours in `dtype`; zeros stay."""
    near = a.astype(dtype)
    away = np.where(stream.uniform(near.shape) < 0.5, -np.inf, np.inf).astype(dtype)
    return np.asarray(np.where(near == 0, near, np.nextafter(near, away)), dtype=np.float64)


def unit(dtype: str) -> float:
    """The unit roundoff."""
    return float(np.finfo(dtype).eps) / 2


def number(value: float) -> float | None:
    """A number for JSON, which knows no infinity."""
    return float(value) if isfinite(value) else None
