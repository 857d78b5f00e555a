"""Average pooling of windows that lie side by side: one launch, and one back."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import cupy

from xpnn.ops import pool as standard
from xpnn.ops._array import Array, floats
from xpnn.ops._window import Padding, Sizes
from xpnn_cupy.kernels._cuda import Kernel, alike, takes, width
from xpnn_cupy.kernels._tiles import PLACE, sizes

if TYPE_CHECKING:
    from xpnn.ops import Ops

_FORWARD = Kernel("xpnn_average", PLACE + """
extern "C" __global__ void xpnn_average(
    const Pack* x, Pack* y, T taps, unsigned count,
    unsigned packs, unsigned out1, unsigned out2, unsigned k0, unsigned k1, unsigned k2
) {
    const unsigned i = thread();
    if (i >= count) return;
    const Place p = place(i, packs, out1, out2, k0, k1, k2);
    Pack sum = {};
    for (unsigned a = 0; a < k0; ++a)
        for (unsigned b = 0; b < k1; ++b) {
            Pack line = {};  // no chain of terms is longer than an axis of the window
            for (unsigned c = 0; c < k2; ++c) {
                const Pack under = x[p.first + a * p.plane + b * p.row + c * packs];
                for (int w = 0; w < W; ++w) line.v[w] += under.v[w];
            }
            for (int w = 0; w < W; ++w) sum.v[w] += line.v[w];
        }
    for (int w = 0; w < W; ++w) sum.v[w] /= taps;
    y[i] = sum;
}
""")  # fmt: skip

_BACKWARD = Kernel("xpnn_average_back", PLACE + """
extern "C" __global__ void xpnn_average_back(
    const Pack* dy, Pack* dx, T taps, unsigned count,
    unsigned packs, unsigned out1, unsigned out2, unsigned k0, unsigned k1, unsigned k2
) {
    const unsigned i = thread();
    if (i >= count) return;
    const Place p = place(i, packs, out1, out2, k0, k1, k2);
    Pack share = dy[i];
    for (int w = 0; w < W; ++w) share.v[w] /= taps;
    for (unsigned a = 0; a < k0; ++a)
        for (unsigned b = 0; b < k1; ++b)
            for (unsigned c = 0; c < k2; ++c) dx[p.first + a * p.plane + b * p.row + c * packs] = share;
}
""")  # fmt: skip


def avg_pool(
    ops: Ops,
    x: Array,
    *,
    window: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, Callable[..., tuple[Array | None]]]:
    """See `xpnn.ops.avg_pool`; where windows overlap, leave gaps or hang over, it is the standard body itself."""
    floats("avg_pool", x=x)
    w = standard.pool_window("avg_pool", tuple(x.shape[1:-1]), window, stride, padding, dilation, ceil_mode)
    if not w.tiles or not takes(x) or len(w.n) > 3:
        return standard.avg_pool(
            ops, x, window=window, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )  # fmt: skip
    x, channels, dtype = cupy.ascontiguousarray(x), x.shape[-1], x.dtype
    shape, geometry, taps = x.shape, sizes(w.out, w.size), dtype.type(prod(w.size))
    pooled, pack = (x.shape[0], *w.out, channels), width(channels, x)
    y = cupy.empty(pooled, dtype)
    _FORWARD(y.size // pack, dtype, pack, x, y, taps, y.size // pack, channels // pack, *geometry)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None]:
        if not input_gradient:
            return (None,)
        dy, dx = alike("avg_pool", dy, pooled, dtype), cupy.empty(shape, dtype)
        pack = width(channels, dy)
        _BACKWARD(dy.size // pack, dtype, pack, dy, dx, taps, dy.size // pack, channels // pack, *geometry)
        return (dx,)

    return y, backward
