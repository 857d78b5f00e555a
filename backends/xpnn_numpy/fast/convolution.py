"""Convolution, with or without a max-pool behind it, in one compiled call forward and one or two backward.

Each of them is a product whose left factor is never made (`_product`). What follows it forward (maximum, bias, ReLU) is
done block by block, while a block is in the cache. Of the pool only the place of each maximum is remembered. So only
one response of a window has a gradient at all, often (with ReLU) none: with many columns each of these is followed by
itself, in runs of a kernel's row: a fraction of the products' work. With few, products are quicker all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import convolution as standard
from xpnn.ops import joined
from xpnn.ops._window import Padding, Sizes, Window
from xpnn_numpy.fast import _windows
from xpnn_numpy.fast._compiled import Host, compiled, plain, takes
from xpnn_numpy.fast._product import BYTES, MOST, add_up, multiply, packed, room, slack, tiled, unpacked
from xpnn_numpy.fast._windows import among
from xpnn_numpy.kernels import convolution as numpys
from xpnn_numpy.kernels import joined as numpys_joined
from xpnn_numpy.kernels._rows import repeated

if TYPE_CHECKING:
    from xpnn.ops import Ops

Result = tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]
BLOCK_BYTES = 1 << 16
"""Of the responses that are made at a time."""
BLOCK = 128
"""Outputs whose gradients are added up at a time: with what lies under them they stay in the first-level cache."""
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
    return _convolved(x, weight, bias, w, (), False)


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
    return _convolved(x, weight, bias, w, size, relu)


def _convolved(x: Host, weight: Host, bias: Host | None, w: Window, pool: tuple[int, ...], relu: bool) -> Result:
    c_out, windows, matrix = len(weight), pool or (1,) * len(w.out), weight.reshape(len(weight), -1)
    image, (places, taps) = _padded(x, w.pads), _windows.forward(w, windows, x.shape[-1])
    y = room((len(x), *(m // p for m, p in zip(w.out, windows, strict=True)), c_out), x.dtype)
    place = np.empty((y.size // c_out if pool else 0, c_out), np.uint8)
    offset = np.zeros(0, x.dtype) if bias is None else repeated(bias, max(1, 256 // c_out))
    _forward(image, places, taps, plain(matrix.T), offset, relu, y.reshape(-1, c_out), place)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        rows, dbias, dx = plain(dy).reshape(-1, c_out), np.zeros(c_out), None
        if bias is not None:
            _add_up(rows, place, dbias)
        many = len(taps) >= FOLLOWED
        if pool and (many or input_gradient):
            run = x.shape[-1] * (w.size[-1] if w.dilation[-1] == 1 else 1)  # taps that lie together
            dimage = np.zeros(image.shape if input_gradient else (0, 0), x.dtype)
            dmatrix = _follow(image, places, taps, rows, place, run, plain(matrix), dimage)
            dx = dimage.reshape(len(x), *w.padded, x.shape[-1])[numpys.inner(w)] if input_gradient else None
        elif input_gradient:
            dx = _input_gradient(dy, weight, w)
        if not (pool and many):
            dmatrix = _weight_gradient(image, places, taps, rows, place).T
        return dx, dmatrix.reshape(weight.shape), None if bias is None else dbias.astype(x.dtype)

    return y, backward


def _padded(x: Host, pads: _windows.Pads) -> Host:
    """The images with zeros around them, one a row."""
    image: Host = numpys.pad(plain(x), pads)
    return plain(image).reshape(len(x), prod(image.shape[1:]))


def _input_gradient(dy: Host, weight: Host, w: Window) -> Host:
    """That of a convolution: one of `dy` for each place between the strides (Dumoulin, Visin, 2016, section 4)."""
    (c_out, *_, c), (pads, parts) = weight.shape, _windows.backward(w, len(weight))
    image, dx = _padded(dy, pads), np.empty((len(dy), *w.n, c) if len(parts) > 1 else 0, dy.dtype)
    none, nowhere = np.zeros(0, dy.dtype), np.empty((0, c), np.uint8)
    for inputs, taps, places, offsets in parts:
        part = room((len(dy), *(len(range(n)[i]) for n, i in zip(w.n, inputs, strict=True)), c), dy.dtype)
        if len(offsets):
            met = np.moveaxis(weight[np.ix_(range(c_out), *taps)], 0, -2).reshape(-1, c)
            _forward(image, places, offsets, plain(met), none, False, part.reshape(-1, c), nowhere)
        else:  # a stride longer than the kernel: no output sees them
            part[...] = 0
        if len(parts) == 1:
            return part
        dx[(slice(None), *inputs)] = part
    return dx


@compiled
def _forward(x: Host, places: Host, taps: Host, weight: Host, bias: Host, relu: bool, y: Host, place: Host) -> None:
    """Fill `y` and the places of its maxima, block by block; `weight` is `(K·C, C_out)`."""
    (phases, _), c_out, pooled = places.shape, y.shape[1], len(place) > 0
    block = max(BLOCK_BYTES // (phases * c_out * y.itemsize * MOST), 1) * MOST
    rows, panels, image = np.empty(block + MOST, np.int64), packed(weight), x.reshape(-1)
    responses = np.empty(phases * block * c_out + slack(c_out) if pooled else 0, y.dtype)
    for first in range(0, len(y), block):
        last = min(first + block, len(y))
        for phase in range(phases):
            among(places[phase], x.shape[1], first, last, rows)
            start = phase * (last - first) * c_out
            out = responses[start:] if pooled else y[first:].reshape(-1)
            multiply(image, rows, last - first, taps, panels, c_out, out)
        if pooled:
            _win(responses, y[first:last], place[first:last], phases)
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
def _weight_gradient(x: Host, places: Host, taps: Host, dy: Host, place: Host) -> Host:
    """That of the transposed matrix, `(K·C, C_out)`."""
    pooled, c_out, image = len(place) > 0, dy.shape[1], x.reshape(-1)
    rows, cols = np.full(len(taps) + MOST, taps[-1]), np.empty(BLOCK + MOST, np.int64)
    rows[: len(taps)] = taps
    width = 2 * BYTES // x.itemsize
    sums, space = np.zeros(len(rows) * tiled(c_out, width), x.dtype), np.zeros(BLOCK * width, x.dtype)
    spread = np.empty((BLOCK if pooled else 0, c_out), dy.dtype)
    for first in range(0, len(dy), BLOCK):
        last = min(first + BLOCK, len(dy))
        for phase in range(len(places)):
            among(places[phase], x.shape[1], first, last, cols)
            if pooled:
                _share(dy[first:last], place[first:last], phase, spread)
            b, start = (spread[: last - first], 0) if pooled else (dy, first)
            add_up(image, rows, cols[: last - first], b, start, space, sums)
    return unpacked(sums, len(rows), c_out)


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
def _share(dy: Host, place: Host, phase: int, spread: Host) -> None:
    """The gradient of the responses at one place of the pool's windows from that of the maximum."""
    d, won, out = dy.reshape(-1), place.reshape(-1), spread.reshape(-1)
    for k in range(len(d)):
        a = d[k]
        out[k] = a if won[k] == phase else 0


@compiled
def _follow(x: Host, places: Host, taps: Host, dy: Host, place: Host, length: int, matrix: Host, dx: Host) -> Host:
    """The gradient of the matrix from each maximum by itself, channel by channel; that of `x` is added to `dx`.

    Taps lie together in runs of `length`; where `dx` is empty it is not asked for.
    """
    block = 64  # windows whose inputs stay in the first-level cache, and terms of a sum
    image, dimage, dmatrix = x.reshape(-1), dx.reshape(-1), np.zeros_like(matrix)
    runs, row = taps[::length].copy(), np.empty(len(taps), dy.dtype)
    corners, shifts = np.empty(block + MOST, np.int64), places[:, 0]
    many = np.uint64(length)
    for first in range(0, len(dy), block):
        last = min(first + block, len(dy))
        among(places[0], x.shape[1], first, last, corners)
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
                    for k in range(many):
                        row[a + k] += d * image[b + k]
                    if len(dimage):
                        for k in range(many):
                            dimage[b + k] += d * weights[a + k]
                    r += length
            for k in range(len(row)):
                dmatrix[j, k] += row[k]
    return dmatrix
