"""Arithmetic between an image and one value a channel, in long runs of pixels."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from xpnn.ops._made import Made, anew
from xpnn_numpy.recording import Recorded

Host = np.ndarray[Any, Any]
LONG, MOST = 1 << 10, 1 << 14
"""Values of a run, at least where pixels can be put together so, and at the most; as long as NumPy's buffers in a step,
for it copies what has shorter runs through these."""
FEW = 256
"""Pixels up to which a run of NumPy's for each takes less long than to repeat channels, anew, along a longer one."""


def empty(shape: tuple[int, ...], like: Host, dtype: Any = None) -> Host:
    """Room for what is computed from an array, in a recording if that is; of its dtype, or another one."""
    return np.empty(shape, dtype or like.dtype, like=like)


def zeros(shape: tuple[int, ...], like: Host) -> Host:
    """The same, with zeros in it."""
    return np.zeros(shape, like.dtype, like=like)


def whole(x: Host) -> Host:
    """The array itself where it is contiguous, else a copy that is."""
    return x if x.flags.c_contiguous else x.copy()


def strided(x: Host, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Host:
    """A view of what begins where `x` does."""
    kind: Any = Recorded if type(x) is Recorded else np.ndarray
    view: Host = kind(shape, dtype, x, strides=strides)
    return view


def by_channel(f: np.ufunc, x: Host, channels: Host, out: Host, made: Made = anew) -> Host:
    """`f(x, channels)` of contiguous `(N, *spatial, C)` into `out`, with one value a channel, which is repeated."""
    many = _many(x.shape, FEW if made is anew else 1)
    if many == 1:
        f(x, channels, out=out)
    else:
        length = many * x.shape[-1]
        f(x.reshape(-1, length), made(channels, repeated, many), out=out.reshape(-1, length))
    return out


@lru_cache(maxsize=4096)
def _many(shape: tuple[int, ...], few: int) -> int:
    return _pixels(shape) if prod(shape[:-1]) > few else 1


@lru_cache(maxsize=4096)
def _pixels(shape: tuple[int, ...]) -> int:
    """How many pixels make a run: the last axes, and of the one before a part, without a rest."""
    pixels, channels = 1, shape[-1]
    for n in reversed(shape[:-1]):
        enough = (m for m in range(2, n + 1) if n % m == 0 and pixels * m * channels >= LONG)
        longer = pixels * next(enough, n)
        undivided = pixels == 1 and longer == n and len(shape) > 2  # an image row, of which no part would be a run
        if not longer * channels or (longer * channels > MOST and not undivided):
            break
        pixels = longer
    return pixels


def repeated(row: Host, times: int) -> Host:
    """A row so many times over; `np.tile` takes five times as long to set about it."""
    rows = empty((times, *row.shape), row)
    rows[...] = row
    return rows.reshape(-1)


def rectify(x: Host, out: Host) -> Host:
    """`max(x, 0)` against a row of zeros, for NumPy has no fast loop for a maximum with a number."""
    if not x.shape or not x.size:
        return np.maximum(x, 0, out=out)
    row = np.zeros(_pixels(x.shape) * x.shape[-1], x.dtype)
    np.maximum(x.reshape(-1, len(row)), row, out=out.reshape(-1, len(row)))
    return out
