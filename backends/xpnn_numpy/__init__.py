"""NumPy on the CPU: the backend that is always there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar

import array_api_compat.numpy as xp
import numpy as np

from xpnn.backend import Backend, one_line, standard_only, uncompiled_only
from xpnn.errors import BackendError
from xpnn.ops._array import Array
from xpnn.train.executor import Executor
from xpnn_numpy.kernels import KERNELS


class NumPyBackend(Backend):
    """NumPy arrays; the BLAS that NumPy was built with does the matrix products.

    Where numba is installed (`xpnn[fast]`), compiled kernels take the places of some of NumPy's.
    """

    name: ClassVar[str] = "numpy"
    kernels: ClassVar[Mapping[str, Callable[..., Any]]] = KERNELS
    column_bytes: int = 1 << 21  # smaller blocks are more calls of NumPy, larger ones leave the caches

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None: NumPy is a dependency of xpnn."""
        return None

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        if device not in (None, "cpu"):
            raise BackendError(f"numpy has the device 'cpu' only, not {device!r}; leave --device out")
        self.xp, self.device = xp, "cpu"
        self.compiled: str | None = None
        """Who compiled some of the kernels."""
        self.updates: Mapping[type[Any], Callable[..., bool]] = {}
        """Compiled updates of some optimizers."""
        self.sharing: Callable[[int], AbstractContextManager[None]] = _alone
        """Entered where kernels may share their work among so many threads."""
        fast = compiled() if self.kernels is KERNELS and not uncompiled_only() else None
        if fast is not None:
            self.kernels = {**KERNELS, **fast.KERNELS}  # type: ignore[misc]  # those of this machine
            self.compiled, self.updates, self.sharing = fast.COMPILER, fast.UPDATES, fast.sharing

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """`x` itself."""
        return np.asarray(self.checked(x))

    def _place(self, x: np.ndarray[Any, Any]) -> Array:
        """`x` itself."""
        return x

    def executor(self, *args: Any, **kwargs: Any) -> Executor:
        """Steps in cache-sized pieces on threads; `XPNN_KERNELS=standard` for the plain ones."""
        if standard_only():
            return super().executor(*args, **kwargs)
        from xpnn_numpy.executor import PiecesExecutor

        return PiecesExecutor(self, *args, **kwargs)

    def describe(self) -> dict[str, Any]:
        """Versions, who compiled kernels, BLAS and its threads."""
        from threadpoolctl import threadpool_info

        libraries = [
            {key: pool[key] for key in ("internal_api", "version", "num_threads", "architecture") if key in pool}
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        ]
        return super().describe() | {"compiled": self.compiled, "blas": libraries}


def _alone(threads: int) -> AbstractContextManager[None]:
    """NumPy's own kernels share nothing."""
    return nullcontext()


@cache
def compiled() -> ModuleType | None:
    """The compiled kernels; None where numba is not installed, or (with a warning) broken."""
    if not find_spec("numba"):
        return None
    try:
        from xpnn_numpy import fast
    except Exception as e:
        warnings.warn(
            f"numba's kernels cannot be used ({one_line(e)}): NumPy's own stand in; XPNN_KERNELS=plain asks for these",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return fast
