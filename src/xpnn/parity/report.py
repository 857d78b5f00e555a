"""What a comparison of backends found, as rows, as a table and as a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

from xpnn.parity.cases import CASES, Case
from xpnn.parity.sides import Finding, Side, judge
from xpnn.parity.yardstick import bound


@dataclass(frozen=True)
class Row:
    """A case on all sides."""

    case: Case
    findings: dict[str, list[Finding]]
    """By the name of the side."""

    @property
    def terms(self) -> int:
        """The most that one number sums."""
        return max(f.terms for found in self.findings.values() for f in found)

    @property
    def faults(self) -> list[str]:
        """What is wrong, a sentence each."""
        return [f"{side}: {f.name} {f.fault}" for side, found in self.findings.items() for f in found if f.fault]

    def worst(self, side: str) -> Finding | None:
        """What came nearest to its bound on a side, or went furthest past it; None where the side has no part."""
        found = self.findings.get(side, [])
        return max(found, key=lambda f: (f.fault is not None, share(f)), default=None)

    def record(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {
            "case": self.case.name,
            "subject": self.case.subject,
            "class": "exact" if self.case.exact else "ratio",
            "verdict": "differs" if self.faults else "same",
            "sides": {side: [_finding(f) for f in found] for side, found in self.findings.items()},
        }


def _finding(f: Finding) -> dict[str, Any]:
    ratio = f.ratio if isfinite(f.ratio) else None
    return {"name": f.name, "terms": f.terms, "ratio": ratio, "bound": limit(f), "fault": f.fault}


def limit(f: Finding) -> float:
    """The largest ratio that is accepted."""
    return bound(f.terms) if f.terms else 0.0


def share(f: Finding) -> float:
    """The ratio as a share of the largest that is accepted."""
    return f.ratio / limit(f) if f.terms else f.ratio


def chosen(pattern: str | None) -> list[Case]:
    """The cases whose name, op or layer a pattern of the shell fits; None for all.

    Raises:
        ValueError: it fits none.
    """
    if pattern is None:
        return list(CASES)
    found = [case for case in CASES if fnmatchcase(case.name, pattern) or fnmatchcase(case.subject, pattern)]
    if not found:
        subjects = ", ".join(dict.fromkeys(case.subject for case in CASES))
        raise ValueError(f"no case fits {pattern!r}; give an op, a layer, or a pattern such as 'conv*', of: {subjects}")
    return found


def compare_all(
    cases: Sequence[Case], sides: Iterable[Side], dtype: str, show: Callable[[float, str], None]
) -> list[Row]:
    """Judge every case on every side; `show(done, text)` tells how far it is."""
    sides, rows = list(sides), []
    for i, case in enumerate(cases):
        show(i, case.subject)
        rows.append(Row(case, {side.name: judge(case, side, dtype) for side in sides if side.takes(case)}))
    return rows


def table(rows: Sequence[Row], sides: Sequence[str]) -> list[str]:
    """A line for each case: its class, the terms, the largest ratio of each side, the verdict."""
    wide = [max(len(side), 7) for side in sides]
    name = max(4, *(len(row.case.name) for row in rows))
    heads = "  ".join(side.rjust(w) for side, w in zip(sides, wide, strict=True))
    lines = [f"{'case'.ljust(name)}  class  {'n':>6}  {heads}  verdict"]
    for row in rows:
        cells = "  ".join(_cell(row.worst(side)).rjust(w) for side, w in zip(sides, wide, strict=True))
        kind, terms = ("exact", "") if row.case.exact else ("ratio", f"{row.terms:,}")
        verdict = "DIFFERS" if row.faults else "same"
        lines.append(f"{row.case.name.ljust(name)}  {kind}  {terms:>6}  {cells}  {verdict}")
    return lines


def _cell(f: Finding | None) -> str:
    if f is None:
        return "-"
    if not f.terms:
        return "=" if f.ratio == 0 else "≠"
    return f"{f.ratio:.2g}" if f.ratio < 1e4 else f"{f.ratio:.0e}"


def verdict(rows: Sequence[Row], titles: Sequence[str], backends: Sequence[str], faults: Sequence[str]) -> str:
    """One line of cases and networks."""
    arrays = sum(len(found) for row in rows for found in row.findings.values())
    what = [*([f"{len(rows)} cases, {arrays:,} arrays"] if rows else []), *titles]
    said = f"{'; '.join(what)} ({', '.join(backends)})"
    if not faults:
        return f"The same: {said}"
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"NOT the same: {said}: {faults[0]}{more}"
