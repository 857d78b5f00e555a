"""The windows of an image as columns: gathered by strides, multiplied, and added up again where they were gathered.

A view with overlapping strides shows under each output the window of inputs; copying a block of it is the
gather of the standard body in one call. Columns of one channel are gathered with the taps first
(`(K, rows)`, transposed for the product at no cost): the copy then runs along an image row, and not along the
three numbers of a kernel's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from xpnn.ops._window import Pads, Window
from xpnn_numpy.kernels._planes import Planes, apart
from xpnn_numpy.kernels._products import multiply, multiply_across
from xpnn_numpy.kernels._rows import Host, empty, strided, whole

Part = tuple[slice, ...]
Block = tuple[slice, slice]
"""Samples, and lines of the first spatial axis."""
EVERY = (slice(None), slice(None))
"""All of them."""
Biased = Callable[[Host], object]
"""Adds a bias to contiguous `(…, C_out)`."""


def unbiased(y: Host) -> None:
    """Where there is none."""


class Windows:
    """The windows of a contiguous, padded image, as views and as columns.

    With a `pool`, outputs are phase-major: those at one place of the pool's windows lie together. To `keep` columns for
    the next time is for those of one channel, which are small.
    """

    def __init__(self, image: Host, w: Window, pool: tuple[int, ...] = (), *, keep: bool = False) -> None:
        self.image, self.w, self.pool, self.keep, self.channels = image, w, pool, keep, image.shape[-1]
        self.columns: dict[Any, Host] = {}
        self.kernel, self.length, self.out, self.line, self.places, self.taps = _layout(
            image.shape, image.itemsize, w, pool
        )
        self.planes: Planes | None = None
        self.runs = _runs(image.shape, image.dtype, w, pool)

    def for_shares(self, w: Window) -> Windows:
        """Those whose shares are added up, of all responses that a pool does not drop."""
        return Windows(self.image, w) if self.pool else self

    def blocks(self, column_bytes: int) -> Iterator[Block]:
        """The outputs in blocks whose columns take so much, or one line of one sample."""
        return blocks(len(self.image), self.out[0], column_bytes // max(self.line, 1))

    def gather(self, block: Block) -> Host:
        """The columns of a block, `(rows, K·C)`."""
        if self.channels > 1:
            return self._copied(block).reshape(-1, self.length)
        key = block[0].start, block[1].start
        columns = self.columns.get(key)
        if columns is None:
            columns = self._of_one_channel(block).reshape(self.length, -1).T
            if self.keep:
                self.columns[key] = columns
        return columns

    def _of_one_channel(self, block: Block) -> Host:
        """What its taps see, taps first."""
        if not apart(self.w, self.pool, len(self.image), 1):
            return self._copied(block)
        self.planes = self.planes or Planes(self.image, self.w, self.pool)
        return self.planes.columns(block)

    def _copied(self, block: Block) -> Host:
        """What lies under the windows of a block, run by run."""
        before, shape, strides, run = self.runs
        if 0 in shape:
            return empty((0,), self.image)
        copied = whole(strided(self.image, shape, strides, run)[(*before, *block)])
        return copied.view(self.image.dtype)

    @staticmethod
    def factor(weight: Host) -> Host:
        """What columns are multiplied by, `(K·C, C_out)`."""
        return whole(weight.reshape(len(weight), -1).T)

    def respond(self, columns: Host, factor: Host, y: Host, biased: Biased = unbiased) -> Host:
        """Fill a block of responses, and return it; `biased` adds a bias."""
        multiply(columns, factor, y.reshape(-1, y.shape[-1]))
        biased(y)
        return y

    def across(self, columns: Host, dy: Host) -> Host:
        """The gradient of the factor, from that of a block of responses."""
        return multiply_across(columns, dy.reshape(-1, dy.shape[-1]))

    def of_factor(self, dfactor: Host, shape: tuple[int, ...]) -> Host:
        """The gradient of the weights from that of the factor."""
        return dfactor.T.reshape(shape)

    def add_up(self, shares: Host, block: Block, dimage: Host) -> None:
        """Add the shares of the taps to where they were read, in an image like this one; without a pool."""
        shape, strides = (len(dimage), *self.out, *self.kernel), self.places + self.taps
        if 0 in shape:
            return
        under = strided(dimage, shape, strides, dimage.dtype)[block]
        for tap, share in zip(np.ndindex(*self.kernel[:-1]), shares, strict=True):
            read = under[(..., *tap, slice(None))]  # one tap of all windows touches no input twice
            read += share.reshape(read.shape)


def blocks(n: int, lines: int, most: int) -> Iterator[Block]:
    """Blocks of at most so many lines of outputs, of whole samples or of one; of one line at the least."""
    if most >= lines:
        step = most // lines
        yield from ((slice(i, min(i + step, n)), slice(0, lines)) for i in range(0, n, step))
    else:
        step = max(1, most)
        yield from ((slice(i, i + 1), slice(h, min(h + step, lines))) for i in range(n) for h in range(0, lines, step))


@lru_cache(maxsize=4096)
def _layout(
    shape: tuple[int, ...], itemsize: int, w: Window, pool: tuple[int, ...]
) -> tuple[tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...], tuple[int, ...]]:
    """What does not change from step to step.

    A window with its channels and how many values that is, the windows along each axis and the bytes of a line of
    their columns; the bytes from one of a contiguous image to the next, and from tap to tap.
    """
    kernel = (*w.size, shape[-1])
    out = tuple(m // p for m, p in zip(w.out, pool, strict=True)) if pool else w.out
    sample, *spatial, last = (prod(shape[i:]) * itemsize for i in range(1, len(shape) + 1))
    steps = tuple(m * s for m, s in zip(spatial, w.stride, strict=True))
    over = tuple(m * p for m, p in zip(steps, pool, strict=True)) if pool else steps
    taps = tuple(m * d for m, d in zip(spatial, w.dilation, strict=True))
    length = prod(kernel)
    line = prod(pool) * prod(out[1:]) * length * itemsize
    return kernel, length, out, line, (*(steps if pool else ()), sample, *over), (*taps, last)


@lru_cache(maxsize=4096)
def _runs(
    shape: tuple[int, ...], dtype: Any, w: Window, pool: tuple[int, ...]
) -> tuple[Part, tuple[int, ...], tuple[int, ...], Any]:
    """How columns are copied: the axes before a block's, the shape and strides of a view of runs, and a run as a type.

    A run is what lies together both in the image and in its columns; as one value it is copied at once.
    """
    kernel, _, out, _, places, taps = _layout(shape, dtype.itemsize, w, pool)
    every, n = (slice(None),), shape[0]
    outputs = *pool, n, *out
    if shape[-1] > 1:
        along = 2 if w.dilation[-1] == 1 else 1  # the taps of an image row, or the channels of one tap
        run = prod(kernel[-along:])
        before, shape, strides = every * len(pool), outputs + kernel[:-along], places + taps[:-along]
    else:
        along = 1 if not pool and w.stride[-1] == 1 and len(out) > 1 else 0  # the outputs of an image row, or one
        run = prod(out[len(out) - along :])
        ends = len(outputs) - along
        before, shape, strides = every * (len(kernel) + len(pool)), kernel + outputs[:ends], taps + places[:ends]
    return before, shape, strides, np.dtype((np.void, run * dtype.itemsize)) if run > 1 else dtype


def pad(x: Host, pads: Pads) -> Host:
    """`x` with zeros around it, contiguous; itself where there are none."""
    if not any(map(any, pads)):
        return x
    shape, borders, within = borders_of(x.shape, pads)
    image = empty(shape, x)
    for border in borders:  # it alone is cleared: the image is written once
        image[border] = 0
    image[within] = x
    return image


@lru_cache(maxsize=4096)
def borders_of(shape: tuple[int, ...], pads: Pads) -> tuple[tuple[int, ...], list[Part], Part]:
    """The shape of a padded image, and where in it the padding and the image are."""
    padded, borders = [shape[0]], list[Part]()
    within: Part = (slice(None),)
    for m, (a, b) in zip(shape[1:-1], pads, strict=True):
        cuts = [slice(0, a), slice(a + m, a + m + b)] if (a, b) != (1, 1) else [slice(0, None, m + 1)]  # both at once
        borders += [(*within, cut) for cut in cuts if cut.stop is None or cut.start < cut.stop]
        within = *within, slice(a, a + m)
        padded.append(m + a + b)
    return (*padded, shape[-1]), borders, within
