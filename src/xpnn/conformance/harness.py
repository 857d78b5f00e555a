"""What the suite runs on: the variants of a backend, the cases on each of them, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from xpnn import parity
from xpnn.backend import Backend


@dataclass(frozen=True)
class Variant:
    """One way to run the tests on a backend; `--backend` selects by the name of the backend."""

    name: str
    backend_name: str
    make: Callable[[], Backend]
    full: bool = True
    """False for a second variant, which looks for one thing: it runs the results only, with one dtype."""
    traced: bool = False
    """Whether cases are compiled as a whole, and eager calls are too slow to be tried on each."""

    @contextmanager
    def active(self) -> Iterator[Backend]:
        """The backend, ready for use."""
        yield self.backend

    @cached_property
    def backend(self) -> Backend:
        """The backend, made once."""
        return self.make()

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that cases are computed in."""
        return ("float32", "float64") if self.full and self.backend.supports("float64") else ("float32",)

    def takes(self, case: parity.Case) -> bool:
        """Whether this variant runs a case."""
        return True

    def replaces(self, case: parity.Case) -> bool:
        """Whether a kernel of this backend takes part in a case: in place of its op, or of a part of ops."""
        kernels = self.backend.kernels
        return case.subject in kernels or (case.layer is None and not kernels.keys().isdisjoint(parity.PARTS))


def add_markers(config: pytest.Config) -> None:
    """Make the markers known that `parametrize` understands."""
    config.addinivalue_line("markers", "cases(cases, dtype=None, where=None): run on these cases on each backend")
    config.addinivalue_line("markers", "eager: not on second variants, nor where each case is compiled")


def parametrize(metafunc: pytest.Metafunc, variants: Iterable[Variant]) -> None:
    """Run a test that asks for `variant` on each of them.

    `@pytest.mark.cases(CASES)` runs it on these cases as well, with each dtype that a variant has
    (`dtype="float32"`: with this one only; `where(variant, case)` selects); it takes `variant`, `dtype` and `case`.
    `@pytest.mark.eager` leaves out second variants and those that compile each case.
    """
    marker = metafunc.definition.get_closest_marker("cases")
    eager = metafunc.definition.get_closest_marker("eager") is not None
    variants = [v for v in variants if not eager or (v.full and not v.traced)]
    if marker is None:
        metafunc.parametrize("variant", variants, ids=lambda v: v.name)
        return
    rows = [
        pytest.param(variant, dtype, case, id=f"{variant.name}-{dtype}-{case}")
        for variant in variants
        for dtype in variant.dtypes
        if marker.kwargs.get("dtype", dtype) == dtype
        for case in marker.args[0]
        if variant.takes(case) and marker.kwargs.get("where", lambda variant, case: True)(variant, case)
    ]
    metafunc.parametrize(("variant", "dtype", "case"), rows)


def check(case: parity.Case, found: Mapping[str, np.ndarray[Any, Any]], dtype: str) -> None:
    """Hold results against float64 on NumPy."""
    faults = [f"{f.name} {f.fault}" for f in parity.compare(case, found, dtype) if f.fault]
    faults += [f"{name} is too much" for name in found.keys() - parity.expected(case).values.keys()]
    assert not faults, "; ".join(faults)
