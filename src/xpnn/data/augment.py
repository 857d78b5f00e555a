"""Augmentation: training images moved, turned, mirrored and partly hidden, another way each time they are seen.

An `Augment` is a sequence of kinds, applied one after the other to a whole batch on the device:

- `Shift`: by whole pixels; the same as padding with zeros and cutting out a window at random;
- `Flip`: left and right;
- `Affine`: rotation, scaling, shear and shift by parts of a pixel, in one bilinear resampling;
- `Cutout`: a square set to zero.

`RECIPES` has one for each data set. Zeros come in from outside the image, and nothing leaves the range of the pixels.

What happens to an image follows from its number since training began: each kind owns so many whole words of a
keyed stream for each. So it is the same on every backend, however the batch is cut, and after a resume. All
coordinates and weights are worked out on the host; the device gathers, multiplies and adds.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import array_api_extra as xpx
import numpy as np
from numpy.typing import NDArray

from xpnn.backend import Backend
from xpnn.errors import ShapeError
from xpnn.ops._array import Array, floats
from xpnn.plain import keep_plain
from xpnn.random import Stream

Reals = NDArray[np.float64]
Whole = NDArray[np.integer[Any]]

BITS = 12
"""Coordinates are rounded to 2⁻¹² pixel: weights are then exact in float32, and the last bit of a sine, in which
machines differ, does not show."""


@dataclass(frozen=True)
class Kind:
    """Base of all kinds of augmentation."""

    draws: ClassVar[int]
    """How many random numbers an image takes."""

    def __post_init__(self) -> None:
        keep_plain(self)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing: all that it is given is 0. A kind without options is never idle."""
        options = vars(self).values()
        return bool(options) and not any(options)

    def apply(self, images: Array, unit: Reals, backend: Backend) -> Array:
        """The images changed, each by its numbers."""
        raise NotImplementedError

    def _check(self, most: float | None = None, kind: Any = int | float, **values: Any) -> None:
        for name, value in values.items():
            number = isinstance(value, kind) and not isinstance(value, bool)
            if not (number and 0 <= value < float("inf") and (most is None or value <= most)):
                what = "an integer" if kind is int else "a number"
                expected = f"{what} ≥ 0" if most is None else f"{what} from 0 to {most:g}"
                raise ValueError(f"{type(self).__name__}: {name}={value!r}; expected {expected}")


@dataclass(frozen=True)
class Shift(Kind):
    """Move each image by −pixels … pixels along each axis, any whole number as likely; zeros come in.

    Args:
        pixels: at most so many.
    """

    pixels: int

    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(None, int, pixels=self.pixels)

    def apply(self, images: Array, unit: Reals, backend: Backend) -> Array:
        """The images, each moved by one gather."""
        p = self.pixels
        _, h, w, _ = images.shape
        top, left = np.floor(unit * (2 * p + 1)).astype(np.int64).T[:, :, None]  # of the window in the padded image
        padded = _padded(images, p, p, backend)
        return _gather(padded, (top + np.arange(h))[:, :, None], (left + np.arange(w))[:, None, :], backend)


@dataclass(frozen=True)
class Flip(Kind):
    """Mirror left and right.

    Args:
        probability: for each image.
    """

    probability: float = 0.5

    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(1, probability=self.probability)

    def apply(self, images: Array, unit: Reals, backend: Backend) -> Array:
        """The images, some of them mirrored."""
        chosen = backend.asarray((unit < self.probability)[:, :, None, None])
        return backend.xp.where(chosen, backend.xp.flip(images, axis=2), images)


@dataclass(frozen=True)
class Affine(Kind):
    """Turn, scale, shear and move each image, by one bilinear resampling about its centre.

    Each by an amount that is uniform between −x and x.

    Args:
        degrees: of the rotation.
        scale: share of the size, e.g. 0.1 for factors from 0.9 to 1.1.
        shear: degrees by which the vertical leans over.
        shift: pixels along each axis.
    """

    degrees: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0

    draws: ClassVar[int] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(180, degrees=self.degrees)
        self._check(0.9, scale=self.scale)
        self._check(80, shear=self.shear)
        self._check(shift=self.shift)

    def apply(self, images: Array, unit: Reals, backend: Backend) -> Array:
        """The images resampled."""
        largest = [self.degrees, self.scale, self.shear, self.shift, self.shift]
        degrees, scale, shear, down, right = ((2 * unit - 1) * largest).T
        return resampled(images, degrees, 1 + scale, shear, down, right, backend)


@dataclass(frozen=True)
class Cutout(Kind):
    """Set a square to zero whose centre is any pixel; what lies outside the image is lost (DeVries, Taylor, 2017).

    Args:
        size: pixels along each side.
    """

    size: int

    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(None, int, size=self.size)

    def apply(self, images: Array, unit: Reals, backend: Backend) -> Array:
        """The images with their squares."""
        hidden = []
        for u, size in zip(unit.T, images.shape[1:3], strict=True):
            first = np.floor(u * size).astype(np.int64)[:, None] - self.size // 2
            places = np.arange(size)
            hidden.append((places >= first) & (places < first + self.size))
        square = backend.asarray((hidden[0][:, :, None] & hidden[1][:, None, :])[..., None])
        return backend.xp.where(square, backend.xp.zeros_like(images), images)


@dataclass(frozen=True, repr=False)
class Augment:
    """Kinds of augmentation, one after the other.

    Args:
        kinds: e.g. `[Affine(degrees=10, scale=0.1), Cutout(6)]`.
    """

    kinds: Sequence[Kind]

    def __post_init__(self) -> None:
        kinds = tuple(self.kinds) if isinstance(self.kinds, list | tuple) else (self.kinds,)
        for kind in kinds:
            if not isinstance(kind, Kind):
                raise TypeError(
                    f"Augment: {kind!r} is no kind of augmentation; expected a list of them, e.g. Augment([Shift(2)])"
                )
        object.__setattr__(self, "kinds", kinds)

    def __call__(self, images: Array, stream: Stream, first_sample: int, backend: Backend) -> Array:
        """The images of a batch, changed.

        Args:
            images: `(N, H, W, C)` on the backend's device.
            stream: `Stream(seed, "augment")`; each kind draws from a child of it.
            first_sample: the number of the first image since training began; the others follow.
            backend: of the images.

        Returns:
            Images of the same shape and dtype.

        Raises:
            ShapeError: other axes than these four.
        """
        if images.ndim != 4:
            raise ShapeError(
                f"augment: images have shape {tuple(images.shape)}; expected (N, H, W, C), since augmentation "
                "moves along rows and columns: leave it out for other data"
            )
        floats("augment", images=images)
        for i, kind in enumerate(self.kinds):
            if not kind.idle:
                words = stream.child(str(i)).words(first_sample * kind.draws, images.shape[0] * kind.draws)
                unit = (words >> np.uint64(11)).astype(np.float64).reshape(-1, kind.draws) * 2.0**-53
                images = kind.apply(images, unit, backend)
        return images

    def __repr__(self) -> str:
        return f"Augment([{', '.join(map(repr, self.kinds))}])"


RECIPES: dict[str, Augment] = {
    "digits": Augment([Affine(degrees=5, scale=0.05, shift=0.5)]),
    "mnist": Augment([Affine(degrees=10, scale=0.1, shear=10, shift=2)]),
    "fashion-mnist": Augment([Flip(), Shift(2), Cutout(8)]),
    "kmnist": Augment([Affine(degrees=5, scale=0.1, shift=2), Cutout(8)]),
    "cifar10": Augment([Flip(), Shift(4)]),
}
"""By the name of the data set; `recipe` also has one for others."""


def recipe(name: str) -> Augment:
    """The recipe of a data set, for one without its own a mild shift.

    Raises:
        ValueError: the name is nearly one that is known, and of no file or folder.
    """
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.75)
    if name not in RECIPES and near and not Path(name).expanduser().exists():
        raise ValueError(
            f"there is no recipe {name!r}; did you mean {near[0]!r}? For images of your own write Augment([Shift(2)])"
        )
    return RECIPES.get(name, Augment([Shift(2)]))


def resampled(
    images: Array, degrees: Reals, scale: Reals, shear: Reals, down: Reals, right: Reals, backend: Backend
) -> Array:
    """Each image turned anticlockwise, sheared, scaled about its centre and moved.

    Args:
        images: `(N, H, W, C)`.
        degrees, scale, shear, down, right: `(N,)`; angles in degrees, scale 1 for none, shifts in pixels.
        backend: of the images.
    """
    h, w = images.shape[1:3]
    turn = np.deg2rad(degrees)[:, None]
    sine, cosine, lean = np.sin(turn), np.cos(turn), np.tan(np.deg2rad(shear))[:, None]
    # Where each pixel comes from: moved back, scaled back, turned back, sheared back.
    y = (np.arange(h) - (h - 1) / 2 - down[:, None]) / scale[:, None]
    x = (np.arange(w) - (w - 1) / 2 - right[:, None]) / scale[:, None]
    row = (cosine * y)[:, :, None] + (sine * x + (h - 1) / 2)[:, None, :]
    column = ((lean * cosine - sine) * y)[:, :, None] + ((cosine + lean * sine) * x + (w - 1) / 2)[:, None, :]
    return _bilinear(images, row, column, backend)


def _bilinear(images: Array, y: Reals, x: Reals, backend: Backend) -> Array:
    """The values at rows `y` and columns `x`, `(N, H, W)`; outside the image they are zero."""
    dtype = "float32" if images.dtype == backend.xp.float32 else "float64"
    padded, total = _padded(images, 1, 2, backend), None
    (row, below), (column, beside) = (_split(at, size) for at, size in zip((y, x), images.shape[1:3], strict=True))
    for i, share in enumerate((1 - below, below)):
        for j, other in enumerate((1 - beside, beside)):
            weights = backend.asarray((share * other)[..., None], dtype)
            term = _gather(padded, row + i, column + j, backend) * weights
            total = term if total is None else total + term  # in this order on every backend
    return total


def _split(at: Reals, size: int) -> tuple[Whole, NDArray[np.float32]]:
    """The pixel before each coordinate, counted in an image padded by 1, and the share of the next one."""
    fixed = np.rint(np.clip(at, -1, size) * (1 << BITS)).astype(np.int32)
    return (fixed >> BITS) + 1, (fixed & ((1 << BITS) - 1)).astype(np.float32) * np.float32(2**-BITS)


def _padded(images: Array, before: int, after: int, backend: Backend) -> Array:
    """The images with zeros around them."""
    around = ((0, 0), (before, after), (before, after), (0, 0))
    return xpx.pad(images, around, xp=backend.xp)


def _gather(images: Array, rows: Whole, columns: Whole, backend: Backend) -> Array:
    """The pixel of each image at these rows and columns, `(N, H, W)` together."""
    n, h, w, c = images.shape
    places = (np.arange(n)[:, None, None] * h + rows) * w + columns
    pixels = backend.xp.reshape(images, (n * h * w, c))
    taken = backend.xp.take(pixels, backend.asarray(places.reshape(-1)), axis=0)
    return backend.xp.reshape(taken, (*places.shape, c))
