"""The normalisation of pixels by fixed numbers, as the first layer of a model."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, ClassVar

import array_api_extra as xpx
import numpy as np

from xpnn.errors import ShapeError
from xpnn.layers.base import Applied, Arrays, Layer, Run, Shape
from xpnn.ops._array import Array, channels, device, floats

CHUNK = 1 << 22
"""Values that `Normalize.of` reads at a time, in whole images."""


@dataclass(frozen=True, repr=False)
class Normalize(Layer):
    """`(x - mean) / std`, with numbers that are part of the description: files and predictions carry them.

    Args:
        mean, std: one number, or one for each channel.
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("mean", self.mean), ("std", self.std)):
            entries = value if isinstance(value, tuple) else (value,)
            numbers = entries and all(isinstance(v, int | float) and not isinstance(v, bool) for v in entries)
            if not numbers or not all(isfinite(v) and (name == "mean" or v > 0) for v in entries):
                kind = "finite numbers" if name == "mean" else "numbers > 0"
                raise ShapeError(f"Normalize: {name}={value!r}; expected {kind}: one, or one for each channel")
        if len({len(v) for v in (self.mean, self.std) if isinstance(v, tuple)}) > 1:
            raise ShapeError(f"{self!r}: mean and std are for different numbers of channels")

    @classmethod
    def of(cls, images: Any) -> Normalize:
        """With mean and standard deviation of these images, to six digits; a channel that never changes keeps its size.

        Args:
            images: `(N, ..., C)`; anything with a shape whose slices along the first axis are arrays.

        Raises:
            ShapeError: there are no images, or their values are not finite.
        """
        c, few = images.shape[-1], max(CHUNK // max(prod(images.shape[1:]), 1), 1)
        count, mean, squares = 0, np.zeros(c), np.zeros(c)
        with np.errstate(all="ignore"):  # what is not finite is told below
            for start in range(0, images.shape[0], few):
                rows = np.asarray(images[start : start + few], np.float64).reshape(-1, c)
                here = rows.mean(axis=0)
                apart, total = here - mean, count + len(rows)  # joined as by Chan, Golub, LeVeque (1983)
                squares += ((rows - here) ** 2).sum(axis=0) + apart**2 * (count * len(rows) / total)
                mean, count = mean + apart * (len(rows) / total), total
        if not count or not np.isfinite(squares).all():
            what = "hold values that are not finite: clean them first" if count else "are none"
            raise ShapeError(f"Normalize.of: the images of shape {tuple(images.shape)} {what}")
        std = np.sqrt(squares / count)
        std[std <= 1e-6 * np.abs(mean)] = 1.0  # what is left is rounding
        means, stds = (tuple(float(f"{v:.6g}") for v in values) for values in (mean, std))
        return cls(means[0], stds[0]) if c == 1 else cls(means, stds)

    def shape(self, in_shape: Shape) -> Shape:
        """That of the input, whose channels are as many as the numbers."""
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and in_shape[-1:] != (len(value),):
                raise ShapeError(f"{name} has {len(value)} numbers, came samples of shape {in_shape}, channels last")
        return in_shape

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """In the dtype of `x`."""
        xp = floats("normalize", x=x)

        def constant(value: float | tuple[float, ...]) -> Any:
            if not isinstance(value, tuple):
                return value
            channels("normalize", x.shape, len(value), "this layer")
            values = xp.full((len(value),), value[0], dtype=x.dtype, device=device(x))
            for i, v in enumerate(value[1:], start=1):  # a copy from the host could not be recorded as a part of a step
                values = xpx.at(values)[i].set(v)
            return values

        mean, std = constant(self.mean), constant(self.std)

        def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
            return (dy / std if input_gradient else None), {}

        return (x - mean) / std, {}, backward
