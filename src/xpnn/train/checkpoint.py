"""A trainer as a file, and back: what of it goes into the metadata, and how it comes out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpnn import losses, optim
from xpnn.backend import Backend
from xpnn.errors import FileFormatError
from xpnn.layers.base import Layer
from xpnn.train import files

if TYPE_CHECKING:
    from xpnn.train.trainer import Trainer

REGISTRY: dict[str, type[Any]] = {
    **optim.OPTIMIZERS,
    **optim.SCHEDULES,
    **{cls.__name__: cls for cls in losses.LOSSES.values()},
}


def save(trainer: Trainer, path: str | Path, whole: bool) -> None:
    """Write a trainer's whole state, or its weights and statistics alone."""
    host, in_shape = trainer.host_state(), trainer.in_shape
    assert in_shape is not None
    meta: dict[str, Any] = {"step": trainer.step}
    if whole:
        meta |= {
            "samples": trainer.samples,
            "epochs": trainer.epochs,
            "seed": trainer.seed,
            "loss": _describe(trainer.loss),
            "optimizer": _describe(trainer.optimizer),
            "schedule": _describe(trainer.schedule),
            "history": trainer.history,
            "position": trainer.position if trainer._fit is None else trainer._fit.position(),
        }
    files.write(
        path,
        model=trainer.model,
        in_shape=in_shape,
        weights=host["weights"],
        stats=host["stats"],
        moments=host["moments"] if whole else None,
        meta=meta,
    )


def load(
    cls: type[Trainer],
    path: str | Path,
    backend: str | Backend | None,
    device: str | None,
    custom_layers: Sequence[type[Layer]],
) -> Trainer:
    """A trainer from the file of `save(whole=True)`."""
    contents = files.read(path, custom_layers)
    meta = contents.meta
    if contents.moments is None or "optimizer" not in meta:
        raise FileFormatError(
            f"{path} holds weights alone, not a whole state: make the trainer yourself and call "
            "load_weights(path), or write the file with save instead of save_weights"
        )
    try:
        trainer = cls(
            contents.model,
            _restore(meta["loss"]),
            _restore(meta["optimizer"]),
            _restore(meta["schedule"]),
            backend=backend,
            device=device,
            seed=meta["seed"],
            dtype=contents.dtype,
        )
        trainer.step, trainer.samples, trainer.epochs = meta["step"], meta["samples"], meta["epochs"]
        trainer.history, trainer.position = meta["history"], meta["position"]
    except (KeyError, TypeError) as e:
        raise FileFormatError(f"{path}: its description of the training is not as xpnn writes it ({e!r})") from e
    host = {"weights": contents.weights, "stats": contents.stats, "moments": contents.moments}
    trainer.restore(contents.in_shape, host)
    return trainer


def load_weights(trainer: Trainer, path: str | Path, in_shape: Sequence[int] | None) -> None:
    """Take weights and statistics from a file; optimizer and counters begin anew."""
    shape = tuple(map(index, in_shape)) if in_shape is not None else trainer.in_shape or files.in_shape(path)
    if shape is None:
        raise ValueError(
            f"{path} does not tell the shape of a sample (PyTorch writes such files): "
            "load_weights(path, in_shape=(H, W, C))"
        )
    weights, stats = files.load_weights(path, trainer.model, shape)
    trainer.restore(shape, {"weights": weights, "stats": stats, "moments": {}})
    trainer.step, trainer.samples, trainer.epochs, trainer.history = 0, 0, 0, []
    trainer.position = None


def _describe(thing: Any) -> dict[str, Any]:
    """An optimizer, schedule or loss as its name and options."""
    options = {f.name: getattr(thing, f.name) for f in fields(thing)}
    name = type(thing).__name__
    if REGISTRY.get(name) is not type(thing):
        raise ValueError(f"{thing!r} is not one of xpnn's own, so a file cannot describe it; use save_weights instead")
    return {"name": name} | {n: _describe(v) if is_dataclass(v) else v for n, v in options.items()}


def _restore(description: Mapping[str, Any]) -> Any:
    """The inverse of `_describe`; makes nothing but what is in `REGISTRY`."""
    options = {n: _restore(v) if isinstance(v, dict) else v for n, v in description.items() if n != "name"}
    if description["name"] not in REGISTRY:
        raise KeyError(f"unknown: {description['name']}")
    return REGISTRY[description["name"]](**options)
