"""Average pooling of windows that lie side by side: one axis after the other, in runs as long as they get."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import pool as standard
from xpnn.ops import unkept
from xpnn.ops._array import floats
from xpnn.ops._window import Padding, Sizes, Window
from xpnn_numpy.kernels._rows import Host, empty
from xpnn_numpy.recording import unrecorded

if TYPE_CHECKING:
    from xpnn.ops import Ops

any_windows = unrecorded(standard.avg_pool)


def avg_pool(
    ops: Ops,
    x: Host,
    *,
    window: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Host, Callable[..., tuple[Host | None]]]:
    """See `xpnn.ops.avg_pool`; where windows overlap, leave gaps or hang over, it is the standard body itself."""
    floats("avg_pool", x=x)
    w = standard.pool_window("avg_pool", x.shape[1:-1], window, stride, padding, dilation, ceil_mode)
    if not w.tiles:
        return any_windows(
            ops, x, window=window, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )  # fmt: skip
    y, shape, whole = x, x.shape, prod(w.size)  # of `x` nothing is kept
    steps = _steps(shape, w)
    for taps_of, out in steps:
        taps = y.reshape(taps_of)
        y = taps[..., 0, :] + taps[..., 1, :]
        for tap in range(2, taps_of[-2]):
            y += taps[..., tap, :]
        y = y.reshape(out)
    y = np.divide(y, whole, out=y) if steps else y / whole

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        if not input_gradient:
            return (None,)
        dx = dy / whole
        for taps_of, _ in reversed(steps):
            spread = empty(taps_of, dx)
            spread[...] = dx.reshape(*taps_of[:-2], 1, taps_of[-1])
            dx = spread
        return (dx.reshape(shape),)

    return y, backward if ops.backward else unkept


@lru_cache(maxsize=4096)
def _steps(shape: tuple[int, ...], w: Window) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For each axis on which there is something to sum: the shape with its taps as the last axis but one, and after."""
    steps = []
    for axis, (out, k) in enumerate(zip(w.out, w.size, strict=True), start=1):
        pooled = *shape[:axis], out, *shape[axis + 1 :]
        if k > 1:
            steps.append(((*shape[:axis], out, k, prod(shape[axis + 1 :])), pooled))
        shape = pooled
    return steps
