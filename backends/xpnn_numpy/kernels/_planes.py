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
from xpnn_numpy.kernels._rows import Host, empty, strided, whole

Shape = tuple[int, ...]
LEAST = 20_000
"""Numbers of all columns, from which on the calls for it take less time than it saves."""


@lru_cache(maxsize=4096)
def apart(w: Window, pool: Shape, n: int, channels: int) -> bool:
    """Whether columns of `n` images are made so: of one channel, in rows, with no pixels between taps, and many."""
    step, numbers = w.stride[-1] * (pool[-1] if pool else 1), n * prod(w.size) * prod(w.out)
    return channels == 1 and step > 1 and len(w.out) > 1 and set(w.dilation) == {1} and numbers >= LEAST


class Planes:
    """What each place in the reach of such windows sees of a contiguous, padded image `(N, *n, 1)`."""

    def __init__(self, image: Host, w: Window, pool: Shape) -> None:
        self.w, self.pool = w, pool or (1,) * len(w.out)
        self.reach, self.out, self.step, self.views = _layout(image.shape, image.dtype, w, self.pool)
        self.sorted = [whole(image[..., i :: self.step, 0]) for i in range(len(self.views))]

    def seen(self, block: tuple[slice, slice]) -> Host:
        """The planes of a block of outputs, `(*reach, values)`."""
        samples, lines = (part.stop - part.start for part in block)
        run = np.dtype((np.void, self.out[-1] * self.sorted[0].itemsize))
        seen = empty((*self.reach, samples, lines, *self.out[1:-1]), self.sorted[0], run)
        every = (slice(None),) * len(self.reach)
        for i, (pixels, (shape, strides)) in enumerate(zip(self.sorted, self.views, strict=True)):
            view = strided(pixels, shape, strides, run)
            seen[(*every[1:], slice(i, None, self.step))] = view[(*every, *block)]
        return seen.view(self.sorted[0].dtype).reshape(*self.reach, -1)

    def columns(self, block: tuple[slice, slice]) -> Host:
        """The columns of a block of outputs, `(*kernel, *pool, values)`."""
        seen = self.seen(block)
        *places, value = seen.strides
        run = np.dtype((np.void, seen.shape[-1] * value))
        phases = [p * s for p, s in zip(places, self.w.stride, strict=True)]
        columns = strided(seen, (*self.w.size, *self.pool), (*places, *phases), run)
        return whole(columns).view(seen.dtype)


@lru_cache(maxsize=4096)
def _layout(shape: Shape, dtype: Any, w: Window, pool: Shape) -> tuple[Shape, Shape, int, list[tuple[Shape, Shape]]]:
    """What does not change from step to step.

    How far the windows of a pool reach, how many there are, how far one is from the next along a row, and of each
    remainder of that the shape and the strides of a view of what its places see, a row of outputs as one value.
    """
    *moves, step = (s * p for s, p in zip(w.stride, pool, strict=True))
    *lines, last = w.reach(pool)
    *rows, length = (m // p for m, p in zip(w.out, pool, strict=True))
    views = []
    for i in range(min(step, last)):
        ends = *shape[:-2], -(-(shape[-2] - i) // step)
        sample, *strides, value = (prod(ends[j:]) * dtype.itemsize for j in range(1, len(ends) + 1))
        over = [m * s for m, s in zip(moves, strides, strict=True)]
        views.append(((*lines, -(-(last - i) // step), shape[0], *rows), (*strides, value, sample, *over)))
    return (*lines, last), (*rows, length), step, views
