"""Kernels in CUDA C++, compiled for a type and a width at their first launch.

A thread takes a `Pack`: the W values that lie side by side, four where the channels and the addresses allow it, so
that memory is moved in the longest words that the GPU has.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cupy
import numpy as np

from xpnn.errors import MixedBackendsError, ShapeError
from xpnn.ops._array import Array

THREADS = 256  # of a block
LIMIT = 1 << 31  # kernels count in 32 bits, which the GPU divides faster than 64

_TYPES = {"float32": "float", "float64": "double"}
_HEAD = """
struct alignas(W * sizeof(T) < 16 ? W * sizeof(T) : 16) Pack { T v[W]; };

// max(a, 0), which leaves NaN as it is
__device__ T rectified(T a) { return a <= 0 ? T(0) : a; }

__device__ unsigned thread() { return blockIdx.x * blockDim.x + threadIdx.x; }
"""


def takes(x: Array) -> bool:
    """Whether there are kernels for the type of `x`, and values to count, and not too many."""
    return isinstance(x, cupy.ndarray) and x.dtype.name in _TYPES and 0 < x.size < LIMIT


def alike(op: str, dy: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """`dy`, C-contiguous, once it is known to be like the output, for kernels read it as such."""
    if not isinstance(dy, cupy.ndarray):
        raise MixedBackendsError(f"{op}: dy is a {type(dy).__name__}; bring it to CuPy with backend.asarray(...)")
    if dy.shape != shape or dy.dtype != dtype:
        raise ShapeError(
            f"{op}: dy has shape {dy.shape} and dtype {dy.dtype}; expected those of the output, {shape} and {dtype}"
        )
    return cupy.ascontiguousarray(dy)


def width(neighbours: int, *arrays: Array) -> int:
    """How many of so many neighbours in memory a thread can take at once, from C-contiguous arrays."""
    addresses = [a.data.ptr for a in arrays]
    size = arrays[0].itemsize
    return next(w for w in (4, 2, 1) if neighbours % w == 0 and not any(p % min(16, w * size) for p in addresses))


class Kernel:
    """One kernel; `T` is the type of the values and `W` the width of a `Pack`."""

    def __init__(self, name: str, code: str) -> None:
        self._name, self._code = name, _HEAD + code
        self._compiled = cache(self._compile)

    def __call__(self, threads: int, dtype: Any, width: int, *arguments: Any) -> None:
        """Launch `threads` threads, and those that fill the last block; integers are `unsigned` to them."""
        values = tuple(np.uint32(a) if isinstance(a, int) else a for a in arguments)
        self._compiled(np.dtype(dtype).name, width)((-(-threads // THREADS),), (THREADS,), values)

    def code(self, dtype: str, width: int) -> str:
        """What is compiled. (Macros would replace words in the compiler's own headers as well.)"""
        return f"using T = {_TYPES[dtype]};\nconstexpr int W = {width}, THREADS = {THREADS};\n{self._code}"

    def _compile(self, dtype: str, width: int) -> Any:
        return cupy.RawKernel(self.code(dtype, width), self._name, ("--std=c++17",))
