"""Backends: where arrays live and who computes with them.

The core knows none of them. A backend is a class that is found through the entry point group
`xpnn.backends`, so one that we ship has no privilege over one that a stranger installs:

    [project.entry-points."xpnn.backends"]
    mine = "my_package:MyBackend"

What a backend must bring: `name`, `requires`, `xp`, `device` and `to_numpy`. What it may bring: faster
`kernels` for some ops, an `executor` that places a training step on its machine in a better way.

There are two doors between the host and the device, `asarray` and `to_numpy`, and no third.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xpnn.errors import BackendError, MixedBackendsError
from xpnn.ops import Ops
from xpnn.ops._array import Array, namespace

if TYPE_CHECKING:
    from xpnn.train.executor import Executor

GROUP = "xpnn.backends"


class Backend:
    """Base of all backends; making one raises `BackendError` where it cannot be used.

    Args:
        device: which device to use, in the words of the library (`"cuda:1"`, `"1"`, …); None for its default.
    """

    name: ClassVar[str]
    """The name it is chosen by."""
    kernels: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    """Op name → faster function of the same signature as the standard body (see `xpnn.ops`)."""
    column_bytes: ClassVar[int] = 1 << 30
    """Size of the blocks in which a convolution gathers its columns: what fits the fast memory."""

    xp: Any
    """The array API namespace."""
    device: Any
    """The device that arrays are made on."""

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None where the backend can be used, else one sentence that says why not and what to do."""
        raise NotImplementedError

    @classmethod
    def gpu(cls) -> bool:
        """Whether `auto` should prefer this backend to the CPU."""
        return False

    def __init__(self, device: str | None = None) -> None:
        reason = self.why_unavailable()
        if reason:
            raise BackendError(f"the backend {self.name!r} cannot be used here: {reason}")

    def asarray(self, x: Any, dtype: str | None = None, *, copy: bool | None = None) -> Array:
        """A host array (NumPy, or nested lists) on the device; an array of this backend passes through.

        Args:
            x: what to bring in.
            dtype: name of the dtype to cast to, e.g. `"float32"`; default: its own.
            copy: True to always copy, None to copy only where needed.

        Raises:
            MixedBackendsError: `x` belongs to another backend than this one or NumPy.
        """
        xp = self.xp
        if not self.owns(x):
            if not isinstance(x, np.ndarray | np.generic | list | tuple | int | float | bool):
                raise MixedBackendsError(
                    f"backend {self.name!r} was handed a {type(x).__module__}.{type(x).__qualname__}; nothing is moved "
                    f"silently: bring it to the host first (a NumPy array), or use the backend it belongs to"
                )
            x = np.asarray(x)
            if dtype is not None:
                x = x.astype(dtype, copy=False)
        return xp.asarray(x, dtype=None if dtype is None else getattr(xp, dtype), device=self.device, copy=copy)

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """The values of `x` as a NumPy array on the host, which the caller may keep but not write to."""
        raise NotImplementedError

    def owns(self, x: Any) -> bool:
        """Whether `x` is an array of this backend's library."""
        try:
            return bool(namespace("owns", x=x) is self.xp)
        except ValueError:
            return False

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    def supports(self, dtype: str) -> bool:
        """Whether the device computes in this dtype."""
        info = self.xp.__array_namespace_info__()
        return dtype in info.dtypes(device=self.device, kind="real floating")

    @cached_property
    def ops(self) -> Ops:
        """The ops, bound: the standard bodies with `kernels` in their places.

        `XPNN_KERNELS=standard` leaves the kernels out: the first thing to try where a result is in doubt.
        """
        return Ops({} if standard_only() else self.kernels, self.column_bytes)

    def executor(self, *args: Any, **kwargs: Any) -> Executor:
        """What carries out training steps: the plain, eager one unless a backend brings its own."""
        from xpnn.train.executor import Executor

        return Executor(self, *args, **kwargs)

    def describe(self) -> dict[str, Any]:
        """Library versions and device, for run records: JSON values only."""
        return {
            "name": self.name,
            "device": str(self.device),
            "kernels": list(self.ops.replaced),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "processor": _processor(),
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} on {self.device}>"


def names() -> list[str]:
    """The names of all installed backends, usable or not."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)})


def find(name: str) -> type[Backend]:
    """The class of a backend, without asking whether it can be used.

    Raises:
        BackendError: no such backend is installed, or its package cannot be imported.
    """
    points = {p.name: p for p in importlib.metadata.entry_points(group=GROUP)}
    if name not in points:
        near = difflib.get_close_matches(name, points, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BackendError(f"no backend {name!r}; installed are {', '.join(sorted(points))}{hint}")
    try:
        cls: type[Backend] = points[name].load()
    except Exception as e:
        raise BackendError(f"the backend {name!r} ({points[name].value}) cannot be imported: {e}") from e
    return cls


def get(name: str | Backend | None = None, device: str | None = None) -> Backend:
    """A backend, ready for use.

    Args:
        name: a backend (passes through), a name, `"auto"` (a GPU where one is usable, else NumPy) or None
            (the environment variable `XPNN_BACKEND`, else `"auto"`).
        device: which device, in the words of the backend's library.

    Raises:
        BackendError: there is no such backend, or it cannot be used here; says why and what to do.
    """
    if isinstance(name, Backend):
        if device is not None:
            raise BackendError(f"device={device!r} beside a finished backend {name!r}: give one or the other")
        return name
    name = name or os.environ.get("XPNN_BACKEND") or "auto"
    if name == "auto":
        name = _preferred()
    return find(name)(device)


def standard_only() -> bool:
    """Whether `XPNN_KERNELS=standard` asks for the standard bodies alone."""
    return os.environ.get("XPNN_KERNELS") == "standard"


def _preferred() -> str:
    for name in names():
        try:
            cls = find(name)
        except BackendError:  # a broken stranger must not keep the others from working
            continue
        if cls.gpu() and cls.why_unavailable() is None:
            return name
    return "numpy"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"
