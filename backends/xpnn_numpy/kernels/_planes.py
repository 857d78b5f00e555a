"""Columns of an image of one channel under windows that move on by several pixels: by a stride, or under a pool.

A tap then sees every second pixel, say, and to copy these number by number takes long. So the pixels of a row are
sorted, once, by the remainder of their place: what a tap sees along a row lies together. And taps of windows that a
pool puts together see the same pixels: of the 36 planes under the 3×3 taps of 2×2 windows, 16 differ.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from xpnn.ops._window import Window
from xpnn_numpy.kernels._rows import Host

Shape = tuple[int, ...]


LEAST = 20_000
"""Numbers of all columns, from which on the calls for it take less time than it saves."""


@lru_cache(maxsize=4096)
def apart(w: Window, pool: Shape, n: int, channels: int) -> bool:
    """Whether windows of `n` images are such, in rows, with no pixels between their taps, and enough of them."""
    step, numbers = w.stride[-1] * (pool[-1] if pool else 1), n * prod(w.size) * prod(w.out)
    return channels == 1 and step > 1 and len(w.out) > 1 and set(w.dilation) == {1} and numbers >= LEAST


class Planes:
    """What each place in the reach of such windows sees of a contiguous, padded image `(N, *n, 1)`."""

    def __init__(self, image: Host, w: Window, pool: Shape) -> None:
        self.w, self.pool = w, pool or (1,) * len(w.out)
        self.reach, (*ends, step, length), self.view = _layout(image.shape, image.dtype, w, self.pool)
        self.sorted = np.empty((*ends, step, length), image.dtype)
        for i in range(step):
            pixels = image[..., i::step, 0][..., :length]
            self.sorted[..., i, : pixels.shape[-1]] = pixels  # a rest is under no tap

    def seen(self, block: tuple[slice, slice]) -> Host:
        """The planes of a block of outputs, `(*reach, values)`."""
        places, shape, strides, run = self.view
        seen = np.ascontiguousarray(np.ndarray(shape, run, self.sorted, strides=strides)[(*places, *block)])
        return seen.view(self.sorted.dtype).reshape(*self.reach, -1)

    def columns(self, block: tuple[slice, slice]) -> Host:
        """The columns of a block of outputs, `(*kernel, *pool, values)`."""
        seen = self.seen(block)
        *places, value = seen.strides
        run = np.dtype((np.void, seen.shape[-1] * value))
        phases = [p * s for p, s in zip(places, self.w.stride, strict=True)]
        columns = np.ndarray((*self.w.size, *self.pool), run, seen, strides=(*places, *phases))
        return np.ascontiguousarray(columns).view(seen.dtype)


@lru_cache(maxsize=4096)
def _layout(shape: Shape, dtype: Any, w: Window, pool: Shape) -> tuple[Shape, Shape, tuple[Any, ...]]:
    """How far the windows of a pool reach, a shape for the sorted pixels, and how planes are copied from them.

    The reach is rounded up to whole steps along a row; how planes are copied is as for other columns (`_windows`).
    """
    step = tuple(s * p for s, p in zip(w.stride, pool, strict=True))
    out = tuple(m // p for m, p in zip(w.out, pool, strict=True))
    *lines, last = w.reach(pool)
    steps = -(-last // step[-1])
    ends = *shape[:-2], step[-1], steps + out[-1] - 1
    sample, *rows, remainder, value = (prod(ends[i:]) * dtype.itemsize for i in range(1, len(ends) + 1))
    places, strides = (*lines, steps, step[-1]), (*rows, value, remainder)
    moved = [m * s for m, s in zip(rows, step, strict=False)]
    view = (
        (slice(None),) * len(places), (*places, shape[0], *out[:-1]), (*strides, sample, *moved),
        np.dtype((np.void, out[-1] * dtype.itemsize)),
    )  # fmt: skip
    return (*lines, steps * step[-1]), ends, view
