"""Batches: whole arrays in a drawn order, or whatever a source hands out, in its own.

Both give `(images, targets, host_targets)`: images and targets on the device, and the targets on the host
once more, where their values can be looked at without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import prod
from operator import index
from typing import Any, NoReturn

import numpy as np

from xpnn.backend import Backend
from xpnn.errors import NonFiniteError, ShapeError
from xpnn.losses import Loss
from xpnn.ops._array import Array

Batch = tuple[Array, Array, np.ndarray[Any, Any]]


def whole(name: str, value: Any, least: int) -> int:
    """An argument that counts something, as an int."""
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name}={value!r}; expected an integer ≥ {least}")
    return number


class Door:
    """Checks images and targets on their way in and casts them to what the device computes in."""

    def __init__(self, backend: Backend, dtype: str, loss: Loss) -> None:
        self.backend, self.dtype, self.loss = backend, dtype, loss

    def images(self, images: Any) -> Array:
        """Images on the device, checked but for their values."""
        brought = self.backend.asarray(images, self.dtype)  # raises on another backend's array, or none at all
        dtype = images.dtype if hasattr(images, "dtype") else np.asarray(images).dtype
        kind = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
        shape = tuple(brought.shape)
        if len(shape) < 2:
            raise ShapeError(f"images have shape {shape}; expected (N, H, W, C), the samples along the first axis")
        if "float" not in kind:
            raise ShapeError(
                f"images have dtype {kind} and shape {shape}; layers compute in floating point: "
                "convert and scale them first, e.g. images.astype('float32') / 255"
            )
        return brought

    def finite(self, images: Array, what: str) -> None:
        """Raise where a value is NaN or infinite; waits for the device."""
        xp = self.backend.xp
        good = xp.isfinite(images)
        if not bool(xp.all(good)):
            bad = int(xp.sum(xp.astype(~good, xp.int32)))
            raise NonFiniteError(
                f"{what}: {bad:,} of {prod(good.shape):,} values are NaN or infinite as {self.dtype}; "
                "clean the data first, e.g. np.nan_to_num(images)"
            )

    def targets(self, targets: Any, images: Array, out_shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Targets of these images on the host, checked against what the model makes."""
        if not images.shape[0]:
            raise ShapeError(f"there are no images: their shape is {tuple(images.shape)}")
        if not isinstance(targets, np.ndarray | np.generic | list | tuple):
            targets = self.backend.to_numpy(targets)  # raises on another backend's array, or none at all
        host = np.asarray(targets)
        if host.ndim and len(host) != images.shape[0]:
            raise ShapeError(f"{images.shape[0]} images, but {len(host)} labels; expected as many of both")
        self.loss.check_targets(host, out_shape)
        return host.astype("int64" if self.loss.classifies else self.dtype, copy=False)


class ArrayBatches:
    """Two arrays of one length; they are brought to the device once."""

    def __init__(self, door: Door, images: Any, targets: Any, out_shape: tuple[int, ...], batch_size: int) -> None:
        self.backend, self.batch_size = door.backend, whole("batch_size", batch_size, 1)
        self.images = door.images(images)
        self.host = door.targets(targets, self.images, out_shape)
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
    """Any re-iterable source of `(images, labels)`; each batch is checked and brought to the device.

    `out_shape` gives the shape of the output for a shape of samples, and raises on one that is not the model's.
    """

    def __init__(
        self, door: Door, source: Iterable[Any], out_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    ) -> None:
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
        number = 0
        for number, batch in enumerate(self.source, 1):
            yield self._checked(number, batch)
        if not number:
            self._gave(0)

    def batch(self, index: int, order: np.ndarray[Any, Any] | None = None) -> Batch:
        """One batch, by going through the source up to it."""
        number = 0
        for number, batch in enumerate(islice(self.source, index + 1), 1):
            if number > index:
                return self._checked(number, batch)
        self._gave(number)

    def _checked(self, number: int, batch: Any) -> Batch:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            hint = "; arrays are given as two arguments: images, labels" if hasattr(batch, "shape") else ""
            raise TypeError(
                f"batch {number} of the source is a {type(batch).__name__}; expected a pair (images, labels){hint}"
            )
        try:
            images = self.door.images(batch[0])
            host = self.door.targets(batch[1], images, self.out_shape(images.shape[1:]))
        except ShapeError as e:
            raise e.within(f"batch {number}") from None
        self.door.finite(images, f"batch {number}")
        return images, self.door.backend.asarray(host), host

    def _gave(self, batches: int) -> NoReturn:
        if batches:
            raise ShapeError(f"the source gave {batches} batches this time, and more before")
        raise ShapeError("the data set is empty: the source gave no batch")
