"""CUDA C++ on the CPU: what CuPy's kernels are given, compiled by g++ and run thread after thread.

The threads of a block that wait for each other (`__syncthreads`) are threads of the CPU; blocks follow one another.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cupy
import numpy as np

COMPILER = shutil.which("g++")

_HEAD = """
#include <math.h>
#include <pthread.h>
#define __device__ static inline
#define __global__
#define __shared__ static
#define __syncthreads() pthread_barrier_wait(&meeting)
struct Dim { unsigned x; };
static thread_local Dim threadIdx, blockIdx;
static Dim blockDim, gridDim;
static pthread_barrier_t meeting;
static unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
"""
_RUN = """
struct Spot { unsigned block, thread; void** a; };

static void* one(void* given) {
    const Spot& place = *(Spot*)given;
    void** a = place.a;
    blockIdx.x = place.block, threadIdx.x = place.thread;
    CALL;
    return 0;
}

extern "C" void run(unsigned grid, unsigned block, void** a) {
    gridDim.x = grid, blockDim.x = block;
    pthread_barrier_init(&meeting, 0, block);
    Spot places[1024];
    pthread_t threads[1024];
    for (unsigned b = 0; b < grid; ++b) {
        for (unsigned t = 0; t < block; ++t) {
            places[t] = {b, t, a};
            if (MEET) pthread_create(threads + t, 0, one, places + t); else one(places + t);
        }
        if (MEET) for (unsigned t = 0; t < block; ++t) pthread_join(threads[t], 0);
    }
}
"""


class Memory(np.ndarray[Any, Any]):
    """A NumPy array that knows its address, and hands it on, as CuPy's do."""

    @property
    def data(self) -> Any:
        """Where it lies."""
        return SimpleNamespace(ptr=self.ctypes.data)


def memory(a: Any) -> Any:
    """`a` as such an array."""
    return np.asarray(a).view(Memory)


def empty(shape: Any, dtype: Any) -> Any:
    """Memory at an address like CuPy's, a multiple of 512; what is not written over is seen."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 512, np.uint8)
    start = -raw.ctypes.data % 512
    a = raw[start : start + size].view(dtype).reshape(shape)
    a[...] = np.nan
    return memory(a)


class RawKernel:
    """Compiled when made, for one type and width."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        kind, wide = re.findall(r"using T = (\w+);\nconstexpr int W = (\d)", code)[0]
        self.told = name, kind, int(wide)
        found = re.search(rf"void {name}\(([^)]*)\)", code)
        assert found
        kinds = [re.sub(r"\w+$", "", parameter.strip()).strip() for parameter in found[1].split(",")]
        self.pointers = [kind.endswith("*") for kind in kinds]
        values = (f"({kind})a[{i}]" if kind.endswith("*") else f"*({kind}*)a[{i}]" for i, kind in enumerate(kinds))
        run = _RUN.replace("CALL", f"{name}({', '.join(values)})").replace("MEET", str(int("__syncthreads" in code)))
        self.run = _library(_HEAD + code + run).run

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        assert len(arguments) == len(self.pointers)
        held = [a if pointer else np.asarray(a) for a, pointer in zip(arguments, self.pointers, strict=True)]
        for a, pointer in zip(held, self.pointers, strict=True):
            assert isinstance(a, Memory) == pointer, "a pointer for an array, a value for a number"
            assert a.flags.c_contiguous, "kernels count in rows"
        addresses = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
        self.run(ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), addresses)


@cache
def _library(source: str) -> Any:
    assert COMPILER
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        code.write_text(source)
        command = [COMPILER, "-std=c++20", "-w", "-fPIC", "-shared", "-pthread", code, "-o", library]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


def modules() -> dict[str, Any]:
    """The modules of CuPy's kernels, by their last name, on NumPy."""
    with fake_cupy.installed(gpus=1):
        import_module("xpnn_cupy.kernels")
        found = {name.rpartition(".")[2]: m for name, m in sys.modules.items() if name.startswith("xpnn_cupy.kernels")}
    for module in found.values():
        if hasattr(module, "cupy"):
            module.cupy = CUPY
    return found


def kernels(modules: dict[str, Any]) -> dict[str, Any]:
    """Their kernels; all but the products, which are cuBLAS's."""
    return {name: kernel for name, kernel in modules["kernels"].KERNELS.items() if name != "matmul"}


def ascontiguousarray(x: Any) -> Any:
    """As CuPy's: `x` itself where it can be."""
    return x if isinstance(x, Memory) and x.flags.c_contiguous else memory(np.ascontiguousarray(x))


CUPY = SimpleNamespace(ndarray=Memory, empty=empty, RawKernel=RawKernel, ascontiguousarray=ascontiguousarray)
