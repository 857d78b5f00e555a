"""Backends: where arrays live and who computes with them.

The core knows none of them. A backend is a class that is found through the entry point group
`xpnn.backends`, so one that we ship has no privilege over one that a stranger installs:

    [project.entry-points."xpnn.backends"]
    mine = "my_package:MyBackend"

What a backend must bring: `name`, `xp` and `device`; `requires` where it needs a library, `to_numpy` where
NumPy cannot read its arrays, `synchronize` where it computes behind Python's back. What it may bring: faster
`kernels` for some ops, an `executor` that places a training step on its machine in a better way.

There are two doors between the host and the device, `asarray` and `to_numpy`, and no third.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import array_api_compat
import numpy as np

from xpnn.errors import BackendError, MixedBackendsError, ShapeError
from xpnn.ops import Ops
from xpnn.ops._array import Array, namespace

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from xpnn.bench.measure import Side
    from xpnn.bench.work import Work
    from xpnn.train.executor import Executor

GROUP = "xpnn.backends"

_HOST = (np.ndarray, np.generic, list, tuple, int, float)
_NARROWER = {"int64": "int32", "uint64": "uint32"}


class Backend:
    """Base of all backends; making one raises `BackendError` where it cannot be used.

    Args:
        device: which device to use, in the words of the library (`"cuda:1"`, `"1"`, …); None for its default.
    """

    name: ClassVar[str]
    """The name it is chosen by: that of its entry point."""
    requires: ClassVar[Mapping[str, str]] = {}
    """Module it cannot do without → the command that installs it."""
    kernels: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    """Op name → faster function of the same signature as the standard body (see `xpnn.ops`)."""
    column_bytes: int = 1 << 30
    """Size of the blocks in which a convolution gathers its columns: what fits the fast memory."""

    xp: Any
    """The array API namespace."""
    device: Any
    """The device that arrays are made on."""

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None where the backend can be used, else one sentence that says why not and what to do.

        Default: whether all that it `requires` can be imported.
        """
        for module, command in cls.requires.items():
            try:
                importlib.import_module(module)
            except Exception as e:
                if isinstance(e, ModuleNotFoundError) and e.name == module:
                    return f"{module} is not installed; install it: {command}"
                return f"{module} is installed but cannot be imported ({one_line(e)}); install it anew: {command}"
        return None

    @classmethod
    def gpu(cls) -> bool:
        """Whether `auto` should prefer this backend to the CPU."""
        return False

    def __init__(self, device: str | None = None) -> None:
        reason = self.why_unavailable()
        if reason:
            raise BackendError(f"the backend {self.name!r} cannot be used here: {reason}")

    def asarray(self, x: Any, dtype: str | None = None, *, copy: bool | None = None) -> Array:
        """A host array (NumPy, nested lists or a number) on the device; an array of this backend passes through.

        What passes through is brought to this backend's device and to `dtype` where it is not there yet.
        int64 becomes int32 on a device that has no int64, provided that all values fit.

        Args:
            x: what to bring in.
            dtype: name of the dtype to cast to, e.g. `"float32"`; default: its own.
            copy: True to always copy. Otherwise only where needed, so that the result may share the memory
                of `x`: do not write to `x` afterwards.

        Raises:
            MixedBackendsError: `x` belongs to another backend than this one or NumPy.
            BackendError: the device has no such dtype; nothing is rounded silently.
        """
        xp = self.xp
        if isinstance(x, _HOST):
            return self._place(self._host(x, dtype, bool(copy)))
        if dtype is not None and not self.supports(dtype):
            raise self._no_dtype(dtype)
        given = None if dtype is None else getattr(xp, dtype)
        return xp.asarray(self.checked(x), dtype=given, device=self.device, copy=copy or None)

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """The values of `x` as a NumPy array on the host, to read but not to write to.

        It may share the memory of `x`, which xpnn itself writes to in one case only: the state that an
        executor holds. What leaves an executor is a copy.
        """
        return np.asarray(self.checked(x))

    def checked(self, x: Any) -> Array:
        """`x` itself, provided that it is an array of this backend.

        Raises:
            MixedBackendsError: it belongs to another backend.
            ShapeError: it is no array.
        """
        if self.owns(x):
            return x
        came = f"backend {self.name!r} was handed a {type(x).__module__}.{type(x).__qualname__}"
        if array_api_compat.is_array_api_obj(x):
            raise MixedBackendsError(
                f"{came}; nothing is moved silently: bring it to the host first, with `to_numpy` of the backend it "
                "belongs to, or use that backend throughout"
            )
        raise ShapeError(f"{came}, which is no array; make it one first, e.g. with np.asarray")

    def owns(self, x: Any) -> bool:
        """Whether `x` is an array of this backend's library."""
        try:
            return bool(namespace("owns", x=x) is self.xp)
        except ValueError:
            return False

    @property
    def device_name(self) -> str:
        """The device as messages and run records name it."""
        return str(self.device)

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    def supports(self, dtype: str) -> bool:
        """Whether the device has this dtype; float16, which the standard does not know, where the library does."""
        return dtype in self._dtypes or (dtype == "float16" and hasattr(self.xp, dtype))

    @cached_property
    def ops(self) -> Ops:
        """The ops, bound: the standard bodies with `kernels` in their places.

        `XPNN_KERNELS=standard` leaves the kernels out: the first thing to try where a result is in doubt.
        """
        try:
            return Ops({} if standard_only() else self.kernels, self.column_bytes)
        except ValueError as e:
            raise BackendError(f"the backend {self.name!r}: {e}") from None

    def executor(self, *args: Any, **kwargs: Any) -> Executor:
        """What carries out training steps: the plain, eager one unless a backend brings its own."""
        from xpnn.train.executor import Executor

        return Executor(self, *args, **kwargs)

    def why_coarse(self) -> str | None:
        """None, or one sentence: which setting lets float32 products be computed with less, and how to turn it off."""
        return None

    def jit(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f`, a function of trees of arrays, as this backend computes it best; default: as it is."""
        return f

    @classmethod
    def peers(cls, work: Work, gpu: bool, threads: int, compiled: bool) -> list[Side]:
        """The same work by the library itself, without xpnn, for `xpnn bench`; default: none.

        Args:
            work: what is timed.
            gpu: whether a GPU does it.
            threads: how many the CPU has for it.
            compiled: whether settings that take long to compile take part.
        """
        return []

    def describe(self) -> dict[str, Any]:
        """Library versions and device, for run records: JSON values only."""
        return {
            "name": self.name,
            "device": self.device_name,
            "kernels": list(self.ops.replaced),
            "numpy": np.__version__,
            "array_api_compat": array_api_compat.__version__,
            "python": platform.python_version(),
            "processor": _processor(),
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} on {self.device_name}>"

    @cached_property
    def _dtypes(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.xp.__array_namespace_info__().dtypes(device=self.device)
        return found

    def _host(self, x: Any, dtype: str | None, copy: bool) -> np.ndarray[Any, Any]:
        """`x` as a NumPy array of a dtype that the device has, in native byte order."""
        if isinstance(x, list | tuple):
            self._check_leaves(x)
        try:
            x = np.asarray(x)
        except ValueError as e:  # NumPy says where: "inhomogeneous shape after 1 dimensions"
            raise ShapeError(f"these lists make no array: {e}") from None
        name = dtype or x.dtype.name
        if not self.supports(name):
            narrow = None if dtype else _NARROWER.get(name)
            if narrow is None or not self.supports(narrow) or not _fits(x, narrow):
                raise self._no_dtype(name)
            name = narrow
        return np.array(x, dtype=name, copy=copy or None, order="C" if copy else "K")

    def _place(self, x: np.ndarray[Any, Any]) -> Array:
        """A host array of a dtype that the device has, on the device; may share its memory."""
        return self.xp.asarray(x, device=self.device)

    def _check_leaves(self, x: Any) -> None:
        for item in x:
            if isinstance(item, list | tuple):
                self._check_leaves(item)
            elif not isinstance(item, _HOST):
                raise MixedBackendsError(
                    f"backend {self.name!r} was handed a list with a {type(item).__module__}."
                    f"{type(item).__qualname__} in it; lists may hold numbers and NumPy arrays"
                )

    def _no_dtype(self, dtype: str) -> BackendError:
        return BackendError(f"{self.name} on {self.device_name} has no dtype {dtype!r}; {self._other_dtype(dtype)}")

    def _other_dtype(self, dtype: str) -> str:
        """What to do where `dtype` is missing."""
        return f"ask for one of these with dtype=…: {', '.join(self._dtypes)}"


def names() -> list[str]:
    """The names of all installed backends, usable or not."""
    return sorted(_points())


def find(name: str) -> type[Backend]:
    """The class of a backend, without asking whether it can be used.

    Raises:
        BackendError: no such backend is installed, or its package cannot be imported.
    """
    points = _points()
    if name not in points:
        near = difflib.get_close_matches(name.lower(), points, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BackendError(f"there is no backend {name!r}; installed are {', '.join(sorted(points))}{hint}")
    values = sorted({point.value for point in points[name]})
    if len(values) > 1:
        raise BackendError(f"the backend {name!r} is brought by {' and by '.join(values)}; uninstall all but one")
    try:
        cls = points[name][0].load()
    except Exception as e:
        raise BackendError(f"the backend {name!r} ({values[0]}) cannot be imported: {one_line(e)}") from e
    if not (isinstance(cls, type) and issubclass(cls, Backend)):
        raise BackendError(f"the backend {name!r} ({values[0]}) is no subclass of xpnn.backend.Backend")
    if (own := getattr(cls, "name", None)) != name:
        raise BackendError(
            f"the backend {name!r} ({values[0]}) calls itself {own!r}, by which nothing would find it again; "
            f'its entry point and its class need one name: name = "{name}"'
        )
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
    from_environment = None if name else os.environ.get("XPNN_BACKEND")
    name = name or from_environment or "auto"
    try:
        return _made(_preferred() if name == "auto" else name, device)
    except BackendError as e:
        if not from_environment:
            raise
        raise BackendError(f"{e} (the environment variable XPNN_BACKEND is {from_environment!r})") from e


def listing() -> list[dict[str, Any]]:
    """All installed backends, each `{"name", "usable", "reason", "describe"}`: JSON values only.

    `reason` is the sentence that says why one is not usable, else None; `describe` is what it says of itself,
    else None. A backend that is broken is listed with what went wrong; it does not disturb the others.
    """
    return [_listed(name) for name in names()]


def standard_only() -> bool:
    """Whether `XPNN_KERNELS=standard` asks for the standard bodies alone."""
    return _kernels_asked() == "standard"


def uncompiled_only() -> bool:
    """Whether `XPNN_KERNELS` asks for no kernels that need a compiler (`plain`), or for none at all (`standard`)."""
    return _kernels_asked() != ""


def _kernels_asked() -> str:
    value = os.environ.get("XPNN_KERNELS", "")
    if value not in ("", "plain", "standard"):
        raise BackendError(
            f"XPNN_KERNELS={value!r} says nothing; it may be 'standard' (no kernels), 'plain' (none that are "
            "compiled), or be left out"
        )
    return value


def one_line(e: BaseException) -> str:
    """The kind of an error and the first line of its message, to be quoted inside a sentence."""
    return f"{type(e).__name__}: {next(iter(str(e).strip().splitlines()), '')}".removesuffix(": ")


def _points() -> dict[str, list[EntryPoint]]:
    from importlib.metadata import entry_points  # a slow import, and most never need it

    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        points.setdefault(point.name, []).append(point)
    return points


def _preferred() -> str:
    for name in names():
        try:
            cls = find(name)
            if cls.gpu() and cls.why_unavailable() is None:
                return name
        except Exception:  # a broken stranger must not keep the others from working
            continue
    return "numpy"


def _made(name: str, device: str | None = None) -> Backend:
    try:
        backend = find(name)(device)
    except BackendError:
        raise
    except Exception as e:
        where = "" if device is None else f" on the device {device!r}"
        remedy = "report this to its authors" if device is None else "leave the device out, or name another"
        raise BackendError(f"the backend {name!r} fails to start{where} ({one_line(e)}): {remedy}") from e
    if missing := [f"self.{a}" for a in ("xp", "device") if not hasattr(backend, a)]:
        raise BackendError(f"the backend {name!r} lacks {' and '.join(missing)}: its __init__ must set them")
    return backend


def _listed(name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "usable": False, "reason": None, "describe": None}
    try:
        cls = find(name)
        entry["reason"] = cls.why_unavailable()
        if entry["reason"] is None:
            described = _made(name).describe()
            json.dumps(described)
            entry |= {"usable": True, "describe": described}
    except BackendError as e:
        entry["reason"] = str(e)
    except Exception as e:
        entry["reason"] = f"it fails to describe itself ({one_line(e)}): report this to its authors"
    return entry


def _fits(x: np.ndarray[Any, Any], dtype: str) -> bool:
    bounds = np.iinfo(dtype)
    return x.size == 0 or bool(x.min() >= bounds.min and x.max() <= bounds.max)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"
