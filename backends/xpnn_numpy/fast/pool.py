"""Pools in one pass: the place of each maximum is remembered, means are taken line by line."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import pool as standard
from xpnn.ops._array import floats
from xpnn.ops._window import Padding, Sizes, Window
from xpnn.ops.pool import Backward
from xpnn_numpy.fast._compiled import Host, compiled, fitting, plain, takes
from xpnn_numpy.fast._product import chunk
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.kernels import pool as numpys

if TYPE_CHECKING:
    from xpnn.ops import Ops

N, SIZE, STRIDE, DILATION, BEFORE, OUT = range(6)
"""The rows of a grid."""
FEW = 8
"""Channels below which NumPy, which goes along image rows, is faster."""
MOST = 255
"""Taps whose number fits a byte."""
CHUNK = 8
"""Values moved at a time, beyond the channels of a pixel too: those that follow are written later."""


def max_pool(
    ops: Ops,
    x: Host,
    *,
    window: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> tuple[Host, Backward]:
    """See `xpnn.ops.max_pool`; with few channels, more than three spatial axes, or huge windows the standard body."""
    floats("max_pool", x=x)
    w = standard.pool_window("max_pool", x.shape[1:-1], window, stride, padding, dilation, ceil_mode)
    if x.shape[-1] < FEW or not takes(x) or prod(w.size) > MOST:
        return standard.max_pool(
            ops, x, window=window, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
        )
    (corners, taps), n, c, shape = _places(w), np.array((1, 1, *w.n)[-3:]), x.shape[-1], x.shape
    pooled, dtype = (len(x), *w.out, c), x.dtype
    y = np.empty(pooled, dtype)
    place = np.empty((y.size // max(c, 1), c), np.uint8)
    _max(plain(x).reshape(-1, c), n, corners, taps, y.reshape(-1, c), place)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        if not input_gradient:
            return (None,)
        dx = np.zeros(shape, dtype)
        _max_back(fitting("max_pool", dy, pooled, dtype).reshape(-1, c), n, corners, taps, place, dx.reshape(-1, c))
        return (dx,)

    return y, backward


def avg_pool(
    ops: Ops,
    x: Host,
    *,
    window: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Host, Backward]:
    """See `xpnn.ops.avg_pool`; where windows do not lie side by side, and on more than three spatial axes, NumPy's."""
    floats("avg_pool", x=x)
    w = standard.pool_window("avg_pool", x.shape[1:-1], window, stride, padding, dilation, ceil_mode)
    if not takes(x) or not w.tiles:
        return numpys.avg_pool(
            ops, x, window=window, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )  # fmt: skip
    g, c, shape = grid(w), x.shape[-1], x.shape
    pooled, dtype = (len(x), *w.out, c), x.dtype
    y = np.empty(pooled, dtype)
    _mean(plain(x).reshape(-1), g, c, y.reshape(-1))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        if not input_gradient:
            return (None,)
        dx = np.empty(shape, dtype)
        _spread(fitting("avg_pool", dy, pooled, dtype).reshape(-1), g, c, dx.reshape(-1))
        return (dx,)

    return y, backward


@lru_cache(maxsize=4096)
def grid(w: Window) -> Host:
    """The geometry on three spatial axes, of which the first have one place where `w` has fewer."""
    before = tuple(a for a, _ in w.pads)
    rows = ((w.n, 1), (w.size, 1), (w.stride, 1), (w.dilation, 1), (before, 0), (w.out, 1))
    return np.array([(none,) * (3 - len(row)) + row for row, none in rows], np.int64)


@lru_cache(maxsize=4096)
def _places(w: Window) -> tuple[Host, Host]:
    """On three spatial axes: the first pixel under each output of an image, and the steps from there to each tap."""
    g = grid(w)
    outputs, taps = (np.indices(g[row]).reshape(3, -1).T for row in (OUT, SIZE))
    return np.ascontiguousarray(outputs * g[STRIDE] - g[BEFORE]), np.ascontiguousarray(taps * g[DILATION])


_copy, _add = chunk(CHUNK, False), chunk(CHUNK, True)


@compiled
def _under(n: Host, image: int, corner: Host, tap: Host) -> int:
    """The pixel under a tap of an output; -1 in the padding."""
    i0, i1, i2 = corner[0] + tap[0], corner[1] + tap[1], corner[2] + tap[2]
    inside = 0 <= i0 < n[0] and 0 <= i1 < n[1] and 0 <= i2 < n[2]
    return ((image * n[0] + i0) * n[1] + i1) * n[2] + i2 if inside else -1


@compiled
def _max(x: Host, n: Host, corners: Host, taps: Host, y: Host, place: Host) -> None:
    parts = cut(len(y), 8 * len(taps) * y.shape[1])
    share(_max_part, (parts, x, n, corners, taps, y, place), parts)


@compiled
def _max_part(part: int, parts: int, x: Host, n: Host, corners: Host, taps: Host, y: Host, place: Host) -> None:
    begin, end = stretch(len(y), part, parts)
    for output in range(begin, end):
        image, corner, best, won, first = output // len(corners), output % len(corners), y[output], place[output], True
        for tap in range(len(taps)):
            pixel = _under(n, image, corners[corner], taps[tap])
            if pixel < 0:
                continue
            row, p = x[pixel], np.uint8(tap)
            if first:
                for j in range(len(best)):
                    best[j] = row[j]
                    won[j] = p
            else:
                for j in range(len(best)):
                    a, b, q = best[j], row[j], won[j]
                    larger = (b > a) | (b != b)
                    best[j] = b if larger else a
                    won[j] = p if larger else q
            first = False


@compiled
def _max_back(dy: Host, n: Host, corners: Host, taps: Host, place: Host, dx: Host) -> None:
    images = len(dy) // max(len(corners), 1)
    parts = min(images, cut(len(dy), 8 * len(taps) * dy.shape[1]))
    share(_max_back_part, (images, parts, dy, n, corners, taps, place, dx), parts)


@compiled
def _max_back_part(
    part: int, images: int, parts: int, dy: Host, n: Host, corners: Host, taps: Host, place: Host, dx: Host
) -> None:
    """Of whole images: windows may overlap."""
    zero, (begin, end) = dy.dtype.type(0), stretch(images, part, parts)
    for image in range(begin, end):
        for corner in range(len(corners)):
            output = image * len(corners) + corner
            d, won = dy[output], place[output]
            for tap in range(len(taps)):
                pixel = _under(n, image, corners[corner], taps[tap])
                if pixel < 0:
                    continue
                row, p = dx[pixel], np.uint8(tap)
                for j in range(len(d)):
                    a = d[j]
                    row[j] += a if won[j] == p else zero


@compiled
def _mean(x: Host, g: Host, c: int, y: Host) -> None:
    lines = len(y) // max(g[OUT, 2] * c, 1)
    parts = cut(lines, 4 * g[SIZE].prod() * g[OUT, 2] * c)
    share(_mean_part, (lines, parts, x, g, c, y), parts)


@compiled
def _mean_part(part: int, lines: int, parts: int, x: Host, g: Host, c: int, y: Host) -> None:
    begin, end = stretch(lines, part, parts)
    mean_lines(begin, end, x, g, c, y)


@compiled
def mean_lines(begin: int, end: int, x: Host, g: Host, c: int, y: Host) -> None:
    """Line by line of `y`: the image's lines under it are added up along their length, then what is side by side."""
    (_, n1, n2), (k0, k1, k2), (_, o1, o2) = g[N], g[SIZE], g[OUT]
    width, total = np.uint64(n2 * c), x.dtype.type(k0 * k1 * k2)
    sums, means, row = np.empty(n2 * c + CHUNK, x.dtype), np.empty(o2 * c + CHUNK, x.dtype), np.uint64(o2 * c)
    for line in range(begin, end):
        top = (line // o1 * k0 * n1 + line % o1 * k1) * n2 * c
        for tap in range(k0 * k1):
            start = np.uint64(top + (tap // k1 * n1 + tap % k1) * n2 * c)
            if tap:
                for i in range(width):
                    sums[i] += x[start + i]
            else:
                for i in range(width):
                    sums[i] = x[start + i]
        for j in range(o2):
            for i in range(0, c, CHUNK):
                at, first = j * c + i, j * k2 * c + i
                _copy(sums, first, means, at)
                for tap in range(1, k2):
                    _add(sums, first + tap * c, means, at)
        out = np.uint64(line) * row
        for i in range(row):
            y[out + i] = means[i] / total


@compiled
def _spread(dy: Host, g: Host, c: int, dx: Host) -> None:
    lines = len(dy) // max(g[OUT, 2] * c, 1)
    parts = cut(lines, 4 * g[SIZE].prod() * g[OUT, 2] * c)
    share(_spread_part, (lines, parts, dy, g, c, dx), parts)


@compiled
def _spread_part(part: int, lines: int, parts: int, dy: Host, g: Host, c: int, dx: Host) -> None:
    """Line by line of `dy`: its shares are copied to the lines of `dx` below it."""
    begin, end = stretch(lines, part, parts)
    (_, n1, n2), (k0, k1, _), (_, o1, _) = g[N], g[SIZE], g[OUT]
    width, shares = np.uint64(n2 * c), space(g, c, dy)
    for line in range(begin, end):
        divide(dy, line, g, c, shares)
        top = (line // o1 * k0 * n1 + line % o1 * k1) * n2 * c
        for tap in range(k0 * k1):
            start = np.uint64(top + (tap // k1 * n1 + tap % k1) * n2 * c)
            for i in range(width):
                dx[start + i] = shares[i]


@compiled
def space(g: Host, c: int, like: Host) -> Host:
    """For the shares of a line, behind it those of its windows."""
    return np.empty((g[N, 2] + g[OUT, 2]) * c + 2 * CHUNK, like.dtype)


@compiled
def divide(dy: Host, line: int, g: Host, c: int, shares: Host) -> None:
    """The share in a line of `dy` of what is below it, side by side as in a line of `dx`."""
    (k0, k1, k2), o2, behind = g[SIZE], g[OUT, 2], g[N, 2] * c + CHUNK
    total, many = dy.dtype.type(k0 * k1 * k2), np.uint64(o2 * c)
    start, to = np.uint64(line) * many, np.uint64(behind)
    for i in range(many):
        shares[to + i] = dy[start + i] / total
    for j in range(o2):
        for tap in range(k2):
            for i in range(0, c, CHUNK):
                _copy(shares, behind + j * c + i, shares, (j * k2 + tap) * c + i)
