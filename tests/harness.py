"""What the tests run on: the variants of the backends, and a case placed on one of them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from xpnn_numpy import NumPyBackend, compiled
from xpnn_numpy.kernels import KERNELS

from xpnn import backend as backends
from xpnn import parity
from xpnn.backend import Backend
from xpnn.conformance import harness as conformance
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


@dataclass(frozen=True)
class Variant(conformance.Variant):
    """A variant as the suite of this repository runs it."""

    x64: bool = False
    """Whether 64 bits have to be switched on, for as long as a test runs."""

    @contextmanager
    def active(self) -> Iterator[Backend]:
        with jax_x64() if self.x64 else nullcontext():
            yield self.backend

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        return ("float64",) if self.x64 else super().dtypes

    def takes(self, case: parity.Case) -> bool:
        """All cases but where each is compiled: there one in three of each op, or the first, and the containers."""
        if not self.traced:
            return True
        return _PLACE[case] % (1000 if self.x64 else 3) == 0 and isinstance(case.layer, Container | None)


_PLACE = {}  # case -> which of its op's or layer's cases it is
for _case in parity.CASES:
    _PLACE[_case] = sum(case.subject == _case.subject for case in _PLACE)


@cache
def variants(name: str) -> list[Variant]:
    """The variants of an installed backend: two or three for some of ours, one for any other."""
    cls = backends.find(name)
    first, *second = {
        "numpy": [
            Variant(name, name, cls),
            *([Variant("numpy-plain", name, PlainBackend, full=False)] if compiled() else []),
            Variant("numpy-readonly", name, ReadOnlyBackend, full=False),
        ],
        "strict": [  # never on the default device, where mistakes pass
            Variant(name, name, partial(cls, "device1")),
            Variant("strict-no_float64", name, partial(cls, "no_float64"), full=False),
        ],
        "jax": [
            Variant(name, name, cls, traced=True),  # eager, 0.4 s for each new shape
            Variant("jax-x64", name, cls, full=False, traced=True, x64=True),
        ],
    }.get(name, [Variant(name, name, cls)])
    return [first, *second]


def jax_x64() -> AbstractContextManager[None]:
    """64 bits in JAX, for a while."""
    import jax

    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()
