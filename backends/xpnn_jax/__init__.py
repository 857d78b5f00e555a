"""JAX on the CPU, a GPU or a TPU; arrays are immutable, and 64 bits are off unless `JAX_ENABLE_X64=1`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from xpnn.backend import Backend, one_line, standard_only
from xpnn.errors import BackendError
from xpnn.ops._array import Array
from xpnn.train.executor import Executor

_WIDE = frozenset({"float64", "int64", "uint64", "complex128"})


class JAXBackend(Backend):
    """JAX arrays on JAX's default device or on `"cpu"`, `"gpu"`, `"tpu"`, `"gpu:1"`, …

    Where 64 bits are off, JAX makes float32 of float64 without a word. This backend refuses instead.
    """

    name: ClassVar[str] = "jax"
    requires: ClassVar[Mapping[str, str]] = {"jax": 'pip install "xpnn[jax]"'}

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        import jax
        import jax.numpy as jnp

        self.xp, self._jax = jnp, jax
        self.device = jnp.empty(()).device if device is None else _device(jax, device)

    def supports(self, dtype: str) -> bool:
        """As `Backend.supports`; 64 bits can be switched on and off at any time."""
        return bool(self._jax.config.jax_enable_x64) if dtype in _WIDE else super().supports(dtype)

    def executor(self, *args: Any, **kwargs: Any) -> Executor:
        """Compiled steps; `XPNN_KERNELS=standard` for the plain ones."""
        if standard_only():
            return super().executor(*args, **kwargs)
        from xpnn_jax.executor import CompiledExecutor

        return CompiledExecutor(self, *args, **kwargs)

    def why_coarse(self) -> str | None:
        """On a GPU or a TPU, unless full precision was asked for."""
        precision = self._jax.config.jax_default_matmul_precision
        if self.device.platform == "cpu" or precision in ("highest", "float32"):
            return None
        return (
            f"jax_default_matmul_precision is {precision!r}, which computes float32 products with less on this "
            "device; set the environment variable JAX_DEFAULT_MATMUL_PRECISION=highest"
        )

    def jit(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Under `jax.jit`: op by op each new shape costs 0.4 s."""
        jitted: Callable[..., Any] = self._jax.jit(f)
        return f if standard_only() else jitted

    def synchronize(self) -> None:
        """Wait until all arrays are computed: JAX has no call that waits for a device."""
        self._jax.block_until_ready(self._jax.live_arrays())

    @classmethod
    def peers(cls, work: Any, gpu: bool, threads: int, compiled: bool) -> list[Any]:
        """JAX with its own layers and gradients."""
        from xpnn_jax.peer import side

        return [side(work, gpu)]

    def describe(self) -> dict[str, Any]:
        """Versions, device, and the settings that change results."""
        return super().describe() | {
            "jax": self._jax.__version__,
            "jaxlib": self._jax.lib.__version__,
            "platform": self.device.platform,
            "device_kind": self.device.device_kind,
            "x64": bool(self._jax.config.jax_enable_x64),
            "matmul_precision": self._jax.config.jax_default_matmul_precision,
        }

    def _place(self, x: np.ndarray[Any, Any]) -> Array:
        return self._jax.device_put(x, self.device)  # `jnp.asarray` would compile a cast for each new shape

    def _other_dtype(self, dtype: str) -> str:
        if dtype not in _WIDE:
            return super()._other_dtype(dtype)
        return (
            "64 bits are off in JAX: set the environment variable JAX_ENABLE_X64=1, or ask for "
            f"dtype={dtype.replace('64', '32').replace('128', '64')!r}"
        )


def _device(jax: Any, name: str) -> Any:
    platform, _, number = name.partition(":")
    try:
        devices = jax.devices(platform)
    except RuntimeError as e:
        raise BackendError(
            f"JAX has no device {name!r} here ({one_line(e)}); it takes 'cpu', 'gpu', 'tpu', 'gpu:1', …, and a GPU "
            'needs its own wheel: pip install "jax[cuda13]"'
        ) from None
    if not number and ":" not in name:
        return devices[0]
    if not number.isdecimal() or int(number) >= len(devices):
        raise BackendError(f"JAX has no device {name!r}: it sees {len(devices)} of {platform!r}, numbered from 0")
    return devices[int(number)]
