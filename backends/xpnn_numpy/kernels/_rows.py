"""Arithmetic between an image and one value a channel, in runs as long as an image row."""

from __future__ import annotations

from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]
FEW = 256
"""Pixels up to which a run of NumPy's for each takes less long than to repeat channels along an image row."""


def rows(x: Host) -> Host:
    """A contiguous `(N, *spatial, C)` as `(…, W·C)`, or few pixels as `(…, C)`: a view."""
    return x.reshape(-1, x.shape[-2] * x.shape[-1]) if _many(x) else x.reshape(-1, x.shape[-1])


def along(x: Host, channels: Host) -> Host:
    """One value a channel, repeated to the length of the rows of `x`."""
    return repeated(channels, x.shape[-2]) if _many(x) else channels


def _many(x: Host) -> bool:
    return x.ndim > 2 and x.size > FEW * x.shape[-1]


def repeated(row: Host, times: int) -> Host:
    """A row so many times over; `np.tile` takes five times as long to set about it."""
    rows = np.empty((times, *row.shape), row.dtype)
    rows[...] = row
    return rows.reshape(-1)


def rectify(x: Host, out: Host) -> Host:
    """`max(x, 0)`: against a row of zeros, for NumPy has no fast loop for a maximum with a number."""
    shape = -1, x.shape[-1] * (x.shape[-2] if x.ndim > 2 and x.size else 1)
    flat = x.reshape(shape)
    np.maximum(flat, np.zeros(flat.shape[1:], x.dtype), out=out.reshape(shape))
    return out
