"""What follows a convolution on a block of its responses, while they are in the cache."""

from __future__ import annotations

import numpy as np

from xpnn_numpy.fast._compiled import Host, compiled
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.fast.activation import saturated
from xpnn_numpy.fast.pool import OUT, SIZE, N, divide, mean_lines, space

LOSER = 255
"""In place of a maximum that ReLU has cut off."""
NO_GRID = np.zeros((6, 3), np.int64)
"""Where nothing is averaged."""


@compiled
def win(r: Host, best: Host, won: Host, phases: int) -> None:
    """The maximum of each window, and which phase it is; the first of equals, and NaN if there is one. All are flat."""
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
def offset(y: Host, bias: Host) -> None:
    """Add the biases, which are repeated for some rows: runs as short as the channels take longer."""
    for first in range(0, len(y), len(bias)):
        i = np.uint64(first)
        for k in range(np.uint64(min(len(bias), len(y) - first))):
            y[i + k] += bias[k]


@compiled
def rectify(y: Host, place: Host) -> None:
    zero, loser = y.dtype.type(0), np.uint8(LOSER)
    for k in range(len(y)):
        a, p = y[k], place[k]
        kept = (a > zero) | (a != a)  # NaN is; `a <= 0` would become a jump for each value, and no vector code
        place[k] = p if kept else loser
        y[k] = a if kept else zero


@compiled
def sum_and_rectify(y: Host, shortcut: Host) -> None:
    """ReLU of the sum with the shortcut, where there is one."""
    zero = y.dtype.type(0)
    if len(shortcut):
        for k in range(len(y)):
            a = y[k] + shortcut[k]
            y[k] = zero if a <= zero else a  # NaN is not
    else:
        for k in range(len(y)):
            a = y[k]
            y[k] = zero if a <= zero else a


@compiled
def average(first: int, last: int, y: Host, g: Host, tanh: bool, means: Host) -> None:
    """Activate rows of `y`, and take the means of windows of them; they are whole lines of windows."""
    block, c, rows = y[first:last].reshape(-1), y.shape[1], g[SIZE, 1] * g[N, 2]
    if tanh:
        for k in range(len(block)):
            block[k] = saturated(block[k])
    else:
        zero = block.dtype.type(0)
        for k in range(len(block)):
            a = block[k]
            block[k] = zero if a <= zero else a  # NaN is not
    mean_lines(first // rows, last // rows, y.reshape(-1), g, c, means.reshape(-1))


@compiled
def averaged_back(dmeans: Host, y: Host, g: Host, tanh: bool, dy: Host) -> None:
    """The gradient of the responses from that of their means."""
    lines = len(dmeans) // g[OUT, 2]
    parts = cut(lines, 8 * dy.size // max(lines, 1))
    share(_averaged_back_part, (lines, parts, dmeans, y, g, tanh, dy), parts)


@compiled
def _averaged_back_part(
    part: int, lines: int, parts: int, dmeans: Host, y: Host, g: Host, tanh: bool, dy: Host
) -> None:
    (begin, end), c, width = stretch(lines, part, parts), y.shape[1], np.uint64(g[N, 2] * y.shape[1])
    shares, zero, one = space(g, c, dy), dy.dtype.type(0), dy.dtype.type(1)
    means, active, d = dmeans.reshape(-1), y.reshape(-1), dy.reshape(-1)
    for line in range(begin, end):
        divide(means, line, g, c, shares)
        for tap in range(g[SIZE, 1]):
            start = np.uint64((line * g[SIZE, 1] + tap) * g[N, 2] * c)
            if tanh:
                for i in range(width):
                    a = active[start + i]
                    d[start + i] = shares[i] * (one - a * a)
            else:
                for i in range(width):
                    d[start + i] = shares[i] if active[start + i] > zero else zero
