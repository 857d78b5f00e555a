"""Batches: whole arrays in a drawn order, from the device or from the host, or what a source hands out, in its own.

All give `(images, targets, host_targets)`: images and targets on the device, and the targets on the host
once more, where their values can be looked at without waiting for the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from itertools import islice
from math import prod
from operator import index
from typing import Any, NoReturn

import numpy as np

from xpnn.backend import Backend
from xpnn.data.stored import Stored
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


def stays(images: Any) -> bool:
    """Whether images stay on the host and are brought to the device a batch at a time."""
    return isinstance(images, np.memmap | Stored)


class Door:
    """Checks images and targets on their way in and casts them to what the device computes in."""

    def __init__(self, backend: Backend, dtype: str, loss: Loss) -> None:
        self.backend, self.dtype, self.loss = backend, dtype, loss

    def let_in(self, images: Any) -> Any:
        """Images checked but for their values: on the device, or where they are if they are to stay there."""
        if not stays(images):
            return self.images(images)
        self.check(images.shape, images.dtype)
        return images

    def images(self, images: Any) -> Array:
        """Images on the device, checked but for their values."""
        if isinstance(images, Stored):
            images = np.asarray(images)
        brought = self.backend.asarray(images, self.dtype)  # raises on another backend's array, or none at all
        dtype = images.dtype if hasattr(images, "dtype") else np.asarray(images).dtype
        self.check(tuple(brought.shape), dtype)
        return brought

    def check(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise where images of this shape and dtype are none."""
        kind = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
        if len(shape) < 2:
            raise ShapeError(f"images have shape {shape}; expected (N, H, W, C), the samples along the first axis")
        if "float" not in kind:
            raise ShapeError(
                f"images have dtype {kind} and shape {shape}; layers compute in floating point: "
                "convert and scale them first, e.g. images.astype('float32') / 255"
            )

    def finite(self, images: Array, what: str, xp: Any = None) -> None:
        """Raise where a value is NaN or infinite; waits for the device, unless `xp` is that of an array on the host."""
        xp = xp or self.backend.xp
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

    @cached_property
    def digest(self) -> str:
        """A hash of the targets and of 256 of the images, spread evenly: enough to notice other data."""
        n = len(self.host)
        chosen = self._on_host(np.linspace(0, n - 1, min(n, 256)).astype(np.int64))
        digest = sha256(f"{tuple(self.images.shape)}".encode())
        for array in (chosen, self.host):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def epoch(self, order: np.ndarray[Any, Any] | None = None, start: int = 0) -> Iterator[Batch]:
        """The batches from `start` on, in the order given or as they lie."""
        return (self.batch(i, order) for i in range(start, len(self)))

    def batch(self, index: int, order: np.ndarray[Any, Any] | None = None) -> Batch:
        """One batch; the last of an epoch may be smaller."""
        part = self._part(index)
        if order is None:
            return self.images[part, ...], self.targets[part, ...], self.host[part]
        xp, chosen = self.backend.xp, order[part]
        places = self.backend.asarray(chosen)
        return xp.take(self.images, places, axis=0), xp.take(self.targets, places, axis=0), self.host[chosen]

    def _on_host(self, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.backend.to_numpy(self.backend.xp.take(self.images, self.backend.asarray(places), axis=0))

    def _part(self, index: int) -> slice:
        start = index * self.batch_size
        return slice(start, min(start + self.batch_size, len(self.host)))


class StreamedBatches(ArrayBatches):
    """Two arrays of one length, of which the images stay on the host: on the disk, or too large for the device.

    While a batch trains, a thread prepares the next ones on the host: it cuts, converts and checks them. They are the
    batches of `ArrayBatches` bit for bit.
    """

    ahead = 2

    def __init__(self, door: Door, images: Any, targets: Any, out_shape: tuple[int, ...], batch_size: int) -> None:
        self.door, self.backend, self.batch_size = door, door.backend, whole("batch_size", batch_size, 1)
        self.images = door.let_in(images)
        self.host = door.targets(targets, images, out_shape)

    def epoch(self, order: np.ndarray[Any, Any] | None = None, start: int = 0) -> Iterator[Batch]:
        """The batches from number `start` on, in the order given or as they lie; the thread ends with them."""
        numbers = iter(range(start, len(self)))
        pool = ThreadPoolExecutor(1, "xpnn-batches")
        try:
            coming = deque(pool.submit(self._cut, i, order) for i in islice(numbers, self.ahead))
            while coming:
                images, host = coming.popleft().result()  # raises what the thread met
                coming.extend(pool.submit(self._cut, i, order) for i in islice(numbers, 1))
                yield self._brought(images, host)
        finally:  # also where the consumer stops early
            pool.shutdown(cancel_futures=True)

    def batch(self, index: int, order: np.ndarray[Any, Any] | None = None) -> Batch:
        """One batch; the last of an epoch may be smaller."""
        return self._brought(*self._cut(index, order))

    def _cut(self, index: int, order: np.ndarray[Any, Any] | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The part of a batch that is done on the host."""
        part = self._part(index)
        chosen = part if order is None else order[part]
        images = self._on_host(chosen)
        self.door.finite(images, f"the images of batch {index + 1}", np)
        return images, self.host[chosen]

    def _on_host(self, places: np.ndarray[Any, Any] | slice) -> np.ndarray[Any, Any]:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            return np.array(self.images[places], dtype=self.door.dtype)

    def _brought(self, images: np.ndarray[Any, Any], host: np.ndarray[Any, Any]) -> Batch:
        return self.backend.asarray(images), self.backend.asarray(host), host


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

    digest = None
    """A source is gone through only where it is used."""

    def epoch(self, order: np.ndarray[Any, Any] | None = None, start: int = 0) -> Iterator[Batch]:
        """The batches as the source gives them, those before `start` left out."""
        number = 0
        for number, batch in enumerate(self.source, 1):
            if number > start:
                yield self._checked(number, batch)
        if number < max(start, 1):
            self._gave(number)

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
