"""What the tests run on: the variants of the backends, and a case placed on one of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pytest
from xpnn_numpy import NumPyBackend, compiled
from xpnn_numpy.kernels import KERNELS

from xpnn import backend as backends
from xpnn import parity
from xpnn.backend import Backend
from xpnn.layers import Container


class ReadOnly(np.ndarray):
    """NumPy whose results cannot be written to, so that a hidden write in place raises.

    Only what is computed from other arrays is read-only; what is made to be filled (`zeros`, a copy) is not.
    """

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        result = getattr(ufunc, method)(*_plain(inputs), **_plain(options))
        return result if "out" in options else _read_only(result)

    def __array_function__(self, function, types, args, options):
        result = function(*_plain(args), **_plain(options))
        return result if function.__name__.endswith("_like") else _read_only(result)

    def astype(self, *args, **options):
        return _read_only(self.view(np.ndarray).astype(*args, **options))


def _plain(value: Any) -> Any:
    if isinstance(value, ReadOnly):
        return value.view(np.ndarray)
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _read_only(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.view(ReadOnly)
        value.flags.writeable = False
    return value


class ReadOnlyBackend(NumPyBackend):
    kernels = {}  # noqa: RUF012  # the standard bodies: kernels write into what they have made

    def asarray(self, x, dtype=None, *, copy=None):
        return _read_only(super().asarray(x, dtype, copy=True))


class PlainBackend(NumPyBackend):
    kernels = {**KERNELS}  # noqa: RUF012  # NumPy's own, where compiled ones would take their places


VARIANTS: pytest.StashKey[list["Variant"]] = pytest.StashKey()
NOT_RUN: pytest.StashKey[dict[str, str]] = pytest.StashKey()
"""In the stash of pytest's config: what this run runs on, and which backends it leaves out, and why."""


@dataclass(frozen=True)
class Variant:
    """One way to run the tests on a backend; `--backend` selects by the name of the backend."""

    name: str
    backend_name: str
    make: Callable[[], Backend]
    full: bool = True
    """False for a second variant, which looks for one thing: it runs the results only, with one dtype."""
    x64: bool = False
    """Whether 64 bits have to be switched on, for as long as a test runs."""
    traced: bool = False
    """Whether cases are compiled as a whole: eager JAX costs 0.4 s for each new shape."""

    @contextmanager
    def active(self) -> Iterator[Backend]:
        """The backend, ready for use."""
        with jax_x64() if self.x64 else nullcontext():
            yield self.backend

    @cached_property
    def backend(self) -> Backend:
        return self.make()

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        if self.x64:
            return ("float64",)
        return ("float32", "float64") if self.full and self.backend.supports("float64") else ("float32",)

    def takes(self, case: parity.Case) -> bool:
        """All cases but where each is compiled: there one in three of each op, or the first, and the containers."""
        if not self.traced:
            return True
        return _PLACE[case] % (1000 if self.x64 else 3) == 0 and isinstance(case.layer, Container | None)

    def replaces(self, case: parity.Case) -> bool:
        """Whether a kernel of this backend takes part in a case: in place of its op, or of the sums below all ops."""
        kernels = self.backend.kernels
        return case.subject in kernels or (case.layer is None and not kernels.keys().isdisjoint(parity.SUMS))


_PLACE = {}  # case -> which of its op's or layer's cases it is
for _case in parity.CASES:
    _PLACE[_case] = sum(case.subject == _case.subject for case in _PLACE)


def variants(name: str) -> list[Variant]:
    """The variants of an installed backend: two or three for some of ours, one for any other."""
    cls = backends.find(name)
    first, *second = {
        "numpy": [
            Variant(name, name, cls),
            *([Variant("numpy-plain", name, PlainBackend, full=False)] if compiled()[1] else []),
            Variant("numpy-readonly", name, ReadOnlyBackend, full=False),
        ],
        "strict": [  # never on the default device, where mistakes pass
            Variant(name, name, partial(cls, "device1")),
            Variant("strict-no_float64", name, partial(cls, "no_float64"), full=False),
        ],
        "jax": [
            Variant(name, name, cls, traced=True),
            Variant("jax-x64", name, cls, full=False, traced=True, x64=True),
        ],
    }.get(name, [Variant(name, name, cls)])
    return [first, *second]


def jax_x64() -> AbstractContextManager[None]:
    """64 bits in JAX, for a while."""
    import jax

    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def check(case: parity.Case, found: Mapping[str, np.ndarray], dtype: str) -> None:
    """Hold results against float64 on NumPy."""
    assert found.keys() == parity.expected(case).values.keys()
    assert not [f"{f.name} {f.fault}" for f in parity.compare(case, found, dtype) if f.fault]
