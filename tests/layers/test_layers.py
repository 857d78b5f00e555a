"""Layers as descriptions: shapes, first weights, names, and how containers put their parts together."""

import dataclasses
import math
import re

import numpy as np
import pytest

from xpnn import layers as L
from xpnn import ops, parity
from xpnn.layers import (
    REGISTRY,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Parallel,
    ReLU,
    Residual,
    Run,
    Sequential,
    initializers,
)
from xpnn.parity import LAYERS
from xpnn.random import Stream

STREAM = Stream(3, "weights")
NET = Sequential([
    Conv2D(4, 2),
    Residual(Sequential([BatchNorm(), ReLU(), Conv2D(4, 1)]), Sequential([Dropout(0.3)])),
    Parallel(L.GlobalAvgPool(), Sequential([L.GlobalMaxPool(), Dropout(0.2)])),
    Dense(3),
])  # fmt: skip
PATHS = [
    "0.weight",
    "0.bias",
    "1.body.0.weight",
    "1.body.0.bias",
    "1.body.2.weight",
    "1.body.2.bias",
    "3.weight",
    "3.bias",
]

layer_cases = pytest.mark.parametrize("case", LAYERS, ids=repr)


def floats(arrays):
    return {k: v.astype(np.float32) for k, v in arrays.items()}


def test_registry():
    assert all(name == cls.__name__ for name, cls in REGISTRY.items())
    assert set(L.__all__) == {*REGISTRY, "REGISTRY", "Container", "Draw", "Layer", "Run", "check_layer"}
    own = {cls for cls in vars(L).values() if isinstance(cls, type) and issubclass(cls, L.Layer)}
    assert own - set(REGISTRY.values()) == {L.Layer, L.Container}


@layer_cases
def test_shape_is_that_of_the_output(case):
    assert parity.expected(case).values["y"].shape[1:] == case.layer.shape(case.data["x"].shape[1:])


@layer_cases
def test_repr_is_code(case):
    again = eval(repr(case.layer), vars(L))
    assert again == case.layer
    assert repr(again) == repr(case.layer)
    assert hash(again) == hash(case.layer)


def test_repr():
    assert repr(Conv2D(8, 3)) == "Conv2D(8, 3)"
    assert repr(Conv2D(8, (3, 2), padding="same", bias=False)) == "Conv2D(8, (3, 2), padding='same', bias=False)"
    assert (
        repr(Sequential([ReLU(), Parallel(ReLU(), L.ELU(0.5))]))
        == "Sequential([ReLU(), Parallel(ReLU(), ELU(alpha=0.5))])"
    )
    assert repr(L.Flatten()) == "Flatten()"
    long = Sequential(
        [Conv2D(16, 3, padding="same"), Sequential([Conv2D(32, 3, padding="same"), L.MaxPool2D(2)]), ReLU()]
    )
    assert eval(repr(long), vars(L)) == long
    assert max(map(len, repr(long).splitlines())) <= 80


@pytest.mark.parametrize("layer", REGISTRY.values(), ids=REGISTRY)
def test_help_is_whole(layer):
    """The docstring names all options, and refers to nothing that is not exported; errors name the layer."""
    options = [f.name for f in dataclasses.fields(layer) if f.init]
    assert all(re.search(rf"\b{option}\b", layer.__doc__) for option in options)
    assert set(re.findall("`([A-Z][a-z]\\w+)`", layer.__doc__)) <= set(L.__all__)
    with pytest.raises(TypeError, match=rf"^{layer.__name__}\.__init__\(\) got an unexpected .* 'axis'"):
        layer(axis=3)


def test_descriptions_are_immutable_values():
    assert Conv2D(4, [3, 2], padding=[[1, 0], [0, 1]]) == Conv2D(4, (3, 2), padding=((1, 0), (0, 1)))
    assert len({Sequential([Dense(3), ReLU()]), Sequential((Dense(3), ReLU())), Sequential([Dense(4)])}) == 2
    assert Dense(3) != Dense(4)
    assert L.MaxPool2D(2) != L.AvgPool2D(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dense(3).units = 4


@layer_cases
def test_init(case):
    layer, in_shape = case.layer, case.data["x"].shape[1:]
    weights, stats = layer.init(in_shape, STREAM)
    again, _ = layer.init(in_shape, STREAM)
    other, _ = layer.init(in_shape, Stream(4, "weights"))
    assert weights.keys() == again.keys() == other.keys()
    for name, a in weights.items():
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, again[name])
        if name.endswith("weight") and a.ndim > 1:
            assert (a != other[name]).all()
            assert np.unique(a).size == a.size
    for name, a in stats.items():
        assert (a == (1 if name.endswith("running_var") else 0)).all()


def test_weights_do_not_depend_on_other_layers():
    a, _ = Sequential([Dense(4), Dense(3)]).init((5,), STREAM)
    b, _ = Sequential([Sequential([Dense(4)]), Dense(3)]).init((5,), STREAM)
    np.testing.assert_array_equal(a["1.weight"], b["1.weight"])
    assert (a["0.weight"] != b["0.0.weight"]).all()
    assert (a["0.weight"][:3, :4] != a["1.weight"]).all()


@pytest.mark.parametrize("name", initializers.NAMES)
@pytest.mark.parametrize(
    ("layer", "in_shape", "fan_in", "fan_out", "place"),
    [
        (Dense(60), (50,), 50, 60, 50),
        (Conv2D(24, (3, 2), groups=2), (9, 9, 20), 60, 72, 6),
        (L.ConvTranspose2D(24, (3, 2), groups=2), (9, 9, 20), 60, 72, 6),
    ],
    ids=["Dense", "Conv2D", "ConvTranspose2D"],
)
def test_initializers(layer, in_shape, fan_in, fan_out, place, name):
    """`place` is what the tutorial divides its normal numbers by."""
    weights, _ = dataclasses.replace(layer, initializer=name).init(in_shape, STREAM)
    w = weights["weight"]
    rule, _, kind = name.partition("_")
    variance = {
        "he": 2 / fan_in,
        "glorot": 2 / (fan_in + fan_out),
        "lecun": 1 / fan_in,
        "article": 1 / place**2,
        "zeros": 0.0,
    }[rule]
    assert np.var(w) == pytest.approx(variance, rel=0.1)
    assert abs(np.mean(w)) <= 0.1 * math.sqrt(variance)
    if kind == "uniform":
        assert np.abs(w).max() == pytest.approx(math.sqrt(3 * variance), rel=0.01)
    assert (weights["bias"] == 0).all()


def test_paths_are_those_of_pytorch():
    weights, stats = NET.init((5, 5, 2), STREAM)
    assert list(weights) == PATHS
    assert list(stats) == ["1.body.0.running_mean", "1.body.0.running_var"]
    assert [(d.path, d.shape, d.probability) for d in NET.draws((5, 5, 2))] == [
        ("1.shortcut.0.keep", (4, 4, 4), 0.7),
        ("2.1.1.keep", (4,), 0.8),
    ]
    assert [(path, type(layer).__name__, shape) for path, layer, shape in NET.walk((5, 5, 2))] == [
        ("0", "Conv2D", (5, 5, 2)),
        ("1.body.0", "BatchNorm", (4, 4, 4)),
        ("1.body.1", "ReLU", (4, 4, 4)),
        ("1.body.2", "Conv2D", (4, 4, 4)),
        ("1.shortcut.0", "Dropout", (4, 4, 4)),
        ("2.0", "GlobalAvgPool", (4, 4, 4)),
        ("2.1.0", "GlobalMaxPool", (4, 4, 4)),
        ("2.1.1", "Dropout", (4,)),
        ("3", "Dense", (8,)),
    ]


def test_per_sample():
    assert [name for name, cls in REGISTRY.items() if cls.per_sample is False] == ["BatchNorm"]
    assert not L.Layer.per_sample  # a custom layer that does not say
    assert Sequential([Dense(3), Residual(ReLU())]).per_sample
    assert not NET.per_sample
    assert not Parallel(ReLU(), Sequential([BatchNorm()])).per_sample


def test_statistics_move_in_training_only():
    x = Stream(0, "x").normal((6, 3))
    weights, stats = BatchNorm(momentum=0.25).init((3,), STREAM)
    _, kept, _ = BatchNorm(momentum=0.25).apply(weights, stats, x, Run(ops.standard))
    _, moved, _ = BatchNorm(momentum=0.25).apply(weights, stats, x, Run(ops.standard, training=True))
    for name, batch in (("running_mean", x.mean(axis=0)), ("running_var", x.var(axis=0, ddof=1))):
        np.testing.assert_array_equal(kept[name], stats[name])
        np.testing.assert_allclose(moved[name], 0.75 * stats[name] + 0.25 * batch, rtol=1e-12)


def test_dropout_is_the_identity_in_prediction():
    x = Stream(0, "x").normal((6, 3))
    y, _, backward = Dropout(0.5).apply({}, {}, x, Run(ops.standard))
    assert y is x
    assert backward(x)[0] is x
    assert list(Dropout(0.0).draws((3,))) == []


def applied(model, in_shape, training=True, **options):
    """Output, new statistics, backward, for keyed masks."""
    weights, stats = map(floats, model.init(in_shape, STREAM))
    draws = {d.path: Stream(1, "mask", d.path).mask(0, 4, d.shape, d.probability) for d in model.draws(in_shape)}
    x = Stream(0, "x").normal((4, *in_shape)).astype(np.float32)
    return weights, stats, model.apply(weights, stats, x, Run(ops.standard, training, draws, **options))


def test_gradients_and_statistics_lie_under_the_paths():
    weights, stats, (y, new, backward) = applied(NET, (5, 5, 2))
    assert y.shape == (4, *NET.shape((5, 5, 2)))
    assert new.keys() == stats.keys()
    dx, dweights = backward(np.ones_like(y))
    assert dx.shape == (4, 5, 5, 2)
    assert {k: v.shape for k, v in dweights.items()} == {k: v.shape for k, v in weights.items()}
    assert all(np.any(v) for v in dweights.values())
    none, same = backward(np.ones_like(y), input_gradient=False)
    assert none is None
    for name, gradient in dweights.items():
        np.testing.assert_array_equal(same[name], gradient)


def test_backward_goes_no_further_than_the_first_weights():
    """Layers before them are not asked at all; that of the first is asked for no input gradient."""
    asked = []

    @dataclasses.dataclass(frozen=True, repr=False)
    class Spy(L.Layer):
        layer: L.Layer

        def shape(self, in_shape):
            return self.layer.shape(in_shape)

        def init(self, in_shape, stream):
            return self.layer.init(in_shape, stream)

        def apply(self, weights, stats, x, run):
            y, new, inner = self.layer.apply(weights, stats, x, run)

            def backward(dy, *, input_gradient=True):
                asked.append((repr(self.layer), input_gradient))
                return inner(dy, input_gradient=input_gradient)

            return y, new, backward

    model = Sequential([Spy(ReLU()), Spy(Dense(4)), Spy(L.Tanh()), Spy(Dense(3))])
    _, _, (y, _, backward) = applied(model, (5,))
    backward(y, input_gradient=False)
    assert asked == [("Dense(3)", True), ("Tanh()", True), ("Dense(4)", False)]
    asked.clear()
    backward(y)
    assert asked == [("Dense(3)", True), ("Tanh()", True), ("Dense(4)", True), ("ReLU()", True)]
    asked.clear()
    _, _, (y, _, backward) = applied(Sequential([Spy(ReLU())]), (5,))
    assert backward(y, input_gradient=False) == (None, {})
    assert asked == []


def test_more_than_ten_layers():
    """Paths are numbers, not words: layer 10 comes after layer 9."""
    model = Sequential([ReLU(), ReLU(), Dense(3), *(L.Tanh() for _ in range(8)), Dense(2)])
    weights, _, (y, _, backward) = applied(model, (5,))
    assert list(weights) == ["2.weight", "2.bias", "11.weight", "11.bias"]
    _, full = backward(np.ones_like(y))
    _, part = backward(np.ones_like(y), input_gradient=False)
    assert part.keys() == full.keys() == weights.keys()


def test_watch_is_shown_each_layer_in_turn():
    seen = []
    _, _, (y, _, _) = applied(NET, (5, 5, 2), watch=lambda path, layer, out: seen.append((path, layer, out)))
    assert [path for path, _, _ in seen] == [path for path, _, _ in NET.walk((5, 5, 2))]
    assert [layer for _, layer, _ in seen] == [layer for _, layer, _ in NET.walk((5, 5, 2))]
    assert seen[-1][2] is y
    shapes = [shape for _, _, shape in NET.walk((5, 5, 2))]
    assert seen[0][2].shape[1:] == shapes[1]


def test_one_description_on_two_backends_at_once():
    strict = pytest.importorskip("array_api_strict")
    weights, _ = map(floats, Dense(3).init((5,), STREAM))
    x = Stream(0, "x").normal((4, 5)).astype(np.float32)
    layer = Dense(3)
    y, _, backward = layer.apply(weights, {}, x, Run(ops.standard))
    there = {k: strict.asarray(v) for k, v in weights.items()}
    other, _, other_backward = layer.apply(there, {}, strict.asarray(x), Run(ops.standard))
    np.testing.assert_array_equal(np.asarray(other), y)
    np.testing.assert_array_equal(np.asarray(other_backward(other)[0]), backward(y)[0])
