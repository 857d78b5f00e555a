"""Matrix products by cuBLAS, through handles of our own.

CuPy's calls of cuBLAS refuse to be recorded in a CUDA graph. cuBLAS itself does not, once its handle has a workspace.
Float32 is computed as such, whatever `CUPY_TF32` says.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from functools import cache
from math import gcd
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import cupy

from xpnn.errors import BackendError
from xpnn.ops._array import Array, namespace

if TYPE_CHECKING:
    from xpnn.ops import Ops

WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends for Hopper; fewer elsewhere, where this does no harm
LONG, FEW = 1 << 15, 1 << 16  # rows of a long matrix, values of a small one
PARTS = 128  # at most, a power of two

# dtype: cudaDataType_t, cublasComputeType_t, the type of the factors
_KINDS = {"float32": (0, 68, ctypes.c_float), "float64": (1, 70, ctypes.c_double), "float16": (2, 68, ctypes.c_float)}


def matmul(ops: Ops, a: Array, b: Array) -> Array:
    """See `xpnn.ops.matmul`."""
    xp = namespace("matmul", a=a, b=b)
    kind = _KINDS.get(a.dtype.name) if a.dtype == b.dtype else None
    if kind is None or not (a.ndim == b.ndim and a.ndim in (2, 3)) or not (a.size and b.size):
        return xp.matmul(a, b)
    ndim, (m, k), (rows, n) = a.ndim, a.shape[-2:], b.shape[-2:]
    batch = {x.shape[0] for x in (a, b) if x.ndim == 3 and x.shape[0] != 1} or {1}
    if rows != k or len(batch) != 1:
        return xp.matmul(a, b)  # says what does not fit
    (count,) = batch
    if count == 1 and a.dtype.itemsize > 2 and (parts := _parts(m, n, k)) > 1:
        a, b = a.reshape(m, parts, k // parts).transpose(1, 0, 2), b.reshape(parts, k // parts, n)
        return xp.reshape(ops.total(matmul(ops, a, b), 0), (1, m, n)[3 - ndim :])
    c = cupy.empty((count, m, n)[3 - a.ndim :], a.dtype)
    if m >= LONG and b.size <= FEW:
        b = cupy.ascontiguousarray(b)  # a transposed one takes up to a quarter longer
    left, right = Operand(a), Operand(b)
    current().multiply(left, right, c, (m, n, k, count), kind)
    return c


def _parts(m: int, n: int, k: int) -> int:
    """Into how many products of the same size one of long rows and columns is cut, whose results are then summed.

    The gradient of a convolution's weights has few values and sums over all places; cuBLAS leaves most of a GPU idle.
    """
    return gcd(k, PARTS) if k >= LONG and m * n <= FEW else 1


class Operand:
    """How cuBLAS finds a matrix: address, whether transposed, distance of rows and of the matrices of a batch."""

    def __init__(self, x: Array) -> None:
        layout = _layout(x.shape, x.strides, x.itemsize)
        if layout is None:
            x = cupy.ascontiguousarray(x)
            layout = _layout(x.shape, x.strides, x.itemsize)
        assert layout is not None
        self.array = x  # to be held until the product is launched
        self.transposed, self.row, self.matrix = layout


def _layout(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> tuple[bool, int, int] | None:
    """Whether transposed, and the distances of rows and of matrices in elements; None: cuBLAS has no words for it."""
    (rows, columns), (down, along) = shape[-2:], strides[-2:]
    apart = strides[0] if len(shape) == 3 and shape[0] > 1 else 0
    if apart < 0:
        return None
    if (along == size or columns == 1) and (rows == 1 or down >= columns * size):
        return False, columns if rows == 1 else down // size, apart // size
    if (down == size or rows == 1) and (columns == 1 or along >= rows * size):
        return True, rows if columns == 1 else along // size, apart // size
    return None


class Handle:
    """A handle of cuBLAS, bound to one stream, with its workspace."""

    def __init__(self, stream: Any) -> None:
        self._cublas, self._handle = _library(), ctypes.c_void_p()
        self._check("cublasCreate_v2", ctypes.byref(self._handle))
        self._check("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream.ptr))
        self._workspace = cupy.cuda.Memory(WORKSPACE)
        self._check(
            "cublasSetWorkspace_v2", self._handle, ctypes.c_void_p(self._workspace.ptr), ctypes.c_size_t(WORKSPACE)
        )

    def multiply(self, a: Operand, b: Operand, c: Array, sizes: tuple[int, int, int, int], kind: Any) -> None:
        """`c = a @ b`: cuBLAS counts along columns, so it is told the transposed product, `cᵀ = bᵀ @ aᵀ`."""
        m, n, k, count = sizes
        dtype, compute, factor = kind
        one, zero = factor(1), factor(0)
        batch = count > 1  # one product by itself may be cut along k, where it has few results
        self._check(
            "cublasGemmStridedBatchedEx" if batch else "cublasGemmEx",
            self._handle, int(b.transposed), int(a.transposed), n, m, k, ctypes.byref(one),
            ctypes.c_void_p(b.array.data.ptr), dtype, b.row, *([ctypes.c_longlong(b.matrix)] if batch else []),
            ctypes.c_void_p(a.array.data.ptr), dtype, a.row, *([ctypes.c_longlong(a.matrix)] if batch else []),
            ctypes.byref(zero), ctypes.c_void_p(c.data.ptr), dtype, n,
            *([ctypes.c_longlong(m * n), count] if batch else []), compute, -1,
        )  # fmt: skip

    def _check(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cublas, function)(*arguments)
        if status:
            raise BackendError(f"{function} of cuBLAS ended with status {status} (cublasStatus_t)")

    def __del__(self) -> None:
        if self._handle and not sys.is_finalizing():
            self._cublas.cublasDestroy_v2(self._handle)


class _Handles(threading.local):
    """The handles of a thread, by device and stream; one goes with its stream."""

    def __init__(self) -> None:
        self.of: dict[int, WeakKeyDictionary[Any, Handle]] = {}


_handles = _Handles()


def current() -> Handle:
    """The handle for the current stream of the current device."""
    stream = cupy.cuda.get_current_stream()
    of_device = _handles.of.setdefault(cupy.cuda.runtime.getDevice(), WeakKeyDictionary())
    found = of_device.get(stream)
    if found is None:
        found = of_device[stream] = Handle(stream)
    return found


@cache
def _library() -> Any:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
