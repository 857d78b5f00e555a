"""The dense layer, its products in panels that threads share.

BLAS is quick for them too, but has threads of its own, which would leave no work for helpers, and other bits for each
number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import linear as standard
from xpnn_numpy.fast._compiled import Host, compiled, fitting, plain, takes
from xpnn_numpy.fast._product import BYTES, MOST, TILES, multiply, pack, slack
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.kernels import linear as numpys

if TYPE_CHECKING:
    from xpnn.ops import Ops

LEAST, LEAST_SIZE = 1 << 19, 16
"""Multiply-adds of a product, and rows and outputs, from which on it is shared: BLAS alone is as quick for less."""
BLOCK = 2048
"""Terms at a time, whose panel stays in the second-level cache."""


def dense(
    ops: Ops, x: Host, weight: Host, bias: Host | None = None
) -> tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]:
    """See `xpnn.ops.dense`."""
    if not _large(x, weight):
        return numpys.dense(ops, x, weight, bias)
    standard.check(x, weight, bias)
    rows, matrix, none = plain(x.reshape(-1, x.shape[-1])), plain(weight), np.empty(0, x.dtype)
    y = np.empty((len(rows), len(matrix)), x.dtype)
    _multiply(rows, rows.shape[1], 1, matrix.T, none if bias is None else plain(bias), y)
    shape, in_shape = y.shape, x.shape

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        d = fitting("dense", dy, (*in_shape[:-1], shape[1]), rows.dtype).reshape(shape)
        dx, dweight = None, np.empty_like(matrix)
        if input_gradient:
            dx = np.empty(in_shape, rows.dtype)
            _multiply(d, d.shape[1], 1, matrix, none, dx.reshape(rows.shape))
        _multiply(d, 1, d.shape[1], rows, none, dweight)
        return dx, dweight, None if bias is None else ops.total(d, 0)

    return y.reshape(*x.shape[:-1], len(weight)), backward


def _large(x: Host, weight: Host) -> bool:
    """Whether this is a product that is worth sharing, of arrays that are not checked yet."""
    if not (isinstance(x, np.ndarray) and isinstance(weight, np.ndarray) and takes(x) and x.ndim > 1 < weight.ndim):
        return False
    samples, outputs = x.size // max(x.shape[-1], 1), len(weight)
    return x.size * outputs >= LEAST and min(samples, outputs) >= LEAST_SIZE


@compiled
def _multiply(a: Host, down: int, right: int, b: Host, bias: Host, y: Host) -> None:
    """Set `y` to the product of `a`, whose values lie so far apart, and `b`, and add the bias to each row."""
    panels = -(-y.shape[1] // (2 * BYTES // y.itemsize))
    parts = min(cut(len(y) * y.shape[1], len(b)), panels)
    share(_multiply_part, (parts, panels, a.reshape(-1), down, right, b, bias, y), parts)


@compiled
def _multiply_part(
    part: int, parts: int, panels: int, a: Host, down: int, right: int, b: Host, bias: Host, y: Host
) -> None:
    """Some panels of columns."""
    (m, n), width, (begin, end) = y.shape, 2 * BYTES // y.itemsize, stretch(panels, part, parts)
    terms = min(len(b), BLOCK)
    rows, cols, panel = np.empty(TILES + MOST, np.int64), np.arange(terms) * right, np.zeros(terms * width, y.dtype)
    out = np.empty(TILES * width + slack(width), y.dtype)
    for first in range(begin * width, min(end * width, n), width):
        many = min(width, n - first)
        columns = np.uint64(many)
        for term in range(0, len(b), BLOCK):
            taken = min(BLOCK, len(b) - term)
            pack(b[term : term + taken], first, width, panel)
            for top in range(0, m, TILES):
                count = min(TILES, m - top)
                for i in range(len(rows)):
                    rows[i] = (top + min(i, count - 1)) * down + term * right
                multiply(a, rows, count, cols[:taken], panel, many, out)
                for i in range(count):
                    line, product = y[top + i, first:], out[i * many :]
                    if term:
                        for v in range(columns):
                            line[v] += product[v]
                    else:
                        for v in range(columns):
                            line[v] = product[v]
                    if len(bias) and term + taken == len(b):
                        for v in range(columns):
                            line[v] += bias[first + v]
