"""A network layer by layer: clean ones pass, and a fault is named where it lies, however far it spreads."""

import json
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np
import pytest
from faults import Plain, faulty
from networks import random_network

from xpnn import backend as backends
from xpnn import parity
from xpnn.errors import BackendError, NonFiniteError, ShapeError
from xpnn.layers import (
    ELU,
    GELU,
    AvgPool2D,
    BatchNorm,
    Container,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    GlobalMaxPool,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    LogSoftmax,
    MaxPool2D,
    Parallel,
    ReLU,
    Reshape,
    Residual,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from xpnn.layers.activation import Activation
from xpnn.optim import SGD, Adam
from xpnn.parity import compare_network, expected, network, of_layer
from xpnn.parity.closed import given
from xpnn.random import Stream
from xpnn.train import Trainer

NET = Sequential(
    [
        Conv2D(4, 3),
        BatchNorm(),
        Conv2D(5, 3, padding="same"),
        Tanh(),
        MaxPool2D(2),
        ReLU(),
        Dropout(0.3),
        Flatten(),
        Dense(4),
    ]
)
MIXED = Sequential(
    [
        Residual(Sequential([Conv2D(4, 3, padding="same", bias=False), GroupNorm(2), GELU()]), Conv2D(4, 1)),
        Parallel(Conv2D(3, 1), AvgPool2D(3, stride=1, padding=1), Sequential([SiLU(), LayerNorm(), ELU(0.7)])),
        MaxPool2D(3, stride=2, padding=1),
        ConvTranspose2D(3, 2),
        LeakyReLU(0.1),
        Softmax(),
        Residual(Sequential([Sigmoid(), BatchNorm()])),
        GlobalMaxPool(),
        Dense(4),
        LogSoftmax(),
    ]
)


def data(n=12, shape=(8, 8, 1), classes=4):
    x = Stream(1, "test", "x").normal((n, *shape)).astype("float32")
    return x, Stream(1, "test", "y").uniform((n,), 0, classes).astype("int64")


def state(model, shape=(8, 8, 1)):
    """Weights without zeros: the bias of a fresh layer hides what is done with it."""
    return tuple(
        {k: v + np.abs(Stream(2, "test", k).normal(v.shape)) * 0.3 for k, v in tree.items()}
        for tree in model.init(shape, Stream(0, "weights"))
    )


def compared(backend, model=NET, **options):
    x, y = data()
    return compare_network(model, [Plain(), backend], x, y, weights=state(model), **options)


def at(report, fault):
    """Which arrays have this fault, on which side."""
    return {(q.path, q.name, r.side) for q, r in report.faults() if r.fault == fault}


def usable(*names):
    for name in names:
        if reason := backends.find(name).why_unavailable():
            pytest.skip(reason)
    return names


@pytest.mark.parametrize("pair", [("numpy", "strict"), ("numpy", "torch"), ("torch", "jax")])
@pytest.mark.parametrize(("model", "loss"), [(NET, "cross_entropy"), (MIXED, "nll")], ids=["plain", "mixed"])
def test_clean_networks_pass(pair, model, loss):
    if "jax" in pair and model is MIXED:
        pytest.skip("JAX compiles each layer by itself")
    x, y = data()
    report = compare_network(model, usable(*pair), x, y, loss=loss, optimizer=Adam(clip_norm=1.0))
    assert report.passed, "\n".join(report.lines())
    assert report.verdict() == f"{pair[0]} and {pair[1]} agree with float64 in every layer"
    leaves = {path for path, _, _ in model.walk((8, 8, 1))}
    assert {q.path for q in report.quantities} == leaves | {"loss"}
    stats = {q.name for q in report.quantities if q.path == ("1" if model is NET else "6.body.1")}
    assert {"y", "dx", "dweight", "dbias", "running_mean", "running_var", "new weight", "new bias"} == stats


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_pass(seed):
    model, in_shape = random_network(seed)
    outputs = model.shape(in_shape)
    x = Stream(seed, "test", "x").normal((5, *in_shape)).astype("float32")
    target = Stream(seed, "test", "y").normal((5, *outputs)).astype("float32")
    report = compare_network(model, usable("numpy", "strict"), x, target, loss="mse", seed=seed)
    assert report.passed, "\n".join(report.lines())


def test_float64_is_judged_in_its_own_units():
    x, y = data()
    assert compare_network(NET, [Plain(), *usable("torch")], x, y, dtype="float64").passed
    report = compared(
        faulty("dense", lambda y, back, *a: (y.astype("float32").astype("float64"), back)), dtype="float64"
    )
    assert at(report, "own") == {("8", "y", "faulty")}


def test_bias_twice_in_the_second_convolution():
    bad = faulty("conv", lambda y, back, x, w, b: (y + b, back), lambda x, w, b: x.shape[-1] == 4)
    report = compared(bad)
    assert at(report, "own") == {("2", "y", "faulty")}
    quantity, reading = report.first
    assert (quantity.path, quantity.layer, quantity.name) == ("2", "Conv2D", "y")
    assert (quantity.in_shape, quantity.shape) == ((12, 6, 6, 4), (12, 6, 6, 5))
    assert reading.own > 1e5 > quantity.bound == 4 * 37**0.5
    bias = state(NET)[0]["2.bias"][reading.index[-1]]
    assert abs(reading.got - reading.expected - bias) < 1e-5
    after = {("3", "y"), ("4", "y"), ("5", "y"), ("6", "y"), ("8", "y"), ("loss", "y"), ("loss", "dx")}
    assert after <= {(path, name) for path, name, _ in at(report, "inherited")}
    assert {side for *_, side in at(report, "inherited")} == {"faulty"}
    assert not {("0", "y"), ("1", "y")} & {(path, name) for path, name, _ in at(report, "inherited")}


def test_wrong_gradient_of_tanh():
    bad = faulty("tanh", lambda y, back, x: (y, lambda dy, *, input_gradient=True: (dy * (1 - y),)))
    report = compared(bad)
    assert at(report, "own") == {("3", "dx", "faulty")}
    inherited = {(path, name) for path, name, _ in at(report, "inherited")}
    assert {("2", "dweight"), ("2", "dbias"), ("1", "dx"), ("0", "dweight"), ("0", "new weight")} <= inherited
    assert not {path for path, _ in inherited} & {"4", "5", "6", "7", "8", "loss"}


def test_product_in_float16():
    def coarse(y, back, x, w, b):
        return ((x.astype("f2") @ w.astype("f2").T).astype("f4") + b), back

    report = compared(faulty("dense", coarse))
    assert at(report, "own") == {("8", "y", "faulty")}


def test_running_variance_of_the_wrong_divisor():
    def biased(y, back, x, *rest):
        n = x.size // x.shape[-1]
        return (y[0], y[1], 0.9 * rest[3] + (y[2] - 0.9 * rest[3]) * (n - 1) / n), back

    report = compared(faulty("batch_norm", biased))
    assert at(report, "own") == {("1", "running_var", "faulty")}
    assert {(path, name) for path, name, _ in at(report, "inherited")} == set()


def test_gradient_of_the_loss():
    def twice(y, back, *a):
        return y, lambda dy: (2 * back(dy)[0], None, None)

    report = compared(faulty("softmax_cross_entropy", twice))
    assert report.first[0].path == "loss"
    assert at(report, "own") == {("loss", "dx", "faulty")}
    assert "dx of loss (CrossEntropy) on faulty is wrong by itself" in report.verdict()


def test_clipping_that_sums_wrong_is_a_fault_of_the_update():
    bad = faulty("relu", lambda y, back, x: (y, back))
    body = bad.ops.total
    bad.ops.total = lambda x, axis, keepdims=False: body(x, axis, keepdims=keepdims) * (1 + (axis == 0) * 1e-3)
    model, (x, y) = Sequential([Flatten(), Dense(4, bias=False)]), data()
    report = compare_network(model, [Plain(), bad], x, y, optimizer=SGD(lr=1.0, clip_norm=0.01))
    assert at(report, "own") == {("1", "new weight", "faulty")}


def test_the_first_backend_is_judged_as_well():
    x, y = data()
    bad = faulty("tanh", lambda y, back, x: (y * 1.001, back))
    report = compare_network(NET, [bad, Plain()], x, y)
    assert at(report, "own") == {("3", "y", "faulty")}


def test_what_a_kernel_raises_is_told():
    def fails(*a):
        raise ZeroDivisionError("no kernel\nat all")

    report = compared(faulty("max_pool", fails))
    assert {(path, side) for path, _, side in at(report, "own")} == {("4", "faulty")}
    assert report.verdict().endswith("is wrong by itself: raises ZeroDivisionError: no kernel")
    assert json.loads(json.dumps(report.record(), allow_nan=False))["passed"] is False


def test_nan_and_a_wrong_shape_are_faults():
    report = compared(faulty("tanh", lambda y, back, x: (np.where(x > 2, np.nan, y).astype(y.dtype), back)))
    assert report.first[0].path == "3"
    assert report.first[1].own == inf
    report = compared(faulty("max_pool", lambda y, back, x: (y[:, :, :2], back)))
    assert report.first[1].reason == "has shape (12, 3, 2, 5); expected (12, 3, 3, 5)"


def turning(kind):
    """A network in which rounding decides a choice, and a backend that decides otherwise within rounding."""
    last = {"relu": ReLU(), "pool": MaxPool2D((1, 2)), "global": GlobalMaxPool()}[kind]
    if kind == "relu":
        weight, shift = np.asarray([[1.0, -1.0, 3e-7]]), np.asarray([-4e-7], "float32")
    else:
        weight, shift = np.asarray([[1.0, 0.0, 0.0], [1.0, 0.0, 3e-7]]), np.asarray([4e-7, 0.0], "float32")
    model = Sequential([Dense(len(weight), bias=False), Reshape((1, len(weight), 1)), last])
    bad = faulty("dense", lambda y, back, *a: (y + shift, back))
    return model, np.ones((1, 3), "float32"), {"0.weight": weight}, bad


@pytest.mark.parametrize("kind", ["relu", "pool", "global"])
def test_choices_turned_by_rounding_are_left_out_and_counted(kind, monkeypatch):
    model, x, weights, bad = turning(kind)
    target = np.full((1, *model.shape((3,))), 5.0, "float32")

    def compared():
        return compare_network(model, [Plain(), bad], x, target, loss="mse", weights=(weights, {}))

    report = compared()
    assert report.passed, "\n".join(report.lines())
    assert list(report.left_out.values()) == [(1, 1)]
    monkeypatch.setattr(network, "_turned", lambda *a: ({}, {}))
    assert not compared().passed


def test_a_choice_turned_by_a_fault_is_not_left_out():
    model, x, weights, _ = turning("relu")
    weights["0.weight"][0, 2] = 5e-4
    bad = faulty("dense", lambda y, back, *a: (y - np.float32(1e-3), back))
    target = np.full((1, 1, 1, 1), 5.0, "float32")
    report = compare_network(model, [Plain(), bad], x, target, loss="mse", weights=(weights, {}))
    assert report.left_out == {"2": (0, 1)}
    assert at(report, "own") == {("0", "y", "faulty")}


def test_a_saved_model(tmp_path):
    x, y = data()
    trainer = Trainer(NET, backend="numpy")
    trainer.fit(x, y, epochs=2, batch_size=6)
    trainer.save(tmp_path / "model.safetensors")
    names = usable("numpy", "strict")
    from_file = compare_network(NET, names, x, y, weights=tmp_path / "model.safetensors")
    assert from_file.passed
    assert from_file.record() == compare_network(NET, names, x, y, weights=(trainer.weights, trainer.stats)).record()
    assert from_file.record() != compare_network(NET, names, x, y).record()


def test_table_and_record():
    report = compared(faulty("tanh", lambda y, back, x: (y, lambda dy, *, input_gradient=True: (dy * (1 - y),))))
    lines = report.lines()
    assert max(map(len, lines)) <= 80
    assert next(row.split()[:2] for row in lines if "Tanh" in row) == ["3", "Tanh"]
    assert "dx of layer 3 (Tanh) on faulty is wrong by itself" in "\n".join(lines)
    assert lines[-1].startswith("  inherited by ")
    record = json.loads(json.dumps(report.record(), allow_nan=False))
    assert record["sides"] == ["plain", "faulty"]
    assert record["left_out"].keys() == {"4", "5"}
    assert {q["path"] for q in record["quantities"] if q["readings"][1]["fault"] == "own"} == {"3"}


class Cube(Activation):
    """A layer of one's own; `silu` stands for its op."""

    op: ClassVar[str] = "silu"


@dataclass(frozen=True, repr=False)
class Twice(Container):
    layer: Dense

    def parts(self):
        return [("layer", self.layer)]


def test_a_layer_of_ones_own(monkeypatch):
    model, (x, y) = Sequential([Flatten(), Cube(), Dense(4)]), data()
    with pytest.raises(ValueError, match=r"layer 1 \(Cube\(\)\) has no case.*of_layer\('mine', Cube\(\), in_shape"):
        compare_network(model, ["numpy", Plain()], x, y)
    monkeypatch.setattr(parity.cases, "CASES", [*parity.CASES, of_layer("mine", Cube(), (3,), training=True)])
    assert compare_network(model, ["numpy", Plain()], x, y).passed
    report = compare_network(model, [Plain(), faulty("silu", lambda y, back, x: (y * 1.00001, back))], x, y)
    assert at(report, "own") == {("1", "y", "faulty")}
    with pytest.raises(ValueError, match=r"layer 1 \(Twice\(Dense\(4\)\)\) has no case"):
        compare_network(Sequential([Flatten(), Twice(Dense(4))]), ["numpy", Plain()], x, y)


def test_errors():
    x, y = data()
    with pytest.raises(ValueError, match=r"both backends are <NumPyBackend 'numpy'.*agrees with itself"):
        compare_network(NET, ["numpy", "numpy"], x, y)
    for wrong in ("numpy", ["numpy"]):
        with pytest.raises(ValueError, match="expected two of them"):
            compare_network(NET, wrong, x, y)
    with pytest.raises(BackendError, match="no backend 'nunpy'"):
        compare_network(NET, ["numpy", "nunpy"], x, y)
    pair = ["numpy", Plain()]
    with pytest.raises(ShapeError, match="add a channel axis"):
        compare_network(NET, pair, x[..., 0], y)
    with pytest.raises(ShapeError, match="12 images, but 11 labels"):
        compare_network(NET, pair, x, y[:-1])
    with pytest.raises(ShapeError, match=r"1 label\(s\) out of range, such as 4"):
        compare_network(NET, pair, x, np.where(np.arange(12) == 3, 4, y % 4))
    with pytest.raises(NonFiniteError, match="images: 1 of"):
        compare_network(NET, pair, np.where(np.arange(8)[:, None] == 99, x, x * [[[np.nan]]] ** (x == x.max())), y)
    with pytest.raises(ValueError, match="these weights are not those of the model"):
        compare_network(NET, pair, x, y, weights=({}, {}))
    weights, stats = state(NET)
    with pytest.raises(NonFiniteError, match=r"0\.bias holds NaN"):
        compare_network(NET, pair, x, y, weights=(weights | {"0.bias": np.full(4, np.nan)}, stats))
    with pytest.raises(ValueError, match="dtype='float16'"):
        compare_network(NET, pair, x, y, dtype="float16")
    with pytest.raises(TypeError, match="model is a str"):
        compare_network("lenet5", pair, x, y)


LEAVES = [
    case
    for case in parity.LAYERS
    if not isinstance(case.layer, Container)
    and (case.training or type(case.layer) not in (BatchNorm, Dropout))
    and not case.exact
]


@pytest.mark.parametrize("case", LEAVES, ids=str)
def test_closed_yardsticks_are_those_by_differences(case):
    """Within a small factor, and never below a half: there |f| is not counted beside what it is made of."""
    slow = expected(case)
    fast = given(case, case.arrays(), slow.dy)
    assert fast.values.keys() == slow.values.keys()
    for name, yardstick in slow.yardsticks.items():
        zero = yardstick == 0
        np.testing.assert_array_equal(fast.yardsticks[name][zero], 0)
        factor = fast.yardsticks[name][~zero] / yardstick[~zero]
        assert factor.min(initial=1) >= 0.49, name
        assert np.median(factor) <= 5 if factor.size else True, name


@pytest.mark.parametrize(
    ("layer", "shape", "terms"),
    [(MaxPool2D(2), (6, 6, 2), 0), (MaxPool2D(3, stride=2), (7, 7, 2), 4), (ReLU(), (4,), 0), (Flatten(), (2, 2), 0)],
)
def test_choices_are_exact_but_where_windows_overlap(layer, shape, terms):
    case = of_layer("exact", layer, shape, samples=6)
    found = given(case, case.arrays(), case.dy((6, *layer.shape(shape))))
    assert found.terms["y"] == 0
    assert found.terms["dx"] == 0 if not terms else 1 < found.terms["dx"] <= terms
