"""array_api_strict: NumPy that refuses whatever the array API standard does not promise.

Slow, and meant for tests: on a device that is not the default one it fails where a GPU fails (host and device
mixed, methods, silent conversion), and on `no_float64` where a float64 constant leaks into float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from xpnn.backend import Backend
from xpnn.errors import BackendError
from xpnn.ops._array import Array

STANDARD = "2024.12"
"""The version of the standard that xpnn is written against."""


class StrictBackend(Backend):
    """Strict arrays on `"CPU_DEVICE"` (the default), `"device1"`, `"device2"` or `"no_float64"`.

    Making one sets the version of the standard for the whole process: array_api_strict has no narrower switch.
    No other flag of it is touched.
    """

    name: ClassVar[str] = "strict"
    requires: ClassVar[Mapping[str, str]] = {"array_api_strict": 'pip install "xpnn[test]"'}
    column_bytes: int = 1 << 20

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        import array_api_strict as xp

        if xp.get_array_api_strict_flags()["api_version"] != STANDARD:
            xp.set_array_api_strict_flags(api_version=STANDARD)
        self.xp = xp
        self._host_device = xp.Device("CPU_DEVICE")
        self._name = device or "CPU_DEVICE"
        try:
            self.device = xp.Device(self._name)
        except ValueError:
            known = ", ".join(map(str, xp.__array_namespace_info__().devices()))
            raise BackendError(f"array_api_strict has no device {device!r}; it has {known}") from None

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """The values, from whichever device; they share the memory of `x`, since all its devices are the host."""
        return np.asarray(self.xp.asarray(self.checked(x), device=self._host_device))

    @property
    def device_name(self) -> str:
        """`CPU_DEVICE`, `device1`, …."""
        return self._name

    def describe(self) -> dict[str, Any]:
        """Version, and the version of the standard."""
        return super().describe() | {
            "array_api_strict": self.xp.__version__,
            "standard": self.xp.get_array_api_strict_flags()["api_version"],
        }
