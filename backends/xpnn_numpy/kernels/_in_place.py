"""Windows along lines of pixels, seen where they lie.

The k pixels of a window lie together, and would be a row of a matrix as they are; but neighbours share pixels, and BLAS
takes no matrix whose rows do. Every k-th window does not share any with the next: k such matrices hold all windows, and
none of them is copied. Windows that reach from the end of a line into the next one are multiplied for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from xpnn.ops._window import Window
from xpnn_numpy.kernels._rows import Host

WASTE = 1.5
"""Multiply-adds by what reaches over the ends of lines, for each value of a window: more take longer than a copy."""


def seen_in_place(w: Window, c_out: int) -> bool:
    """Whether windows along the last axis of images, padded already, are seen where they lie."""
    k = w.size[-1]
    side_by_side = len(w.size) == 2 and w.stride[-1] == w.dilation[-1] == 1 < k
    return side_by_side and (k - 1) * c_out <= WASTE * w.out[-1]


def interleaved(pixels: Host, k: int) -> Iterator[Host]:
    """The windows of `(…, pixels, C)` as k matrices `(…, rows, k·C)`: views."""
    for a, b in _cuts(pixels.shape[-2], k):
        part = pixels[..., a:b, :]
        yield part.reshape(*part.shape[:-2], -1, k * part.shape[-1])


def beginnings(pixels: Host, k: int) -> Iterator[Host]:
    """The pixels at which the windows of each of these matrices begin, `(…, rows, C)`: views."""
    for a, b in _cuts(pixels.shape[-2], k):
        yield pixels[..., a:b:k, :]


def _cuts(pixels: int, k: int) -> list[tuple[int, int]]:
    return [(first, first + (pixels - first) // k * k) for first in range(k)]
