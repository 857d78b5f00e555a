"""Convolution and max-pool joined: the maximum with bias and ReLU is one launch, and so is the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import cupy

from xpnn.ops import joined as standard
from xpnn.ops._array import Array
from xpnn.ops._window import Padding, Sizes
from xpnn_cupy.kernels._cuda import Kernel, alike, takes, width
from xpnn_cupy.kernels._tiles import PLACE, sizes

if TYPE_CHECKING:
    from xpnn.ops import Ops

_FORWARD = Kernel("xpnn_pool_forward", PLACE + """
extern "C" __global__ void xpnn_pool_forward(
    const Pack* responses, const Pack* bias, Pack* y, unsigned biased, unsigned relu, unsigned count,
    unsigned packs, unsigned out1, unsigned out2, unsigned k0, unsigned k1, unsigned k2
) {
    const unsigned i = thread();
    if (i >= count) return;
    const Place p = place(i, packs, out1, out2, k0, k1, k2);
    Pack best = responses[p.first];
    for (unsigned a = 0; a < k0; ++a)
        for (unsigned b = 0; b < k1; ++b)
            for (unsigned c = 0; c < k2; ++c) {
                const Pack r = responses[p.first + a * p.plane + b * p.row + c * packs];
                for (int w = 0; w < W; ++w)
                    if (r.v[w] > best.v[w] || r.v[w] != r.v[w]) best.v[w] = r.v[w];  // NaN wins
            }
    if (biased)
        for (int w = 0; w < W; ++w) best.v[w] += bias[p.channel].v[w];
    if (relu)
        for (int w = 0; w < W; ++w) best.v[w] = rectified(best.v[w]);
    y[i] = best;
}
""")  # fmt: skip

# The first maximum of a window gets all of `d`, which is what ReLU lets through of `dy`.
_BACKWARD = Kernel("xpnn_pool_backward", PLACE + """
extern "C" __global__ void xpnn_pool_backward(
    const Pack* responses, const Pack* y, const Pack* dy, Pack* d, Pack* dresponses, unsigned relu, unsigned count,
    unsigned packs, unsigned out1, unsigned out2, unsigned k0, unsigned k1, unsigned k2
) {
    const unsigned i = thread();
    if (i >= count) return;
    const Place p = place(i, packs, out1, out2, k0, k1, k2);
    Pack prize = dy[i];
    if (relu) {
        const Pack kept = y[i];
        for (int w = 0; w < W; ++w) prize.v[w] *= T(kept.v[w] > 0);
    }
    d[i] = prize;
    Pack best = responses[p.first];
    unsigned winner[W] = {};
    for (unsigned a = 0, tap = 0; a < k0; ++a)
        for (unsigned b = 0; b < k1; ++b)
            for (unsigned c = 0; c < k2; ++c, ++tap) {
                const Pack r = responses[p.first + a * p.plane + b * p.row + c * packs];
                for (int w = 0; w < W; ++w)
                    if (r.v[w] > best.v[w]) { best.v[w] = r.v[w]; winner[w] = tap; }
            }
    for (unsigned a = 0, tap = 0; a < k0; ++a)
        for (unsigned b = 0; b < k1; ++b)
            for (unsigned c = 0; c < k2; ++c, ++tap) {
                Pack share;
                for (int w = 0; w < W; ++w) share.v[w] = winner[w] == tap ? prize.v[w] : T(0);
                dresponses[p.first + a * p.plane + b * p.row + c * packs] = share;
            }
}
""")  # fmt: skip


def conv_pool(
    ops: Ops,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    pool: Sizes,
    relu: bool = False,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None]]]:
    """See `xpnn.ops.conv_pool`."""
    return standard.by_responses(ops, best, x, weight, bias, pool, relu, stride, padding, dilation)


def best(
    ops: Ops, responses: Array, bias: Array | None, size: tuple[int, ...], relu: bool
) -> tuple[Array, Callable[[Array], tuple[Array, Array | None]]]:
    """See `xpnn.ops.joined.best`."""
    if not takes(responses) or len(size) > 3:
        return standard.best(ops, responses, bias, size, relu)
    responses = cupy.ascontiguousarray(responses)
    offset = responses if bias is None else cupy.ascontiguousarray(bias)
    n, *spatial, channels = responses.shape
    out = tuple(m // k for m, k in zip(spatial, size, strict=True))
    shape, dtype, geometry = (n, *out, channels), responses.dtype, sizes(out, size)
    y = cupy.empty(shape, dtype)
    w = width(channels, responses, offset)
    biased, count = int(bias is not None), y.size // w
    _FORWARD(count, dtype, w, responses, offset, y, biased, int(relu), count, channels // w, *geometry)

    kept = y if relu else responses

    def backward(dy: Array) -> tuple[Array, Array | None]:
        dy = alike("conv_pool", dy, shape, dtype)
        d, dresponses = cupy.empty(shape, dtype), cupy.empty(responses.shape, dtype)
        w = width(channels, responses, dy)
        count = d.size // w
        _BACKWARD(count, dtype, w, responses, kept, dy, d, dresponses, int(relu), count, channels // w, *geometry)
        return dresponses, ops.total(d, tuple(range(d.ndim - 1))) if biased else None

    return y, backward
