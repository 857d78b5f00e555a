"""Batches: whole arrays in a drawn order, or whatever a source hands out, in its own.

Both give `(images, targets, host_targets)`: images and targets on the device, and the targets on the host
once more, where their values can be looked at without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from xpnn.backend import Backend
from xpnn.errors import NonFiniteError, ShapeError
from xpnn.losses import Loss
from xpnn.ops._array import Array

Batch = tuple[Array, Array, np.ndarray[Any, Any]]


class Door:
    """Checks images and targets on their way in and casts them to what the device computes in."""

    def __init__(self, backend: Backend, dtype: str, loss: Loss) -> None:
        self.backend, self.dtype, self.loss = backend, dtype, loss

    def images(self, images: Any) -> Array:
        """Images on the device, checked but for their values."""
        if not self.backend.owns(images) and not isinstance(images, np.ndarray):
            images = np.asarray(images) if isinstance(images, list | tuple) else images
        shape = tuple(getattr(images, "shape", ()))
        kind = str(getattr(images, "dtype", type(images).__name__)).removeprefix("torch.")
        if len(shape) < 2:
            raise ShapeError(f"images have shape {shape}; expected (N, H, W, C), the samples along the first axis")
        if not kind.startswith("float") and "float" not in kind:
            raise ShapeError(
                f"images have dtype {kind} and shape {shape}; layers compute in floating point: "
                "convert and scale them first, e.g. images.astype('float32') / 255"
            )
        if len(shape) == 4 and shape[1] <= 4 < shape[3] and shape[2] == shape[3]:
            raise ShapeError(
                f"images of shape {shape} look as if channels came first; expected (N, H, W, C): "
                "np.moveaxis(images, 1, -1)"
            )
        return self.backend.asarray(images, self.dtype)

    def finite(self, images: Array, what: str) -> None:
        """Raise where a value is NaN or infinite; waits for the device."""
        xp = self.backend.xp
        good = xp.isfinite(images)
        if not bool(xp.all(good)):
            bad = int(xp.sum(xp.astype(~good, xp.int32)))
            raise NonFiniteError(
                f"{what}: {bad} of {good.size if hasattr(good, 'size') else 'the'} values are NaN or infinite; "
                "clean the data first, e.g. np.nan_to_num(images)"
            )

    def targets(self, targets: Any, out_shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Targets on the host, checked against what the model makes."""
        host = self.backend.to_numpy(targets) if self.backend.owns(targets) else targets
        if not isinstance(host, np.ndarray | list | tuple):
            self.backend.asarray(host)  # raises: an array of another backend
        host = np.asarray(host)
        self.loss.check_targets(host, out_shape)
        return host if self.loss.classifies else host.astype(self.dtype, copy=False)


class ArrayBatches:
    """Two arrays of one length; they are brought to the device once."""

    def __init__(self, door: Door, images: Any, targets: Any, out_shape: tuple[int, ...], batch_size: int) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}; expected a positive integer")
        self.backend, self.batch_size = door.backend, batch_size
        self.images = door.images(images)
        self.host = door.targets(targets, out_shape)
        if len(self.host) != self.images.shape[0]:
            raise ShapeError(f"{self.images.shape[0]} images, but {len(self.host)} labels; expected as many of both")
        if not len(self.host):
            raise ShapeError("the data set is empty: no images")
        door.finite(self.images, "images")
        self.targets = door.backend.asarray(self.host)

    def __len__(self) -> int:
        return -(-len(self.host) // self.batch_size)

    def epoch(self, order: np.ndarray[Any, Any] | None = None) -> Iterator[Batch]:
        """The batches, in the order given or as they lie."""
        return (self.batch(i, order) for i in range(len(self)))

    def batch(self, index: int, order: np.ndarray[Any, Any] | None = None) -> Batch:
        """One batch; the last of an epoch may be smaller."""
        start = index * self.batch_size
        part = slice(start, min(start + self.batch_size, len(self.host)))
        if order is None:
            return self.images[part, ...], self.targets[part, ...], self.host[part]
        xp, chosen = self.backend.xp, order[part]
        places = self.backend.asarray(chosen)
        return xp.take(self.images, places, axis=0), xp.take(self.targets, places, axis=0), self.host[chosen]


class IterableBatches:
    """Any re-iterable source of `(images, labels)`; each batch is checked and brought to the device."""

    def __init__(self, door: Door, source: Iterable[Any], out_shape: tuple[int, ...]) -> None:
        if iter(source) is source:
            raise TypeError(
                f"a {type(source).__name__} can be gone through only once, and every epoch goes through the data; "
                "give a list of batches, or an object whose __iter__ begins anew"
            )
        self.door, self.source, self.out_shape = door, source, out_shape

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def epoch(self, order: np.ndarray[Any, Any] | None = None) -> Iterator[Batch]:
        """The batches as the source gives them."""
        empty = True
        for number, batch in enumerate(self.source):
            empty = False
            yield self._checked(number, batch)
        if empty:
            raise ShapeError("the data set is empty: the source gave no batch")

    def batch(self, index: int, order: np.ndarray[Any, Any] | None = None) -> Batch:
        """One batch, by going through the source up to it."""
        return self._checked(index, next(islice(iter(self.source), index, None)))

    def _checked(self, number: int, batch: Any) -> Batch:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"batch {number} of the source is a {type(batch).__name__}; expected (images, labels)")
        images = self.door.images(batch[0])
        host = self.door.targets(batch[1], self.out_shape)
        if images.shape[0] != len(host):
            raise ShapeError(f"batch {number}: {images.shape[0]} images, but {len(host)} labels")
        self.door.finite(images, f"batch {number}")
        return images, self.door.backend.asarray(host), host
