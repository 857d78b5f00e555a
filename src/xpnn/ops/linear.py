"""The dense (fully connected) layer: one matrix product."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from xpnn.errors import ShapeError
from xpnn.ops._array import Array, channels, floats, shape_of, vectors

if TYPE_CHECKING:
    from xpnn.ops import Ops


def dense(
    ops: Ops, x: Array, weight: Array, bias: Array | None = None
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None]]]:
    """`y = x @ weightᵀ + bias` over the last axis.

    Args:
        x: `(N, ..., in)`.
        weight: `(out, in)`.
        bias: `(out,)` or None.

    Returns:
        `y (N, ..., out)` and `backward(dy, *, input_gradient=True) → dx, dweight, dbias`.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
    """
    xp = check(x, weight, bias)
    n = prod(x.shape[:-1])
    rows = xp.reshape(x, (n, weight.shape[1]))
    y = ops.matmul(rows, xp.matrix_transpose(weight))
    if bias is not None:
        y = y + bias

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array | None]:
        d = xp.reshape(dy, (n, weight.shape[0]))
        dx = xp.reshape(ops.matmul(d, weight), x.shape) if input_gradient else None
        dbias = None if bias is None else ops.total(d, 0)
        return dx, ops.matmul(xp.matrix_transpose(d), rows), dbias

    return xp.reshape(y, (*x.shape[:-1], weight.shape[0])), backward


def check(x: Array, weight: Array, bias: Array | None) -> Any:
    """The namespace of these arrays, once they are checked."""
    xp = floats("dense", x=x, weight=weight, bias=bias)
    if weight.ndim != 2 or x.ndim < 1:
        raise ShapeError(
            f"dense: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; expected (N, ..., in) and (out, in)"
        )
    channels("dense", x.shape, weight.shape[1], "the weights")
    vectors("dense", weight.shape[0], bias=shape_of(bias))
    return xp
