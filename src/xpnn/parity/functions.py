"""Parity of any function over arrays: the yardstick of the cases, for code of one's own.

from xpnn.parity import assert_parity

def softplus(x):
    xp = x.__array_namespace__()
    return xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(x, xp.zeros_like(x))

assert_parity(softplus, x, backends=["numpy", "cupy"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import array_api_compat
import numpy as np

from xpnn import backend as _backends
from xpnn.backend import Backend
from xpnn.errors import ShapeError
from xpnn.parity.cases import Host
from xpnn.parity.yardstick import STEP, bound
from xpnn.random import Stream

GROUPS = 256
"""How many groups of inputs are moved for a yardstick, hence how often the function is computed for one."""
DTYPES = ("float32", "float64")


def assert_parity(
    fn: Callable[..., Any],
    *arrays: Any,
    backends: Iterable[str | Backend],
    n: int = 1,
    dtype: str = "float32",
) -> None:
    """Hold a function on each of some backends against float64 on NumPy.

    Integers and bools must be equal. An error of a float is measured in units of rounding against the yardstick
    (see `yardstick_of`), and accepted up to `min(4·√n, 32)`; NaN is equal to NaN.

    Args:
        fn: `fn(*arrays)`, written against the array API standard; returns an array, or a list, tuple or dict of
            arrays. It is given each backend's own arrays, and float64 NumPy arrays for the reference.
        arrays: its arguments on the host: NumPy arrays, lists or numbers. Floats are rounded to `dtype` first, so
            that all sides start from the same values; integers and bools keep their dtype.
        backends: names of backends, or finished ones.
        n: how many terms the longest sum in `fn` has; 1 where it sums nothing.
        dtype: of the floats on the backends, `"float32"` or `"float64"`; floating results must have it.

    Raises:
        AssertionError: a backend is off; the message reports on each result of each.
        BackendError: a backend is unknown or cannot be used here; says why and what to do.
        ShapeError: an argument is no host array of real numbers.
        TypeError: `fn` returns something else than arrays.
        ValueError: a backend given twice, or none; `n` or `dtype` that say nothing.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"assert_parity: n={n!r}; expected the number of terms of the longest sum, 1 or more")
    if dtype not in DTYPES:
        raise ValueError(f"assert_parity: dtype={dtype!r}; expected {' or '.join(DTYPES)}")
    chosen = _chosen(backends)
    host = [_host(i, a, dtype) for i, a in enumerate(arrays)]
    name = getattr(fn, "__name__", type(fn).__name__)

    def on_numpy(given: list[Host]) -> dict[str, Host]:
        results = _named(_call(fn, [a.copy() for a in given], "NumPy in float64, the reference"), name)
        for key, a in results.items():
            if not isinstance(a, np.ndarray | np.generic):
                raise TypeError(f"{name} was given NumPy arrays, but {key or 'it'} came back as {_kind(a)}")
            if np.asarray(a).dtype.kind not in "biu" and a.dtype != np.float64:
                raise TypeError(f"{name} was given float64, but {key or 'it'} came back as {a.dtype}; keep the dtype")
        return {key: np.array(a) for key, a in results.items()}

    with np.errstate(all="ignore"):  # what is not finite is a value to compare, not a warning
        reference = on_numpy(host)
        yardsticks = yardstick_of(on_numpy, host, reference)
        rows = [
            row
            for label, backend in chosen.items()
            for row in _judged(fn, name, label, backend, host, reference, yardsticks, n, dtype)
        ]
    off = list(dict.fromkeys(row.side for row in rows if row.fault))
    if off:
        fine = [label for label in chosen if label not in off]
        verdict = f"{_and(off)} {'is' if len(off) == 1 else 'are'} off" + (f", {_and(fine)} not" if fine else "")
        rule = f"float64 on NumPy is the reference, r at most {bound(n):g} for n = {n}"
        widths = [max(len(c[i]) for c in map(_Row.cells, rows)) for i in range(4)]
        raise AssertionError("\n".join([f"{name} in {dtype}: {verdict} ({rule})", *(r.line(widths) for r in rows)]))


def yardstick_of(
    f: Callable[[list[Host]], Mapping[str, Host]], arrays: list[Host], values: Mapping[str, Host]
) -> dict[str, Host]:
    """`|f| + Σᵢ |∂f/∂xᵢ|·|xᵢ|` for each float that a function gives, by differences.

    All floats among the inputs are dealt out to at most `GROUPS` groups; each group is moved at once, every number
    a little up or down, and what moves with it is added up. With no more numbers than groups that is the sum itself.
    With more, what one group does to a result may partly cancel, so the yardstick is at most the sum, never above it:
    the judgement can be stricter than with the sum, not laxer. It is the sum still where a result depends on one
    number of each group, as in an elementwise function.

    Args:
        f: float64 arrays → arrays, by name.
        arrays: where to move from.
        values: `f(arrays)`.
    """
    floats = [a for a in arrays if a.dtype == np.float64]
    size = sum(a.size for a in floats)
    found = {key: np.abs(v) for key, v in values.items() if v.dtype == np.float64}
    if not size or not found:
        return found
    stream = Stream(0, "yardstick")
    place = np.argsort(stream.uniform((size,)), kind="stable")
    sign = np.where(Stream(0, "yardstick", "signs").uniform((size,)) < 0.5, -STEP, STEP)
    for group in range(min(size, GROUPS)):
        factor = np.ones(size)
        moving = place[group::GROUPS]
        factor[moving] += sign[moving]
        cuts, moved = iter(np.split(factor, np.cumsum([a.size for a in floats])[:-1])), []
        for a in arrays:
            moved.append(a * next(cuts).reshape(a.shape) if a.dtype == np.float64 else a)
        after = f(moved)
        for key in found:
            with np.errstate(invalid="ignore"):
                change = np.abs(after[key] - values[key]) / STEP
            found[key] = found[key] + np.where(np.isfinite(change), change, 0.0)
    return found


@dataclass(frozen=True)
class _Row:
    """The verdict on one result of one backend."""

    side: str
    key: str
    what: str
    """Shape and dtype."""
    fault: bool
    text: str

    def cells(self) -> tuple[str, str, str, str]:
        return self.side, self.key, self.what, "OFF" if self.fault else "ok"

    def line(self, widths: list[int]) -> str:
        cells = (cell.ljust(width) for cell, width in zip(self.cells(), widths, strict=True))
        return "  ".join([*(c for c in cells if c), self.text]).rstrip()


def _judged(
    fn: Callable[..., Any],
    name: str,
    label: str,
    backend: Backend,
    host: list[Host],
    reference: Mapping[str, Host],
    yardsticks: Mapping[str, Host],
    n: int,
    dtype: str,
) -> list[_Row]:
    """A row for each result on one backend."""
    given = [backend.asarray(a, dtype if a.dtype == np.float64 else None, copy=True) for a in host]
    results = _named(_call(fn, given, f"the backend {label!r}"), name)
    if results.keys() != reference.keys():
        text = f"gives {_count(results)}; expected {_count(reference)}"
        return [_Row(label, "", "", True, text)]
    rows = []
    for key, a in results.items():
        if not backend.owns(a):
            rows.append(_Row(label, key, _kind(a), True, f"is no array of {backend.name}"))
            continue
        expected = reference[key]
        back = np.asarray(backend.to_numpy(a))
        what, where = f"{back.shape} {back.dtype}", array_api_compat.device(a)
        kind = dtype if expected.dtype == np.float64 else {"b": "bool"}.get(expected.dtype.kind, "an integer")
        if back.dtype.name != kind and not (kind == "an integer" and back.dtype.kind in "iu"):
            text = f"has dtype {back.dtype}; expected {kind}"
        elif where != backend.device:
            text = f"is on {where}; expected {backend.device}"
        elif back.shape != expected.shape:
            text = f"has shape {back.shape}; expected {expected.shape}"
        else:
            rows.append(_compared(label, key, what, back, expected, yardsticks.get(key), n))
            continue
        rows.append(_Row(label, key, what, True, text))
    return rows


def _compared(label: str, key: str, what: str, back: Host, expected: Host, yardstick: Host | None, n: int) -> _Row:
    """The verdict on values of the right shape and dtype."""
    same = back == expected
    if yardstick is None:
        wrong = int(np.sum(~same))
        if not wrong:
            return _Row(label, key, what, False, "equal")
        at = _index(~same)
        text = f"{wrong} of {back.size} differ; first at {at}: {back[at]}, reference {expected[at]}"
        return _Row(label, key, what, True, text)
    info = np.finfo(back.dtype)
    unit = float(info.eps) / 2 * np.maximum(yardstick, float(info.tiny))  # below tiny, rounding is absolute
    error = np.abs(back.astype(np.float64) - expected) / unit
    error = np.where(same | (np.isnan(back) & np.isnan(expected)), 0.0, np.where(np.isnan(error), inf, error))
    worst, most = float(np.max(error, initial=0.0)), bound(n)
    if worst <= most:
        return _Row(label, key, what, False, f"r = {worst:.3g}")
    at = _index(error == worst)
    text = f"r = {worst:.3g}, at most {most:.3g}; worst at {at}: {back[at]!s}, reference {expected[at]!s}"
    return _Row(label, key, what, True, text)


def _chosen(backends: Iterable[str | Backend]) -> dict[str, Backend]:
    """The backends, ready, by what the report calls them."""
    if isinstance(backends, str | Backend):
        backends = [backends]
    made = [_backends.get(b) for b in backends]
    if not made:
        raise ValueError("assert_parity: no backends; name at least one, e.g. backends=['numpy', 'cupy']")
    names = [b.name for b in made]
    labels = [b.name if names.count(b.name) == 1 else f"{b.name} on {b.device_name}" for b in made]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"assert_parity: the backend {label} is given twice")
    return dict(zip(labels, made, strict=True))


def _host(place: int, x: Any, dtype: str) -> Host:
    """An argument as float64 that `dtype` can hold, or as integers or bools."""
    if not isinstance(x, np.ndarray | np.generic | list | tuple | int | float):
        raise ShapeError(f"assert_parity: argument {place} is {_kind(x)}; give host arrays, e.g. backend.to_numpy(x)")
    a = np.asarray(x)
    if a.dtype.kind not in "biuf":
        raise ShapeError(f"assert_parity: argument {place} has dtype {a.dtype}; expected real numbers, integers, bools")
    with np.errstate(over="ignore"):
        return a.astype(dtype).astype(np.float64) if a.dtype.kind == "f" else a


def _call(fn: Callable[..., Any], arrays: list[Any], where: str) -> Any:
    try:
        return fn(*arrays)
    except Exception as e:
        e.add_note(f"raised on {where}")
        raise


def _named(results: Any, name: str) -> dict[str, Any]:
    """What a function returned, by name; an array alone has none."""
    if isinstance(results, Mapping):
        named = {str(key): a for key, a in results.items()}
    elif isinstance(results, list | tuple):
        named = {str(i): a for i, a in enumerate(results)}
    else:
        named = {"": results}
    for key, a in named.items():
        if not array_api_compat.is_array_api_obj(a):
            raise TypeError(f"{name} returns {_kind(a)}{f' as {key}' if key else ''}; expected an array, or several")
    if not named:
        raise TypeError(f"{name} returns nothing in {_kind(results)}; expected an array, or several")
    return named


def _index(where: Host) -> tuple[int, ...]:
    return tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(where)))[: where.ndim]


def _count(results: Mapping[str, Any]) -> str:
    return f"{len(results)} arrays ({', '.join(results)})" if "" not in results else "one array"


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _kind(x: Any) -> str:
    return f"a {type(x).__module__}.{type(x).__qualname__}"
