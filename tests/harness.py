"""What the tests run on: the variants of the backends, and a case placed on one of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import array_api_compat
import numpy as np
import pytest
from xpnn_numpy import NumPyBackend, compiled
from xpnn_numpy.kernels import KERNELS

from xpnn import backend as backends
from xpnn import parity
from xpnn.backend import Backend
from xpnn.layers import Container
from xpnn.ops import Ops


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


@cache
def host_arrays(case: parity.Case) -> dict[str, np.ndarray | None]:
    return case.arrays()


class Placed:
    """A case on a backend, its arrays brought there.

    Args:
        case: the case.
        variant: where.
        dtype: of its floating arrays.
        ops: the ops to compute with; default: the backend's own.
        samples: those of the case's samples that take part.
        layout: a function that gives an array another layout in memory.
    """

    def __init__(
        self,
        case: parity.Case,
        variant: Variant,
        dtype: str,
        *,
        ops: Ops | None = None,
        samples: slice = slice(None),
        layout: Callable[[Any, Any], Any] = lambda xp, a: a,
    ) -> None:
        self.case, self.backend, self.dtype = case, variant.backend, dtype
        self.ops = ops or self.backend.ops
        dy = parity.expected(case).dy
        host = {k: a[samples] if k in case.batched else a for k, a in host_arrays(case).items()}
        host["dy"] = dy[samples] if dy.ndim else dy
        self.arrays = {k: None if a is None else layout(self.backend.xp, self._bring(a)) for k, a in host.items()}
        self.dy = self.arrays.pop("dy")
        self._compute = partial(parity.results, case, self.ops)
        if variant.traced:
            import jax

            self._compute = jax.jit(self._compute)

    def _bring(self, a: np.ndarray) -> Any:
        return self.backend.asarray(a, self.dtype if a.dtype == np.float64 else None)

    def results(self) -> dict[str, np.ndarray]:
        """Outputs and gradients, back on the host; checks what all must keep."""
        found = self._compute(self.arrays, self.dy)
        for name, a in found.items():
            assert a.dtype == self.dy.dtype, f"{name} has dtype {a.dtype}"
            assert array_api_compat.device(a) == self.backend.device, f"{name} is on {array_api_compat.device(a)}"
        return {name: self.backend.to_numpy(a) for name, a in found.items()}


def judge(case: parity.Case, found: Mapping[str, np.ndarray], dtype: str) -> None:
    """Hold results against float64 on NumPy: by `==` in exact cases, else by their ratio."""
    expected = parity.expected(case)
    assert found.keys() == expected.values.keys()
    for name, a in found.items():
        reference = expected.values[name]
        if case.exact:
            np.testing.assert_array_equal(a, reference, err_msg=name)
            continue
        r, most = parity.ratio(a, reference, expected.yardsticks[name], dtype), parity.bound(expected.terms[name])
        assert r <= most, f"{name}: r = {r:.3g}, at most {most:.3g} for {expected.terms[name]} terms"
