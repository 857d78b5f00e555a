"""The dense layer, and the layers that only change the shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, ClassVar

import numpy as np

from xpnn.errors import ShapeError
from xpnn.layers import initializers
from xpnn.layers.base import Applied, Arrays, Layer, Run, Shape, positive
from xpnn.layers.conv import weighted
from xpnn.ops._array import Array, namespace
from xpnn.random import Stream


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """`y = x @ weightᵀ + bias` over the last axis: `(N, ..., in) → (N, ..., units)`.

    Weights: `weight (units, in)` and, with `bias`, `bias (units,)`.

    Args:
        units: number of outputs.
        bias: whether to add one.
        initializer: of the weights, a name of `xpnn.layers.initializers`, e.g. `"glorot_uniform"`.
    """

    units: int
    bias: bool = True
    initializer: str = "he_uniform"

    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, units=self.units)
        initializers.check(self.initializer)

    def shape(self, in_shape: Shape) -> Shape:
        """`(..., in) → (..., units)`."""
        if not in_shape:
            raise ShapeError("expected samples of shape (..., in), came single numbers; add an axis: x[:, None]")
        return (*in_shape[:-1], self.units)

    def multiply_adds(self, in_shape: Shape) -> int:
        """One for each input of each unit."""
        return prod(in_shape) * self.units

    def init(self, in_shape: Shape, stream: Stream) -> tuple[dict[str, Any], dict[str, Any]]:
        """Weights by the initialiser, a bias of zeros."""
        shape = (self.units, in_shape[-1])
        weight = initializers.draw(self.initializer, stream.child("weight"), shape, in_shape[-1], self.units)
        return {"weight": weight} | ({"bias": np.zeros(self.units)} if self.bias else {}), {}

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.dense`."""
        y, op_backward = run.ops.dense(x, weights["weight"], weights.get("bias"))
        return y, {}, weighted(op_backward)


@dataclass(frozen=True, repr=False)
class Reshape(Layer):
    """Give each sample another shape, its values in row-major order: `(N, ...) → (N, *target)`.

    Args:
        target: the new shape, without N; one entry may be -1 and is worked out.
    """

    target: tuple[int, ...]

    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.target, tuple) or not all(isinstance(n, int) for n in self.target):
            raise ShapeError(f"Reshape: target={self.target!r}; expected a tuple of sizes, e.g. (7, 7, 16)")

    def shape(self, in_shape: Shape) -> Shape:
        """`(...) → target`."""
        return _filled(self.target, in_shape)

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """A view where the backend can make one."""
        xp, in_shape = namespace("reshape", x=x), tuple(x.shape)
        y = xp.reshape(x, (in_shape[0], *self.shape(in_shape[1:])))

        def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
            return (xp.reshape(dy, in_shape) if input_gradient else None), {}

        return y, {}, backward


@lru_cache(maxsize=4096)
def _filled(target: Shape, in_shape: Shape) -> Shape:
    """The target without its -1."""
    size, known = prod(in_shape), prod(n for n in target if n != -1)
    whole = tuple(size // max(known, 1) if n == -1 else n for n in target)
    if target.count(-1) > 1 or any(n < 1 for n in whole) or prod(whole) != size:
        raise ShapeError(f"samples of shape {in_shape} hold {size} values, which do not fill {target}")
    return whole


@dataclass(frozen=True, repr=False)
class Flatten(Reshape):
    """All values of a sample in one row: `(N, *spatial, C) → (N, H·W·C)`, channels fastest."""

    target: tuple[int, ...] = field(default=(-1,), init=False)
