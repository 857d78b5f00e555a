"""Matrix products in compiled code, by the BLAS that NumPy brings.

numba's own `np.dot` goes to SciPy's BLAS; NumPy's is as a rule the younger one (OpenBLAS 0.3.31 is up to 1.8 times as
fast as 0.3.30 where many rows are summed up), and it can add to what is there. Its address is an argument of the
kernels, so that nothing of this machine gets into the code that numba keeps on disk; 0 stands for `np.dot`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from threadpoolctl import threadpool_info

from xpnn_numpy.fast._compiled import Host, compiled


@cache
def blas(dtype: Any) -> int:
    """The address of `cblas_?gemm` with 64-bit sizes, as NumPy's wheels have it; else 0."""
    name = f"scipy_cblas_{'s' if dtype == np.float32 else 'd'}gemm64_"
    for pool in threadpool_info():
        if pool["user_api"] == "blas" and (function := getattr(ctypes.CDLL(pool["filepath"]), name, None)):
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def _cblas(typing: Any, address: Any, turn: Any, m: Any, n: Any, k: Any, a: Any, b: Any, beta: Any, out: Any) -> Any:
    """A call of that function for contiguous matrices; numba asks for its types and its code."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, turn, m, n, k, a, b, beta, out = args
        int32, int64, real = ir.IntType(32), ir.IntType(64), beta.type
        row_major, plain, turned = (int32(value) for value in (101, 111, 112))
        kinds = [int32] * 3 + [int64] * 3 + [real, int64, int64, int64, int64, real, int64, int64]
        function = builder.inttoptr(address, ir.FunctionType(ir.VoidType(), kinds).as_pointer())
        width = builder.select(turn, m, k)
        kind = builder.select(turn, turned, plain)
        builder.call(function, (row_major, kind, plain, m, n, k, real(1.0), a, width, b, n, beta, out, n))
        return context.get_dummy_value()

    sizes = [types.int64] * 3
    return types.void(types.int64, types.boolean, *sizes, types.int64, types.int64, beta, types.int64), code


_call = intrinsic(_cblas)


@compiled
def multiply(blas: int, turn: bool, a: Host, b: Host, more: bool, out: Host) -> None:
    """`out = a @ b`, of `a` turned around (`aᵀ`) where `turn`; added to `out` where `more`."""
    m, k, n = (a.shape[1], a.shape[0], b.shape[1]) if turn else (a.shape[0], a.shape[1], b.shape[1])
    if blas:
        beta = out.dtype.type(1 if more else 0)
        _call(blas, turn, m, n, k, a.ctypes.data, b.ctypes.data, beta, out.ctypes.data)
    else:
        product = np.dot(a.T, b) if turn else np.dot(a, b)
        if more:
            out += product
        else:
            out[:] = product
