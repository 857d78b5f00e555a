"""What a case should give, what an error of it is measured against, and the ratio that is judged.

Rounding makes no two backends equal, and a tolerance on the result says little: a sum of large terms that
cancel is rightly off by many units of its own last place. So an error is measured against what the result was
made of, the yardstick `|f| + Σᵢ |∂f/∂xᵢ|·|xᵢ|`, in units of rounding:

    r = max |a - b| / (u · yardstick),   accepted where r ≤ min(4·√n, 32) for n summed terms

Correct float32 stays far below; a product in TF32 lies at 42 and more, a wrong formula at millions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import inf, sqrt
from typing import Any

import numpy as np

from xpnn.ops import Ops
from xpnn.ops._array import Array
from xpnn.parity.cases import Case, Host

STEP = 1e-6  # relative, of the differences that yardsticks are made of: they need a few digits only


def ratio(a: Host, reference: Host, yardstick: Host, dtype: str) -> float:
    """The largest error of `a` in units of rounding of `dtype`, relative to the yardstick; NaN counts as inf."""
    if a.shape != reference.shape:
        raise ValueError(f"shape {a.shape}; expected {reference.shape}")
    error = np.abs(a.astype(np.float64) - reference)
    unit = float(np.finfo(dtype).eps) / 2 * yardstick
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(error == 0, 0.0, error / unit)
    return float(np.max(np.where(np.isnan(r), inf, r), initial=0.0))


def bound(terms: int) -> float:
    """The largest accepted ratio for results that sum so many terms."""
    return min(4 * sqrt(terms), 32.0)


@dataclass(frozen=True)
class Expected:
    """What a case gives in float64 on NumPy, by name: outputs (`y` …) and gradients (`dx`, `dweight` …)."""

    values: Mapping[str, Host]
    yardsticks: Mapping[str, Host]
    """None in an exact case."""
    terms: Mapping[str, int]
    """The largest number of terms that one number sums."""
    dy: Host
    """What backward started from."""


def results(case: Case, ops: Ops, arrays: Mapping[str, Array | None], dy: Array) -> dict[str, Array]:
    """Run a case forward and backward: its outputs, and the gradients under `d` + the array's name."""
    outputs, backward = case.call(ops, dict(arrays))
    gradients = zip(case.data, backward(dy), strict=True)
    return outputs | {f"d{name}": d for name, d in gradients if d is not None}


@cache
def expected(case: Case) -> Expected:
    """The results of a case in float64 on NumPy, by the standard bodies, with their yardsticks."""
    arrays, ops = case.arrays(), Ops()
    outputs, _ = case.call(ops, dict(arrays))
    dy = case.dy(outputs["y"].shape)
    values = results(case, ops, arrays, dy)
    if case.exact:
        return Expected(values, {}, {}, dy)
    yardsticks, terms = _linear(case, arrays, dy) if case.linear else _by_differences(case, arrays, dy, values)
    if case.from_output:
        yardsticks["dx"] += np.abs(dy * values["y"])
    if any(d is not None and d.fill == "large" for d in case.data.values()):
        yardsticks = {k: np.full_like(v, v.max()) for k, v in yardsticks.items()}
    return Expected(values, yardsticks, terms, dy)


def _linear(case: Case, arrays: dict[str, Host | None], dy: Host) -> tuple[dict[str, Host], dict[str, int]]:
    """Yardsticks of what is linear in each array: the same, of absolute values; and of ones it counts the terms."""

    def of(f: Any) -> dict[str, Host]:
        return results(case, Ops(), {k: None if a is None else f(a) for k, a in arrays.items()}, f(dy))

    return of(np.abs), {k: max(1, round(float(np.max(v, initial=1)))) for k, v in of(np.ones_like).items()}


def _by_differences(
    case: Case, arrays: dict[str, Host | None], dy: Host, values: dict[str, Host]
) -> tuple[dict[str, Host], dict[str, int]]:
    """Yardsticks of anything: move each input a little, one after the other, and see what moves with it."""
    inputs = {k: a.copy() for k, a in (arrays | {"dy": dy}).items() if a is not None}
    yardsticks = {k: np.abs(v) for k, v in values.items()}
    counts = {k: np.zeros(v.shape, int) for k, v in values.items()}
    for a in inputs.values():
        for place in np.ndindex(a.shape) if a.dtype == np.float64 else ():
            value = a[place]
            a[place] = value * (1 + STEP)
            moved = results(case, Ops(), {k: inputs.get(k) for k in arrays}, inputs["dy"])
            a[place] = value
            for k, v in values.items():
                yardsticks[k] = yardsticks[k] + np.abs(moved[k] - v) / STEP
                counts[k] += moved[k] != v
    return yardsticks, {k: max(1, int(np.max(n, initial=1))) for k, n in counts.items()}
