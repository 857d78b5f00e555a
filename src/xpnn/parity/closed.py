"""Yardsticks of layers of any size, for arrays that are given instead of drawn.

Moving one number after the other (`yardstick`) takes as many runs as there are numbers. A layer of a real
network has too many, so its kind gives the yardstick instead:

    choices (ReLU, max-pool, Flatten)   y must be equal; dx is linear in dy, so it is that of |dy|
    linear (Conv, Dense, mean, mask)    the same of absolute values
    of each element (Tanh, GELU, …)     all numbers moved at once: none sees another
    BatchNorm, LayerNorm, GroupNorm     closed form, the roundings of what comes between counted
    anything else (Softmax, your own)   places moved in at most 256 groups, in all samples at once, with random signs

The last is exact where a sample has no more than 256 numbers. Beyond that, and where samples are summed, it can only
come out too small, as much as random signs cancel: then it lets nothing pass that the others would not.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from xpnn import layers as L
from xpnn.layers.pool import AvgPool
from xpnn.ops import Ops
from xpnn.ops._window import each
from xpnn.parity.cases import Case, Host
from xpnn.parity.yardstick import STEP, Expected, _linear, results
from xpnn.random import Stream

Arrays = dict[str, Host | None]
Yardsticks = tuple[dict[str, Host], dict[str, int]]

GROUPS = 256
STEPS = 4
"""Terms of what is computed element by element: x·Φ(x) has several roundings, and where its slope is 0 they count
beside |f| alone. Among the millions of elements of a network some come close to the worst."""
_OF_EACH = (L.Normalize, L.LeakyReLU, L.ELU, L.GELU, L.SiLU, L.Sigmoid, L.Tanh)
_NORMS = (L.BatchNorm, L.LayerNorm, L.GroupNorm)
_MEANS = (L.GlobalAvgPool, L.AvgPool1D, L.AvgPool2D, L.AvgPool3D)


def given(case: Case, arrays: Arrays, dy: Host) -> Expected:
    """What a case gives of these arrays in float64 on NumPy, by the standard bodies, with its yardsticks.

    Terms of 0 mean that nothing is rounded and results must be equal.

    Args:
        case: of a layer, an optimizer or a loss.
        arrays: by name, on the host, floats as float64.
        dy: what backward starts from.
    """
    values, kind = results(case, Ops(), arrays, dy), type(case.layer)
    if case.exact:
        yardsticks, terms = _choices(case, arrays, dy, values)
    elif case.linear or kind in _MEANS or kind is L.Dropout:
        yardsticks, terms = _linear(case, arrays, dy)
        if kind in _MEANS:  # the terms of a mean count 1 together
            terms = dict.fromkeys(terms, _mean_of(case))
    elif kind in _OF_EACH:
        yardsticks, terms = of_each(case, arrays, dy, values)
    elif kind in _NORMS:
        yardsticks, terms = _norm(case, arrays, dy, values)
    else:
        yardsticks, terms = by_groups(case, arrays, dy, values)
    if case.from_output:
        yardsticks["dx"] = yardsticks["dx"] + np.abs(dy * values["y"])
    if kind in (L.Softmax, L.LogSoftmax):  # a probability near 1 loses what lies beside it
        yardsticks["y"] = yardsticks["y"] + (kind is L.LogSoftmax)
        yardsticks["dx"] = yardsticks["dx"] + np.max(np.abs(dy), axis=-1, keepdims=True)
    return Expected(values, yardsticks, terms, dy)


def of_each(case: Case, arrays: Arrays, dy: Host, values: dict[str, Host]) -> Yardsticks:
    """Where no number of an array sees another."""
    yardsticks = {k: np.abs(v) for k, v in values.items()}
    for name, a in (arrays | {"dy": dy}).items():
        if a is not None and a.dtype == np.float64:
            _add(yardsticks, _moved(case, arrays, dy, name, a * (1 + STEP)), values)
    return yardsticks, dict.fromkeys(values, STEPS)


def by_groups(case: Case, arrays: Arrays, dy: Host, values: dict[str, Host]) -> Yardsticks:
    """Anything: groups of places moved in all samples at once, each number with a sign of its own."""
    yardsticks = {k: np.abs(v) for k, v in values.items()}
    for name, a in (arrays | {"dy": dy}).items():
        if a is None or a.dtype != np.float64:
            continue
        rows = name in case.batched or (name == "dy" and a.ndim > 0)
        places = prod(a.shape[1:]) if rows else a.size
        signs = np.where(Stream(0, "signs", name).uniform(a.shape) < 0.5, STEP, -STEP)
        group = np.arange(places).reshape(a.shape[1:] if rows else a.shape) % GROUPS
        for g in range(min(places, GROUPS)):
            _add(yardsticks, _moved(case, arrays, dy, name, a * (1 + signs * (group == g))), values)
    x = arrays["x"]
    assert x is not None
    return yardsticks, {k: x[:1].size if v.shape[:1] == x.shape[:1] else x.size for k, v in values.items()}


def _moved(case: Case, arrays: Arrays, dy: Host, name: str, a: Host) -> dict[str, Host]:
    return results(case, Ops(), arrays | {name: a} if name in arrays else arrays, a if name == "dy" else dy)


def _add(yardsticks: dict[str, Host], moved: dict[str, Host], values: dict[str, Host]) -> None:
    for k, v in values.items():
        yardsticks[k] = yardsticks[k] + np.abs(moved[k] - v) / STEP


def _choices(case: Case, arrays: Arrays, dy: Host, values: dict[str, Host]) -> Yardsticks:
    counts = results(case, Ops(), arrays, np.ones_like(dy))["dx"]
    most = round(float(np.max(counts, initial=0)))
    yardsticks = {k: np.abs(v) for k, v in values.items()}
    yardsticks["dx"] = results(case, Ops(), arrays, np.abs(dy))["dx"]
    return yardsticks, {k: most if k == "dx" and most > 1 else 0 for k in values}


def _mean_of(case: Case) -> int:
    layer, x = case.layer, case.data["x"]
    assert x is not None
    return prod(each("pool", "window", layer.window, layer.spatial) if isinstance(layer, AvgPool) else x.shape[1:-1])


def _norm(case: Case, arrays: Arrays, dy: Host, values: dict[str, Host]) -> Yardsticks:
    """Of `normal · weight + bias` with `normal = (x - mean)/√(var + epsilon)`."""
    layer, (x, weight, bias) = case.layer, (arrays[k] for k in ("x", "weight", "bias"))
    assert isinstance(layer, _NORMS)
    assert x is not None
    assert weight is not None
    assert bias is not None
    c, axes = x.shape[-1], tuple(range(x.ndim - 1))
    groups, over = {
        L.BatchNorm: (x.shape, axes),
        L.LayerNorm: (x.shape, (x.ndim - 1,)),
        L.GroupNorm: ((len(x), prod(x.shape[1:-1]), getattr(layer, "groups", 1), -1), (1, 3)),
    }[type(layer)]
    grouped, g = x.reshape(groups), np.abs(dy * weight).reshape(groups)

    def mean(a: Host) -> Host:
        return np.asarray(np.mean(a, axis=over, keepdims=True))

    centred = grouped - mean(grouped)
    inverse = 1 / np.sqrt(mean(centred**2) + layer.epsilon)
    normal, size = centred * inverse, np.abs(grouped)
    n = np.abs(normal)
    steep = inverse * mean(n * size)  # how much a relative change of x moves 1/√var
    of_normal = inverse * (size + mean(size)) + n * (1 + steep)
    of_dx = 2 * inverse * (g + mean(g) + n * mean(g * n)) + np.abs(values["dx"]).reshape(groups) * steep
    of_dx = of_dx + inverse * (of_normal * mean(g * n) + n * mean(g * of_normal))
    of_normal = (of_normal + n).reshape(x.shape)
    yardsticks: dict[str, Host] = {
        "y": np.abs(weight) * of_normal + np.abs(bias) + np.abs(values["y"]),
        "dx": of_dx.reshape(x.shape),
        "dweight": np.sum(np.abs(dy) * of_normal, axis=axes),
        "dbias": np.sum(np.abs(dy), axis=axes),
    }
    if isinstance(layer, L.BatchNorm):
        m, old = layer.momentum, (arrays["running_mean"], arrays["running_var"])
        assert old[0] is not None
        assert old[1] is not None
        spread = mean(centred**2) + 2 * mean(np.abs(centred) * size)
        yardsticks["running_mean"] = 2 * (np.abs(old[0]) + m * mean(size).reshape(c))
        yardsticks["running_var"] = 2 * (np.abs(old[1]) + m * spread.reshape(c))
    terms = prod(grouped.shape[a] for a in over)
    sums = x.size // c
    counts: dict[str, Any] = {k: sums if k in ("dweight", "dbias") else terms for k in values}
    return {k: yardsticks[k] for k in values}, counts
