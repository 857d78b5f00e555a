"""The dense layer in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import linear as standard
from xpnn.ops import unkept
from xpnn_numpy.kernels._products import multiply, multiply_across
from xpnn_numpy.kernels._rows import Host, empty

if TYPE_CHECKING:
    from xpnn.ops import Ops


def dense(
    ops: Ops, x: Host, weight: Host, bias: Host | None = None
) -> tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]:
    """See `xpnn.ops.dense`."""
    standard.check(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x
    one = len(rows) == 1  # for which BLAS is quicker than a stack of matrices or a broadcast
    y = np.dot(rows, weight.T) if one else multiply(rows, weight.T, empty((len(rows), len(weight)), x))
    shape = y.shape
    if bias is not None:
        np.add(y, bias, out=y)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        d = dy.reshape(shape)
        dx = None
        if input_gradient:
            dx = (np.dot(d, weight) if one else multiply(d, weight, empty(rows.shape, x))).reshape(x.shape)
        dbias = None if bias is None else d[0].copy() if one else ops.total(d, 0)
        return dx, np.dot(d.T, rows) if one else multiply_across(d, rows), dbias

    return y.reshape(*x.shape[:-1], len(weight)), backward if ops.backward else unkept
