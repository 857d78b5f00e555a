"""Activation layers and dropout; the maths is in `xpnn.ops.activation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from xpnn.errors import ShapeError
from xpnn.layers.base import Applied, Arrays, Draw, Layer, Run, Shape, number, own_name
from xpnn.layers.pool import unweighted
from xpnn.ops._array import Array


@dataclass(frozen=True, repr=False)
class Activation(Layer):
    """A function of each element (or of the last axis): calls the op of that name with the layer's options."""

    op: ClassVar[str]
    per_sample: ClassVar[bool] = True

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See the op of that name in `xpnn.ops`."""
        y, op_backward = getattr(run.ops, self.op)(x, **vars(self))
        return y, {}, unweighted(op_backward)


@own_name
class ReLU(Activation):
    """`max(x, 0)`."""

    op = "relu"


@dataclass(frozen=True, repr=False)
class LeakyReLU(Activation):
    """`x` where it is positive, `slope·x` elsewhere."""

    slope: float = 0.01
    op: ClassVar[str] = "leaky_relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, least=-inf, slope=self.slope)


@dataclass(frozen=True, repr=False)
class ELU(Activation):
    """`x` where it is positive, `alpha·(exp(x) - 1)` elsewhere."""

    alpha: float = 1.0
    op: ClassVar[str] = "elu"

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, least=-inf, alpha=self.alpha)


@dataclass(frozen=True, repr=False)
class GELU(Activation):
    """`x·Φ(x)`; `approximate="tanh"` for the usual approximation of Φ."""

    approximate: str = "none"
    op: ClassVar[str] = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.approximate not in ("none", "tanh"):
            raise ShapeError(f"GELU: approximate={self.approximate!r}; expected 'none' or 'tanh'")


@own_name
class SiLU(Activation):
    """`x·sigmoid(x)`."""

    op = "silu"


@own_name
class Sigmoid(Activation):
    """`1/(1 + exp(-x))`."""

    op = "sigmoid"


@own_name
class Tanh(Activation):
    """The hyperbolic tangent."""

    op = "tanh"


@own_name
class Softmax(Activation):
    """`exp(x)/Σ exp(x)` over the last axis. Leave it out before the loss `cross_entropy`, which contains it."""

    op = "softmax"


@own_name
class LogSoftmax(Activation):
    """The logarithm of softmax over the last axis; goes with the loss `nll`."""

    op = "log_softmax"


@dataclass(frozen=True, repr=False)
class Dropout(Layer):
    """In training drop each value with probability `rate` and scale the others by `1/(1 - rate)`.

    Args:
        rate: 0 ≤ rate < 1.
    """

    rate: float

    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rate, int | float) or not 0 <= self.rate < 1:
            raise ShapeError(f"Dropout: rate={self.rate!r}; expected the probability to drop a value, 0 ≤ rate < 1")

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def draws(self, in_shape: Shape) -> Sequence[Draw]:
        """One mask of what is kept."""
        return (Draw("keep", in_shape, 1 - self.rate),) if self.rate else ()

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.dropout`; the identity where this is not training."""
        if not run.training or not self.rate:
            return x, {}, lambda dy, *, input_gradient=True: (dy if input_gradient else None, {})
        if "keep" not in run.draws:
            raise ShapeError("training needs this layer's mask: hand in what draws() asks for, Run(ops, True, draws)")
        y, op_backward = run.ops.dropout(x, run.draws["keep"], rate=self.rate)
        return y, {}, unweighted(op_backward)
