"""CuPy on an NVIDIA GPU.

Importing CuPy works without a GPU, and so does asking it: whatever is missing is said in `why_unavailable`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xpnn.backend import Backend, one_line, standard_only
from xpnn.errors import BackendError
from xpnn.ops._array import Array

if TYPE_CHECKING:
    from xpnn.train.executor import Executor

INSTALL = 'pip install "xpnn[cuda13]" (or "xpnn[cuda12]" for drivers before 580)'

_INSUFFICIENT_DRIVER, _NEWER_DRIVER, _NO_DEVICE = 35, 36, 100  # cudaError_t


class CuPyBackend(Backend):
    """CuPy arrays on `"0"`, `"1"`, …, also written `"cuda:1"`; the default is CuPy's current device.

    CuPy computes on the current device of the thread only, whatever arrays it is handed. So a device that is
    asked for is made current; another thread has to do the same: `with backend.device: …`.
    """

    name: ClassVar[str] = "cupy"
    requires: ClassVar[Mapping[str, str]] = {"cupy": INSTALL}
    column_bytes: int = 1 << 30

    @classmethod
    def why_unavailable(cls) -> str | None:
        """Tells apart: not installed, no driver, driver too old, no device visible, a CUDA library missing."""
        if reason := super().why_unavailable():
            return reason
        import cupy

        runtime = cupy.cuda.runtime
        try:
            count = runtime.getDeviceCount()
        except runtime.CUDARuntimeError as e:
            if e.status == _INSUFFICIENT_DRIVER and runtime.driverGetVersion() == 0:
                return "there is no NVIDIA driver; install one and see whether nvidia-smi lists the GPU"
            if e.status in (_INSUFFICIENT_DRIVER, _NEWER_DRIVER):
                return (
                    f"the NVIDIA driver is too old: it knows CUDA up to {_version(runtime.driverGetVersion())}, and "
                    f"this CuPy is built for {_version(runtime.runtimeGetVersion())}; update the driver, or install "
                    'a CuPy for the older CUDA, e.g. pip install "xpnn[cuda12]"'
                )
            if e.status != _NO_DEVICE:
                return f"CUDA does not start ({one_line(e)}); see whether nvidia-smi lists the GPU"
            count = 0
        if not count:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            if visible is None:
                return "the NVIDIA driver shows no GPU; see whether nvidia-smi lists one"
            return f"no GPU is visible: CUDA_VISIBLE_DEVICES is {visible!r}; unset it, or name a GPU in it"
        try:  # CuPy loads these on first use, which would be in the middle of a step
            cupy.cuda.nvrtc.getVersion()
            _ = cupy.cuda.cublas.getVersion
        except (ImportError, RuntimeError) as e:
            return f"CuPy lacks a library of CUDA ({one_line(e)}); install CuPy with them: {INSTALL}"
        return None

    @classmethod
    def gpu(cls) -> bool:
        """True: `auto` takes it where it can be used."""
        return True

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        import array_api_compat.cupy as xp
        import cupy

        self.xp, self._cupy = xp, cupy
        if device is None:
            self.device = cupy.cuda.Device()
        else:
            self.device = cupy.cuda.Device(_ordinal(device, cupy.cuda.runtime.getDeviceCount()))
            self.device.use()

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """The values: a copy, made after all that the current stream was given."""
        values: np.ndarray[Any, Any] = self._cupy.asnumpy(self.checked(x))
        return values

    @property
    def device_name(self) -> str:
        """`cuda:0`, …."""
        return f"cuda:{self.device.id}"

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        self.device.synchronize()

    @cached_property
    def kernels(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[override]
        """Products by cuBLAS, and columns in one launch."""
        from xpnn_cupy.kernels import KERNELS

        return KERNELS

    def executor(self, *args: Any, **kwargs: Any) -> Executor:
        """Steps recorded as CUDA graphs; `XPNN_KERNELS=standard` for the plain ones."""
        if standard_only():
            return super().executor(*args, **kwargs)
        from xpnn_cupy.executor import GraphExecutor

        return GraphExecutor(self, *args, **kwargs)

    def why_coarse(self) -> str | None:
        """Where `CUPY_TF32` is set, which CuPy reads once, at its first product."""
        value = os.environ.get("CUPY_TF32", "0")
        return None if value == "0" else f"CUPY_TF32={value} lets CuPy compute float32 products in TF32; unset it"

    def describe(self) -> dict[str, Any]:
        """Versions, GPU, and the settings that change results."""
        runtime = self._cupy.cuda.runtime
        gpu = runtime.getDeviceProperties(self.device.id)
        return super().describe() | {
            "cupy": self._cupy.__version__,
            "cuda": _version(runtime.runtimeGetVersion()),
            "driver": _version(runtime.driverGetVersion()),
            "gpu": gpu["name"].decode(),
            "compute_capability": f"{gpu['major']}.{gpu['minor']}",
            "memory": int(gpu["totalGlobalMem"]),
            "tf32": self.why_coarse() is not None,
            "accelerators": os.environ.get("CUPY_ACCELERATORS", "cub"),
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }


def _ordinal(device: str, count: int) -> int:
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    if not number.isdecimal():
        raise BackendError(f"CuPy has no device {device!r}; give the number of a GPU, as in '0' or 'cuda:1'")
    if int(number) >= count:
        raise BackendError(f"CuPy has no device {device!r}: there are {count} GPU(s), numbered from 0")
    return int(number)


def _version(number: int) -> str:
    """13020 → "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"
