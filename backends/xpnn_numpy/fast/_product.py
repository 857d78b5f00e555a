"""Matrix products in compiled code, by the BLAS that NumPy brings.

numba's own `np.dot` goes to SciPy's BLAS, takes long to compile, and cannot add to what is there; NumPy's BLAS is as a
rule the younger one (OpenBLAS 0.3.31 is up to 1.8 times as fast as 0.3.30 where many rows are summed up). Its address
is an argument of the kernels, so that nothing of this machine gets into the code that numba keeps on disk.
"""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from threadpoolctl import threadpool_info

from xpnn_numpy.fast._compiled import Host, compiled

NAMES = ("scipy_cblas_{}gemm64_", "cblas_{}gemm64_", "cblas_{}gemm", "scipy_cblas_{}gemm")
"""Of the function, most likely NumPy's first. Those without 64 read the lower half of the sizes that are passed."""


@cache
def blas(dtype: Any) -> int:
    """The address of `cblas_?gemm`.

    Raises:
        ImportError: no library that is loaded has it.
    """
    libraries = [ctypes.CDLL(pool["filepath"]) for pool in threadpool_info() if pool["user_api"] == "blas"]
    for name, library in product(NAMES, libraries):
        function = getattr(library, name.format("s" if dtype == np.float32 else "d"), None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    raise ImportError("NumPy's BLAS is not one that compiled code could call")


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
def multiply(blas: int, turn: bool, a: Host, b: Host, more: int, out: Host) -> None:
    """`out = a @ b`, of `a` turned around (`aᵀ`) where `turn`; added to `out` where `more` is 1, not 0."""
    m, k, n = (a.shape[1], a.shape[0], b.shape[1]) if turn else (a.shape[0], a.shape[1], b.shape[1])
    _call(blas, turn, m, n, k, a.ctypes.data, b.ctypes.data, out.dtype.type(more), out.ctypes.data)
