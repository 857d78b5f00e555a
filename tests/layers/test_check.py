"""What is said of a layer of one's own that breaks its contract, and that xpnn's own keep it."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from training import CLASSES, IMAGES, LABELS

from xpnn import ShapeError, Trainer, models
from xpnn.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    Draw,
    Flatten,
    Layer,
    MaxPool2D,
    Residual,
    Sequential,
    check_layer,
)
from xpnn.parity import LAYERS


@dataclass(frozen=True, repr=False)
class Mine(Layer):
    """Dropout of one half, then `x·w` for each channel; its subclasses have one fault each."""

    per_sample: ClassVar[bool] = True

    def init(self, in_shape, stream):
        return {"w": np.full(in_shape[-1], 2.0)}, {}

    def draws(self, in_shape):
        return [Draw("keep", in_shape, 0.5)]

    def apply(self, weights, stats, x, run):
        kept, dropped = run.ops.dropout(x, run.draws["keep"], rate=0.5) if run.training else (x, None)

        def backward(dy, *, input_gradient=True):
            return dropped(dy * weights["w"])[0], {"w": run.ops.total(dy * kept, tuple(range(dy.ndim - 1)))}

        return kept * weights["w"], {}, backward


def applied(change):
    def apply(self, weights, stats, x, run):
        return change(*Mine.apply(self, weights, stats, x, run))

    return {"apply": apply}


def backed(change):
    return applied(lambda y, s, back: (y, s, lambda dy, *, input_gradient=True: change(*back(dy))))


def init(made):
    return {"init": lambda self, in_shape, stream: made}


def network(**methods):
    mine = type("Mine", (Mine,), methods)()
    return mine, Sequential([Conv2D(4, 3), mine, Flatten(), Dense(CLASSES)])


FAULTS = {
    "init of one dict": (init({"w": np.ones(4)}), "init returns a dict; expected two dicts of arrays: return weigh"),
    "init of a list": (init(({"w": [1.0] * 4}, {})), "init returns as w a list; expected an array, e.g. "),
    "init of nothing": (init(None), "init returns a NoneType; expected two"),
    "apply of two": (applied(lambda y, s, back: (y, back)), "apply returns a tuple of ndarray, function; expected th"),
    "apply of one": (applied(lambda y, s, back: y), "apply returns float32 of shape (2, 4, 4, 4); expected three:"),
    "shape": (
        {"shape": lambda self, in_shape: (*in_shape[:-1], 8)},
        "apply makes float32 of shape (2, 4, 4, 4); expected float32 of shape (2, 4, 4, 8), as shape((4, 4, 4)) says",
    ),
    "no shape": (applied(lambda y, s, back: (y[:, 1:], s, back)), "apply makes float32 of shape (2, 3, 4, 4); expe"),
    "backward of one": (backed(lambda dx, dw: dx), "backward returns float32 of shape (2, 4, 4, 4); expected two:"),
    "no dx": (backed(lambda dx, dw: (None, dw)), "backward returns as dx a NoneType; expected float32 of shape (2,"),
    "shape of dx": (backed(lambda dx, dw: (dx[0], dw)), "backward returns as dx float32 of shape (4, 4, 4); expect"),
    "no gradient": (backed(lambda dx, dw: (dx, {})), "backward returns gradients of []; expected those that init n"),
    "name of a gradient": (backed(lambda dx, dw: (dx, {"W": dw["w"]})), "backward returns gradients of ['W']; expe"),
    "shape of a gradient": (
        backed(lambda dx, dw: (dx, {"w": dw["w"].sum()})),
        "backward returns as the gradient of w float32 of shape (); expected float32 of shape (4,)",
    ),
}


@pytest.mark.parametrize(("methods", "message"), FAULTS.values(), ids=FAULTS)
def test_the_layer_and_the_fault_are_named_where_a_step_fails(methods, message):
    mine, model = network(**methods)
    trainer = Trainer(model, backend="numpy")
    with pytest.raises(ShapeError, match=re.escape(f"layer 1 (Mine()): {message}")) as caught:
        trainer.fit(IMAGES, LABELS)
    assert caught.value.__cause__ is not None  # what came of it
    with pytest.raises(ShapeError, match=re.escape(message.split(";")[0].split(" float32")[0])):
        check_layer(mine, (4, 4, 4))


def predicting(change):
    """`change` of what `apply` returns in prediction."""

    def apply(self, weights, stats, x, run):
        made = Mine.apply(self, weights, stats, x, run)
        return made if run.training else change(*made)

    return {"apply": apply}


def joined(y, s, back):
    return y - y.mean(0), s, lambda dy, *, input_gradient=True: back(dy - dy.mean(0))


def written(self, weights, stats, x, run):
    made = Mine.apply(self, weights, stats, x, run)
    x *= 0.5
    return made


def of_a_first_layer(y, s, back):
    return y, s, lambda dy, *, input_gradient=True: back(dy) if input_gradient else back(dy)[1]


MORE = {
    "dtype": (applied(lambda y, s, back: (y.astype("float16"), s, back)), "apply makes float16 of shape (4, 4, 4, 4)"),
    "statistics": (
        applied(lambda y, s, back: (y, {"mean": y.mean()}, back)),
        "apply returns the stats ['mean']; expected those that init names: []",
    ),
    "prediction": (
        predicting(lambda y, s, back: (y[:, 1:], s, back)),
        "apply makes, in prediction, float64 of sha",
    ),
    "statistics of prediction": (
        predicting(lambda y, s, back: (y, {"mean": 0}, back)),
        "apply returns, in prediction, the stats ['mean']; expected those that init names: []",
    ),
    "first layer": (applied(of_a_first_layer), "backward(dy, input_gradient=False) returns a dict; expected two: retu"),
    "per_sample": (applied(joined), "per_sample = True, but what it makes of a sample depends on the others"),
    "input": ({"apply": written}, "it writes to its input, which others read: work on a copy"),
}


@pytest.mark.parametrize(("methods", "message"), MORE.values(), ids=MORE)
def test_what_need_not_fail_in_a_step_is_found_too(methods, message):
    with pytest.raises((ShapeError, AssertionError), match=re.escape(message)):
        check_layer(network(**methods)[0], (4, 4, 4))


def test_a_first_layer_is_named_too():
    """Nobody asks it for `dx`."""
    mine, _ = network(**applied(of_a_first_layer))
    message = r"^layer 0 \(Mine\(\)\): backward\(dy, input_gradient=False\) returns a dict; expected two"
    with pytest.raises(ShapeError, match=message):
        Trainer(Sequential([mine, Flatten(), Dense(CLASSES)]), backend="numpy").fit(IMAGES, LABELS)


def test_one_that_only_predicts():
    """Nobody asks for what it does not have."""
    _, model = network(**applied(lambda y, s, back: (y, s, None)))
    assert Trainer(model, backend="numpy").predict(IMAGES).shape == (len(IMAGES), CLASSES)


@pytest.mark.parametrize(
    ("layer", "in_shape"),
    [
        (Sequential([Conv2D(4, 3), BatchNorm()]), (6, 6, 5)),  # the bias has a gradient of 0
        (MaxPool2D(2), (28, 28, 16)),
        (models.get("small-cnn", 10), (28, 28, 1)),
    ],
    ids=["no gradient", "maxima", "network"],
)
def test_large_ones_and_gradients_of_zero(layer, in_shape):
    assert check_layer(layer, in_shape, directions=3) < 1e-5


def test_other_errors_say_in_which_layer():
    trainer = Trainer(Residual(network(apply=lambda self, w, s, x, run: w["W"])[0]), backend="numpy", loss="mse")
    with pytest.raises(KeyError, match="W") as caught:
        trainer.fit(IMAGES, IMAGES)
    assert caught.value.__notes__ == ["raised by layer body (Mine())"]


def test_a_model_of_one_layer_is_named_too():
    mine, _ = network(**backed(lambda dx, dw: (dx, {})))
    with pytest.raises(ShapeError, match=r"^the model \(Mine\(\)\): backward returns gradients of \[\]"):
        Trainer(mine, "mse", backend="numpy").fit(IMAGES, IMAGES)


def test_one_that_keeps_it_trains(backend):
    mine, model = network()
    assert check_layer(mine, (3, 3, 2)) < 1e-7
    trainer = Trainer(model, backend=backend)
    trainer.fit(IMAGES, LABELS)
    assert np.all(trainer.weights["1.w"] != 2)


@pytest.mark.parametrize("case", LAYERS, ids=repr)
def test_those_of_xpnn_keep_it(case):
    assert check_layer(case.layer, case.data["x"].shape[1:], directions=2) < 1e-6


@pytest.mark.parametrize(
    ("name", "change"),
    [("x", lambda dx, dw: (dx / 2, dw)), ("w", lambda dx, dw: (dx, {"w": 1.001 * dw["w"]}))],
    ids=["x", "w"],
)
def test_a_gradient_that_is_wrong(name, change):
    with pytest.raises(AssertionError, match=rf"^Mine\(\): backward's gradient of {name} is off by .* look at its for"):
        check_layer(network(**backed(change))[0], (3, 3, 2))
