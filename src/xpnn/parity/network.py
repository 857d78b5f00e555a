"""A network on two backends, layer by layer: which one is off, and in which layer it began.

One batch, one state, one forward, one backward, one update, on the layers as they stand (nothing is joined). Each
side is judged by itself against float64 on NumPy, in two ways:

    own     the layer alone, fed with what float64 feeds it, rounded: r = error / (u · yardstick), as for a case
    whole   the network as it runs, each layer fed with the errors of those before it: error / drift, at most 8

The drift is how far NumPy's float32 (the standard bodies) strays from float64 when all images and weights are moved
by their last bit, in the largest error of each array, and at least one rounding of its largest number. So a fault is
the layer's own where the layer alone shows it, and inherited where only the network does.

Rounding may make a ReLU or a max-pool choose otherwise than float64 does; the gradient then goes elsewhere, and the
errors of all layers before it jump. Where a choice fell otherwise and its margin lies within the accepted error, no
gradient passes, on any side: these positions are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import numpy as np

from xpnn import layers as L
from xpnn.backend import Backend, one_line
from xpnn.layers.base import Applied, Layer, Run
from xpnn.layers.base import Arrays as Tree
from xpnn.layers.pool import MaxPool
from xpnn.losses import Loss
from xpnn.ops import Ops
from xpnn.ops._array import Array, namespace
from xpnn.ops.pool import pool_window
from xpnn.optim import SGD, Optimizer
from xpnn.parity import cases
from xpnn.parity.cases import Case, Data, Host, of_layer
from xpnn.parity.closed import by_groups, given, of_each
from xpnn.parity.network_report import LOSS, NetworkReport, Quantity, Reading
from xpnn.parity.pair import FACTOR, Start, Weights, label, masks, nudged, rounded, start, two, unit
from xpnn.parity.yardstick import Expected, bound, results
from xpnn.random import Stream

Traces = dict[str, dict[str, Host]]
"""By the path of a layer: `x`, `y`, `dy`, `dx`, `d` + weight, statistics, `new ` + weight."""

DRIFTS = 2
"""Runs whose inputs differ in the last bit."""
UPDATE = "update"
_KINKED = (L.ReLU, L.LeakyReLU, L.ELU)


def compare_network(
    model: Layer,
    backends: Sequence[str | Backend],
    images: Any,
    labels: Any,
    *,
    weights: Weights = None,
    loss: str | Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> NetworkReport:
    """One training step of a network on two backends, judged layer by layer.

    Args:
        model: its layers may be nested in Sequential, Residual and Parallel; each class needs a case in
            `xpnn.parity.CASES`, which says of what kind it is.
        backends: two, by name or ready for use.
        images: `(N, *in_shape)`, floating point.
        labels: as the loss asks for.
        weights: a saved model's file, `(weights, stats)` by path, or None for those that `seed` draws.
        loss: its name, or one of `xpnn.losses`.
        optimizer: default `SGD(lr=0.05, momentum=0.9)`, at its first step.
        seed: of weights and dropout masks, drawn on the host and the same on both.
        dtype: "float32" or "float64".

    Raises:
        ValueError: a layer without a case, or twice the same backend.
        BackendError: a backend that cannot be used here.
        ShapeError: data that do not fit the model, the loss or each other.
    """
    pair = two(backends)
    begin = start(model, pair, images, labels, weights=weights, loss=loss, seed=seed, dtype=dtype)
    leaves: dict[str, Layer] = {}
    _mapped(model, lambda path, layer: leaves.setdefault(path, layer))
    _check_cases(leaves)
    step = _Step(begin, optimizer or SGD(lr=0.05, momentum=0.9))
    tree = step.inputs(masks(model, begin.in_shape, seed, 0, len(begin.images)))
    nudges = [
        tree
        | {"images": nudged(begin.images, dtype, stream.child("images"))}
        | {"weights": {k: nudged(w, dtype, stream.child(k)) for k, w in begin.weights.items()}}
        for stream in (Stream(seed, "nudge", str(i)) for i in range(DRIFTS))
    ]

    reference = step.on_numpy(tree, "float64")
    alone = [*_alone(leaves, tree, reference, dtype), step.loss_alone(tree, reference)]
    alone.append(step.update_alone(tree, reference))
    wanted = {path: _JUDGES.get(path, given)(case, arrays, dy) for path, case, arrays, dy in alone}
    own = [{path: _run_alone(b, dtype, case, arrays, dy) for path, case, arrays, dy in alone} for b in pair]

    broken = [any(_broken(found[path], want) for path, want in wanted.items()) for found in own]

    def runs(keep: Mapping[str, Host]) -> list[Traces]:
        there = [{} if bad else step.on(b, tree | {"keep": keep}) for b, bad in zip(pair, broken, strict=True)]
        return there + [step.on_numpy(moved | {"keep": keep}, dtype) for moved in nudges]

    traces = runs({})
    keep, left_out = _turned(leaves, reference, traces, dtype)
    if keep:
        reference, traces = step.on_numpy(tree | {"keep": keep}, "float64"), runs(keep)

    names = (label(pair[0], pair[1]), label(pair[1], pair[0]))
    quantities = []
    for path, name in _order(leaves, reference):
        of_update = name.startswith("new ")
        at, key = (UPDATE, _joined(path, name.removeprefix("new "))) if of_update else (path, name)
        want, value = wanted[at], reference[path][name]
        most = bound(want.terms[key]) if want.terms[key] else 0.0
        drift = _drift(value, [t[path][name] for t in traces[2:]], dtype)
        readings = tuple(
            _reading(side, own[i][at], want, key, most, traces[i].get(path, {}).get(name), value, drift, dtype)
            for i, side in enumerate(names)
        )
        kind = type(begin.loss if path == LOSS else leaves[path]).__name__
        quantities.append(Quantity(path, kind, name, reference[path]["x"].shape, value.shape, most, readings))
    return NetworkReport(names, dtype, tuple(quantities), left_out)


def _check_cases(leaves: Mapping[str, Layer]) -> None:
    kinds = {type(case.layer) for case in cases.CASES}
    for path, layer in leaves.items():
        if type(layer) not in kinds:
            raise ValueError(
                f"layer {path} ({layer!r}) has no case, and a case tells how results are judged; add one first: "
                f"parity.CASES.append(parity.of_layer('mine', {layer!r}, in_shape, training=True))"
            )


# The step


@dataclass(frozen=True, repr=False, eq=False)
class _Probe(Layer):
    """A layer whose inputs and outputs are kept, both ways; where `keep` has its path, it masks dy."""

    layer: Layer
    path: str
    trace: dict[str, dict[str, Array]] = field(default_factory=dict)
    keep: Mapping[str, Array] = field(default_factory=dict)

    def apply(self, weights: Tree, stats: Tree, x: Array, run: Run) -> Applied:
        y, new, layer_backward = self.layer.apply(weights, stats, x, run)
        trace = self.trace[self.path] = {"x": x, "y": y, **new}

        def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
            trace["dy"] = dy
            kept = self.keep.get(self.path)
            dy = dy if kept is None else dy * namespace("keep", dy=dy).astype(kept, dy.dtype)
            trace["dx"], dweights = layer_backward(dy)
            trace.update({f"d{name}": d for name, d in dweights.items()})
            return trace["dx"], dweights

        return y, new, backward

    def __repr__(self) -> str:
        return repr(self.layer)


def _mapped(model: Layer, f: Callable[[str, Layer], Layer], path: str = "") -> Layer:
    """The model with `f(path, layer)` in the place of each layer that is no container."""
    if type(model) in (L.Sequential, L.Residual, L.Parallel):
        assert isinstance(model, L.Container)
        parts = [_mapped(part, f, _joined(path, name)) for name, part in model.parts()]
        return L.Sequential(parts) if type(model) is L.Sequential else type(model)(*parts)
    return f(path, model)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class _Step:
    """One training step, unfused, all of whose arrays are kept."""

    def __init__(self, begin: Start, optimizer: Optimizer) -> None:
        self.begin, self.optimizer = begin, optimizer

    def inputs(self, draws: Mapping[str, Host]) -> dict[str, Any]:
        """All that the step takes, on the host."""
        begin, optimizer = self.begin, self.optimizer
        divisor = begin.loss.divisor(begin.targets)
        return {
            "images": begin.images,
            "targets": begin.targets,
            "weights": begin.weights,
            "stats": begin.stats,
            "draws": dict(draws),
            "constants": {k: rounded(c, begin.dtype) for k, c in begin.loss.constants().items()},
            "scale": rounded(1 / divisor if divisor else 0.0, begin.dtype),
            "scalars": rounded(optimizer.scalars(optimizer.lr, 1), begin.dtype),
            "keep": {},
        }

    def run(self, ops: Ops, tree: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
        """Forward, backward and update; a pure function that a backend may compile."""
        trace: dict[str, dict[str, Array]] = {}
        model = _mapped(self.begin.model, lambda path, layer: _Probe(layer, path, trace, tree["keep"]))
        weights = tree["weights"]
        scores, _, backward = model.apply(weights, tree["stats"], tree["images"], Run(ops, True, tree["draws"]))
        value, loss_backward = self.begin.loss(ops, scores, tree["targets"], tree["constants"])
        dscores = loss_backward(tree["scale"])[0]
        _, gradients = backward(dscores)
        trace[LOSS] = {"x": scores, "y": value, "dx": dscores}
        if paths := list(self.begin.weights):  # `weights` itself may come back from a compiler in another order
            xp = namespace("update", scores=scores)
            flat, gradient = (xp.concat([xp.reshape(a[path], (-1,)) for path in paths]) for a in (weights, gradients))
            trace[UPDATE] = {"x": flat, "gradient": gradient}
            for path, new in self.update(ops, flat, gradient, tree["scalars"]).items():
                leaf, _, name = path.rpartition(".")
                trace[leaf][f"new {name}"] = new
        return trace

    def update(self, ops: Ops, flat: Array, gradient: Array, scalars: Array) -> dict[str, Array]:
        """The new weights by path, from moments of zeros."""
        xp = namespace("update", weights=flat)
        moments = {name: xp.zeros_like(flat) for name in self.optimizer.moments}
        new, _ = self.optimizer.update(ops, flat, self.optimizer.clip(ops, gradient), moments, scalars)
        weights, first = {}, 0
        for path, w in self.begin.weights.items():
            weights[path] = xp.reshape(new[first : first + w.size], w.shape)
            first += w.size
        return weights

    def on(self, backend: Backend, tree: Mapping[str, Any]) -> Traces:
        """The step on a backend, back on the host."""
        dtype = self.begin.dtype
        there = _each(lambda a: backend.asarray(a, dtype if a.dtype == np.float64 else None), tree)
        found = backend.jit(partial(self.run, backend.ops))(there)
        traces: Traces = _each(lambda a: backend.to_numpy(a).astype(np.float64), found)
        return traces

    def on_numpy(self, tree: Mapping[str, Any], dtype: str) -> Traces:
        """The step by the standard bodies on plain NumPy."""
        there = _each(lambda a: a.astype(dtype) if a.dtype == np.float64 else a, tree)
        with np.errstate(all="ignore"):
            found = self.run(Ops(), there)
        traces: Traces = _each(lambda a: np.asarray(a, np.float64), found)
        return traces

    def loss_alone(self, tree: Mapping[str, Any], reference: Traces) -> Alone:
        """The loss as a case."""
        arrays = {"x": rounded(reference[LOSS]["x"], self.begin.dtype), "targets": tree["targets"], **tree["constants"]}

        def call(ops: Ops, arrays: dict[str, Any]) -> tuple[dict[str, Array], Callable[..., cases.Gradients]]:
            constants = {k: arrays[k] for k in tree["constants"]}
            y, backward = self.begin.loss(ops, arrays["x"], arrays["targets"], constants)
            return {"y": y}, lambda dy: (backward(dy)[0], *(None for _ in list(arrays)[1:]))

        return LOSS, _case(LOSS, arrays, call, ("x", "targets")), arrays, tree["scale"]

    def update_alone(self, tree: Mapping[str, Any], reference: Traces) -> Alone:
        """The update as a case."""
        none = np.zeros(0)
        there = {
            k: rounded(a, self.begin.dtype) for k, a in reference.get(UPDATE, {"x": none, "gradient": none}).items()
        }
        arrays = there | {"scalars": tree["scalars"]}

        def call(ops: Ops, arrays: dict[str, Any]) -> tuple[dict[str, Array], Callable[..., cases.Gradients]]:
            new = self.update(ops, arrays["x"], arrays["gradient"], arrays["scalars"]) if self.begin.weights else {}
            return new, lambda dy: (None,) * len(arrays)

        return UPDATE, _case(UPDATE, arrays, call, ()), arrays, tree["scale"]


def _each(f: Callable[[Any], Any], tree: Any) -> Any:
    return {k: _each(f, v) for k, v in tree.items()} if isinstance(tree, Mapping) else f(tree)


# A layer alone

Alone = tuple[str, Case, dict[str, Any], Host]
"""Path, case, its arrays, and what backward starts from."""


def _alone(leaves: Mapping[str, Layer], tree: Mapping[str, Any], reference: Traces, dtype: str) -> Iterator[Alone]:
    """Each layer as a case, with what float64 feeds it, rounded."""
    for path, layer in leaves.items():
        trace = reference[path]
        n, *in_shape = trace["x"].shape
        case = of_layer(path, layer, tuple(in_shape), training=True, samples=n)
        arrays = {"x": rounded(trace["x"], dtype)}
        for name in list(case.data)[1:]:
            full = _joined(path, name)
            arrays[name] = next(tree[kind][full] for kind in ("weights", "stats", "draws") if full in tree[kind])
        yield path, case, arrays, rounded(trace["dy"], dtype)


def _case(name: str, arrays: Mapping[str, Host], call: cases.Call, batched: tuple[str, ...]) -> Case:
    data: dict[str, Data | None] = {k: Data(a.shape) for k, a in arrays.items()}
    return Case(
        name, name, data, call, batched, per_sample=False, exact=False, linear=False, from_output=False, options={}
    )


def _judge_loss(case: Case, arrays: dict[str, Any], dy: Host) -> Expected:
    """The sum over all samples moves by |dx·x| where each number moves its own way; a probability loses beside 1."""
    values = results(case, Ops(), arrays, dy)
    yardsticks, terms = by_groups(case, arrays, dy, values)
    slopes = results(case, Ops(), arrays, np.ones_like(dy))["dx"]
    yardsticks["y"] = 2 * np.abs(values["y"]) + np.sum(np.abs(slopes * arrays["x"]))
    weights = arrays.get("class_weights")
    most = 1.0 if weights is None else float(np.max(weights, initial=0))
    yardsticks["dx"] = np.max(yardsticks["dx"], axis=-1, keepdims=True) + np.abs(dy) * most * np.ones_like(values["dx"])
    return Expected(values, yardsticks, terms | {"y": arrays["x"].size}, dy)


def _judge_update(case: Case, arrays: dict[str, Any], dy: Host) -> Expected:
    """Of each element, but for the common factor of clipping; the step itself is rounded as well."""
    values = results(case, Ops(), arrays, dy)
    yardsticks, terms = of_each(case, arrays, dy, values)
    first = 0
    for path, v in values.items():
        old = arrays["x"][first : first + v.size].reshape(v.shape)
        yardsticks[path], first = yardsticks[path] + np.abs(v - old), first + v.size
    return Expected(values, yardsticks, terms, dy)


_JUDGES = {LOSS: _judge_loss, UPDATE: _judge_update}


def _run_alone(backend: Backend, dtype: str, case: Case, arrays: Mapping[str, Host], dy: Host) -> dict[str, Host] | str:
    """What a backend gives of a case, on the host; or what it raised."""
    try:
        there = _each(lambda a: backend.asarray(a, dtype if a.dtype == np.float64 else None), arrays)
        found = backend.jit(partial(results, case, backend.ops))(there, backend.asarray(dy, dtype))
        return {name: backend.to_numpy(a) for name, a in found.items()}
    except Exception as e:  # whatever a backend raises is a finding, and the next layer another matter
        return f"raises {one_line(e)}"


# Judging


def _broken(found: dict[str, Host] | str, want: Expected) -> bool:
    """Whether a layer gives nothing that the next could take."""
    if isinstance(found, str):
        return True
    return any(k not in found or found[k].shape != v.shape for k, v in want.values.items())


def _order(leaves: Mapping[str, Layer], reference: Traces) -> Iterator[tuple[str, str]]:
    """All arrays in the order of computation: forward, loss, backward, update."""
    back = {path: [n for n in reference[path] if n == "dx" or n[1:] in _weights(reference[path])] for path in leaves}
    for path in leaves:
        for name in reference[path]:
            if name not in ("x", "dy", *back[path]) and not name.startswith("new "):
                yield path, name
    yield from ((LOSS, "y"), (LOSS, "dx"))
    for path in reversed([*leaves]):
        yield from ((path, name) for name in back[path])
    for path in leaves:
        yield from ((path, f"new {name}") for name in _weights(reference[path]))


def _weights(trace: Mapping[str, Host]) -> list[str]:
    return [name.removeprefix("new ") for name in trace if name.startswith("new ")]


def _drift(value: Host, moved: Sequence[Host], dtype: str) -> float:
    """How far float32 strays from float64 by itself; no less than a rounding of the largest number."""
    least = unit(dtype) * float(np.max(np.abs(value), initial=0))
    return max([least, *(float(np.max(np.abs(m - value), initial=0)) for m in moved)])


def _reading(
    side: str,
    found: dict[str, Host] | str,
    want: Expected,
    key: str,
    most: float,
    there: Host | None,
    value: Host,
    drift: float,
    dtype: str,
) -> Reading:
    whole = np.full(value.shape, inf) if there is None else _quotient(np.abs(there - value), np.asarray(drift))
    worst = float(np.max(whole, initial=0))
    target = want.values[key]
    alone = found if isinstance(found, str) else found.get(key)
    if alone is None:
        alone = "is missing"
    elif not isinstance(alone, str) and alone.shape != target.shape:
        alone = f"has shape {alone.shape}; expected {target.shape}"
    if isinstance(alone, str):
        return Reading(side, inf, worst, "own", reason=alone)
    error = np.abs(alone.astype(np.float64) - target)
    r = _quotient(error, unit(dtype) * want.yardsticks[key] if want.terms[key] else np.zeros_like(error))
    own = float(np.max(r, initial=0))
    fault = "own" if own > most else "inherited" if worst > FACTOR else None
    if not r.size:
        return Reading(side, own, worst, fault)
    by, got, expected = (whole, there, value) if fault == "inherited" and there is not None else (r, alone, target)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(by), by.shape))
    return Reading(side, own, worst, fault, index, float(got[index]), float(expected[index]))


def _quotient(error: Host, by: Host) -> Host:
    """Errors in units of something; 0/0 is 0, and what is not finite is infinite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        r = np.where(error == 0, 0.0, error / by)
    return np.where(np.isnan(r), inf, r)


# Choices


def _turned(
    leaves: Mapping[str, Layer], reference: Traces, traces: Sequence[Traces], dtype: str
) -> tuple[dict[str, Host], dict[str, tuple[int, int]]]:
    """Which outputs to keep where a choice that is no fault fell otherwise, and how many are left out of how many."""
    keep, left_out = {}, {}
    for path, layer in leaves.items():
        x = reference[path]["x"]
        if (found := _choice(layer, x)) is None:
            continue
        choice, margin = found
        near = margin <= 2 * FACTOR * _drift(x, [t[path]["x"] for t in traces[2:]], dtype)  # two numbers, each off
        others = [_choice(layer, t[path]["x"]) for t in traces if t]
        out = near & np.any([other[0] != choice for other in others if other], axis=0)
        left_out[path] = int(np.sum(out)), out.size
        if out.any():
            keep[path] = ~out
    return keep, left_out


def _choice(layer: Layer, x: Host) -> tuple[Host, Host] | None:
    """What a layer chooses for each output, and by what margin; None where it does not choose."""
    if isinstance(layer, _KINKED):
        return x > 0, np.abs(x)
    if type(layer) is L.GlobalMaxPool:
        rows = x.reshape(len(x), -1, x.shape[-1])
        if rows.shape[1] == 1:
            return np.zeros(rows[:, 0].shape, int), np.full(rows[:, 0].shape, inf)
        second, first = np.moveaxis(np.partition(rows, -2, axis=1)[:, -2:], 1, 0)
        return np.argmax(rows, axis=1), first - second
    if not isinstance(layer, MaxPool):
        return None
    w = pool_window(
        "max_pool", x.shape[1:-1], layer.window, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
    )
    shape = (len(x), *w.out, x.shape[-1])
    best, second, winner = np.full(shape, -inf), np.full(shape, -inf), np.zeros(shape, int)
    for i, (outputs, inputs) in enumerate(w.inside(tap) for tap in w.taps()):
        at, value = (slice(None), *outputs), x[(slice(None), *inputs)]
        second[at] = np.maximum(second[at], np.minimum(best[at], value))
        winner[at] = np.where(value > best[at], i, winner[at])
        best[at] = np.maximum(best[at], value)
    return winner, best - second
