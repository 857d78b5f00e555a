"""A case on one backend: brought there, computed, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from math import inf
from typing import Any

import array_api_compat
import numpy as np

from xpnn.backend import Backend
from xpnn.ops import Ops
from xpnn.ops._array import Array
from xpnn.parity.cases import PARTS, Case, Host
from xpnn.parity.yardstick import bound, expected, ratio, results

REPEATS = 3
"""Calls whose bits must be the same: a race seldom falls out alike so often."""


@dataclass(frozen=True)
class Side:
    """One way to compute: a backend, by the standard bodies or with its kernels in their places."""

    name: str
    backend: Backend
    ops: Ops

    def takes(self, case: Case) -> bool:
        """Whether a kernel of this side can take part in `case`; the standard bodies take every one."""
        replaced = self.ops.replaced
        parts = not set(PARTS).isdisjoint(replaced)  # below other ops
        return not replaced or case.layer is not None or case.subject in replaced or parts


def sides(backend: Backend) -> list[Side]:
    """The standard bodies on `backend`, and with its kernels (marked by a star) where it has any."""
    standard = Side(backend.name, backend, Ops({}, backend.column_bytes))
    return [standard, *([Side(f"{backend.name}*", backend, backend.ops)] if backend.ops.replaced else [])]


@dataclass(frozen=True)
class Finding:
    """What was found of one array that a case gives on one side."""

    name: str
    """`y`, `dx`, `dweight`, …"""
    terms: int
    """How many one number sums; 0 where nothing is rounded and results must be equal."""
    ratio: float
    """The largest error in units of rounding; where nothing is rounded, 0 or infinite."""
    fault: str | None
    """What is wrong, or None."""


class Placed:
    """A case on a backend, its arrays brought there.

    Args:
        case: the case.
        backend: where.
        dtype: of its floating arrays.
        ops: the ops to compute with; default: the backend's own.
        samples: those of the case's samples that take part.
        layout: a function that gives an array another layout in memory.
    """

    def __init__(
        self,
        case: Case,
        backend: Backend,
        dtype: str,
        *,
        ops: Ops | None = None,
        samples: slice = slice(None),
        layout: Callable[[Any, Any], Any] = lambda xp, a: a,
    ) -> None:
        self.case, self.backend, self.dtype, self.ops = case, backend, dtype, ops or backend.ops
        dy = expected(case).dy
        host = {k: a[samples] if a is not None and k in case.batched else a for k, a in _host(case).items()}
        bring = partial(layout, backend.xp)
        self.dy: Array = bring(self._bring(dy[samples] if dy.ndim else dy))
        self.arrays = {k: None if a is None else bring(self._bring(a)) for k, a in host.items()}
        self.compute: Callable[[], dict[str, Array]] = partial(
            backend.jit(partial(results, case, self.ops)), self.arrays, self.dy
        )

    def _bring(self, a: Host) -> Array:
        return self.backend.asarray(a, self.dtype if a.dtype == np.float64 else None)

    def results(self) -> dict[str, Host]:
        """Outputs and gradients, back on the host.

        Raises:
            AssertionError: one has another dtype than the case, or is on another device.
        """
        found = self.compute()
        for name, a in found.items():
            fault = self.misplaced(a)
            if fault:
                raise AssertionError(f"{name} {fault}")
        return {name: self.backend.to_numpy(a) for name, a in found.items()}

    def misplaced(self, a: Array) -> str | None:
        """What is wrong with the dtype or the device of a result."""
        if a.dtype != self.dy.dtype:
            return f"has dtype {a.dtype}; expected {self.dy.dtype}"
        device = array_api_compat.device(a)
        return None if device == self.backend.device else f"is on {device}; expected {self.backend.device}"


@cache
def _host(case: Case) -> dict[str, Host | None]:
    return case.arrays()


def judge(case: Case, side: Side, dtype: str = "float32") -> list[Finding]:
    """Compute a case on a side, some times over, and judge what comes of it.

    Args:
        case: one of `CASES`, or of your own.
        side: where and how.
        dtype: of its floating arrays.

    Returns:
        A finding for each array that should come of it.
    """
    placed = Placed(case, side.backend, dtype, ops=side.ops)
    try:
        runs = [placed.compute() for _ in range(REPEATS)]
        first, *more = [{name: side.backend.to_numpy(a) for name, a in run.items()} for run in runs]
    except Exception as e:  # whatever a backend raises is a finding, and the next case another matter
        return [Finding("y", 0, inf, f"raises {type(e).__name__}: {str(e).strip().partition(chr(10))[0]}")]
    findings = []
    for found in compare(case, first, dtype):
        fault = found.fault
        if fault is None and not all(np.array_equal(first[found.name], a[found.name], equal_nan=True) for a in more):
            fault = f"differs between {REPEATS} equal calls"
        if found.name in first:
            fault = placed.misplaced(runs[0][found.name]) or fault
        findings.append(replace(found, fault=fault))
    return findings


def compare(case: Case, found: Mapping[str, Host], dtype: str) -> list[Finding]:
    """Hold results against float64 on NumPy: by `==` where nothing is rounded, else by their ratio."""
    reference, findings = expected(case), []
    for name, value in reference.values.items():
        terms, a = 0 if case.exact else reference.terms[name], found.get(name)
        r, fault = inf, None
        if a is None:
            fault = "is missing"
        elif a.shape != value.shape:
            fault = f"has shape {a.shape}; expected {value.shape}"
        elif case.exact:
            wrong = int(np.sum(~((a == value) | (np.isnan(a) & np.isnan(value)))))
            r, fault = (inf, f"{wrong} of {a.size} differ; expected the same values") if wrong else (0.0, None)
        else:
            r, most = ratio(a, value, reference.yardsticks[name], dtype), bound(terms)
            fault = f"r = {r:.3g}; at most {most:.3g} for {terms} terms" if not r <= most else None
        findings.append(Finding(name, terms, r, fault))
    return findings
