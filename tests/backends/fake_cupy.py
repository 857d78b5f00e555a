"""A `cupy` made of NumPy, as strict about devices as the real one, for a machine without a GPU.

What it does was read off CuPy 14.2 (with a wheel and no driver) and its documentation:
arrays live on the device that was current when they were made and compute only while it is current; NumPy
arrays are refused by all functions but `asarray` and `array`; nothing turns into NumPy implicitly; a device
cannot be hashed; reductions give 0-d arrays.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import xpnn_cupy

OURS = "xpnn_cupy."

_TEXTS = {
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    36: "cudaErrorCallRequiresNewerDriver: API call is not supported in the installed CUDA driver",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
}


def make(
    gpus: int = 2, status: int = 0, driver: int = 13020, runtime: int = 13020, missing: str = ""
) -> dict[str, ModuleType]:
    """The modules of a CuPy on a machine with `gpus` GPUs.

    Args:
        gpus: how many devices there are.
        status: the CUDA error that every call to the runtime ends with; 0: none.
        driver: the CUDA version that the driver knows; 0: there is no driver.
        runtime: the CUDA version that this CuPy is built for.
        missing: "nvrtc" or "cublas": that library is not there.
    """
    current = [0]
    waited: list[int] = []

    class CUDARuntimeError(RuntimeError):
        def __init__(self, status: int) -> None:
            super().__init__(_TEXTS.get(status, f"cudaError{status}: unknown"))
            self.status = status

    def running() -> None:
        if status:
            raise CUDARuntimeError(status)

    class Device:
        __hash__ = None  # type: ignore[assignment]

        def __init__(self, device: Any = None) -> None:
            if device is None:
                running()
            self.id = current[0] if device is None else int(device)
            self._before: list[int] = []

        def __int__(self) -> int:
            return self.id

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Device) and other.id == self.id

        def __repr__(self) -> str:
            return f"<CUDA Device {self.id}>"

        def __enter__(self) -> Device:
            self._before.append(current[0])
            self.use()
            return self

        def __exit__(self, *_: Any) -> None:
            current[0] = self._before.pop()

        def use(self) -> None:
            running()
            if self.id >= gpus:
                raise CUDARuntimeError(101)
            current[0] = self.id

        def synchronize(self) -> None:
            running()
            waited.append(self.id)

    def bare(x: Any) -> Any:
        """What NumPy computes with."""
        if isinstance(x, ndarray):
            if x.device.id != current[0]:
                raise ValueError(
                    f"Array device must be same as the current device: array device = {x.device.id} "
                    f"while current = {current[0]}"
                )
            return x._a
        if isinstance(x, np.ndarray):
            raise TypeError(f"Unsupported type {type(x)}")
        if isinstance(x, list | tuple | slice):
            return slice(*map(bare, (x.start, x.stop, x.step))) if isinstance(x, slice) else type(x)(map(bare, x))
        return x

    def clothed(x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic):
            return ndarray(np.asarray(x))
        return type(x)(map(clothed, x)) if type(x) in (list, tuple) else x

    def wrap(f: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            running()
            return clothed(f(*map(bare, args), **{k: bare(v) for k, v in kwargs.items()}))

        return function

    class ndarray:
        def __init__(self, a: np.ndarray[Any, Any]) -> None:
            self._a, self.device = a, Device(current[0])

        def __array__(self, *_: Any, **__: Any) -> None:
            raise TypeError(
                "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
                "explicitly."
            )

        def get(self) -> np.ndarray[Any, Any]:
            return self._a.copy()

        def __getitem__(self, key: Any) -> ndarray:
            return clothed(self._a[bare(key)])

        def __setitem__(self, key: Any, value: Any) -> None:
            self._a[bare(key)] = bare(value)

        def astype(self, dtype: Any, copy: bool = True) -> ndarray:
            return self if not copy and dtype == self.dtype else clothed(bare(self).astype(dtype))

        def copy(self) -> ndarray:
            return clothed(bare(self).copy())

        def __bool__(self) -> bool:
            return bool(self._a)

        def __float__(self) -> float:
            return float(self._a)

    for name in ("shape", "ndim", "size", "dtype"):
        setattr(ndarray, name, property(lambda self, name=name: getattr(self._a, name)))
    for name in (
        "add",
        "sub",
        "mul",
        "truediv",
        "pow",
        "matmul",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "and_",
        "or_",
        "xor",
    ):
        f = getattr(operator, name)
        dunder = f"__{name.strip('_')}__"
        setattr(ndarray, dunder, wrap(f))
        if dunder not in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
            setattr(ndarray, f"__r{name.strip('_')}__", wrap(lambda a, b, f=f: f(b, a)))
    for name in ("neg", "invert", "abs"):
        setattr(ndarray, f"__{name}__", wrap(getattr(operator, name)))

    def array(obj: Any, dtype: Any = None, copy: bool = True) -> ndarray:
        running()
        if isinstance(obj, ndarray):  # an array of another device is fetched from there
            if not copy and obj.device.id == current[0] and dtype in (None, obj.dtype):
                return obj
            obj = obj._a
        return clothed(np.array(obj, dtype=dtype, copy=True))

    def asarray(obj: Any, dtype: Any = None) -> ndarray:
        return array(obj, dtype, copy=False)

    def module(name: str, **contents: Any) -> ModuleType:
        made = ModuleType(name)
        made.__dict__.update(contents)
        made.__dict__["__all__"] = [k for k in contents if k[0] != "_"]
        return made

    def version(_: Any = None) -> tuple[int, int]:
        return 13, 2

    class Library(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name != "getVersion":
                raise AttributeError(name)
            short = self.__name__.rpartition(".")[2]
            if missing == short == "cublas":  # found out on reading the attribute
                raise ImportError('Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such file: …\n')

            def get_version(*_: Any) -> tuple[int, int]:
                if missing == short:
                    raise RuntimeError('Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: …\n')
                return 13, 2

            return get_version

    def get_count() -> int:
        running()
        return gpus

    def properties(index: int) -> dict[str, Any]:
        running()
        return {"name": b"NVIDIA H200", "major": 9, "minor": 0, "totalGlobalMem": 150_000_000_000 + index}

    runtime_module = module(
        "cupy_backends.cuda.api.runtime",
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=get_count,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: runtime,
        getDeviceProperties=properties,
    )
    device_module = module("cupy.cuda.device", Device=Device)
    cuda = module(
        "cupy.cuda",
        Device=Device,
        device=device_module,
        runtime=runtime_module,
        nvrtc=Library("cupy.cuda.nvrtc"),
        cublas=Library("cupy.cuda.cublas"),
        waited=waited,
    )
    contents = {
        name: wrap(value) if callable(value) and not isinstance(value, type) else value
        for name in np.__all__
        if not isinstance(value := getattr(np, name), ModuleType)
    }
    linalg = module(
        "cupy.linalg", **{n: wrap(v) for n in np.linalg.__all__ if not isinstance(v := getattr(np.linalg, n), type)}
    )
    fft = module("cupy.fft", **{n: wrap(getattr(np.fft, n)) for n in np.fft.__all__})
    contents |= {"ndarray": ndarray, "array": array, "asarray": asarray, "cuda": cuda, "linalg": linalg, "fft": fft}
    contents |= {"asnumpy": lambda a: a.get() if isinstance(a, ndarray) else np.asarray(a)}
    cupy = module("cupy", **contents | {"__version__": "14.2.0", "__path__": []})
    return {
        "cupy": cupy,
        "cupy.cuda": cuda,
        "cupy.cuda.device": device_module,
        "cupy.linalg": linalg,
        "cupy.fft": fft,
    }


@contextmanager
def installed(**machine: Any) -> Iterator[ModuleType]:
    """Such a CuPy in the place of the one that is, or is not, installed; see `make`.

    The standard bodies run on it: kernels and graphs take a GPU. Modules of the backend that are imported meanwhile are
    those of the stand-in, and nobody's afterwards.
    """
    import array_api_compat

    asked = os.environ.get("XPNN_KERNELS")
    os.environ["XPNN_KERNELS"] = "standard"
    kept = _taken_out()
    attribute = array_api_compat.__dict__.pop("cupy", None)
    modules = make(**machine)
    sys.modules.update(modules)
    try:
        yield modules["cupy"]
    finally:
        if asked is None:
            del os.environ["XPNN_KERNELS"]
        else:
            os.environ["XPNN_KERNELS"] = asked
        _taken_out()
        sys.modules.update(kept)
        for name, module in kept.items():
            if name.startswith(OURS):
                setattr(xpnn_cupy, name.removeprefix(OURS), module)
        array_api_compat.__dict__.pop("cupy", None)
        if attribute is not None:
            array_api_compat.cupy = attribute


def _taken_out() -> dict[str, ModuleType]:
    tops = ("cupy", "cupyx")  # the second imports the first when somebody looks at it
    names = [n for n in sys.modules if n.split(".")[0] in tops or n.startswith(("array_api_compat.cupy", OURS))]
    for name in names:
        vars(xpnn_cupy).pop(name.removeprefix(OURS), None)
    return {n: sys.modules.pop(n) for n in names}
