"""Average pooling of windows that lie side by side: one axis after the other, in runs as long as they get."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import pool as standard
from xpnn.ops._array import floats
from xpnn.ops._window import Padding, Sizes
from xpnn_numpy.kernels._rows import Host

if TYPE_CHECKING:
    from xpnn.ops import Ops


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
        return standard.avg_pool(
            ops, x, window=window, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )  # fmt: skip
    y, shapes, whole = x, [], x.shape
    for axis, (out, k) in enumerate(zip(w.out, w.size, strict=True), start=1):
        shapes.append((*y.shape[:axis], out, k, prod(y.shape[axis + 1 :])))
        taps = y.reshape(shapes[-1])
        y = taps[..., 0, :] if k == 1 else taps[..., 0, :] + taps[..., 1, :]
        for tap in range(2, k):
            y += taps[..., tap, :]
        y = y.reshape(*shapes[-1][: axis + 1], *x.shape[axis + 1 :])
    y = y / prod(w.size)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        if not input_gradient:
            return (None,)
        dx = dy / prod(w.size)
        for shape in reversed(shapes):
            spread = np.empty(shape, dx.dtype)
            spread[...] = dx.reshape(*shape[:-2], 1, shape[-1])
            dx = spread
        return (dx.reshape(whole),)

    return y, backward
