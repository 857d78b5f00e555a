"""What is said of a layer of one's own that breaks its contract, and that xpnn's own keep it."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from training import CLASSES, IMAGES, LABELS

from xpnn import ShapeError, Trainer
from xpnn.layers import Conv2D, Dense, Draw, Flatten, Layer, Residual, Sequential, check_layer
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
    "init of a list": (init(({"w": [1.0] * 4}, {})), "init returns a tuple of 2; expected two dicts of arrays"),
    "init of nothing": (init(None), "init returns a NoneType; expected two"),
    "apply of two": (applied(lambda y, s, back: (y, back)), "apply returns a tuple of 2; expected three: return y,"),
    "apply of one": (applied(lambda y, s, back: y), "apply returns float32 of shape (2, 4, 4, 4); expected three:"),
    "shape": (
        {"shape": lambda self, in_shape: (*in_shape[:-1], 8)},
        "apply makes float32 of shape (2, 4, 4, 4); expected float32 of shape (2, 4, 4, 8), as shape((4, 4, 4)) says",
    ),
    "no shape": (applied(lambda y, s, back: (y[:, 1:], s, back)), "apply makes float32 of shape (2, 3, 4, 4); expe"),
    "dtype": (applied(lambda y, s, back: (y.astype("float16"), s, back)), "apply makes float16 of shape (2, 4, 4,"),
    "statistics": (
        applied(lambda y, s, back: (y, {"mean": y.mean()}, back)),
        "apply returns the stats ['mean']; expected those that init names: []",
    ),
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
def test_the_layer_and_the_fault_are_named_before_the_first_step(methods, message):
    mine, model = network(**methods)
    trainer = Trainer(model, backend="numpy")
    with pytest.raises(ShapeError, match=re.escape(f"layer 1 (Mine()): {message}")):
        trainer.fit(IMAGES, LABELS)
    assert trainer.in_shape is None
    with pytest.raises(ShapeError, match=message.split()[0]):
        check_layer(mine, (4, 4, 4))


def test_other_errors_say_in_which_layer():
    trainer = Trainer(Residual(network(apply=lambda self, w, s, x, run: w["W"])[0]), backend="numpy", loss="mse")
    with pytest.raises(KeyError, match="W") as caught:
        trainer.fit(IMAGES, IMAGES)
    note = "raised by layer body (Mine()), which was tried on two samples of shape (6, 6, 1)"
    assert caught.value.__notes__ == [note]


def test_a_model_of_one_layer_is_named_too():
    mine, _ = network(**backed(lambda dx, dw: (dx, {})))
    with pytest.raises(ShapeError, match=r"^the model \(Mine\(\)\): backward returns gradients of \[\]"):
        Trainer(mine, "mse", backend="numpy").build((4, 4, 1))


def test_one_that_keeps_it_trains(backend):
    mine, model = network()
    assert check_layer(mine, (3, 3, 2)) < 1e-9
    trainer = Trainer(model, backend=backend)
    trainer.fit(IMAGES, LABELS)
    assert np.all(trainer.weights["1.w"] != 2)


@pytest.mark.parametrize("case", LAYERS, ids=repr)
def test_those_of_xpnn_keep_it(case):
    assert check_layer(case.layer, case.data["x"].shape[1:], directions=2) < 1e-8


@pytest.mark.parametrize(
    ("name", "change"),
    [("x", lambda dx, dw: (dx / 2, dw)), ("w", lambda dx, dw: (dx, {"w": 1.001 * dw["w"]}))],
    ids=["x", "w"],
)
def test_a_gradient_that_is_wrong(name, change):
    with pytest.raises(AssertionError, match=rf"^Mine\(\): backward's gradient of {name} is off by .* look at its for"):
        check_layer(network(**backed(change))[0], (3, 3, 2))
