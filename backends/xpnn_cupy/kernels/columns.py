"""Into columns and back, in one launch each."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import cupy
import numpy as np

from xpnn.ops import columns as standard
from xpnn.ops._array import Array, floats
from xpnn.ops._window import Sizes, window
from xpnn.ops.columns import unfolded
from xpnn_cupy.kernels._cuda import Kernel, takes, width

if TYPE_CHECKING:
    from xpnn.ops import Ops


def im2col(ops: Ops, x: Array, *, kernel: Sizes, stride: Sizes = 1, dilation: Sizes = 1) -> Array:
    """See `xpnn.ops.im2col`: the windows as a view, copied at once."""
    floats("im2col", x=x)
    if x.strides[-1] != x.itemsize:
        x = cupy.ascontiguousarray(x)
    w = window("im2col", tuple(x.shape[1:-1]), kernel, stride, "valid", dilation)
    word = _word(x)
    first, *steps, _ = x.strides
    places = [step * s for step, s in zip(steps, w.stride, strict=True)]
    taps = [step * d for step, d in zip(steps, w.dilation, strict=True)]
    channels = x.shape[-1] * x.itemsize // word.itemsize
    windows = (x.shape[0], *w.out, *w.size, channels), word, x.data, (first, *places, *taps, word.itemsize)
    columns = cupy.ndarray(*windows).reshape(x.shape[0], *w.out, prod(w.size) * channels)
    return cupy.ascontiguousarray(columns).view(x.dtype)


def _word(x: Array) -> np.dtype[Any]:
    """In what the channels of a pixel are moved: sixteen or eight bytes at once where they lie so."""
    distances = (x.shape[-1] * x.itemsize, x.data.ptr, *x.strides[:-1])
    fitting = (d for d in map(np.dtype, ("complex128", "int64")) if not any(n % d.itemsize for n in distances))
    return next(fitting, np.dtype(x.dtype))


# A thread sums what came from the W values of one pixel, of up to three axes, the taps in their order.
_GATHER = Kernel("xpnn_col2im", """
#define TAPS(a) \\
    for (int t##a = 0; t##a < k##a; ++t##a) { \\
        int o##a = p##a - t##a * d##a; \\
        if (o##a < 0) break; \\
        if (s##a > 1) { if (o##a % s##a) continue; o##a /= s##a; } \\
        if (o##a >= out##a) continue;

extern "C" __global__ void xpnn_col2im(
    const Pack* columns, Pack* image, unsigned count, unsigned packs,
    unsigned n0, int out0, int k0, int s0, int d0,
    unsigned n1, int out1, int k1, int s1, int d1,
    unsigned n2, int out2, int k2, int s2, int d2
) {
    unsigned i = thread();
    if (i >= count) return;
    const unsigned c = i % packs; i /= packs;
    const int p2 = i % n2; i /= n2;
    const int p1 = i % n1; i /= n1;
    const int p0 = i % n0; i /= n0;  // what is left is the sample
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
    ops: Ops, columns: Array, *, spatial: tuple[int, ...], kernel: Sizes, stride: Sizes = 1, dilation: Sizes = 1
) -> Array:
    """See `xpnn.ops.col2im`."""
    _, w, channels = unfolded(columns, spatial, kernel, stride, dilation)
    image = cupy.empty((columns.shape[0], *w.n, channels), columns.dtype)
    if not takes(columns) or not takes(image) or len(w.n) > 3:
        return standard.col2im(ops, columns, spatial=spatial, kernel=kernel, stride=stride, dilation=dilation)
    columns = cupy.ascontiguousarray(columns)
    pack = width(channels, columns)
    axes = *((1, 1, 1, 1, 1),) * (3 - len(w.n)), *zip(w.n, w.out, w.size, w.stride, w.dilation, strict=True)
    count = image.size // pack
    _GATHER(
        count, image.dtype, pack, columns, image, count, channels // pack, *(value for axis in axes for value in axis)
    )
    return image
