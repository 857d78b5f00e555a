"""Lowering changes how a model is computed, and nothing else."""

import numpy as np
import pytest

from xpnn import models
from xpnn.errors import ShapeError
from xpnn.layers import (
    AvgPool1D,
    AvgPool2D,
    AvgPool3D,
    BatchNorm,
    Conv1D,
    Conv2D,
    Conv3D,
    Dense,
    Dropout,
    Flatten,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
    Parallel,
    ReLU,
    Residual,
    Run,
    Sequential,
    Sigmoid,
    Tanh,
)
from xpnn.ops import standard
from xpnn.random import Stream
from xpnn.train.lowering import (
    ConvAvgPool,
    ConvPool,
    ConvReLU,
    ConvSumReLU,
    Fold,
    NormReLU,
    SumReLU,
    folded,
    folds,
    for_prediction,
    lower,
)

pytestmark = pytest.mark.eager

NETWORKS = {
    "article": (models.get("article"), (8, 8, 1)),
    "small": (models.get("small-cnn"), (14, 14, 1)),
    "lenet5": (models.get("lenet5"), (16, 16, 1)),
    "nested": (
        Sequential(
            [
                Sequential([Conv2D(4, 3, padding=1), Sequential([BatchNorm(), ReLU()])]),
                Residual(Sequential([Conv2D(4, 3, padding=1), BatchNorm()]), Sequential([Conv2D(4, 1)])),
                ReLU(),
                Residual(Sequential([Conv2D(4, 3, padding=1), BatchNorm(), ReLU()])),
                Parallel(Sequential([Conv2D(3, 2), ReLU(), MaxPool2D(2)]), Sequential([Conv2D(2, 2), MaxPool2D(2)])),
                Dropout(0.4),
                Flatten(),
                Dense(3),
            ]
        ),
        (7, 6, 2),
    ),
    "blocks": (
        Sequential(
            [
                Residual(Sequential([Conv2D(2, 3, padding=1), ReLU(), BatchNorm(), Conv2D(2, 1, bias=False)])),
                ReLU(),
                Residual(Sequential([Conv2D(3, 3, stride=2, padding=1)]), Sequential([Conv2D(3, 1, stride=2)])),
                ReLU(),
                Residual(Sequential([Tanh(), Conv2D(3, 1), Dropout(0.3), Conv2D(3, 1)]), BatchNorm()),
                ReLU(),
            ]
        ),
        (5, 6, 2),
    ),
    "a block of one convolution": (
        Sequential([Residual(Sequential([Conv2D(2, 1)])), ReLU(), Residual(Conv2D(2, 3, padding=1)), ReLU()]),
        (3, 4, 2),
    ),
    "no-weights": (Sequential([ReLU(), Flatten()]), (3, 2)),
    "a layer": (Dense(3), (4,)),
}


def lowered(model, in_shape):
    weights, stats = model.init(in_shape, Stream(0, "weights"))
    draws = model.draws(in_shape)
    return lower(model, (weights, stats, [d.path for d in draws])), weights, stats, draws


def kinds(model, in_shape=(16, 16, 4)):
    return named_kinds(lowered(model, in_shape)[0])


def named_kinds(program):
    return [(link.name, type(link.layer)) for link in program.links]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_same_numbers_under_the_same_paths(backend, name, training):
    model, in_shape = NETWORKS[name]
    program, weights, stats, draws = lowered(model, in_shape)
    dtype = "float64" if backend.supports("float64") else "float32"
    images = Stream(0, "images").normal((5, *in_shape))
    masks = {d.path: backend.asarray(Stream(0, d.path).mask(0, 5, d.shape, d.probability)) for d in draws}
    results = []
    for layer in (model, program):
        w, s = ({k: backend.asarray(a, dtype) for k, a in part.items()} for part in (weights, stats))
        run = Run(backend.ops, training, masks if training else {})
        y, new, backward = layer.apply(w, s, backend.asarray(images, dtype), run)
        dx, dweights = backward(backend.asarray(Stream(0, "dy").normal(tuple(y.shape)), dtype))
        none, again = backward(backend.asarray(np.ones(tuple(y.shape)), dtype), input_gradient=False)
        assert none is None
        gradients = {f"{which} d{k}": g for which, all_ in (("", dweights), ("again", again)) for k, g in all_.items()}
        results.append({"y": y, "dx": dx} | new | gradients)
    found, expected = ({k: backend.to_numpy(a) for k, a in r.items()} for r in reversed(results))
    assert found.keys() == expected.keys()
    assert {f"{which} d{k}" for k in weights for which in ("", "again")} <= found.keys()
    tolerance = 1e-11 if dtype == "float64" else 2e-5
    for key, a in found.items():
        np.testing.assert_allclose(a, expected[key], rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.mark.parametrize(
    "layers",
    [
        [Conv2D(4, 3), BatchNorm(epsilon=0.1), ReLU()],
        [Conv2D(4, 3, stride=2, bias=False, groups=2), Sequential([BatchNorm()]), BatchNorm()],
        [Conv2D(4, 3), BatchNorm(), ReLU(), MaxPool2D(2), Conv2D(3, 2), BatchNorm()],
        [
            Residual(Sequential([Conv2D(2, 3, padding=1), BatchNorm()])),
            Parallel(Sequential([Conv2D(3, 1), BatchNorm()])),
        ],
        [Residual(Sequential([Conv2D(2, 3, padding=1), BatchNorm(), ReLU(), Conv2D(2, 1), BatchNorm()])), ReLU()],
        [BatchNorm(), Conv2D(4, 3), ReLU(), BatchNorm()],
    ],
    ids=str,
)
def test_the_same_predictions_with_norms_folded(backend, layers):
    model, in_shape = Sequential(layers), (7, 8, 2)
    weights, stats = model.init(in_shape, Stream(0, "weights"))
    program, together = for_prediction(model, (weights, stats, []))
    dtype = "float64" if backend.supports("float64") else "float32"
    w, s = (
        {k: backend.asarray(Stream(0, k).uniform(a.shape, 0.5, 2), dtype) for k, a in part.items()}
        for part in (weights, stats)
    )
    images = backend.asarray(Stream(0, "images").normal((5, *in_shape)), dtype)
    made = folded(together, w, s)
    y, _, _ = program.apply(made, s, images, Run(backend.ops))
    expected, _, _ = model.apply(w, s, images, Run(backend.ops))
    np.testing.assert_allclose(
        backend.to_numpy(y), backend.to_numpy(expected), rtol=0, atol=1e-12 if dtype == "float64" else 1e-4
    )
    assert bool(together) == (type(layers[0]) is not BatchNorm)
    assert not any(path.startswith(f"{fold.norm}.") for fold in together for path in made)
    assert w.keys() == weights.keys()


def test_which_norms_are_folded():
    class MyNorm(BatchNorm):
        pass

    layers = [Conv2D(4, 3), BatchNorm(), ReLU(), MaxPool2D(2), BatchNorm(), Conv2D(4, 3), MyNorm()]
    expected = [("0", ConvPool), ("4", BatchNorm), ("5", Conv2D), ("6", MyNorm)]
    weights, stats = Sequential(layers).init((16, 16, 4), Stream(0, "weights"))
    program, together = for_prediction(Sequential(layers), (weights, stats, []))
    assert named_kinds(program) == expected
    assert together == (Fold("0", "1", 1e-5),)
    assert program.links[0].weights == (("weight", "0.weight"), ("bias", "0.bias"))
    nested = Sequential(
        [Residual(Sequential([Conv2D(2, 3, padding=1), BatchNorm(epsilon=0.1)])), Parallel(Sequential(layers))]
    )
    assert list(folds(nested)) == [Fold("0.body.0", "0.body.1", 0.1), Fold("1.0.0", "1.0.1", 1e-5)]
    plain = [("0", Conv2D), ("1", NormReLU), ("3", MaxPool2D), *expected[1:]]
    assert kinds(Sequential(layers)) == plain


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([Conv2D(4, 3), MaxPool2D(2)], [("0", ConvPool)]),
        ([Conv2D(4, 3), ReLU(), MaxPool2D(2), ReLU()], [("0", ConvPool), ("3", ReLU)]),
        ([Conv2D(4, 3), MaxPool2D(2), ReLU(), Tanh()], [("0", ConvPool), ("3", Tanh)]),
        ([Conv2D(4, 3, stride=2, padding="same", bias=False), MaxPool2D((2, 1), (2, 1))], [("0", ConvPool)]),
        ([Sequential([Conv2D(4, 3)]), Sequential([ReLU(), MaxPool2D(2)])], [("0.0", ConvPool)]),
        ([Conv2D(4, 3), Tanh(), MaxPool2D(2)], [("0", Conv2D), ("1", Tanh), ("2", MaxPool2D)]),
        ([Conv2D(4, 3), ReLU(), ReLU(), MaxPool2D(2)], [("0", ConvReLU), ("2", ReLU), ("3", MaxPool2D)]),
        ([Conv2D(4, 3), Sequential([ReLU()])], [("0", ConvReLU)]),
        ([Conv2D(4, 3), ReLU(), AvgPool2D(3, stride=2)], [("0", ConvReLU), ("2", AvgPool2D)]),
        ([Conv2D(4, 3, groups=2), ReLU()], [("0", Conv2D), ("1", ReLU)]),
        ([Conv2D(4, 3), AvgPool2D(2)], [("0", Conv2D), ("1", AvgPool2D)]),
        ([Conv2D(4, 3), Tanh(), AvgPool2D(2), Tanh()], [("0", ConvAvgPool), ("3", Tanh)]),
        ([Sequential([Conv2D(4, 3), ReLU()]), AvgPool2D((2, 1))], [("0.0", ConvAvgPool)]),
        ([Conv2D(4, 3), Sigmoid(), AvgPool2D(2)], [("0", Conv2D), ("1", Sigmoid), ("2", AvgPool2D)]),
        ([Conv2D(4, 3), Tanh(), Tanh(), AvgPool2D(2)], [("0", Conv2D), ("1", Tanh), ("2", Tanh), ("3", AvgPool2D)]),
        ([Conv2D(4, 3, groups=2), Tanh(), AvgPool2D(2)], [("0", Conv2D), ("1", Tanh), ("2", AvgPool2D)]),
        ([Conv2D(4, 3), Tanh(), AvgPool2D(3, stride=2)], [("0", Conv2D), ("1", Tanh), ("2", AvgPool2D)]),
        ([Conv2D(4, 3), Tanh(), AvgPool2D(2, padding=1)], [("0", Conv2D), ("1", Tanh), ("2", AvgPool2D)]),
        ([Conv2D(4, 3), Tanh(), AvgPool2D(2, ceil_mode=True)], [("0", Conv2D), ("1", Tanh), ("2", AvgPool2D)]),
        ([Conv2D(4, 3), Tanh()], [("0", Conv2D), ("1", Tanh)]),
        ([Conv2D(4, 3, groups=2), MaxPool2D(2)], [("0", Conv2D), ("1", MaxPool2D)]),
        ([Conv2D(4, 3), MaxPool2D(3, stride=2)], [("0", Conv2D), ("1", MaxPool2D)]),
        ([Conv2D(4, 3), MaxPool2D(2, padding=1)], [("0", Conv2D), ("1", MaxPool2D)]),
        ([Conv2D(4, 3), MaxPool2D(2, dilation=2)], [("0", Conv2D), ("1", MaxPool2D)]),
        ([Conv2D(4, 3), MaxPool2D(2, ceil_mode=True)], [("0", Conv2D), ("1", MaxPool2D)]),
        ([Conv2D(4, 3), BatchNorm(), ReLU()], [("0", Conv2D), ("1", NormReLU)]),
        ([BatchNorm(), Sequential([ReLU(), ReLU()])], [("0", NormReLU), ("1.1", ReLU)]),
        ([BatchNorm(), Tanh()], [("0", BatchNorm), ("1", Tanh)]),
        ([Residual(Tanh()), ReLU(), ReLU()], [("0", SumReLU), ("2", ReLU)]),
        ([Residual(Tanh()), Tanh()], [("0", Residual), ("1", Tanh)]),
        ([Residual(Sequential([Tanh(), Conv2D(4, 1)])), ReLU()], [("0", ConvSumReLU)]),
        (
            [Residual(Sequential([Sequential([Conv2D(4, 1)])]), Tanh()), ReLU(), ReLU()],
            [("0", ConvSumReLU), ("2", ReLU)],
        ),
        ([Residual(Conv2D(4, 1), Conv2D(4, 1)), ReLU()], [("0", ConvSumReLU)]),
        ([Residual(Sequential([Conv2D(4, 1), Tanh()])), ReLU()], [("0", SumReLU)]),
        ([Residual(Sequential([Conv2D(4, 1), ReLU()])), ReLU()], [("0", SumReLU)]),
        ([Residual(Sequential([Conv2D(4, 1, groups=2)])), ReLU()], [("0", SumReLU)]),
        ([Residual(Sequential([])), ReLU()], [("0", SumReLU)]),
        ([Residual(Sequential([Conv2D(4, 1)]))], [("0", Residual)]),
        ([Conv2D(4, 3)], [("0", Conv2D)]),
        ([], []),
    ],
    ids=str,
)
def test_what_is_joined(layers, expected):
    assert kinds(Sequential(layers)) == expected


def test_joined_on_any_number_of_axes():
    assert kinds(Sequential([Conv1D(4, 3), MaxPool1D(2)]), (9, 2)) == [("0", ConvPool)]
    assert kinds(Sequential([Conv3D(4, 3), ReLU(), MaxPool3D(2)]), (9, 9, 9, 1)) == [("0", ConvPool)]
    assert kinds(Sequential([Conv1D(4, 3), Tanh(), AvgPool1D(2)]), (9, 2)) == [("0", ConvAvgPool)]
    assert kinds(Sequential([Conv3D(4, 3), ReLU(), AvgPool3D(2)]), (9, 9, 9, 1)) == [("0", ConvAvgPool)]


def test_a_class_of_ones_own_is_left_as_it_is():
    class Mine(Sequential):
        def apply(self, weights, stats, x, run):
            raise AssertionError

    class MyConv(Conv2D):
        pass

    class MyNorm(BatchNorm):
        pass

    class MyTanh(Tanh):
        pass

    mine = Mine([Conv2D(4, 3), MaxPool2D(2)])
    assert lowered(mine, (8, 8, 1))[0] is mine
    assert kinds(Sequential([MyConv(4, 3), MaxPool2D(2)])) == [("0", MyConv), ("1", MaxPool2D)]
    assert kinds(Sequential([MyConv(4, 3), ReLU()])) == [("0", MyConv), ("1", ReLU)]
    assert kinds(Sequential([Residual(Sequential([MyConv(4, 1)])), ReLU()])) == [("0", SumReLU)]
    own = [Conv2D(4, 3), MyTanh(), AvgPool2D(2)]
    assert kinds(Sequential(own)) == [("0", Conv2D), ("1", MyTanh), ("2", AvgPool2D)]
    assert kinds(Sequential([MyNorm(), ReLU()])) == [("0", MyNorm), ("1", ReLU)]


def test_an_error_names_the_layers():
    program, weights, stats, _ = lowered(Sequential([Conv2D(4, 3), MaxPool2D(2), Flatten()]), (8, 8, 2))
    with pytest.raises(ShapeError, match=r"layer 0 \(Conv2D\(4, 3\) and MaxPool2D\(2\)\): conv_pool: x has 3 channels"):
        program.apply(weights, stats, np.zeros((2, 8, 8, 3)), Run(standard))


def test_an_error_names_what_is_joined_with_an_average():
    program, weights, stats, _ = lowered(Sequential([Conv2D(4, 3), Tanh(), AvgPool2D(2)]), (8, 8, 2))
    message = r"layer 0 \(Conv2D\(4, 3\), Tanh\(\) and AvgPool2D\(2\)\): conv_avg_pool: x has 3 channels"
    with pytest.raises(ShapeError, match=message):
        program.apply(weights, stats, np.zeros((2, 8, 8, 3)), Run(standard))


def test_an_error_names_what_is_joined_with_a_relu():
    program, weights, stats, _ = lowered(Sequential([BatchNorm(epsilon=0.1), ReLU()]), (8, 8, 4))
    with pytest.raises(ShapeError, match=r"layer 0 \(BatchNorm\(epsilon=0.1\) and ReLU\(\)\): batch_norm: x has 3 ch"):
        program.apply(weights, stats, np.zeros((2, 8, 8, 3)), Run(standard))
    program, weights, stats, _ = lowered(Sequential([Conv2D(4, 3), ReLU()]), (8, 8, 4))
    with pytest.raises(ShapeError, match=r"layer 0 \(Conv2D\(4, 3\) and ReLU\(\)\): conv_relu: x has 3 channels"):
        program.apply(weights, stats, np.zeros((2, 8, 8, 3)), Run(standard))
    body = Sequential([Conv2D(4, 1), Conv2D(4, 2, padding="same")])
    program, weights, stats, _ = lowered(
        Sequential([Residual(body, Sequential([AvgPool2D(1, stride=2)])), ReLU()]), (1, 1, 4)
    )
    where = r"layer 0 \(Residual\(…\) and ReLU\(\)\), layer body.1 \(Conv2D\(4, 2, padding='same'\)\)"
    with pytest.raises(ShapeError, match=rf"{where}: conv_relu: the shortcut has shape \(2, 3, 4, 4\)"):
        program.apply(weights, stats, np.zeros((2, 6, 8, 4)), Run(standard))
    program, weights, stats, _ = lowered(Sequential([Residual(body)]), (1, 1, 4))
    with pytest.raises(
        ShapeError, match=r"layer 0, layer body \(Sequential\(\[…\]\)\), layer 0 \(Conv2D\(4, 1\)\): conv: "
    ):
        program.apply(weights, stats, np.zeros((2, 6, 8, 3)), Run(standard))
    pool = Sequential([Residual(AvgPool2D(3, stride=1)), ReLU()])
    with pytest.raises(ShapeError, match=r"layer 0: the body makes \(6, 6, 4\) of"):
        lower(pool, ((), (), ())).apply({}, {}, np.zeros((2, 8, 8, 4)), Run(standard))


def test_executors_lower_unless_the_standard_is_asked_for(monkeypatch):
    import xpnn

    model = Sequential([Conv2D(4, 3), BatchNorm(), Flatten(), Dense(3)])

    def executor():
        return xpnn.Trainer(model, backend="numpy").build((8, 8, 1)).executor

    monkeypatch.delenv("XPNN_KERNELS", raising=False)
    assert [len(program.links) for program in (executor().program, executor().predictor)] == [4, 3]
    monkeypatch.setenv("XPNN_KERNELS", "standard")
    assert executor().program == executor().predictor == model
