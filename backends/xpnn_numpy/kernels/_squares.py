"""Convolutions of many channels in squares of 2×2 outputs, for predictions.

Tiles (`_tiles`) along both axes, F(2×2, 3×3) of Lavin and Gray, 2016 (arXiv:1509.09308): the four lines under two lines
of outputs become four sums, and of each of these so do the four columns under two columns. One square takes 16
products instead of 36, and no windows are gathered. But there are more sums than along one axis, and in a gradient more
still: it pays from many channels on, where there is no backward.

NumPy sums quickly what lies in one piece. So the image is copied apart first, into lines and columns of even and of odd
number, `(columns, lines, N, C)`; everything up to the last copy, back into an image, are sums of long runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from xpnn.ops._window import Window
from xpnn_numpy.kernels._products import multiply
from xpnn_numpy.kernels._rows import Host, empty, whole, zeros
from xpnn_numpy.kernels._tiles import SUMS, mapped
from xpnn_numpy.kernels._windows import Biased, Block, blocks, unbiased

LEAST_CHANNELS, LEAST_SQUARES = 48, 100
"""Channels, and squares of all images, from which on the products save more than the sums cost."""


@lru_cache(maxsize=4096)
def squared(w: Window, n: int, c: int, c_out: int) -> bool:
    """Whether a convolution of `n` images that would be done in tiles, without a pool, is done in squares."""
    return (
        (w.size, w.stride, w.dilation) == ((3, 3), (1, 1), (1, 1))
        and w.out[1] % 2 == 0
        and min(c, c_out) >= LEAST_CHANNELS
        and n * prod(w.out) >= 4 * LEAST_SQUARES
    )


class Squares:
    """The windows of a contiguous image, a square of outputs at a time; used as `Windows` are, without a backward."""

    def __init__(self, image: Host, w: Window) -> None:
        self.image, self.w = image, w

    def blocks(self, column_bytes: int) -> Iterator[Block]:
        """The outputs in blocks whose sums take so much, or two lines of one sample."""
        line = 16 * (self.w.out[1] // 2) * self.image.shape[-1] * self.image.itemsize
        for samples, pairs in blocks(len(self.image), self.w.out[0] // 2, column_bytes // line):
            yield samples, slice(2 * pairs.start, 2 * pairs.stop)

    def gather(self, block: Block) -> Host:
        """The sums of a block, for each of the products: `(4, 4, columns, lines, n, C)`."""
        samples, lines = block
        down = _apart(lines, self.w.pads[0], self.w.n[0])
        along = _apart(slice(0, self.w.out[1]), self.w.pads[1], self.w.n[1])
        pairs, n = (lines.stop - lines.start) // 2, samples.stop - samples.start
        planes = zeros((2, 2, self.w.out[1] // 2 + 1, pairs + 1, n, self.image.shape[-1]), self.image)
        for (j, (columns, across)), (i, (rows, under)) in product(enumerate(along), enumerate(down)):
            planes[j, i, columns, rows] = self.image[samples, under, across].transpose(2, 1, 0, 3)
        by_column = _sums(planes[0], planes[1], 1)
        return _sums(by_column[:, 0], by_column[:, 1], 2)

    @staticmethod
    def factor(weight: Host) -> Host:
        """What sums are multiplied by, `(4, 4, C, C_out)`."""
        by_line = mapped(weight.transpose(1, 2, 3, 0))
        return whole(mapped(by_line.swapaxes(0, 1)).swapaxes(0, 1))

    def respond(self, sums: Host, factor: Host, y: Host, biased: Biased = unbiased) -> Host:
        """Fill a block of responses, and return it; `biased` adds a bias, here to a quarter as many numbers."""
        (n, lines, columns, c_out), places = y.shape, sums.shape[:-1]
        a, b = sums.reshape(16, -1, sums.shape[-1]), factor.reshape(16, -1, c_out)
        m = multiply(a, b, empty((*a.shape[:-1], c_out), y)).reshape(*places, c_out)
        biased(m[2, 2])
        done = _pairs(_pairs(m).swapaxes(0, 1))
        y.reshape(n, lines // 2, 2, columns // 2, 2, c_out).transpose(4, 2, 3, 1, 0, 5)[...] = done
        return y


def _apart(outputs: slice, pads: tuple[int, int], size: int) -> list[tuple[slice, slice]]:
    """Under these outputs of an axis are padded inputs of even and of odd number: of either, which ones are no padding.

    Where among its like these are, and where in the image.
    """
    found = []
    for first in (outputs.start - pads[0], outputs.start - pads[0] + 1):
        low = max(0, -(first // 2))
        high = max(low, min((outputs.stop - outputs.start) // 2 + 1, (size - first + 1) // 2))
        found.append((slice(low, high), slice(first + 2 * low, first + 2 * high, 2)))
    return found


def _sums(even: Host, odd: Host, axis: int) -> Host:
    """The sums of the four lines under each pair of outputs along an axis, `(4, …)`."""
    every = (slice(None),) * axis
    before, after = (*every, slice(None, -1)), (*every, slice(1, None))
    lines = even[before], odd[before], even[after], odd[after]
    sums = empty((4, *lines[0].shape), even)
    for total, (i, f, j) in zip(sums, SUMS, strict=True):
        f(lines[i], lines[j], out=total)
    return sums


def _pairs(m: Host) -> Host:
    """Two lines of responses from the four products, `(4, …)`, and in their place."""
    m[:2] += m[2:3]
    np.add(m[0], m[3], out=m[0])
    np.subtract(m[1], m[3], out=m[1])
    return m[:2]
