"""The summary of a network: each column against what the layers really do."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from training import samples

from xpnn import ShapeError, Trainer, models
from xpnn.layers import (
    REGISTRY,
    AvgPool1D,
    BatchNorm,
    Container,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Layer,
    MaxPool2D,
    Normalize,
    Parallel,
    ReLU,
    Reshape,
    Residual,
    Run,
    Sequential,
)
from xpnn.layers.summary import WIDTH, bytes_text, count_text, summarise
from xpnn.ops import standard
from xpnn.optim import SGD, Adam
from xpnn.random import Stream

SHAPES = {"tiny-cnn": (8, 8, 1), "resnet20": (32, 32, 3)}
FACTOR = 1.7
"""What `Summary.training_bytes` may be off by."""


def named(name):
    return models.get(name), SHAPES.get(name, (28, 28, 1))


@dataclass(frozen=True, repr=False)
class Own(Layer):
    """A custom layer that says nothing of itself."""

    def apply(self, weights, stats, x, run):
        return x, {}, lambda dy, *, input_gradient=True: (dy, {})


class OwnContainer(Container):
    """A custom container."""

    def parts(self):
        return [("inside", ReLU())]


def applied(layer, in_shape):
    """Output and backward of one sample of ones, all weights 1 and all biases 0."""
    weights, stats = layer.init(in_shape, Stream(0, "weights"))
    weights = {path: np.full(a.shape, float(not path.endswith("bias"))) for path, a in weights.items()}
    y, _, backward = layer.apply(weights, stats, np.ones((1, *in_shape)), Run(standard))
    return y, backward


# Multiply-adds


@pytest.mark.parametrize(
    ("layer", "in_shape"),
    [
        (Conv1D(5, 4, stride=3), (17, 2)),
        (Conv2D(6, (3, 2)), (9, 7, 4)),
        (Conv2D(6, 3, stride=2, dilation=2, groups=2), (9, 8, 4)),
        (Conv2D(8, 3, groups=4), (6, 6, 4)),
        (Conv3D(2, 2), (3, 4, 5, 3)),
        (ConvTranspose1D(4, 3, stride=2), (7, 2)),
        (ConvTranspose2D(6, (3, 2), stride=(1, 2), groups=2), (5, 4, 4)),
        (Dense(7), (12,)),
        (Dense(7), (3, 2, 5)),
    ],
)
def test_each_product_is_counted(layer, in_shape):
    """Where all numbers are 1, the sum of the outputs is the number of products."""
    assert layer.multiply_adds(in_shape) == applied(layer, in_shape)[0].sum()


def test_padding_counts_as_products():
    assert Conv2D(4, 3, padding="same").multiply_adds((8, 8, 2)) == Conv2D(4, 3).multiply_adds((10, 10, 2))


def test_networks_of_the_papers():
    model, shape = named("resnet20")
    shortcuts = 2 * 8 * 8 * 16 * 128  # He et al. have none: 40.55 M
    assert summarise(model, shape).multiply_adds - shortcuts == model.multiply_adds(shape) - shortcuts == 40_551_040
    assert summarise(*named("lenet5")).multiply_adds == 416_520


def test_all_layers_tell_their_multiply_adds():
    assert [name for name, cls in REGISTRY.items() if cls.multiply_adds is Layer.multiply_adds] == []
    others = [
        MaxPool2D(2),
        GlobalAvgPool(),
        Flatten(),
        BatchNorm(),
        GroupNorm(2),
        Dropout(0.5),
        ReLU(),
        Normalize(0, 1),
    ]
    assert {layer.multiply_adds((4, 4, 2)) for layer in others} == {0}


# The rows


@pytest.mark.parametrize("name", models.MODELS)
def test_rows_are_what_the_layers_make(name):
    model, shape = named(name)
    trainer = Trainer(model, backend="numpy").build(shape)
    seen = {}
    run = Run(standard, watch=lambda path, layer, y: seen.setdefault(path, y[0]))
    model.apply(trainer.weights, trainer.stats, np.ones((1, *shape), np.float32), run)
    rows = {row.path: row for row in summarise(model, shape).rows}
    assert list(rows) == [path for path, _, _ in model.walk(shape)]
    for path, row in rows.items():
        assert row.out_shape == seen[path].shape
        assert row.activation_bytes == (0 if isinstance(row.layer, Flatten) else seen[path].nbytes), path
        assert row.parameters == sum(a.size for p, a in trainer.weights.items() if p.rpartition(".")[0] == path), path


def test_a_model_that_is_one_layer():
    summary = summarise(Dense(3), (4,))
    assert [(row.path, row.parameters, row.receptive_field) for row in summary.rows] == [("", 15, "all")]


def test_layers_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"layer 1, layer 0 \(Conv2D\(4, 9\)\): .* larger than its input"):
        summarise(Sequential([ReLU(), Sequential([Conv2D(4, 9)])]), (8, 8, 1))


# The receptive field


def field(*layers, shape=(64, 2)):
    return summarise(Sequential(list(layers)), shape).rows[-1].receptive_field


@pytest.mark.parametrize(
    "layers",
    [
        [Conv1D(2, 3)],
        [Conv1D(2, 3, stride=2), Conv1D(2, 4, dilation=3), Dense(3)],
        [AvgPool1D(2), Normalize(0.0, 1.0), AvgPool1D(3, stride=2, padding=1), Conv1D(2, 2)],
        [Conv1D(2, 3, stride=3), AvgPool1D(3, dilation=2)],
        [ConvTranspose1D(2, 2, stride=2), Conv1D(2, 3)],
        [Conv1D(2, 2, stride=2), ConvTranspose1D(2, 2, stride=2), Conv1D(2, 3)],
        [Conv1D(2, 3, stride=2), ConvTranspose1D(2, 5, stride=2, dilation=3)],
        [ConvTranspose1D(2, 4, stride=4, dilation=2)],
        [Conv1D(2, 3, stride=2), Residual(Sequential([Conv1D(2, 3, padding=1), Conv1D(2, 3, padding=1)]), None)],
        [Residual(Conv1D(2, 3, padding=1), Conv1D(2, 5, padding=2)), Conv1D(2, 2)],
        [Residual(Conv1D(2, 3, padding=1, stride=2), Conv1D(2, 1, stride=2)), Conv1D(2, 2)],
        [Conv1D(2, 2), Parallel(Conv1D(2, 3, padding=1), Conv1D(1, 5, padding=2), Sequential([])), Conv1D(2, 2)],
    ],
)
def test_receptive_field_is_how_far_the_gradient_comes(layers):
    y, backward = applied(Sequential(layers), (64, 2))
    reach = 0
    for place in range(y.shape[1]):
        one = np.zeros_like(y)
        one[:, place] = 1
        touched = np.flatnonzero(backward(one)[0].any(axis=(0, 2)))
        if touched.size:  # a transposed convolution may leave holes
            reach = max(reach, touched[-1] - touched[0] + 1)
    assert field(*layers) == (reach,)


def test_receptive_field_of_each_axis():
    assert field(Conv2D(2, (3, 5)), MaxPool2D((1, 2)), Conv2D(2, 2), shape=(20, 30, 1)) == (4, 8)
    rows = summarise(*named("resnet20")).rows
    assert [r.receptive_field for r in rows[-3:]] == [(81, 81), "all", "all"]


def test_receptive_field_behind_a_transposed_convolution_is_no_less():
    assert field(ConvTranspose1D(1, 3, stride=2), Conv1D(1, 2)) == (3,)  # 2 in truth


def test_receptive_field_of_all():
    conv = Conv1D(2, 3, padding=1)
    for layer in (Flatten(), GlobalAvgPool(), GroupNorm(2)):
        assert field(conv, layer) == "all"
    assert field(Flatten(), Dense(4), Reshape((2, 2)), Conv1D(2, 1), ReLU()) == "all"
    assert field(Parallel(conv, GroupNorm(2))) == field(Residual(GroupNorm(2)), conv) == "all"
    assert field(Dense(3), ReLU(), shape=(4,)) == "all"
    assert field(ReLU(), shape=(4,)) == ()


def test_receptive_field_unknown():
    for layer in (Own(), Reshape((32, 4)), OwnContainer(), Parallel(ReLU(), Own()), Residual(Own())):
        assert field(layer, Conv1D(2, 3)) is None
        assert field(layer, Flatten()) == "all"


# Memory


@pytest.mark.parametrize(
    ("name", "batch_size", "optimizer"),
    [
        ("article", 64, SGD(lr=0.01)),
        ("tiny-cnn", 64, SGD(lr=0.01, momentum=0.9)),
        ("small-cnn", 8, Adam()),
        ("small-cnn", 64, SGD(lr=0.01)),
        ("deep-cnn", 32, SGD(lr=0.01, momentum=0.9)),
        ("lenet5", 64, Adam()),
        ("resnet20", 2, SGD(lr=0.01, momentum=0.9)),
    ],
)
def test_memory_of_training(name, batch_size, optimizer, monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", "standard")
    model, shape = named(name)
    trainer = Trainer(model, optimizer=optimizer, backend="numpy")
    images, labels = samples(batch_size, shape=shape, classes=10)
    tracemalloc.start()
    try:
        trainer.fit(images.copy(), labels, batch_size=batch_size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = summarise(model, shape).training_bytes(batch_size, len(optimizer.moments))
    assert 1 / FACTOR < said / peak < FACTOR


def test_memory_is_counted_as_said():
    summary = summarise(Sequential([Dense(5), ReLU(), Dense(2)]), (3,))
    weights, outputs = 5 * 4 + 2 * 6, 3 + 5 + 5 + 2 + 2 * 5
    assert summary.training_bytes(7, 2) == 4 * (2 * 4 * weights + 7 * outputs)


# The table


def test_the_table():
    assert str(summarise(*named("article"))).splitlines() == [
        "layer               output  parameters  mult-adds  activation  field",
        "0      Conv2D     26×26×16         160     97.3 k    42.2 KiB    3×3",
        "1      MaxPool2D  13×13×16           0          0    10.6 KiB    4×4",
        "2      Flatten        2704           0          0        view    all",
        "3      Dense            10      27,050     27.0 k        40 B    all",
        "27,210 parameters, 124.4 k multiply-adds for 28×28×1 (field: receptive field)",
    ]


@pytest.mark.parametrize("depth", [0, 20])
@pytest.mark.parametrize("name", models.MODELS)
def test_it_fits_a_terminal(name, depth):
    model, shape = named(name)
    for _ in range(depth):
        model = Sequential([model])
    lines = str(summarise(model, shape)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    if name == "resnet20" and depth:
        assert [line[0] for line in lines[1:-1]] == ["…"] * 63
        assert ".0.22  Dense" in lines[-2]


def test_unknown_multiply_adds_are_marked():
    summary = summarise(Sequential([Dense(5), Own(), Sequential([Own()])]), (3,))
    assert (summary.multiply_adds, summary.unknown) == (15, ("1", "2.0"))
    assert Sequential([Dense(5), Own()]).multiply_adds((3,)) is None
    lines = str(summary).splitlines()
    assert lines[2].split() == ["1", "Own", "5", "0", "?", "20", "B", "all"]
    assert " ".join(lines[-2:]) == (
        "? is not in the sum: 1, 2.0; a layer of one's own tells it by multiply_adds(in_shape)"
    )
    assert "in the sum: the model;" in str(summarise(Own(), (3,)))
    assert "?" not in str(summarise(Dense(5), (3,)))


def test_numbers_are_short():
    assert [count_text(n) for n in (0, 999, 1000, 40_813_824, 10**9, 10**16)] == [
        "0", "999", "1.0 k", "40.8 M", "1.0 G", "10000.0 T",
    ]  # fmt: skip
    assert [bytes_text(n) for n in (40, 1023, 1024, 3 * 2**29)] == ["40 B", "1023 B", "1.0 KiB", "1.5 GiB"]
