"""NumPy on the CPU: the backend that is always there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import array_api_compat.numpy as xp
import numpy as np

from xpnn.backend import Backend, standard_only
from xpnn.errors import BackendError
from xpnn.ops._array import Array
from xpnn.train.executor import Executor
from xpnn_numpy.kernels import KERNELS


class NumPyBackend(Backend):
    """NumPy arrays; the BLAS that NumPy was built with does the matrix products."""

    name: ClassVar[str] = "numpy"
    kernels: ClassVar[Mapping[str, Callable[..., Any]]] = KERNELS
    column_bytes: int = 1 << 20  # a block of columns and its products stay in the second-level cache

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None: NumPy is a dependency of xpnn."""
        return None

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        if device not in (None, "cpu"):
            raise BackendError(f"numpy has the device 'cpu' only, not {device!r}; leave --device out")
        self.xp, self.device = xp, "cpu"

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """`x` itself."""
        return np.asarray(self.checked(x))

    def executor(self, *args: Any, **kwargs: Any) -> Executor:
        """Steps in cache-sized pieces on threads; `XPNN_KERNELS=standard` for the plain ones."""
        if standard_only():
            return super().executor(*args, **kwargs)
        from xpnn_numpy.executor import PiecesExecutor

        return PiecesExecutor(self, *args, **kwargs)

    def describe(self) -> dict[str, Any]:
        """Versions, BLAS and its threads."""
        from threadpoolctl import threadpool_info

        blas = [
            {key: pool[key] for key in ("internal_api", "version", "num_threads", "architecture") if key in pool}
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        ]
        return super().describe() | {"blas": blas}
