"""Batch normalisation: one pass over the images for each of its sums, one for what follows from them.

A sum over the images is taken in two launches: threads add up a few values each, then one block a channel adds those
sums in 64 bits and goes on to what follows from the total.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import cupy

from xpnn.ops import norm as standard
from xpnn.ops._array import Array
from xpnn_cupy.kernels._cuda import THREADS, Kernel, alike, takes, width

if TYPE_CHECKING:
    from xpnn.ops import Ops

THREADS_WANTED = 1 << 16  # to keep the GPU busy
TERMS = 8, 64  # added one after the other by one of them: at least, at most

# A thread adds every so-many-th pack, so that neighbours read neighbours; `stride` is a multiple of `packs`.
_SUMS = Kernel("xpnn_norm_sums", """
extern "C" __global__ void xpnn_norm_sums(const Pack* x, Pack* sums, unsigned stride, unsigned count) {
    const unsigned j = thread();
    if (j >= stride) return;
    const unsigned terms = (count - j + stride - 1) / stride;  // known beforehand: loads need not wait for each other
    Pack sum = {};
    #pragma unroll 8
    for (unsigned t = 0; t < terms; ++t) {
        const Pack a = x[j + t * stride];
        for (int w = 0; w < W; ++w) sum.v[w] += a.v[w];
    }
    sums[j] = sum;
}
""")  # fmt: skip

_SQUARES = Kernel("xpnn_norm_squares", """
extern "C" __global__ void xpnn_norm_squares(
    const Pack* x, const Pack* mean, Pack* sums, unsigned packs, unsigned stride, unsigned count
) {
    const unsigned j = thread();
    if (j >= stride) return;
    const unsigned terms = (count - j + stride - 1) / stride;
    const Pack centre = mean[j % packs];
    Pack sum = {};
    #pragma unroll 8
    for (unsigned t = 0; t < terms; ++t) {
        const Pack a = x[j + t * stride];
        for (int w = 0; w < W; ++w) sum.v[w] += (a.v[w] - centre.v[w]) * (a.v[w] - centre.v[w]);
    }
    sums[j] = sum;
}
""")  # fmt: skip

# The sums of `dy` and, behind them, of `dy · (x - mean)`, of what ReLU let through to `y`.
_PRODUCTS = Kernel("xpnn_norm_products", """
extern "C" __global__ void xpnn_norm_products(
    const Pack* dy, const Pack* x, const Pack* y, const Pack* mean, Pack* sums,
    unsigned relu, unsigned packs, unsigned stride, unsigned count
) {
    const unsigned j = thread();
    if (j >= stride) return;
    const unsigned terms = (count - j + stride - 1) / stride;
    const Pack centre = mean[j % packs];
    Pack sum = {}, product = {};
    #pragma unroll 8
    for (unsigned t = 0; t < terms; ++t) {
        const unsigned i = j + t * stride;
        Pack d = dy[i];
        const Pack a = x[i];
        if (relu) {
            const Pack kept = y[i];
            for (int w = 0; w < W; ++w) d.v[w] *= T(kept.v[w] > 0);
        }
        for (int w = 0; w < W; ++w) {
            sum.v[w] += d.v[w];
            product.v[w] += d.v[w] * (a.v[w] - centre.v[w]);
        }
    }
    sums[j] = sum;
    sums[stride + j] = product;
}
""")  # fmt: skip

_TOTAL = """
// The sum of what threads have added up of the channel of this block, in all threads of it.
__device__ double total(const T* sums, unsigned parts) {
    __shared__ double shares[THREADS];
    double share = 0;
    const unsigned terms = (parts - min(parts, threadIdx.x) + THREADS - 1) / THREADS;
    #pragma unroll 8
    for (unsigned t = 0; t < terms; ++t) share += sums[(threadIdx.x + t * THREADS) * gridDim.x + blockIdx.x];
    __syncthreads();  // what was summed before is read
    shares[threadIdx.x] = share;
    for (unsigned half = THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shares[threadIdx.x] += shares[threadIdx.x + half];
    }
    __syncthreads();
    return shares[0];
}
"""

_MEAN = Kernel("xpnn_norm_mean", _TOTAL + """
extern "C" __global__ void xpnn_norm_mean(const T* sums, T* mean, unsigned parts, unsigned n) {
    const double sum = total(sums, parts);
    if (threadIdx.x == 0) mean[blockIdx.x] = T(sum / n);
}
""")  # fmt: skip

_VARIANCE = Kernel("xpnn_norm_variance", _TOTAL + """
extern "C" __global__ void xpnn_norm_variance(
    const T* squares, const T* mean, const T* scale, const T* running_mean, const T* running_var,
    T* inverse, T* slope, T* new_mean, T* new_var, T momentum, T epsilon, unsigned parts, unsigned n
) {
    const double sum = total(squares, parts);
    if (threadIdx.x) return;
    const unsigned c = blockIdx.x;
    inverse[c] = 1 / sqrt(T(sum / n) + epsilon);
    slope[c] = inverse[c] * scale[c];
    new_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean[c];
    new_var[c] = (1 - momentum) * running_var[c] + momentum * T(sum / (n - 1));
}
""")  # fmt: skip

_MEANS = Kernel("xpnn_norm_means", _TOTAL + """
extern "C" __global__ void xpnn_norm_means(
    const T* sums, const T* products, const T* inverse, const T* slope,
    T* dscale, T* dbias, T* shift, T* tilt, unsigned parts, unsigned n
) {
    const double sum = total(sums, parts), product = total(products, parts);
    if (threadIdx.x) return;
    const unsigned c = blockIdx.x;
    dbias[c] = T(sum);
    dscale[c] = T(product) * inverse[c];
    shift[c] = T(sum / n) * slope[c];
    tilt[c] = T(product / n) * slope[c] * inverse[c] * inverse[c];
}
""")  # fmt: skip

_NORMALISE = Kernel("xpnn_norm_normalise", """
extern "C" __global__ void xpnn_norm_normalise(
    const Pack* x, const Pack* mean, const Pack* slope, const Pack* bias, Pack* y,
    unsigned relu, unsigned packs, unsigned count
) {
    const unsigned i = thread();
    if (i >= count) return;
    const unsigned c = i % packs;
    const Pack a = x[i], m = mean[c], s = slope[c], b = bias[c];
    Pack r;
    for (int w = 0; w < W; ++w) {
        const T value = (a.v[w] - m.v[w]) * s.v[w] + b.v[w];
        r.v[w] = relu ? rectified(value) : value;
    }
    y[i] = r;
}
""")  # fmt: skip

_PASS_BACK = Kernel("xpnn_norm_pass_back", """
extern "C" __global__ void xpnn_norm_pass_back(
    const Pack* dy, const Pack* x, const Pack* y, const Pack* mean, const Pack* slope, const Pack* shift,
    const Pack* tilt, Pack* dx, unsigned training, unsigned relu, unsigned packs, unsigned count
) {
    const unsigned i = thread();
    if (i >= count) return;
    const unsigned c = i % packs;
    Pack d = dy[i];
    const Pack s = slope[c];
    if (relu) {
        const Pack kept = y[i];
        for (int w = 0; w < W; ++w) d.v[w] *= T(kept.v[w] > 0);
    }
    for (int w = 0; w < W; ++w) d.v[w] *= s.v[w];
    if (training) {  // else the statistics do not depend on x
        const Pack a = x[i], m = mean[c], first = shift[c], second = tilt[c];
        for (int w = 0; w < W; ++w) d.v[w] -= (a.v[w] - m.v[w]) * second.v[w] + first.v[w];
    }
    dx[i] = d;
}
""")  # fmt: skip


def batch_norm(
    ops: Ops,
    x: Array,
    scale: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    *,
    training: bool,
    momentum: float = 0.1,
    epsilon: float = 1e-5,
    relu: bool = False,
) -> tuple[tuple[Array, Array, Array], Callable[..., tuple[Array | None, Array, Array, None, None]]]:
    """See `xpnn.ops.batch_norm`."""
    given = x, scale, bias, running_mean, running_var
    xp, n, channels = standard.check_batch_norm(*given), prod(x.shape[:-1]), x.shape[-1]
    if not takes(x):
        return standard.batch_norm(ops, *given, training=training, momentum=momentum, epsilon=epsilon, relu=relu)
    x, scale, bias, running_mean, running_var = map(cupy.ascontiguousarray, given)
    dtype, w = x.dtype, width(channels, x, scale, bias, running_mean, running_var)
    packs, count = channels // w, x.size // w
    least, most = TERMS
    parts = -(-n // min(max(least, count // THREADS_WANTED), most))
    stride = parts * packs

    def vectors(many: int) -> list[Array]:
        return [cupy.empty(channels, dtype) for _ in range(many)]

    if training:
        standard.check_count(n)
        mean, inverse, slope, new_mean, new_var = vectors(5)
        sums = cupy.empty(parts * channels, dtype)
        _SUMS(stride, dtype, w, x, sums, stride, count)
        _MEAN(channels * THREADS, dtype, w, sums, mean, parts, n)
        _SQUARES(stride, dtype, w, x, mean, sums, packs, stride, count)
        _VARIANCE(
            channels * THREADS, dtype, w, sums, mean, scale, running_mean, running_var, inverse, slope,
            new_mean, new_var, dtype.type(momentum), dtype.type(epsilon), parts, n,
        )  # fmt: skip
    else:
        mean, new_mean, new_var = running_mean, running_mean, running_var
        inverse = 1 / xp.sqrt(running_var + epsilon)
        slope = inverse * scale
    y = cupy.empty(x.shape, dtype)
    _NORMALISE(count, dtype, w, x, mean, slope, bias, y, int(relu), packs, count)

    kept = y if relu else x

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array, None, None]:
        dy = alike("batch_norm", dy, x.shape, dtype)
        v = width(channels, dy, x, mean)
        packs, count = channels // v, x.size // v
        stride = parts * packs
        dscale, dbias, shift, tilt = vectors(4)
        sums = cupy.empty((2, parts * channels), dtype)
        _PRODUCTS(stride, dtype, v, dy, x, kept, mean, sums, int(relu), packs, stride, count)
        _MEANS(channels * THREADS, dtype, v, *sums, inverse, slope, dscale, dbias, shift, tilt, parts, n)
        if not input_gradient:
            return None, dscale, dbias, None, None
        dx = cupy.empty(x.shape, dtype)
        _PASS_BACK(count, dtype, v, dy, x, kept, mean, slope, shift, tilt, dx, int(training), int(relu), packs, count)
        return dx, dscale, dbias, None, None

    return (y, new_mean, new_var), backward
