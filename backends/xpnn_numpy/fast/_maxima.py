"""The gradients of a convolution from each maximum of the pool behind it, by itself."""

from __future__ import annotations

import numpy as np

from xpnn_numpy.fast._compiled import Host, compiled
from xpnn_numpy.fast._product import MOST, add_runs
from xpnn_numpy.fast._responses import LOSER
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.fast._windows import among
from xpnn_numpy.fast._winograd import STRETCHES


@compiled
def follow(
    x: Host, places: Host, taps: Host, dy: Host, place: Host, length: int, matrix: Host, asked: bool
) -> tuple[Host, Host]:
    """The gradients of the matrix and, where it is asked for, of `x`, from each maximum by itself.

    Each part has some of the images and some of the channels. Taps lie together in runs of `length`.
    """
    parts = cut(len(dy), len(taps) * len(matrix))
    stretches = max(min(parts, len(x), STRETCHES), 1)
    groups = max(min(parts, len(matrix) // 8, STRETCHES) // stretches, 1)
    dmatrices = np.zeros((stretches, *matrix.shape), dy.dtype)
    images = np.zeros((groups, len(x) * asked, x.shape[1]), dy.dtype)
    share(_follow_part, (groups, x, places, taps, dy, place, length, matrix, images, dmatrices), groups * stretches)
    fold(dmatrices.reshape(stretches, -1))
    fold(images.reshape(groups, -1))
    return dmatrices[0], images[0]


@compiled
def fold(sums: Host) -> None:
    """Add the other rows to the first."""
    total = sums[0]
    for row in sums[1:]:
        for k in range(len(total)):
            total[k] += row[k]


@compiled
def _follow_part(
    part: int, groups: int, x: Host, places: Host, taps: Host, dy: Host, place: Host, length: int, matrix: Host,
    images: Host, dmatrices: Host,
) -> None:  # fmt: skip
    """Some windows at a time: those whose maximum is a channel's, for its weights; by phase the channels, for `x`."""
    block = 64  # windows whose inputs stay in the first-level cache, and terms of a sum
    image, dimage, weights = x.reshape(-1), images[part % groups].reshape(-1), matrix.reshape(-1)
    dmatrix, runs, many = dmatrices[part // groups].reshape(-1), taps[::length].copy(), len(taps)
    own = np.arange(len(runs)) * length
    corners, shifts, windows = np.empty(block + MOST, np.int64), places[:, 0].copy(), places.shape[1]
    channel, channels = stretch(len(matrix), part % groups, groups)
    begin, end = stretch(len(x), part // groups, len(dmatrices))
    starts, factors = np.empty(block, np.int64), np.empty(block, dy.dtype)
    met, counts = np.empty((len(shifts), len(matrix)), np.int64), np.empty(len(shifts), np.int64)
    shares = np.empty((len(shifts), len(matrix)), dy.dtype)
    for first in range(begin * windows, end * windows, block):
        last = min(first + block, end * windows)
        among(places[0], x.shape[1], first, last, corners)
        for j in range(channel, channels):
            count = 0
            for window in range(first, last):
                d, won = dy[window, j], place[window, j]
                if won != LOSER and d != 0:
                    starts[count], factors[count] = corners[window - first] + shifts[won], d
                    count += 1
            if count:
                add_runs(image, starts, factors, count, runs, dmatrix, j * many, own, length)
        for window in range(first, last if len(dimage) else first):
            counts[:] = 0
            for j in range(channel, channels):
                d, won = dy[window, j], place[window, j]
                if won != LOSER and d != 0:
                    met[won, counts[won]], shares[won, counts[won]] = j * many, d
                    counts[won] += 1
            for phase in range(len(shifts)):
                at = corners[window - first] + shifts[phase]
                if counts[phase]:
                    add_runs(weights, met[phase], shares[phase], counts[phase], own, dimage, at, runs, length)
