"""The gradient of an input, each tap's share added up where the tap read it (Dumoulin, Visin, 2016, section 4).

Such a sum runs along an image row, or along one pixel if the windows do not lie side by side. Where that is short, the
samples of a block are put beside each other, `(*spatial, N, C)`: to the windows they are one more axis, on which the
kernel has one tap. Few channels make thin products as well: there two pixels side by side are taken as one with twice
the channels, and so are two kernels, the second of which sees a pixel further on. What is not finite in the gradient of
the responses then reaches one pixel more.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from xpnn.ops._window import Window
from xpnn_numpy.kernels._products import multiply
from xpnn_numpy.kernels._rows import Host, empty, whole, zeros
from xpnn_numpy.kernels._windows import EVERY, Block, Windows

SHARE = 4
"""Times the size of a block: in which shares are added up, for each is a call of NumPy's."""
SHORT = 128
"""Values of a run, from which on to put samples beside each other takes longer than it saves."""
THIN = 12
"""Channels, from which on a product of one pixel takes less time than the zeros in that of two."""


def of_taps(dy: Iterable[tuple[Block, Host]], w: Window, weight: Host, n: int) -> Host:
    """The gradient of the padded image `(N, *padded, C)`, from those of blocks of responses `(…, *out, C_out)`."""
    dimage = zeros((n, *w.padded, weight.shape[-1]), weight)
    image, by = dimage, _by_image(w)
    if weight.shape[-1] < THIN and _even(w):
        by, weight = _by_pair(by), _paired(weight)
        image = dimage.reshape(n, *by.n, weight.shape[-1])
    factors = _by_tap(weight)
    windows = None if _short(by, weight.shape[-1]) else Windows(image, by)
    for block, d in dy:
        if windows is None:
            _add_beside(d.reshape(*d.shape[:2], *by.out[1:], len(weight)), factors, by, block, image)
        else:
            windows.add_up(_shares(d, factors), block, image)
    return dimage


def _shares(dy: Host, factors: Host) -> Host:
    """The shares of the taps, `(K, rows, C)`."""
    matrix = dy.reshape(-1, factors.shape[1])
    return multiply(matrix, factors, empty((len(factors), len(matrix), factors.shape[2]), factors))


def _add_beside(dy: Host, factors: Host, w: Window, block: Block, image: Host) -> None:
    """Add to an image the shares of a block, its samples beside each other."""
    samples, lines = block
    beside = whole(dy.transpose(*range(1, dy.ndim - 1), 0, -1))
    of_block = _by_sample(w, *dy.shape[1::-1])
    part = zeros((1, *of_block.n, image.shape[-1]), image)
    Windows(part, of_block).add_up(_shares(beside, factors), EVERY, part)
    first = lines.start * w.stride[0]
    image[samples, first : first + of_block.n[0]] += part[0].transpose(-2, *range(len(w.n)), -1)


def _by_tap(weight: Host) -> Host:
    """The weights of each tap, `(K, C_out, C)`; `np.moveaxis` would take five times as long."""
    taps_first = weight.transpose(*range(1, weight.ndim - 1), 0, -1)
    return whole(taps_first).reshape(-1, len(weight), weight.shape[-1])


def _paired(weight: Host) -> Host:
    """Two kernels as one that sees pairs of pixels, `(2·C_out, *kernel, 2·C)`."""
    c_out, *lines, taps, c = weight.shape
    pair = zeros((2, c_out, *lines, taps + 1, c), weight)
    pair[0, ..., :-1, :] = weight
    pair[1, ..., 1:, :] = weight
    return pair.reshape(2 * c_out, *lines, (taps + 1) // 2, 2 * c)


@lru_cache(maxsize=4096)
def _even(w: Window) -> bool:
    """Whether pixels of a row can be taken two at a time, with a single zero in each kernel."""
    side_by_side = len(w.out) > 1 and w.stride[-1] == w.dilation[-1] == 1 < w.size[-1]
    return side_by_side and (w.size[-1] % 2, w.padded[-1] % 2, w.out[-1] % 2) == (1, 0, 0)


@lru_cache(maxsize=4096)
def _short(w: Window, channels: int) -> bool:
    """Whether sums run along few values; where no two windows see the same pixel there is nothing to sum."""
    return not w.disjoint and channels * (w.out[-1] if w.stride[-1] == 1 else 1) < SHORT


@lru_cache(maxsize=4096)
def _by_image(w: Window) -> Window:
    """The windows of the padded image."""
    return Window(w.padded, w.size, w.stride, w.dilation, (), w.out)


@lru_cache(maxsize=4096)
def _by_pair(w: Window) -> Window:
    """The windows of two pixels as one."""
    (*lines, width), (*size, taps), (*out, places) = w.n, w.size, w.out
    return Window((*lines, width // 2), (*size, (taps + 1) // 2), w.stride, w.dilation, (), (*out, places // 2))


@lru_cache(maxsize=4096)
def _by_sample(w: Window, lines: int, samples: int) -> Window:
    """The windows of so many lines of outputs, with the samples of a block as the last axis."""
    under = (lines - 1) * w.stride[0] + w.dilation[0] * (w.size[0] - 1) + 1
    return Window(
        (under, *w.n[1:], samples), (*w.size, 1), (*w.stride, 1), (*w.dilation, 1), (), (lines, *w.out[1:], samples)
    )
