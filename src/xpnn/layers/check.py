"""Whether a layer of one's own keeps the contract of `xpnn.layers.base`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn import layers  # its REGISTRY is looked up when it is needed: the package may still be loading
from xpnn.errors import ShapeError
from xpnn.layers.base import Layer, Run, Shape
from xpnn.layers.containers import Container, named
from xpnn.ops import Ops, standard
from xpnn.ops._array import Array
from xpnn.random import Stream

if TYPE_CHECKING:
    from xpnn.backend import Backend

WORST = 1e-5
"""Relative error of a gradient that is right, in float64, at most."""
STEP = 1e-7
"""Of the differences: so short that few maxima change places on it."""


def check_layer(layer: Layer, in_shape: Sequence[int], *, directions: int = 10) -> float:
    """Hold a layer to its contract, and its gradients against central differences, in float64 on NumPy.

    Args:
        layer: one layer, or several in a container.
        in_shape: of a sample, without N; a small one tells as much.
        directions: how many random ones each gradient is followed along.

    Returns:
        The largest error of a gradient, relative to what it changes: 1e-7 or less where all is well.

    Raises:
        ShapeError: a method returns something else than the contract says.
        AssertionError: a gradient is wrong, or what is said to hold does not: `per_sample`, that `x` is only read.
    """
    in_shape = tuple(in_shape)
    given = _given(layer, in_shape, 4, np.asarray)
    dy = Stream(0, "check", "dy").normal((4, *layer.shape(in_shape)))
    run, worst = partial(_run, layer, in_shape, standard), 0.0
    x, before = given["x"]["x"], given["x"]["x"].copy()
    y, gradients = run(given, dy)
    if not np.array_equal(x, before):
        raise AssertionError(f"{layer!r}: it writes to its input, which others read: work on a copy")
    run(given, dy, input_gradient=False)
    _applied(layer, in_shape, x, given["weights"], given["stats"], Run(standard, False, {}))
    if layer.per_sample:
        masks = {path: mask[:1] for path, mask in given["draws"].items()}
        alone = run({**given, "x": {"x": x[:1]}, "draws": masks})[0]
        if not np.allclose(alone, y[:1], rtol=1e-9, atol=1e-9 * np.abs(y).max()):
            raise AssertionError(f"{layer!r}: per_sample = True, but what it makes of a sample depends on the others")
    least = WORST * float(np.sum(np.abs(dy * y)))  # below it a difference is its own rounding
    for part, its in gradients.items():
        for name, gradient in its.items():
            array, found, expected = given[part][name], np.zeros(directions), np.zeros(directions)
            for i in range(directions):
                along = Stream(i, "check", name).normal(array.shape)
                ahead, behind = (
                    run({**given, part: {**given[part], name: array + step * along}})[0] for step in (STEP, -STEP)
                )
                found[i], expected[i] = np.sum(gradient * along), np.sum(dy * (ahead - behind)) / (2 * STEP)
            error = float(np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), least))
            if not error <= WORST:
                raise AssertionError(
                    f"{layer!r}: backward's gradient of {name} is off by {error:.1e} of the largest difference that it "
                    f"foretells; expected {WORST:g} at most: look at its formula; or, for maxima that change places, "
                    "take a smaller in_shape"
                )
            worst = max(worst, error)
    return worst


@contextmanager
def blaming(model: Layer, in_shape: Shape, backend: Backend, dtype: str) -> Iterator[None]:
    """Where a step fails, name the layer of somebody's own that breaks its contract, if one does."""
    try:
        yield
    except Exception as error:
        for path, layer, shape in model.walk(in_shape) if isinstance(model, Container) else [("", model, in_shape)]:
            if layers.REGISTRY.get(type(layer).__name__) is type(layer):
                continue
            where = named(path, layer) if path else f"the model ({layer!r})"
            try:
                _try(layer, shape, backend, dtype)
            except ShapeError as e:
                raise e.within(where) from error
            except Exception as e:
                if type(e) is type(error) and str(e) == str(error):
                    error.add_note(f"raised by {where}")
        raise


def _try(layer: Layer, shape: Shape, backend: Backend, dtype: str) -> None:
    """Run a layer once, on two samples."""

    def bring(a: Any) -> Array:
        return backend.asarray(a, None if a.dtype == bool else dtype)

    def step(given: dict[str, Any]) -> dict[str, Array]:
        for wanted in (True, False):
            _run(layer, shape, backend.ops, given, input_gradient=wanted)
        return {}  # so that nothing is compiled

    with np.errstate(all="ignore"):
        backend.jit(step)(_given(layer, shape, 2, bring))


def _given(layer: Layer, in_shape: Shape, samples: int, bring: Callable[[Any], Array]) -> dict[str, dict[str, Array]]:
    """What a step of this layer is handed."""
    made: Any = layer.init(in_shape, Stream(0, "weights"))
    if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, Mapping) for part in made)):
        raise ShapeError(f"init returns {_brief(made)}; expected two dicts of arrays: return weights, stats")
    for name, a in (entry for part in made for entry in part.items()):
        if not hasattr(a, "shape"):
            raise ShapeError(f"init returns as {name} {_brief(a)}; expected an array, e.g. np.zeros((3, 4))")
    masks = {d.path: Stream(0, "draws", d.path).mask(0, samples, d.shape, d.probability) for d in layer.draws(in_shape)}
    x = {"x": Stream(0, "check", "x").normal((samples, *in_shape))}
    parts = {"x": x, "weights": made[0], "stats": made[1], "draws": masks}
    return {part: {name: bring(a) for name, a in arrays.items()} for part, arrays in parts.items()}


def _run(
    layer: Layer, in_shape: Shape, ops: Ops, given: dict[str, Any], dy: Array = None, *, input_gradient: bool = True
) -> tuple[Array, dict[str, dict[str, Array]]]:
    """The output of a step and the gradients of `x` and weights, each held to the contract."""
    x, weights, stats = given["x"]["x"], given["weights"], given["stats"]
    y, backward = _applied(layer, in_shape, x, weights, stats, Run(ops, True, given["draws"]))
    made = backward(y if dy is None else dy, input_gradient=input_gradient)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
        call = "backward" if input_gradient else "backward(dy, input_gradient=False)"
        raise ShapeError(f"{call} returns {_brief(made)}; expected two: return dx, dweights")
    if input_gradient:
        _check("backward returns as dx", made[0], x.shape, ", as x has it", x.dtype)
    _same("backward returns gradients of", made[1], weights)
    for name, a in weights.items():
        _check(f"backward returns as the gradient of {name}", made[1][name], a.shape, " as that has it", a.dtype)
    return y, {"x": {"x": made[0]}, "weights": dict(made[1])}


def _applied(
    layer: Layer, in_shape: Shape, x: Array, weights: Mapping[str, Array], stats: Mapping[str, Array], run: Run
) -> tuple[Array, Any]:
    made: Any = layer.apply(weights, stats, x, run)
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[1], Mapping) and callable(made[2])):
        raise ShapeError(f"apply returns {_brief(made)}; expected three: return y, stats, backward")
    y, new, backward = made
    when = "" if run.training else ", in prediction,"
    _check(f"apply makes{when}", y, (x.shape[0], *layer.shape(in_shape)), f", as shape({in_shape}) says", x.dtype)
    _same(f"apply returns{when} the stats", new, stats)
    return y, backward


def _check(what: str, came: Any, shape: Shape, why: str, dtype: Any) -> None:
    if not hasattr(came, "shape") or tuple(came.shape) != tuple(shape) or came.dtype != dtype:
        raise ShapeError(f"{what} {_brief(came)}; expected {dtype} of shape {tuple(shape)}{why}")


def _same(what: str, came: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if came.keys() != expected.keys():
        raise ShapeError(f"{what} {sorted(came)}; expected those that init names: {sorted(expected)}")


def _brief(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value)}"
    return f"a {type(value).__name__}"
