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
from xpnn_numpy.fast._product import (
    ACROSS,
    BYTES,
    DOWN,
    MOST,
    NARROW,
    TERMS,
    TILES,
    WIDE,
    dots,
    multiply,
    multiply_tile,
    pack,
    slack,
    tiled,
)
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.kernels import linear as numpys

if TYPE_CHECKING:
    from xpnn.ops import Ops

LEAST, LEAST_SAMPLES, LEAST_OUTPUTS = 1 << 19, 16, 5
"""Multiply-adds of a product, and samples and outputs, from which on it is shared: BLAS alone is as quick for less."""
FEW = 16
"""Outputs below which a panel of them is half empty: each is a sum along a row of inputs and one of weights then."""
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
    y, shift = np.empty((len(rows), len(matrix)), x.dtype), none if bias is None else plain(bias)
    few, shape, in_shape = len(matrix) < FEW, y.shape, x.shape
    if few:
        _along(rows, matrix, shift, y)
    else:
        _multiply(rows, rows.shape[1], 1, matrix.T, shift, y)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        d = fitting("dense", dy, (*in_shape[:-1], shape[1]), rows.dtype).reshape(shape)

        def product(down: int, right: int, b: Host) -> Host:
            y = np.empty((d.size // b.shape[0], b.shape[1]), rows.dtype)
            if few:
                _multiply_few(d, down, right, b, y)
            else:
                _multiply(d, down, right, b, none, y)
            return y

        dx = product(d.shape[1], 1, matrix).reshape(in_shape) if input_gradient else None
        return dx, product(1, d.shape[1], rows), None if bias is None else ops.total(d, 0)

    return y.reshape(*x.shape[:-1], len(weight)), backward


def _large(x: Host, weight: Host) -> bool:
    """Whether this is a product that is worth sharing, of arrays that are not checked yet."""
    if not (isinstance(x, np.ndarray) and isinstance(weight, np.ndarray) and takes(x) and x.ndim > 1 < weight.ndim):
        return False
    samples, outputs = x.size // max(x.shape[-1], 1), len(weight)
    return x.size * outputs >= LEAST and samples >= LEAST_SAMPLES and outputs >= LEAST_OUTPUTS


@compiled
def _along(x: Host, weight: Host, bias: Host, y: Host) -> None:
    """Set `y` to the products of rows of `x` and of `weight`, and add the bias to each row."""
    parts = cut(len(y), weight.size)
    share(_along_part, (parts, x, weight, bias, y), parts)


@compiled
def _along_part(part: int, parts: int, x: Host, weight: Host, bias: Host, y: Host) -> None:
    """Some rows."""
    (outputs, terms), lanes, (begin, end) = weight.shape, BYTES // x.itemsize, stretch(len(y), part, parts)
    whole, a, b = terms // lanes, x.reshape(-1), weight.reshape(-1)
    sums, rows = np.empty(DOWN * ACROSS * lanes, y.dtype), np.empty(DOWN, np.int64)
    others = np.minimum(np.arange(tiled(outputs, ACROSS)), outputs - 1) * terms
    for top in range(begin, end, DOWN):
        for i in range(DOWN):
            rows[i] = min(top + i, end - 1) * terms
        for left in range(0, outputs, ACROSS):
            for k in range(len(sums)):
                sums[k] = 0
            for first in range(0, whole, TERMS):  # the sum of so many starts anew
                k = first * lanes
                dots(a[k:], rows, b[k:], others[left:], min(TERMS, whole - first), sums, 0)
            for i in range(min(DOWN, end - top)):
                for j in range(min(ACROSS, outputs - left)):
                    total, one = y.dtype.type(0), sums[(i * ACROSS + j) * lanes :]
                    for k in range(lanes):
                        total += one[k]
                    for k in range(whole * lanes, terms):
                        total += a[rows[i] + k] * b[others[left + j] + k]
                    y[top + i, left + j] = total + bias[left + j] if len(bias) else total


@compiled
def _multiply_few(a: Host, down: int, right: int, b: Host, y: Host) -> None:
    """As `_multiply`, of few terms or to few rows, for which `b` is read as it lies."""
    panels = -(-y.shape[1] // (2 * BYTES // y.itemsize))
    parts = min(cut(len(y) * y.shape[1], len(b)), panels)
    share(_multiply_few_part, (parts, panels, a.reshape(-1), down, right, b, y), parts)


@compiled
def _multiply_few_part(part: int, parts: int, panels: int, a: Host, down: int, right: int, b: Host, y: Host) -> None:
    """Some panels of columns; the rest of a row, and of rows, is made elsewhere and copied."""
    (m, n), width, (begin, end) = y.shape, 2 * BYTES // y.itemsize, stretch(panels, part, parts)
    tall, flat, of_y, rows = WIDE < m <= NARROW, b.reshape(-1), y.reshape(-1), np.empty(m + MOST, np.int64)
    many, cols, out = NARROW if tall else WIDE, np.arange(len(b)) * right, np.empty(MOST * width, y.dtype)
    panel = np.empty(len(b) * width if n % width else 0, y.dtype)
    for i in range(len(rows)):
        rows[i] = min(i, m - 1) * down
    for first in range(begin * width, min(end * width, n), width):
        columns = min(width, n - first)
        if columns < width:
            pack(b, first, width, panel)
        for top in range(0, m, many):
            if columns < width:
                multiply_tile(a, rows[top:], tall, cols, panel, width, out, width)
            elif top + many > m:
                multiply_tile(a, rows[top:], tall, cols, flat[first:], n, out, width)
            else:
                multiply_tile(a, rows[top:], tall, cols, flat[first:], n, of_y[top * n + first :], n)
                continue
            for i in range(min(many, m - top)):
                for k in range(columns):
                    y[top + i, first + k] = out[i * width + k]


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
