"""Images that stay as they are stored, often on the disk, and read as float32 a part at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

WHOLE = 1 << 30  # bytes of float32 up to which a data set is handed out as plain arrays


class Stored:
    """An array of stored values, most often memory-mapped, that reads as float32.

    An index or slice of the samples gives a float32 array: uint8 is divided by 255, floats are cast. `np.asarray` reads
    all of it, and `part` takes some of it without reading. `Trainer` takes one in place of images and never has more of
    it in memory than a few batches.

    Args:
        values: `(N, H, W, C)`, uint8 or floating.
        places: the samples in `values` that it consists of, in order; default: all.

    Raises:
        TypeError: values of another dtype.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, values: NDArray[Any], places: NDArray[np.int64] | None = None) -> None:
        if values.dtype != np.uint8 and values.dtype.kind != "f":
            raise TypeError(f"stored images have dtype {values.dtype}; expected uint8 (0 … 255) or floats")
        self.values = values
        self.places = np.arange(len(values)) if places is None else places

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all of it."""
        return len(self.places), *self.values.shape[1:]

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return self.values.ndim

    def __len__(self) -> int:
        return len(self.places)

    def __repr__(self) -> str:
        return f"Stored({self.values.dtype}, shape={self.shape})"

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        samples, *rest = key if isinstance(key, tuple) else (key,)
        if samples is Ellipsis:
            samples, rest = slice(None), [..., *rest]
        places = self.places[samples]
        return as_float32(self.values[places][(*(slice(None),) * places.ndim, *rest)])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("stored images become float32 by being copied; copy=False cannot be had")
        return self[...].astype(dtype or self.dtype, copy=False)


def part(images: NDArray[Any] | Stored, places: slice | NDArray[Any]) -> Any:
    """Some of the images, by a slice, an index array or a mask; what is `Stored` stays so, and is not read."""
    if isinstance(images, Stored):
        return Stored(images.values, images.places[places])
    return images[places]


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """A copy as float32: uint8 divided by 255, floats cast."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused where images are used
        result = np.array(values, dtype=np.float32)
    if values.dtype == np.uint8:
        result /= 255  # in place: the training images of MNIST take 188 MB
    return result


def handed_out(*parts: NDArray[Any]) -> tuple[NDArray[np.float32] | Stored, ...]:
    """The images of a set: as float32 where they are in memory and not large, else `Stored`."""
    mapped = any(isinstance(values, np.memmap) for values in parts)
    large = 4 * sum(values.size for values in parts) > WHOLE
    return tuple(Stored(values) if mapped or large else as_float32(values) for values in parts)
