"""The parts of ops that CuPy does in one launch, or that it refuses while a CUDA graph is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import cupy
import numpy as np

from xpnn.ops._array import Array, floats
from xpnn.ops._window import Sizes, window
from xpnn.ops.columns import unfolded
from xpnn_cupy.products import matmul

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


def col2im(
    ops: Ops, columns: Array, *, spatial: tuple[int, ...], kernel: Sizes, stride: Sizes = 1, dilation: Sizes = 1
) -> Array:
    """See `xpnn.ops.col2im`: each value of the image sums what came from it, the taps in their order."""
    _, w, channels = unfolded(columns, spatial, kernel, stride, dilation)
    image = cupy.empty((columns.shape[0], *w.n, channels), columns.dtype)
    sizes = [value for axis in zip(w.n, w.out, w.size, w.stride, w.dilation, strict=True) for value in axis]
    index = "int" if max(image.size, columns.size) < 1 << 31 else "long long"  # the GPU divides the short ones faster
    return _gather_sums(len(w.n), index)(cupy.ascontiguousarray(columns), channels, *sizes, image)


@cache
def _gather_sums(axes: int, index: str) -> Any:
    """`col2im` for images of so many spatial axes, with places counted in the type `index`."""
    names = [f"{kind}{a}" for a in range(axes) for kind in ("spatial", "out", "kernel", "stride", "dilation")]
    split, loops, place, tap, end = "", "", "n", "0", ""
    for a in reversed(range(axes)):
        split += f"const {index} p{a} = rest % spatial{a}; rest /= spatial{a};\n"
    for a in range(axes):
        loops += f"""
            for (int t{a} = 0; t{a} < kernel{a}; ++t{a}) {{
                {index} o{a} = p{a} - t{a} * dilation{a};
                if (o{a} < 0 || o{a} % stride{a}) continue;
                o{a} /= stride{a};
                if (o{a} >= out{a}) continue;
        """
        place, tap, end = f"({place} * out{a} + o{a})", f"({tap} * kernel{a} + t{a})", end + "}"
    taps = " * ".join(f"kernel{a}" for a in range(axes))
    return cupy.ElementwiseKernel(
        f"raw T columns, int32 channels, {', '.join(f'int32 {name}' for name in names)}",
        "T y",
        f"""
        {index} rest = i;
        const {index} c = rest % channels; rest /= channels;
        {split}
        const {index} n = rest;
        T sum = 0;
        {loops} sum += columns[({place} * {taps} + {tap}) * channels + c]; {end}
        y = sum;
        """,
        f"xpnn_col2im_{axes}d_{index.split()[0]}",
    )


KERNELS: Mapping[str, Callable[..., Any]] = {"matmul": matmul, "im2col": im2col, "col2im": col2im}
