"""Convolutions of one channel under a pool: the places of the pool's windows as channels of one product.

Each of the P places sees its own part of what all of them see: their kernels, moved apart, are one kernel of P·C_out
channels over the whole. One channel and few kernels make a thin product; this one is less so, and of the pixels that
several places see there is one copy (`_planes`). Channels come first, as planes do: what is done to all responses, and
their sum over the places, runs along whole arrays.

A window that sees an infinite pixel has no number for its average, though each of its places may have one: the kernel
of one has zeros where others see.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod

import numpy as np

from xpnn.ops._window import Window
from xpnn_numpy.kernels._planes import apart
from xpnn_numpy.kernels._products import multiply, multiply_across
from xpnn_numpy.kernels._rows import Host, empty, strided, whole, zeros
from xpnn_numpy.kernels._windows import Block, blocks

MOST, WIDEST = 8, 4
"""Kernels, and times the size of one that all of its places reach: with more, zeros take longer than is saved."""


@lru_cache(maxsize=4096)
def banded(w: Window, pool: tuple[int, ...], n: int, c_out: int) -> bool:
    """Whether a convolution of `n` images of one channel under a pool is done so."""
    return c_out <= MOST and prod(w.reach(pool)) <= WIDEST * prod(w.size) and apart(w, pool, n, 1)


class Bands:
    """The kernels as one of P·C_out channels, and products of it and planes."""

    def __init__(self, weight: Host, w: Window, pool: tuple[int, ...]) -> None:
        self.w, self.pool, self.reach = w, pool, w.reach(pool)
        self.out = tuple(m // p for m, p in zip(w.out, pool, strict=True))
        self.shape = *pool, len(weight), *self.reach
        moved = zeros(self.shape, weight)
        self._kernels(moved)[...] = weight[..., 0]
        self.factor = whole(moved.reshape(-1, prod(self.reach)).T)

    def _kernels(self, moved: Host) -> Host:
        """Where the kernels are in what is of this `shape`: a view, `(*pool, C_out, *kernel)`."""
        axes, strides = len(self.pool), moved.strides
        places = (p + s * r for p, s, r in zip(strides, self.w.stride, strides[axes + 1 :], strict=False))
        shape = *moved.shape[: axes + 1], *self.w.size
        return strided(moved, shape, (*places, *strides[axes:]), moved.dtype)

    def blocks(self, n: int, column_bytes: int) -> Iterator[Block]:
        """The outputs in blocks whose planes and responses take so much, or one line of one sample."""
        line = sum(self.factor.shape) * prod(self.out[1:]) * self.factor.itemsize
        return blocks(n, self.out[0], column_bytes // max(line, 1))

    def respond(self, planes: Host) -> Host:
        """The responses to the planes of a block, `(K, rows)`: `(P, C_out, rows)`."""
        responses = empty((self.factor.shape[1], planes.shape[1]), planes)
        multiply(planes.T, self.factor, responses.T)
        return responses.reshape(prod(self.pool), -1, planes.shape[1])

    def across(self, planes: Host, d: Host) -> Host:
        """The gradient of the factor, transposed, from that of a block's responses."""
        return multiply_across(planes.T, d.reshape(-1, planes.shape[1]).T)

    def of_factor(self, dfactor: Host) -> Host:
        """The gradient of the weights from that of the factor, transposed."""
        kernels = self._kernels(whole(dfactor.T).reshape(self.shape))
        dweight: Host = np.add.reduce(kernels, tuple(range(len(self.pool))))
        return dweight[..., None]

    def in_order(self, responses: Host, block: Block) -> Host:
        """Responses of a block with channels last: a view, `(P, N, *out, C_out)`."""
        samples, lines = (part.stop - part.start for part in block)
        shape = *responses.shape[:2], samples, lines, *self.out[1:]
        return responses.reshape(shape).transpose(0, *range(2, len(shape)), 1)
