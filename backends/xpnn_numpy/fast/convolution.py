"""Convolution, with or without a max-pool behind it, in one compiled call forward and one backward.

Columns are gathered block by block into a buffer that stays in the cache, and what follows the product (maximum, bias,
ReLU) is done while a block is hot. Of the pool only the place of each maximum is remembered. So only one response of a
window has a gradient at all, often (with ReLU) none: with many columns each of these is followed by itself, in runs of
a kernel's row, which is a fraction of the products' work; with few, products are quicker all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import convolution as standard
from xpnn.ops import joined
from xpnn.ops._window import Padding, Sizes, Window
from xpnn_numpy.fast._columns import POOL, corner, gather, gather_taps_first, grid, reach, scatter
from xpnn_numpy.fast._compiled import Host, compiled, plain, takes
from xpnn_numpy.fast._product import blas, multiply
from xpnn_numpy.kernels import convolution as numpys
from xpnn_numpy.kernels import joined as numpys_joined

if TYPE_CHECKING:
    from xpnn.ops import Ops

Result = tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]
BLOCK_BYTES = 1 << 19
"""Of a block of columns and its responses: what stays in the second-level cache."""
FEW = 16
"""Values in a row of a kernel below which columns are gathered taps first."""
LOSER = 255
"""In place of a maximum that ReLU has cut off."""
FOLLOWED = 48
"""Columns from which on each maximum is followed by itself."""


def conv(
    ops: Ops,
    x: Host,
    weight: Host,
    bias: Host | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    groups: int = 1,
) -> Result:
    """See `xpnn.ops.conv`; with groups, or more than three spatial axes, it is NumPy's."""
    if groups != 1 or not takes(x):
        return numpys.conv(ops, x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    _, w = standard.geometry("conv", x, weight, bias, stride, padding, dilation)
    return _convolved(ops, x, weight, bias, w, (), False)


def conv_pool(
    ops: Ops,
    x: Host,
    weight: Host,
    bias: Host | None = None,
    *,
    pool: Sizes,
    relu: bool = False,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> Result:
    """See `xpnn.ops.conv_pool`; with more than three spatial axes, or huge windows, it is NumPy's."""
    _, w = standard.geometry("conv_pool", x, weight, bias, stride, padding, dilation)
    size = joined.pooled(w, pool).size
    if not takes(x) or prod(size) >= LOSER:
        return numpys_joined.conv_pool(
            ops, x, weight, bias, pool=pool, relu=relu, stride=stride, padding=padding, dilation=dilation
        )
    return _convolved(ops, x, weight, bias, w, size, relu)


def _convolved(
    ops: Ops, x: Host, weight: Host, bias: Host | None, w: Window, pool: tuple[int, ...], relu: bool
) -> Result:
    c_out, c, windows = len(weight), x.shape[-1], pool or (1,) * len(w.out)
    g, image = grid(w, windows), plain(numpys.pad(plain(x), w.pads))
    matrix = plain(weight.reshape(c_out, -1))
    offset = np.zeros(0, x.dtype) if bias is None else np.tile(bias, max(1, 256 // c_out))
    y = np.empty((len(x), *(m // p for m, p in zip(w.out, windows, strict=True)), c_out), x.dtype)
    place = np.empty((y.size // c_out if pool else 0, c_out), np.uint8)
    most = min(ops.column_bytes, BLOCK_BYTES) // x.itemsize  # values in a block of columns and responses
    block = min(max(1, most // (prod(windows) * (matrix.shape[1] + c_out))), max(y.size // c_out, 1))
    few = w.size[-1] * c < FEW and matrix.shape[1] < 8 * c_out  # what is kept is not much beside the responses
    keep = np.empty(y.size // c_out * prod(windows) * matrix.shape[1] if few else 0, x.dtype)
    turned = np.ascontiguousarray(matrix.T)
    _forward(blas(x.dtype), image.reshape(-1), g, c, turned, offset, relu, block, y.reshape(-1, c_out), place, keep)

    follow = bool(pool) and matrix.shape[1] >= FOLLOWED
    by_dy = not pool and numpys.suits(w, weight, prod(w.out))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        dy, dbias = plain(dy), np.zeros(c_out)
        if by_dy:
            dx, dweight = _of_dy(plain(numpys.pad(dy, numpys.full(w))), w, weight, plain(x), input_gradient, most)
            if bias is not None:
                _add_up(dy.reshape(-1, c_out), place, dbias)
        else:
            dimage = np.zeros(image.shape if input_gradient else 0, x.dtype)
            arrays = matrix, place, dy.reshape(-1, c_out), dimage.reshape(-1)
            if follow:
                dmatrix = np.zeros_like(matrix)
                _follow(image.reshape(-1), g, c, block, *arrays, dmatrix, dbias)
            else:
                dturned = np.zeros_like(turned)
                _backward(blas(x.dtype), image.reshape(-1), g, c, keep, block, *arrays, dturned, dbias)
                dmatrix = dturned.T
            dx, dweight = dimage[numpys.inner(w)] if input_gradient else None, dmatrix.reshape(weight.shape)
        return dx, dweight, None if bias is None else dbias.astype(x.dtype)

    return y, backward


def _of_dy(dimage: Host, w: Window, weight: Host, x: Host, input_gradient: bool, most: int) -> tuple[Host | None, Host]:
    """The gradients of a convolution with stride 1 as products of one set of columns, those of `dy`, padded."""
    c_out, *kernel, c = weight.shape
    axes, ones = tuple(range(1, 1 + len(kernel))), (1,) * len(kernel)
    g = grid(Window(dimage.shape[1:-1], w.size, ones, w.dilation, ((0, 0),) * len(kernel), w.n), ones)
    turned = np.ascontiguousarray(np.moveaxis(np.flip(weight, axes), 0, -2)).reshape(-1, c)
    dx, dturned = np.empty(x.shape if input_gradient else (0, c), x.dtype), np.zeros_like(turned)
    block = min(max(1, most // (len(turned) + c)), max(x.size // c, 1))
    _by_dy(blas(x.dtype), dimage.reshape(-1), g, c_out, block, turned, x.reshape(-1, c), dx.reshape(-1, c), dturned)
    dweight = np.flip(np.moveaxis(dturned.reshape(*kernel, c_out, c), -2, 0), axes)
    return dx if input_gradient else None, dweight


@compiled
def _by_dy(blas: int, d: Host, g: Host, c_out: int, block: int, turned: Host, x: Host, dx: Host, dturned: Host) -> None:
    size = len(turned)
    gathered = np.empty(block * size, x.dtype)
    for first in range(0, len(x), block):
        last = min(first + block, len(x))
        rows = gathered[: (last - first) * size].reshape(last - first, size)
        gather(d, g, c_out, first, last, gathered)
        if len(dx):
            multiply(blas, False, rows, turned, 0, dx[first:last])
        multiply(blas, True, rows, x[first:last], 1, dturned)


@compiled
def _forward(
    blas: int, x: Host, g: Host, c: int, turned: Host, bias: Host, relu: bool, block: int,
    y: Host, place: Host, keep: Host,
) -> None:  # fmt: skip
    """Fill `y` and the places of its maxima, `block` windows at a time; where `keep` has a size, the columns too."""
    phases, pooled, (size, c_out) = g[POOL, 0] * g[POOL, 1] * g[POOL, 2], len(place) > 0, turned.shape
    gathered = np.empty(0 if len(keep) else block * phases * size, y.dtype)
    buffer = np.empty((block * phases if pooled else 0, c_out), y.dtype)
    for first in range(0, len(y), block):
        last = min(first + block, len(y))
        rows = (last - first) * phases
        out = buffer[:rows] if pooled else y[first:last]
        if len(keep):
            part = keep[first * phases * size : last * phases * size]
            gather_taps_first(x, g, c, first, last, part)
            multiply(blas, True, part.reshape(size, rows), turned, 0, out)
        else:
            gather(x, g, c, first, last, gathered)
            multiply(blas, False, gathered[: rows * size].reshape(rows, size), turned, 0, out)
        if pooled:
            _win(buffer, y[first:last], place[first:last], phases)
        if len(bias):
            _offset(y[first:last].reshape(-1), bias)
        if relu:
            _rectify(y[first:last].reshape(-1), place[first:last].reshape(-1))


@compiled
def _win(responses: Host, y: Host, place: Host, phases: int) -> None:
    """The maximum of each window, and which phase it is; the first of equals, and NaN if there is one."""
    best, won, r = y.reshape(-1), place.reshape(-1), responses.reshape(-1)
    n, u8 = np.uint64(len(best)), np.uint8
    done = 4 if phases >= 4 else 1
    if done == 4:  # in one pass, which the compiler turns into vector code
        r1, r2, r3 = n, n + n, n + n + n
        for k in range(n):
            a, b, c, d = r[k], r[r1 + k], r[r2 + k], r[r3 + k]
            right = (b > a) | (b != b)
            ab = b if right else a
            p = u8(1) if right else u8(0)
            right = (d > c) | (d != d)
            cd = d if right else c
            q = u8(3) if right else u8(2)
            right = (cd > ab) | (cd != cd)
            best[k] = cd if right else ab
            won[k] = q if right else p
    else:
        for k in range(n):
            best[k] = r[k]
            won[k] = 0
    for phase in range(done, phases):
        start, p = np.uint64(phase * len(best)), u8(phase)
        for k in range(n):
            a, b, q = best[k], r[start + k], won[k]
            right = (b > a) | (b != b)
            best[k] = b if right else a
            won[k] = p if right else q


@compiled
def _offset(y: Host, bias: Host) -> None:
    """Add the biases, which are repeated for some rows: runs as short as the channels take longer."""
    for first in range(0, len(y), len(bias)):
        i = np.uint64(first)
        for k in range(np.uint64(min(len(bias), len(y) - first))):
            y[i + k] += bias[k]


@compiled
def _rectify(y: Host, place: Host) -> None:
    for k in range(len(y)):
        a, p = y[k], place[k]
        lost = a <= 0
        place[k] = np.uint8(LOSER) if lost else p
        y[k] = 0 if lost else a


@compiled
def _backward(
    blas: int, x: Host, g: Host, c: int, keep: Host, block: int,
    matrix: Host, place: Host, dy: Host, dx: Host, dturned: Host, dbias: Host,
) -> None:  # fmt: skip
    """Add to `dx` (where it has a size), `dturned` (that of the transposed matrix) and `dbias`."""
    phases, pooled, (c_out, size) = g[POOL, 0] * g[POOL, 1] * g[POOL, 2], len(place) > 0, matrix.shape
    gathered = np.empty(0 if len(keep) and not len(dx) else block * phases * size, dy.dtype)
    buffer = np.empty((block * phases if pooled else 0, c_out), dy.dtype)
    _add_up(dy, place, dbias)
    for first in range(0, len(dy), block):
        last = min(first + block, len(dy))
        rows = (last - first) * phases
        if pooled:
            _share(dy[first:last], place[first:last], phases, buffer)
        d = buffer[:rows] if pooled else dy[first:last]
        if len(keep):
            part = keep[first * phases * size : last * phases * size].reshape(size, rows)
            multiply(blas, False, part, d, 1, dturned)
        else:
            gather(x, g, c, first, last, gathered)
            multiply(blas, True, gathered[: rows * size].reshape(rows, size), d, 1, dturned)
        if len(dx):
            multiply(blas, False, d, matrix, 0, gathered[: rows * size].reshape(rows, size))
            scatter(dx, g, c, first, last, gathered)


@compiled
def _add_up(dy: Host, place: Host, dbias: Host) -> None:
    """Add each channel's sum, in blocks of few terms, which are added in 64 bits; what ReLU cut off has no gradient."""
    c_out, d, won = dy.shape[1], dy.reshape(-1), place.reshape(-1)
    width = max(1, 256 // c_out) * c_out  # some rows side by side
    sums = np.zeros(width, dy.dtype)
    for first in range(0, len(d), 64 * width):
        last = min(first + 64 * width, len(d))
        for start in range(first, last, width):
            i = np.uint64(start)
            many = np.uint64(min(width, last - start))
            if len(won):
                for k in range(many):
                    a = d[i + k]
                    sums[k] += 0 if won[i + k] == LOSER else a
            else:
                for k in range(many):
                    sums[k] += d[i + k]
        for k in range(width):
            dbias[k % c_out] += sums[k]
            sums[k] = 0


@compiled
def _share(dy: Host, place: Host, phases: int, responses: Host) -> None:
    """The gradient of each phase from that of the maximum."""
    d, won, responses = dy.reshape(-1), place.reshape(-1), responses.reshape(-1)
    for phase in range(phases):
        start = np.uint64(phase * len(d))
        for k in range(np.uint64(len(d))):
            a = d[k]
            responses[start + k] = a if won[k] == phase else 0


@compiled
def _follow(
    x: Host, g: Host, c: int, block: int,
    matrix: Host, place: Host, dy: Host, dx: Host, dmatrix: Host, dbias: Host,
) -> None:  # fmt: skip
    """The same behind a pool, the gradient of each maximum by itself, channel by channel."""
    block = min(max(block, 16), 64)  # windows whose inputs stay in the first-level cache, and terms of a sum
    _add_up(dy, place, dbias)
    (runs, length), row = reach(g, c), np.empty(matrix.shape[1], dy.dtype)
    corners = np.empty(block, np.int64)
    shifts = np.empty(LOSER, np.int64)
    for phase in range(g[POOL, 0] * g[POOL, 1] * g[POOL, 2]):
        shifts[phase] = corner(g, c, 0, phase)
    size = np.uint64(length)
    for first in range(0, len(dy), block):
        last = min(first + block, len(dy))
        for window in range(first, last):
            corners[window - first] = corner(g, c, window, 0)
        for j in range(len(matrix)):
            weights = matrix[j]
            for k in range(len(row)):
                row[k] = 0
            for window in range(first, last):
                d = dy[window, j]
                if place[window, j] == LOSER or d == 0:
                    continue
                source, r = corners[window - first] + shifts[place[window, j]], 0
                for run in runs:
                    a, b = np.uint64(r), np.uint64(source + run)
                    for k in range(size):
                        row[a + k] += d * x[b + k]
                    if len(dx):
                        for k in range(size):
                            dx[b + k] += d * weights[a + k]
                    r += length
            for k in range(len(row)):
                dmatrix[j, k] += row[k]
