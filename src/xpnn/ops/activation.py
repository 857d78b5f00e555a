"""Activations: one function of each element, and softmax over the last axis; sums of two arrays.

Each activation returns `y`, shaped like `x`, and `backward(dy) → (dx,)`. Those whose slope follows from the output
remember the output, which the next layer holds anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import TYPE_CHECKING

from xpnn.errors import ShapeError
from xpnn.ops._array import Array, floats, namespace
from xpnn.ops._erf import normal_cdf

if TYPE_CHECKING:
    from xpnn.ops import Ops

Result = tuple[Array, Callable[..., tuple[Array | None]]]


def relu(ops: Ops, x: Array) -> Result:
    """`max(x, 0)`; the slope at 0 is 0."""
    xp = floats("relu", x=x)
    y = xp.maximum(x, 0.0)
    return y, _elementwise(lambda dy: dy * xp.astype(y > 0, dy.dtype))  # `where` takes ten times as long on NumPy


def add(ops: Ops, a: Array, b: Array, *, relu: bool = False) -> tuple[Array, Callable[..., tuple[Array | None, Array]]]:
    """`a + b`, which have one shape, and ReLU after it where `relu`: the end of a residual block.

    Returns:
        `y` and `backward(dy, *, input_gradient=True) → da, db`.

    Raises:
        ShapeError: shapes or dtypes that differ.
    """
    check_add(a, b)
    y, through = ops.relu(a + b) if relu else (a + b, None)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array]:
        d = dy if through is None else through(dy)[0]
        return (d if input_gradient else None), d

    return y, backward


def check_add(a: Array, b: Array) -> None:
    """Check that these arrays can be added without a broadcast."""
    floats("add", a=a, b=b)
    if tuple(a.shape) != tuple(b.shape):
        raise ShapeError(f"add: a has shape {tuple(a.shape)}, but b {tuple(b.shape)}; expected the same")


def leaky_relu(ops: Ops, x: Array, *, slope: float = 0.01) -> Result:
    """`x` where it is positive, `slope·x` elsewhere (Maas, Hannun, Ng, 2013)."""
    xp = floats("leaky_relu", x=x)
    positive = x > 0
    return xp.where(positive, x, slope * x), _elementwise(lambda dy: xp.where(positive, dy, slope * dy))


def elu(ops: Ops, x: Array, *, alpha: float = 1.0) -> Result:
    """`x` where it is positive, `alpha·(exp(x) - 1)` elsewhere (Clevert, Unterthiner, Hochreiter, 2016)."""
    xp = floats("elu", x=x)
    positive = x > 0
    y = xp.where(positive, x, alpha * xp.expm1(xp.where(positive, 0.0, x)))
    return y, _elementwise(lambda dy: xp.where(positive, dy, dy * (y + alpha)))


def gelu(ops: Ops, x: Array, *, approximate: str = "none") -> Result:
    """`x·Φ(x)`, Φ the normal distribution function (Hendrycks, Gimpel, 2016).

    `approximate="tanh"` takes `Φ(x) ≈ (1 + tanh(√(2/π)·(x + 0.044715·x³)))/2` instead.
    """
    xp = floats("gelu", x=x)
    if approximate == "none":
        cdf = normal_cdf(xp, x)
        slope = cdf + x * xp.exp(-0.5 * x * x) / sqrt(2 * pi)
    elif approximate == "tanh":
        c, k = sqrt(2 / pi), 0.044715
        cdf = _sigmoid(xp, 2 * c * (x + k * x * x * x))  # (1 + tanh(z))/2 = sigmoid(2·z), without its cancellation
        slope = cdf + x * cdf * (1 - cdf) * 2 * c * (1 + 3 * k * x * x)
    else:
        raise ShapeError(f"gelu: approximate={approximate!r}; expected 'none' or 'tanh'")
    return x * cdf, _elementwise(lambda dy: dy * slope)


def sigmoid(ops: Ops, x: Array) -> Result:
    """`1/(1 + exp(-x))`."""
    y = _sigmoid(floats("sigmoid", x=x), x)
    return y, _elementwise(lambda dy: dy * y * (1 - y))


def silu(ops: Ops, x: Array) -> Result:
    """`x·sigmoid(x)`, also called swish (Elfwing, Uchibe, Doya, 2018)."""
    s = _sigmoid(floats("silu", x=x), x)
    return x * s, _elementwise(lambda dy: dy * s * (1 + x * (1 - s)))


def tanh(ops: Ops, x: Array) -> Result:
    """The hyperbolic tangent."""
    y = floats("tanh", x=x).tanh(x)
    return y, _elementwise(lambda dy: dy * (1 - y * y))


def softmax(ops: Ops, x: Array) -> Result:
    """`exp(x)/Σ exp(x)` over the last axis, shifted by the maximum so that nothing overflows."""
    xp = floats("softmax", x=x)
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    y = e / ops.total(e, -1, keepdims=True)
    return y, _elementwise(lambda dy: y * (dy - ops.total(dy * y, -1, keepdims=True)))


def log_softmax(ops: Ops, x: Array) -> Result:
    """The logarithm of softmax over the last axis, without a detour over numbers that underflow."""
    xp = floats("log_softmax", x=x)
    shifted = x - xp.max(x, axis=-1, keepdims=True)
    y = shifted - xp.log(ops.total(xp.exp(shifted), -1, keepdims=True))
    return y, _elementwise(lambda dy: dy - xp.exp(y) * ops.total(dy, -1, keepdims=True))


def dropout(ops: Ops, x: Array, keep: Array, *, rate: float) -> tuple[Array, Callable[..., tuple[Array | None, None]]]:
    """`x/(1 - rate)` where `keep` (bool, shaped like `x`) is true, 0 elsewhere (Srivastava et al., 2014).

    The mask is drawn on the host and handed in, so that every backend drops the same values.
    `backward(dy) → dx, None`.
    """
    xp = floats("dropout", x=x)
    namespace("dropout", x=x, keep=keep)
    if tuple(keep.shape) != tuple(x.shape) or not xp.isdtype(keep.dtype, "bool"):
        raise ShapeError(
            f"dropout: keep has shape {tuple(keep.shape)} and dtype {keep.dtype}; expected bool of the shape of x, "
            f"{tuple(x.shape)}"
        )
    factor = xp.astype(keep, x.dtype) * (1 / (1 - rate))

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, None]:
        return (dy * factor if input_gradient else None), None

    return x * factor, backward


def _sigmoid(xp: object, x: Array) -> Array:
    e = xp.exp(-xp.abs(x))  # type: ignore[attr-defined]  # never overflows
    return xp.where(x >= 0, 1.0, e) / (1 + e)  # type: ignore[attr-defined]


def _elementwise(slope: Callable[[Array], Array]) -> Callable[..., tuple[Array | None]]:
    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None]:
        return (slope(dy) if input_gradient else None,)

    return backward
