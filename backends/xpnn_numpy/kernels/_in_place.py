"""Tiles whose windows along lines of pixels are seen where they lie.

The k pixels of a window lie together, and would be a row of a matrix as they are; but neighbours share pixels, and BLAS
takes no matrix whose rows do. Every k-th window does not share any with the next: k such matrices hold all windows, and
none of them is copied. Windows that reach from the end of a line into the next one are multiplied for nothing; they are
few, for two lines share the padding between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import starmap
from math import prod

import numpy as np

from xpnn.ops._window import Window
from xpnn_numpy.kernels._products import multiply, multiply_across
from xpnn_numpy.kernels._rows import Host, empty, strided
from xpnn_numpy.kernels._tiles import Tiles
from xpnn_numpy.kernels._windows import Block

WASTE = 2
"""Multiply-adds by what reaches over the ends of lines, for each value of a window: more take longer than a copy."""


def seen_in_place(w: Window, c_out: int) -> bool:
    """Whether windows along the last axis of images are seen where they lie."""
    k, (before, after) = w.size[-1], w.pads[-1]
    side_by_side = len(w.size) == 2 and w.stride[-1] == w.dilation[-1] == 1 < k
    return side_by_side and before == after < k and (k - 1 - after) * c_out <= WASTE * w.out[-1]


class InPlace(Tiles):
    """Tiles without a pool, of which what is gathered are the sums themselves, `(pixels, C)`."""

    def __init__(self, image: Host, w: Window) -> None:
        super().__init__(image, w, ())
        self.k, self.gap = w.size[-1], w.pads[-1][0]
        self.width = w.n[-1] + self.gap
        self.line = 4 * self.width * self.channels

    def gather(self, block: Block) -> Host:
        """The sums of a block: lines one after the other, padding before each of them and after the last."""
        samples, first, last = self.pairs(block)
        stacks = 4, samples.stop - samples.start, last - first
        end = prod(stacks) * self.width
        sums = empty((end + self.gap, self.channels), self.image)
        lines = sums[:end].reshape(*stacks, self.width, self.channels)
        if self.gap:
            lines[..., : self.gap, :] = 0
            sums[end:] = 0
        self.add(block, lines[..., self.gap :, :])
        return sums

    def multiplied(self, columns: Host, factor: Host, lines: tuple[int, ...]) -> Host:
        """The products, `(1, 4, …, C_out)`, with what is no response at the end of each line."""
        c_out = factor.shape[-1]
        m = empty((4, prod(lines[:-1]) * self.width, c_out), columns)
        for windows, begun in interleaved(columns, m, self.k, self.gap):
            multiply(windows, factor, begun)
        m[:, m.shape[1] + self.gap - self.k + 1 :] = 0  # where no window begins
        return m.reshape(1, 4, *lines[:-1], self.width, c_out)

    def across(self, columns: Host, dy: Host) -> Host:
        """The gradient of the factor, from that of a block of responses."""
        d = self.products(dy, self.width - dy.shape[-2])
        windows = interleaved(columns, d.reshape(4, -1, d.shape[-1]), self.k, self.gap)
        dfactor: Host = reduce(np.add, starmap(multiply_across, windows))
        return dfactor


def interleaved(pixels: Host, begun: Host, k: int, gap: int) -> Iterator[tuple[Host, Host]]:
    """The windows of stacks of pixels, one after the other and a gap, as k matrices `(stacks, rows, k·C)`.

    With each of them what is at the pixels, `(stacks, n, C_out)`, at which its windows begin. Both are views.
    """
    stacks, n = begun.shape[:2]
    pixel, value = pixels.strides
    for first in range(k):
        rows = max(0, n + gap - first) // k
        shape, strides = (stacks, rows, k * pixels.shape[-1]), (n * pixel, k * pixel, value)
        yield strided(pixels[first:], shape, strides, pixels.dtype), begun[:, first : first + rows * k : k]
