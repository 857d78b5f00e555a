"""Whether a layer of one's own keeps the contract of `xpnn.layers.base`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
STEP = 1e-5


def check_layer(layer: Layer, in_shape: Sequence[int], *, directions: int = 10) -> float:
    """Hold a layer to its contract, and its gradients against central differences, in float64 on NumPy.

    Args:
        layer: one layer, or several in a container.
        in_shape: of a sample, without N; a small one tells as much.
        directions: how many random ones each gradient is followed along.

    Returns:
        The largest error of a gradient, relative to what it changes: some 1e-9 where all is well.

    Raises:
        ShapeError: a method returns something else than the contract says.
        AssertionError: a gradient is wrong; names the array.
    """
    in_shape = tuple(in_shape)
    given = _given(layer, in_shape, 4, np.asarray)
    dy = Stream(0, "check", "dy").normal((4, *layer.shape(in_shape)))
    run, worst = partial(_run, layer, in_shape, standard), 0.0
    for part, gradients in run(given, dy)[1].items():
        for name, gradient in gradients.items():
            array, found, expected = given[part][name], np.zeros(directions), np.zeros(directions)
            for i in range(directions):
                along = Stream(i, "check", name).normal(array.shape)
                ahead, behind = (
                    run({**given, part: {**given[part], name: array + step * along}})[0] for step in (STEP, -STEP)
                )
                found[i], expected[i] = np.sum(gradient * along), np.sum(dy * (ahead - behind)) / (2 * STEP)
            error = float(np.max(np.abs(found - expected)) / (np.max(np.abs(expected)) or 1.0))
            if not error <= WORST:
                raise AssertionError(
                    f"{layer!r}: backward's gradient of {name} is off by {error:.1e} of the largest difference that it "
                    f"foretells; expected {WORST:g} at most: look at its formula"
                )
            worst = max(worst, error)
    return worst


def check_strangers(model: Layer, in_shape: Shape, backend: Backend, dtype: str) -> None:
    """Run each layer that is not xpnn's own once on two samples, and name the one that breaks its contract."""

    def bring(a: Any) -> Array:
        return backend.asarray(a, None if a.dtype == bool else dtype)

    for path, layer, shape in model.walk(in_shape) if isinstance(model, Container) else [("", model, in_shape)]:
        if layers.REGISTRY.get(type(layer).__name__) is type(layer):
            continue
        where = named(path, layer) if path else f"the model ({layer!r})"
        try:
            with np.errstate(all="ignore"):
                backend.jit(partial(_tried, layer, shape, backend.ops))(_given(layer, shape, 2, bring))
        except ShapeError as e:
            raise e.within(where) from None
        except Exception as e:
            e.add_note(f"raised by {where}, which was tried on two samples of shape {shape}")
            raise


def _given(layer: Layer, in_shape: Shape, samples: int, bring: Callable[[Any], Array]) -> dict[str, dict[str, Array]]:
    """What a step of this layer is handed."""
    made: Any = layer.init(in_shape, Stream(0, "weights"))
    pair = isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, Mapping) for part in made)
    if not pair or not all(hasattr(a, "shape") for part in made for a in part.values()):
        raise ShapeError(f"init returns {_brief(made)}; expected two dicts of arrays: return weights, stats")
    masks = {d.path: Stream(0, "draws", d.path).mask(0, samples, d.shape, d.probability) for d in layer.draws(in_shape)}
    x = {"x": Stream(0, "check", "x").normal((samples, *in_shape))}
    parts = {"x": x, "weights": made[0], "stats": made[1], "draws": masks}
    return {part: {name: bring(a) for name, a in arrays.items()} for part, arrays in parts.items()}


def _run(
    layer: Layer, in_shape: Shape, ops: Ops, given: dict[str, Any], dy: Array = None
) -> tuple[Array, dict[str, dict[str, Array]]]:
    """The output of a step and the gradients of `x` and weights, each held to the contract."""
    x, weights, stats = given["x"]["x"], given["weights"], given["stats"]
    made: Any = layer.apply(weights, stats, x, Run(ops, True, given["draws"]))
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[1], Mapping) and callable(made[2])):
        raise ShapeError(f"apply returns {_brief(made)}; expected three: return y, stats, backward")
    y, new, backward = made
    _check("apply makes", y, (x.shape[0], *layer.shape(in_shape)), f", as shape({in_shape}) says", x.dtype)
    _same("apply returns the stats", new, stats)
    made = backward(y if dy is None else dy, input_gradient=True)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
        raise ShapeError(f"backward returns {_brief(made)}; expected two: return dx, dweights")
    _check("backward returns as dx", made[0], x.shape, ", as x has it", x.dtype)
    _same("backward returns gradients of", made[1], weights)
    for name, a in weights.items():
        _check(f"backward returns as the gradient of {name}", made[1][name], a.shape, " as that has it", a.dtype)
    return y, {"x": {"x": made[0]}, "weights": dict(made[1])}


def _tried(*step: Any) -> dict[str, Array]:
    _run(*step)
    return {}  # so that nothing is compiled


def _check(what: str, came: Any, shape: Shape, why: str, dtype: Any) -> None:
    if not hasattr(came, "shape") or tuple(came.shape) != tuple(shape) or came.dtype != dtype:
        raise ShapeError(f"{what} {_brief(came)}; expected {dtype} of shape {tuple(shape)}{why}")


def _same(what: str, came: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if came.keys() != expected.keys():
        raise ShapeError(f"{what} {sorted(came)}; expected those that init names: {sorted(expected)}")


def _brief(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
