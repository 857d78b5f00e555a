"""Into columns and back, in one launch each; of up to three axes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import cupy

from xpnn.ops import columns as standard
from xpnn.ops._array import Array, floats
from xpnn.ops._window import Padding, Sizes, Window, window
from xpnn_cupy.kernels._cuda import LIMIT, Kernel, takes, width

if TYPE_CHECKING:
    from xpnn.ops import Ops


PLACES = 8  # that a thread goes along, with the same tap and channels

# Neighbours write neighbours: a thread takes one Pack of a place, and that of the places after it.
_GATHER = Kernel("xpnn_im2col", f"#define PLACES {PLACES}" + """
extern "C" __global__ void xpnn_im2col(
    const Pack* x, Pack* columns, unsigned places, unsigned packs,
    int n0, unsigned out0, unsigned k0, int s0, int d0, int before0,
    int n1, unsigned out1, unsigned k1, int s1, int d1, int before1,
    int n2, unsigned out2, unsigned k2, int s2, int d2, int before2
) {
    const unsigned length = k0 * k1 * k2 * packs, column = thread() % length;
    unsigned place = thread() / length * PLACES;
    unsigned i = column;
    const unsigned c = i % packs; i /= packs;
    const int t2 = i % k2 * d2 - before2; i /= k2;
    const int t1 = i % k1 * d1 - before1; i /= k1;
    const int t0 = i * d0 - before0;
    i = place;
    unsigned o2 = i % out2; i /= out2;
    unsigned o1 = i % out1; i /= out1;
    unsigned o0 = i % out0, n = i / out0;
    const unsigned end = min(place + PLACES, places);
    for (; place < end; ++place) {
        const int p0 = o0 * s0 + t0, p1 = o1 * s1 + t1, p2 = o2 * s2 + t2;
        Pack a = {};
        if (p0 >= 0 && p0 < n0 && p1 >= 0 && p1 < n1 && p2 >= 0 && p2 < n2)
            a = x[(((n * n0 + p0) * n1 + p1) * n2 + p2) * packs + c];
        columns[place * length + column] = a;
        if (++o2 < out2) continue;
        o2 = 0;
        if (++o1 < out1) continue;
        o1 = 0;
        if (++o0 < out0) continue;
        o0 = 0;
        ++n;
    }
}
""")  # fmt: skip


def im2col(
    ops: Ops, x: Array, *, kernel: Sizes, stride: Sizes = 1, padding: Padding = "valid", dilation: Sizes = 1
) -> Array:
    """See `xpnn.ops.im2col`."""
    floats("im2col", x=x)
    w = window("im2col", tuple(x.shape[1:-1]), kernel, stride, padding, dilation)
    places, channels = x.shape[0] * prod(w.out), x.shape[-1]
    length = prod(w.size) * channels
    if not takes(x) or places * length >= LIMIT or len(w.n) > 3:
        return standard.im2col(ops, x, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    x, columns = cupy.ascontiguousarray(x), cupy.empty((x.shape[0], *w.out, length), x.dtype)
    pack = width(channels, x)
    threads = -(-places // PLACES) * length // pack
    _GATHER(threads, x.dtype, pack, x, columns, places, channels // pack, *_axes(w))
    return columns


# A thread sums what came from the W values of one pixel, of up to three axes, the taps in their order.
_SCATTER = Kernel("xpnn_col2im", """
#define TAPS(a) \\
    for (int t##a = 0; t##a < k##a; ++t##a) { \\
        int o##a = p##a - t##a * d##a; \\
        if (o##a < 0) break; \\
        if (s##a > 1) { if (o##a % s##a) continue; o##a /= s##a; } \\
        if (o##a >= out##a) continue;

extern "C" __global__ void xpnn_col2im(
    const Pack* columns, Pack* image, unsigned count, unsigned packs,
    unsigned n0, int out0, int k0, int s0, int d0, int before0,
    unsigned n1, int out1, int k1, int s1, int d1, int before1,
    unsigned n2, int out2, int k2, int s2, int d2, int before2
) {
    unsigned i = thread();
    if (i >= count) return;
    const unsigned c = i % packs; i /= packs;
    const int p2 = i % n2 + before2; i /= n2;
    const int p1 = i % n1 + before1; i /= n1;
    const int p0 = i % n0 + before0; i /= n0;  // what is left is the sample
    Pack sum = {};
    TAPS(0) TAPS(1) TAPS(2)
        const unsigned row = ((i * out0 + o0) * out1 + o1) * out2 + o2;
        const Pack a = columns[(row * (k0 * k1 * k2) + (t0 * k1 + t1) * k2 + t2) * packs + c];
        for (int w = 0; w < W; ++w) sum.v[w] += a.v[w];
    }}}
    image[thread()] = sum;
}
""")  # fmt: skip


def col2im(
    ops: Ops,
    columns: Array,
    *,
    spatial: tuple[int, ...],
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> Array:
    """See `xpnn.ops.col2im`."""
    _, w, channels = standard.unfolded(columns, spatial, kernel, stride, padding, dilation)
    image = cupy.empty((columns.shape[0], *w.n, channels), columns.dtype)
    if not takes(columns) or not takes(image) or len(w.n) > 3:
        return standard.col2im(
            ops, columns, spatial=spatial, kernel=kernel, stride=stride, padding=padding, dilation=dilation
        )
    columns = cupy.ascontiguousarray(columns)
    pack = width(channels, columns)
    count = image.size // pack
    _SCATTER(count, image.dtype, pack, columns, image, count, channels // pack, *_axes(w))
    return image


def _axes(w: Window) -> list[int]:
    """Of each of three axes: size, places, taps, stride, dilation, and padding before it; missing ones come first."""
    before = (a for a, _ in w.pads)
    axes = zip(w.n, w.out, w.size, w.stride, w.dilation, before, strict=True)
    return [1, 1, 1, 1, 1, 0] * (3 - len(w.n)) + [value for axis in axes for value in axis]
