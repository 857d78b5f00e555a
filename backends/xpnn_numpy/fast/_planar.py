"""A convolution of one channel with few kernels, activation and average: vectors go along the pixels.

Few kernels leave most of a vector along the channels empty; along pixels each is full, but for those between the last
window of a line and the first of the next: lines are taken with their padding, one after the other, as a single run in
which each tap sees the pixel so many places further on. A strip of lines is padded, convolved, activated and averaged
while it is in the first-level cache. Responses come one kernel after the other, and are kept so for backward.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from xpnn.ops._window import Window
from xpnn_numpy.fast._compiled import Host, compiled
from xpnn_numpy.fast._product import ACROSS, BYTES, DOWN, dots, tile, tiled
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.fast.activation import saturated

MOST, LEAST = 12, 16
"""Kernels up to which, and windows of a line from which on it is quicker."""
VECTORS = 4 if BYTES == 64 else 3
"""Vectors of pixels of a tile: with the weights they fit the registers."""
STRIP_BYTES = 1 << 15
"""Of the responses of a strip."""

_tile = tile(DOWN, VECTORS, placed=True)


def suits(w: Window, pool: Window, c: int, c_out: int) -> bool:
    """Whether a convolution with an average behind it is done so."""
    few = c == 1 and c_out <= MOST and len(w.out) == 2
    return few and set(w.stride) == {1} and w.out[1] >= LEAST and pool.tiles


class Layout(NamedTuple):
    """Where everything is, in pixels of a run."""

    taps: Host
    """What each tap sees, from the first one on; the last one sees ones, for the bias."""
    channels: int
    """Kernels, each with a bias."""
    kernels: Host
    """Where in the weights each kernel of a tile begins; the last one again where a tile has more."""
    image: tuple[int, int, int, int]
    """Lines and pixels of a line, and how many there are before them in the padding."""
    pool: tuple[int, int, int, int]
    """Lines and pixels of a window, and lines of windows and windows of a line."""
    reach: int
    """Lines that a kernel sees beyond the first."""
    lines: int
    """Of windows in a strip."""
    strips: int
    """Of an image."""
    width: int
    """From line to line: so many windows of the pool fit."""
    plane: int
    """From the responses of one kernel to those of the next: so many tiles fit."""


@lru_cache(maxsize=4096)
def layout(w: Window, pool: Window, c_out: int, itemsize: int) -> Layout:
    """What does not change from step to step."""
    (down, across), (high, pooled), (over, left) = pool.size, pool.out, (before for before, _ in w.pads)
    width, lanes = -(-w.padded[1] // across) * across, BYTES // itemsize
    strips = min(high, -(-high * down * width * c_out * itemsize // STRIP_BYTES))
    lines = -(-high // strips)
    plane = -(-lines * down * width // (VECTORS * lanes)) * VECTORS * lanes
    under, beside = (d * np.arange(k) for d, k in zip(w.dilation, w.size, strict=True))
    taps = np.add.outer(width * under, beside).reshape(-1)
    taps = np.append(taps, taps[-1] + plane)
    kernels = np.minimum(np.arange(-(-c_out // DOWN) * DOWN), c_out - 1) * len(taps)
    image, pooling = (w.n[0], w.n[1], over, left), (down, across, high, pooled)
    return Layout(taps, c_out, kernels, image, pooling, int(under[-1]), lines, strips, width, plane)


def convolve(x: Host, weight: Host, bias: Host, at: Layout, tanh: bool, means: Host, *, keep: bool) -> Host:
    """Fill the means `(N, *pooled, C_out)`; returns the active responses of all strips, or none."""
    matrix = np.concatenate([weight.reshape(at.channels, -1), bias[:, None]], 1)  # of a tap that sees ones
    active = np.empty((len(x) * at.strips if keep else 0, len(at.kernels) * at.plane), x.dtype)
    _convolve(x.reshape(-1), matrix.reshape(-1), at, tanh, active, means.reshape(-1))
    return active


def gradients(x: Host, active: Host, dmeans: Host, at: Layout, tanh: bool, dy: Host) -> Host:
    """Those of the weights and, behind those of each kernel, of the bias; `dy` is filled as well, if not empty."""
    return _gradients(x.reshape(-1), active, dmeans.reshape(-1), at, tanh, dy.reshape(-1))


@compiled
def _convolve(x: Host, matrix: Host, at: Layout, tanh: bool, active: Host, means: Host) -> None:
    units = len(x) // (at.image[0] * at.image[1]) * at.strips
    parts = min(units, cut(units * 32, at.plane * (len(matrix) + 32 * at.channels) // 32))
    share(_convolve_part, (parts, units, x, matrix, at, tanh, active, means), parts)


@compiled
def _convolve_part(
    part: int, parts: int, units: int, x: Host, matrix: Host, at: Layout, tanh: bool, active: Host, means: Host
) -> None:
    """Of some strips."""
    taps, kernels, plane = at.taps, at.kernels, at.plane
    terms, many, zero = np.arange(len(taps)), VECTORS * BYTES // x.itemsize, x.dtype.type(0)
    seen, space = _run(at, x), np.empty((1, len(kernels) * plane), x.dtype)
    sums = np.empty(at.lines * at.pool[0] * at.width // at.pool[1], x.dtype)
    begin, end = stretch(units, part, parts)
    for unit in range(begin, end):
        y = active[unit] if len(active) else space[0]
        _see(x, unit, at, seen)
        for first in range(0, len(kernels), DOWN):
            for p in range(0, plane, many):
                out = y[first * plane + p :]
                _tile(matrix, kernels[first:], terms, len(taps), seen[p:], taps, out, plane, False)
        if tanh:
            for k in range(len(y)):
                y[k] = saturated(y[k])
        else:
            for k in range(len(y)):
                a = y[k]
                y[k] = zero if a <= zero else a  # NaN is not
        _average(y, at, sums, _windows_of(means, unit, at))


@compiled
def _run(at: Layout, x: Host) -> Host:
    """For lines as they are seen: clear, and behind them ones."""
    run = np.zeros(at.taps[-1] + at.plane, x.dtype)
    run[at.taps[-1] :] = 1
    return run


@compiled
def _see(x: Host, unit: int, at: Layout, seen: Host) -> None:
    """Copy what lies under a strip of a padded image; pixels beside its lines are clear already."""
    high, many, over, left = at.image
    image, top = unit // at.strips * high, unit % at.strips * at.lines * at.pool[0] - over
    inside = np.uint64(many)
    for i in range(at.lines * at.pool[0] + at.reach):
        to = np.uint64(i * at.width + left)
        if 0 <= top + i < high:
            start = np.uint64((image + top + i) * many)
            for k in range(inside):
                seen[to + k] = x[start + k]
        else:
            for k in range(inside):
                seen[to + k] = 0


@compiled
def _windows_of(means: Host, unit: int, at: Layout) -> Host:
    """The windows of a strip, of which the last one of an image may have fewer."""
    (_, _, high, pooled), top = at.pool, unit % at.strips * at.lines
    line, image = pooled * at.channels, unit // at.strips * high
    return means[(image + top) * line : (image + min(top + at.lines, high)) * line]


@compiled
def _unsigned(at: Layout) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Pixels of a window, windows that fit a run's line, those in it, and channels: no index by them is negative."""
    _, across, _, pooled = at.pool
    return np.uint64(across), np.uint64(at.width // across), np.uint64(pooled), np.uint64(at.channels)


@compiled
def _average(y: Host, at: Layout, sums: Host, means: Host) -> None:
    """The means of windows: what lies side by side is added up first."""
    (down, across, _, pooled), one, two = at.pool, np.uint64(1), np.uint64(2)
    step, line, many, apart = _unsigned(at)
    lines, total = len(means) // (pooled * at.channels), y.dtype.type(down * across)
    for c in range(apart):
        start = c * np.uint64(at.plane)
        if across == 2:  # by a constant, vector code is made
            for k in range(np.uint64(len(sums))):
                sums[k] = y[start + two * k] + y[start + two * k + one]
        else:
            for k in range(np.uint64(len(sums))):
                a = y[start + step * k]
                for i in range(one, step):
                    a += y[start + step * k + i]
                sums[k] = a
        for i in range(lines):
            first, out = np.uint64(i * down) * line, np.uint64(i) * many * apart + c
            for j in range(many):
                a = sums[first + j] + sums[first + line + j] if down > 1 else sums[first + j]
                for tap in range(two, np.uint64(down)):
                    a += sums[first + tap * line + j]
                means[out + j * apart] = a
    for k in range(np.uint64(len(means))):
        means[k] = means[k] / total


@compiled
def _gradients(x: Host, active: Host, dmeans: Host, at: Layout, tanh: bool, dy: Host) -> Host:
    lanes, whole = BYTES // x.itemsize, tiled(len(at.taps), ACROSS)
    parts = min(len(active), cut(len(active) * 32, at.plane * at.channels * (len(at.taps) + 8) // 32))
    sums = np.zeros((parts, len(at.kernels) * whole * lanes), x.dtype)
    share(_gradients_part, (parts, x, active, dmeans, at, tanh, dy, sums), parts)
    dmatrix = np.empty((at.channels, len(at.taps)), x.dtype)
    for c in range(at.channels):
        for t in range(len(at.taps)):
            first = (c // DOWN * whole + t // ACROSS * ACROSS) * DOWN + c % DOWN * ACROSS + t % ACROSS
            total = 0.0
            for part in range(parts):
                for k in range(first * lanes, (first + 1) * lanes):
                    total += sums[part, k]
            dmatrix[c, t] = total
    return dmatrix


@compiled
def _gradients_part(
    part: int, parts: int, x: Host, active: Host, dmeans: Host, at: Layout, tanh: bool, dy: Host, sums: Host
) -> None:
    """Of some strips."""
    taps, kernels, plane = at.taps, at.kernels, at.plane
    lanes, whole, last, seen = BYTES // x.itemsize, tiled(len(taps), ACROSS), len(taps) - 1, _run(at, x)
    d, places = np.zeros(len(kernels) * plane, x.dtype), np.arange(len(kernels)) * plane
    offsets = np.array([taps[min(t, last)] for t in range(whole)])
    shares = np.empty(at.lines * (at.pool[3] * at.channels + at.width), x.dtype)
    wide = np.zeros(at.lines * at.width, x.dtype)
    begin, end = stretch(len(active), part, parts)
    for unit in range(begin, end):
        _see(x, unit, at, seen)
        _share_out(_windows_of(dmeans, unit, at), active[unit], at, tanh, shares, wide, d)
        for first in range(0, len(kernels), DOWN):
            for tap in range(0, whole, ACROSS):
                to = (first * whole + tap * DOWN) * lanes
                dots(d, places[first:], seen, offsets[tap:], plane // lanes, sums[part], to)
        if len(dy):
            _in_order(d, unit, at, dy)


@compiled
def _share_out(dmeans: Host, active: Host, at: Layout, tanh: bool, shares: Host, wide: Host, d: Host) -> None:
    """The gradient of a strip's responses from that of their means; there is none beside its lines."""
    (down, across, _, pooled), one, two = at.pool, np.uint64(1), np.uint64(2)
    step, line, many, apart = _unsigned(at)
    lines, width = np.uint64(len(dmeans) // (pooled * at.channels)), np.uint64(at.width)
    total, zero, unit, behind = d.dtype.type(down * across), d.dtype.type(0), d.dtype.type(1), shares[len(dmeans) :]
    for k in range(np.uint64(len(dmeans))):
        shares[k] = dmeans[k] / total
    for k in range(len(behind)):
        behind[k] = zero
    for c in range(apart):
        for i in range(lines):
            first, to = i * many * apart + c, i * line
            for j in range(many):
                behind[to + j] = shares[first + j * apart]
        if across == 2:  # by a constant, vector code is made
            for k in range(lines * line):
                wide[two * k] = behind[k]
                wide[two * k + one] = behind[k]
        else:
            for k in range(lines * line):
                for i in range(step):
                    wide[step * k + i] = behind[k]
        start = c * np.uint64(at.plane)
        for i in range(lines):
            under = i * width
            for _ in range(down):
                if tanh:
                    for k in range(width):
                        a = active[start + k]
                        d[start + k] = wide[under + k] * (unit - a * a)
                else:
                    for k in range(width):
                        a = wide[under + k]
                        d[start + k] = a if active[start + k] > zero else zero
                start += width
        for k in range(start, (c + one) * np.uint64(at.plane)):
            d[k] = zero


@compiled
def _in_order(d: Host, unit: int, at: Layout, dy: Host) -> None:
    """Copy the gradient of a strip's responses to where the channels of each are side by side."""
    (down, across, high, pooled), top = at.pool, unit % at.strips * at.lines
    first, many = (unit // at.strips * high + top) * down, across * pooled
    for i in range(min(at.lines, high - top) * down):
        for k in range(many):
            for c in range(at.channels):
                dy[((first + i) * many + k) * at.channels + c] = d[c * at.plane + i * at.width + k]
