"""Convolutions with kernels of three lines in fewer multiplications (Winograd, 1980).

Two lines of outputs see four lines of inputs d. With a kernel of lines g that is six products of lines, or these four
(F(2, 3) of Lavin and Gray, 2016, arXiv:1509.09308, along the first axis alone):

    m₀ = (d₀ - d₂) g₀    m₁ = (d₁ - d₃) (-g₂)    m₂ = (d₁ + d₂) (g₀ + g₁ + g₂) / 2    m₃ = (d₂ - d₁) (g₀ - g₁ + g₂) / 2

    y₀ = m₀ + m₂ + m₃    y₁ = m₁ + m₂ - m₃

A product of lines is a convolution along the other axes, for which columns are gathered from the sums of inputs: a
third fewer of them too; or none, where the windows of the sums are seen in place (`_in_place`). Sums of whole lines are
what NumPy is quickest at. Both gradients are the maps read backwards.

Each output depends on the inputs under its own kernel alone. But what a line of the kernel does not see cancels in its
gradient only up to rounding, where the plain sum is exact; that shows where few numbers of `dy` are not zero, behind a
max-pool or ReLU. So the gradient of the kernel comes from tiles only where the convolution has no pool, ReLU or bias,
as most often in front of a normalisation. `_squares` and `xpnn_numpy.fast._winograd` have such tiles along two axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from math import prod

import numpy as np

from xpnn.ops._window import Window
from xpnn_numpy.kernels._products import multiply, multiply_across
from xpnn_numpy.kernels._rows import Host, empty, whole, zeros
from xpnn_numpy.kernels._windows import EVERY, Biased, Block, Windows, blocks, borders_of, unbiased

SUMS = ((0, np.subtract, 2), (1, np.subtract, 3), (1, np.add, 2), (2, np.subtract, 1))
"""Of the lines d, for each of the products."""
LEAST_CHANNELS, LEAST_PLACES, LEAST_WORK = 16, 256, 8_000_000
"""Channels, outputs and multiply-adds of the plain sum, from which on the maps take less time than they save."""
FORWARD_ALONE = 4
"""Times as few of both, where there is no backward: that has more maps, and the errors of few sums do not even out."""


@lru_cache(maxsize=4096)
def tiled(w: Window, pool: tuple[int, ...], n: int, c: int, c_out: int, backward: bool) -> bool:
    """Whether a convolution of `n` images, perhaps with a max-pool behind it, is done in tiles."""
    places = n * prod(w.out) * (1 if backward else FORWARD_ALONE)
    return (
        (w.size[0], w.stride[0], w.dilation[0]) == (3, 1, 1)
        and (pool[0] == 2 if pool else w.out[0] % 2 == 0)
        and min(c, c_out) >= LEAST_CHANNELS
        and places >= LEAST_PLACES
        and places * prod(w.size) * c * c_out >= LEAST_WORK
    )


class Tiles:
    """The windows of a contiguous image, two lines of outputs at a time; used as `Windows` are.

    Padding is in the sums alone. Columns and factors are stacks of four, one for each product. With a `pool`, the two
    lines are those of its windows, and its phases along the other axes are stacked before them.
    """

    def __init__(self, image: Host, w: Window, pool: tuple[int, ...]) -> None:
        self.image, self.w, self.pool, self.channels = image, w, pool, image.shape[-1]
        self.out = tuple(m // p for m, p in zip(w.out, pool, strict=True)) if pool else w.out
        self.phases, self.each = prod(pool[1:]), 2 if pool else 1  # how many lines of responses a line of outputs is
        self.line = 4 * prod(w.out[1:]) * prod(w.size[1:]) * self.channels  # values of two lines' columns

    def for_shares(self, w: Window) -> Tiles:
        """Those whose shares are added up, of all responses that a pool does not drop."""
        return Tiles(self.image, w, ())

    def blocks(self, column_bytes: int) -> Iterator[Block]:
        """The outputs in blocks whose columns take so much, or two lines of one sample."""
        most = column_bytes // max(self.line * self.image.itemsize, 1)
        for samples, pairs in blocks(len(self.image), self.out[0] * self.each // 2, most):
            yield samples, slice(pairs.start * 2 // self.each, pairs.stop * 2 // self.each)

    def gather(self, block: Block) -> Host:
        """The columns of a block, `(phases, 4, rows, K·C)`."""
        sums, within = self._room(block, empty)
        self.add(block, within)
        windows = self._beside(sums)
        return windows.gather(EVERY).reshape(self.phases, 4, -1, windows.length)

    def add(self, block: Block, sums: Host) -> None:
        """Fill the sums of a block, `(4, n, pairs, …, C)`."""
        lines = self._under(self.image, block)
        for total, (i, f, j) in zip(sums, SUMS, strict=True):
            _add(f, lines[i], lines[j], total)

    def _room(self, block: Block, make: Callable[..., Host]) -> tuple[Host, Host]:
        """For the sums of a block, `(4, n, pairs, …, C)`, with zeros for padding along the other axes; and within."""
        samples, first, last = self.pairs(block)
        stacks, lines = (4, samples.stop - samples.start, last - first), self.image.shape[2:]
        shape, borders, within = borders_of((prod(stacks), *lines), self.w.pads[1:])
        sums = make(shape, self.image)
        for beside in borders:
            sums[beside] = 0
        return sums.reshape(*stacks, *shape[1:]), sums[within].reshape(*stacks, *lines)

    def pairs(self, block: Block) -> tuple[slice, int, int]:
        """The samples of a block, and which pairs of lines."""
        samples, lines = block
        return samples, lines.start * self.each // 2, lines.stop * self.each // 2

    def _under(self, image: Host, block: Block) -> list[tuple[int, Host]]:
        """Of the four lines under each pair of responses, one after the other: the first pair with one, and the lines.

        Before it, and after the last line, there is padding.
        """
        samples, first, last = self.pairs(block)
        (before, _), size = self.w.pads[0], self.w.n[0]
        found = []
        for k in range(4):
            low = min(max(first, -(-(before - k) // 2)), last)
            high = max(low, min(last, (size - 1 + before - k) // 2 + 1))
            at = max(2 * low - before + k, 0)
            found.append((low - first, image[samples, at : at + 2 * (high - low) : 2]))
        return found

    def _beside(self, sums: Host) -> Windows:
        """The windows along the other axes."""
        w = _line(self.w, sums.shape[2])
        return Windows(sums.reshape(-1, *sums.shape[2:]), w, (1, *self.pool[1:]) if self.pool else ())

    @staticmethod
    def factor(weight: Host) -> Host:
        """What columns are multiplied by, `(4, K·C, C_out)`."""
        return mapped(weight.reshape(len(weight), 3, -1).transpose(1, 2, 0))

    def respond(self, columns: Host, factor: Host, y: Host, biased: Biased = unbiased) -> Host:
        """Fill a block of responses, and return it; `biased`, for no pool, adds a bias: to half as many numbers."""
        upper, lower = self._lines(y)
        m = self.multiplied(columns, factor, upper.shape[1:-1])
        biased(m[:, 2])
        m[:, :2] += m[:, 2:3]
        m = m[..., : y.shape[-2], :]
        np.add(m[:, 0], m[:, 3], out=upper)
        np.subtract(m[:, 1], m[:, 3], out=lower)
        return y

    def multiplied(self, columns: Host, factor: Host, lines: tuple[int, ...]) -> Host:
        """The products under so many lines of responses, `(phases, 4, *lines, C_out)`."""
        m = multiply(columns, factor, empty((*columns.shape[:-1], factor.shape[-1]), columns))
        return m.reshape(self.phases, 4, *lines, -1)

    def _lines(self, y: Host) -> tuple[Host, Host]:
        """The upper and the lower lines of a block of responses, phases first."""
        if self.pool:
            upper, lower = y.reshape(2, self.phases, *y.shape[1:])
            return upper, lower
        return y[None, :, ::2], y[None, :, 1::2]

    def products(self, dy: Host, beyond: int = 0) -> Host:
        """The gradients of the products from that of their responses, `(phases, 4, …, C_out)`.

        With zeros for so many windows `beyond` the end of each line.
        """
        upper, lower = self._lines(dy)
        *lines, width, c_out = upper.shape[1:]
        products = empty((self.phases, 4, *lines, width + beyond, c_out), dy)
        if beyond:
            products[..., width:, :] = 0
        d = products[..., :width, :]
        d[:, 0], d[:, 1] = upper, lower
        np.add(upper, lower, out=d[:, 2])
        np.subtract(upper, lower, out=d[:, 3])
        return products

    def across(self, columns: Host, dy: Host) -> Host:
        """The gradient of the factor, from that of a block of responses."""
        d = self.products(dy).reshape(*columns.shape[:-1], -1)
        dfactor: Host = np.add.reduce(multiply_across(columns, d), 0)
        return dfactor

    def of_factor(self, dfactor: Host, shape: tuple[int, ...]) -> Host:
        """The gradient of the weights from that of the factor."""
        outer, inner = (dfactor[2] + dfactor[3]) * 0.5, (dfactor[2] - dfactor[3]) * 0.5
        lines = np.stack([dfactor[0] + outer, inner, outer - dfactor[1]])
        return lines.transpose(2, 0, 1).reshape(shape)

    def spread(self, dy: Iterable[tuple[Block, Host]], weight: Host) -> Host:
        """The gradient of the image, from those of blocks of responses."""
        by_line = weight.reshape(len(weight), 3, -1, self.channels).transpose(1, 2, 0, 3)
        by_tap = mapped(by_line).swapaxes(0, 1)[:, None]  # `(K, 1, 4, C_out, C)`
        dimage = np.zeros_like(self.image)
        for block, d in dy:
            self._add_up(d, by_tap, block, dimage)
        return dimage

    def _add_up(self, dy: Host, by_tap: Host, block: Block, dimage: Host) -> None:
        """Add to an image like this one what a block of `dy` has for the inputs under its windows."""
        d = self.products(dy)
        d = d.reshape(*d.shape[:2], -1, d.shape[-1])
        dcolumns = multiply(d, by_tap, empty((len(by_tap), *d.shape[:-1], self.channels), d))
        sums, within = self._room(block, zeros)
        windows = self._beside(sums)
        windows.add_up(dcolumns, EVERY, windows.image)
        lines = self._under(dimage, block)
        for total, (i, f, j) in zip(within, SUMS, strict=True):
            for k, add in ((i, np.add), (j, f)):
                low, line = lines[k]
                add(line, total[:, low : low + line.shape[1]], out=line)


def _add(f: np.ufunc, a: tuple[int, Host], b: tuple[int, Host], out: Host) -> None:
    """`f` of two of the lines under each pair, where padding is zero."""
    (i, a_lines), (j, b_lines) = a, b
    low, high = max(i, j), min(i + a_lines.shape[1], j + b_lines.shape[1])
    f(a_lines[:, low - i : high - i], b_lines[:, low - j : high - j], out=out[:, low:high])
    for pair in (*range(low), *range(max(low, high), out.shape[1])):
        if i <= pair < i + a_lines.shape[1]:
            out[:, pair] = a_lines[:, pair - i]
        elif j <= pair < j + b_lines.shape[1]:
            f(0, b_lines[:, pair - j], out=out[:, pair])
        else:
            out[:, pair] = 0


def mapped(lines: Host) -> Host:
    """Four lines of kernels from three, `(3, …)`."""
    lines = whole(lines)
    outer, inner, factor = (lines[0] + lines[2]) * 0.5, lines[1] * 0.5, empty((4, *lines.shape[1:]), lines)
    factor[0] = lines[0]
    np.negative(lines[2], out=factor[1])
    np.add(outer, inner, out=factor[2])
    np.subtract(outer, inner, out=factor[3])
    return factor


@lru_cache(maxsize=4096)
def _line(w: Window, pairs: int) -> Window:
    """The geometry along the other axes, of so many pairs of lines."""
    return Window(w.n, (1, *w.size[1:]), w.stride, w.dilation, (), (pairs, *w.out[1:]))
