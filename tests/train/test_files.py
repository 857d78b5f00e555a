import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import xpnn.ops
from xpnn.errors import FileFormatError, ShapeError
from xpnn.layers import (
    ELU,
    AvgPool2D,
    BatchNorm,
    Container,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    ConvTranspose3D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool2D,
    Normalize,
    Parallel,
    ReLU,
    Reshape,
    Residual,
    Run,
    Sequential,
    Softmax,
)
from xpnn.random import Stream
from xpnn.train import files
from xpnn.train.files import load_weights, read, write
from xpnn.train.torch_layout import differences

# A network with most of what can lie in a file: conv, grouped and transposed, norms, a residual block, branches,
# two dense layers behind a Flatten of a shape that is not square, with a norm and a dropout in between.
MODEL = Sequential([
    Conv2D(6, 3, padding="same", bias=False),
    BatchNorm(),
    ReLU(),
    Residual(
        Sequential([Conv2D(6, 3, padding=1, groups=3), ReLU(), Conv2D(8, 1)]),
        shortcut=Conv2D(8, 1, bias=False),
    ),
    Parallel(Conv2D(3, 1), Sequential([Conv2D(2, (3, 1), padding=(1, 0)), GroupNorm(2)])),
    ConvTranspose2D(4, 2, stride=2),
    MaxPool2D(2),
    Flatten(),
    BatchNorm(),
    ReLU(),
    Dropout(0.5),
    Dense(7),
    LayerNorm(),
    Dense(3),
])  # fmt: skip
IN_SHAPE = (4, 6, 3)


def state(model, in_shape, seed=0, dtype=np.float64):
    """Random weights and statistics, every one of them different."""
    rng = np.random.default_rng(seed)
    weights, stats = model.init(in_shape, Stream(seed, "weights"))
    weights = {n: rng.normal(size=a.shape).astype(dtype) for n, a in weights.items()}
    stats = {n: rng.uniform(0.5, 2.0, size=a.shape).astype(dtype) for n, a in stats.items()}
    return weights, stats


def save(path, model=MODEL, in_shape=IN_SHAPE, *, moments=None, meta=None, seed=0, dtype=np.float64):
    weights, stats = state(model, in_shape, seed, dtype)
    write(path, model=model, in_shape=in_shape, weights=weights, stats=stats, moments=moments, meta=meta or {})
    return weights, stats


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        assert found[name].dtype == a.dtype
        assert found[name].dtype.isnative
        assert found[name].shape == a.shape
        assert np.array_equal(found[name], a), name
        assert found[name].flags.c_contiguous
        assert found[name].flags.writeable


def forward(model, weights, stats, x):
    return model.apply(weights, stats, x, Run(xpnn.ops.standard, training=False))[0]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# There and back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_come_back(path, seed, dtype):
    weights, stats = save(path, seed=seed, dtype=dtype)
    contents = read(path)
    assert contents.model == MODEL
    assert contents.in_shape == IN_SHAPE
    assert contents.moments is None
    assert contents.meta == {}
    assert contents.dtype == np.dtype(dtype).name
    assert_same(contents.weights, weights)
    assert_same(contents.stats, stats)
    assert list(contents.weights) == list(weights)


def test_a_whole_state_comes_back(path):
    moments = {"mean": state(MODEL, IN_SHAPE, 3)[0], "square": state(MODEL, IN_SHAPE, 4)[0], "late": {}}
    moments["late"] = {"13.weight": moments["mean"]["13.weight"] + 1}
    meta = {
        "step": 12, "samples": 1_000_001, "epoch": 1.25, "optimizer": {"name": "adam", "betas": [0.9, 0.999]},
        "extra": {"note": "ünïcödé \u2028 'quoted' \"twice\" \\", "empty": [], "none": None, "yes": True},
        "rate": 0.1 + 0.2, "big": 2**70,
    }  # fmt: skip
    weights, stats = save(path, moments=moments, meta=meta)
    contents = read(path)
    assert contents.meta == meta
    assert contents.moments.keys() == moments.keys()
    for name, moment in moments.items():
        assert_same(contents.moments[name], moment)
    assert_same(contents.weights, weights)
    assert_same(contents.stats, stats)


@pytest.mark.parametrize("moments", [None, {}, {"velocity": {}}])
def test_no_moments_are_told_from_empty_ones(path, moments):
    save(path, moments=moments)
    assert read(path).moments == moments


def test_meta_may_hold_what_numpy_counts_with_and_infinities(path):
    save(
        path,
        meta={
            "step": np.int64(3),
            "loss": np.float32(0.5),
            "best": float("inf"),
            "worst": float("nan"),
            "pair": (1, 2),
        },
    )
    meta = read(path).meta
    assert meta["step"] == 3
    assert meta["loss"] == 0.5
    assert meta["best"] == float("inf")
    assert meta["worst"] != meta["worst"]
    assert meta["pair"] == [1, 2]


@pytest.mark.parametrize(
    ("model", "in_shape"),
    [
        (Dense(3), (4,)),
        (BatchNorm(), (4, 5, 2)),
        (ReLU(), (3,)),
        (Sequential([]), (3, 2)),
        (Parallel(Dense(2), Dense(3)), (4,)),
        (Residual(Dense(4)), (4,)),
    ],
)
def test_any_layer_is_a_model(path, model, in_shape):
    weights, stats = save(path, model, in_shape)
    contents = read(path)
    assert contents.model == model
    assert_same(contents.weights, weights)
    assert_same(contents.stats, stats)
    again = load_weights(path, model, in_shape)
    assert_same(again[0], weights)
    assert_same(again[1], stats)


def test_load_weights_passes_over_model_and_optimizer(path):
    weights, stats = save(path, moments={"velocity": state(MODEL, IN_SHAPE, 3)[0]}, meta={"step": 3})
    named = Sequential([*MODEL.layers[:9], ELU(), *MODEL.layers[10:]])  # another model with the same arrays
    found = load_weights(path, named, IN_SHAPE)
    assert_same(found[0], weights)
    assert_same(found[1], stats)


def test_the_sample_shape_alone(path):
    save(path)
    assert files.in_shape(path) == IN_SHAPE
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path)
    assert files.in_shape(path) is None


# Arrays of every kind


@dataclass(frozen=True, repr=False)
class Odd(Layer):
    """A custom layer with arrays of unusual shapes."""

    size: int = 3

    def init(self, in_shape, stream):
        return {
            "scalar": np.zeros(()), "empty": np.zeros((0, 4)), "matrix": np.zeros((self.size, 4)),
            "cube": np.zeros((2, 3, 4)),
        }, {"seen": np.zeros(())}  # fmt: skip


@pytest.mark.parametrize(
    "lay",
    [
        lambda a: a.copy(order="F"),
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
        lambda a: np.ascontiguousarray(a[::-1])[::-1] if a.ndim else a,
        lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0) if a.ndim else a,
        lambda a: a.astype(">f8"),
        lambda a: a.astype(">f8").copy(order="F"),
        lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.float64).reshape(a.shape),
        lambda a: np.broadcast_to(a.reshape(-1)[:1].sum(), a.shape),
    ],
    ids=["fortran", "strided", "reversed", "transposed", "big-endian", "big-endian fortran", "unaligned", "broadcast"],
)
def test_arrays_laid_out_in_any_way_come_back(path, lay):
    model = Sequential([Odd(), Dense(5), Odd()])
    weights, stats = ({n: lay(a) for n, a in arrays.items()} for arrays in state(model, (4,)))
    moments = {"velocity": {n: lay(a) for n, a in state(model, (4,), 1)[0].items()}}
    write(path, model=model, in_shape=(4,), weights=weights, stats=stats, moments=moments, meta={})
    contents = read(path, custom_layers=[Odd])
    plain = [{n: np.array(a, "f8") for n, a in arrays.items()} for arrays in (weights, stats, moments["velocity"])]
    assert contents.weights["0.scalar"].shape == ()
    assert contents.weights["0.empty"].shape == (0, 4)
    for found, expected in zip((contents.weights, contents.stats, contents.moments["velocity"]), plain, strict=True):
        assert_same(found, expected)


def test_a_file_that_was_written_wrongly_is_noticed(path, monkeypatch):
    save(path)
    before = path.read_bytes()

    def scrambled(tensors, metadata):
        return safetensors_save({n: a[::-1] if a.ndim else a for n, a in tensors.items()}, metadata)

    def safetensors_save(tensors, metadata):
        return original({n: np.asarray(a, order="C") for n, a in tensors.items()}, metadata)

    original = safetensors.numpy.save
    monkeypatch.setattr(safetensors.numpy, "save", scrambled)
    with pytest.raises(OSError, match=r"what was read back is not what was written.*0\.weight"):
        save(path, seed=1)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# PyTorch's names and layout


def tensors_of(path):
    return safetensors.numpy.load_file(path)


def test_names_and_shapes_are_pytorchs(path):
    weights, _ = save(path, meta={"step": 9})
    found = tensors_of(path)
    assert {n: a.shape for n, a in found.items()} == {
        "0.weight": (6, 3, 3, 3),
        "1.weight": (6,), "1.bias": (6,), "1.running_mean": (6,), "1.running_var": (6,), "1.num_batches_tracked": (),
        "3.body.0.weight": (6, 2, 3, 3), "3.body.0.bias": (6,), "3.body.2.weight": (8, 6, 1, 1),
        "3.body.2.bias": (8,), "3.shortcut.weight": (8, 6, 1, 1),
        "4.0.weight": (3, 8, 1, 1), "4.0.bias": (3,), "4.1.0.weight": (2, 8, 3, 1), "4.1.0.bias": (2,),
        "4.1.1.weight": (2,), "4.1.1.bias": (2,),
        "5.weight": (5, 4, 2, 2), "5.bias": (4,),
        "8.weight": (96,), "8.bias": (96,), "8.running_mean": (96,), "8.running_var": (96,),
        "8.num_batches_tracked": (),
        "11.weight": (7, 96), "11.bias": (7,), "12.weight": (7,), "12.bias": (7,), "13.weight": (3, 7), "13.bias": (3,),
    }  # fmt: skip
    assert found["1.num_batches_tracked"].dtype == np.int64
    assert found["1.num_batches_tracked"] == found["8.num_batches_tracked"] == 9
    # one place of each kind, by hand: an element of a kernel, a column behind the Flatten of (4, 6, 4)
    assert found["0.weight"][5, 2, 0, 1] == weights["0.weight"][5, 0, 1, 2]
    assert found["5.weight"][4, 3, 0, 1] == weights["5.weight"][4, 0, 1, 3]
    c, h, w = 3, 1, 5
    assert found["11.weight"][6, c * 24 + h * 6 + w] == weights["11.weight"][6, h * 24 + w * 4 + c]
    assert found["8.bias"][c * 24 + h * 6 + w] == weights["8.bias"][h * 24 + w * 4 + c]
    assert np.array_equal(found["13.weight"], weights["13.weight"])


def test_moments_lie_like_their_weights(path):
    weights, _ = state(MODEL, IN_SHAPE)
    save(path, moments={"velocity": weights})
    found = tensors_of(path)
    for name in weights:
        assert np.array_equal(found[f"optimizer.velocity.{name}"], found[name])


def modules():
    """PyTorch, and its counterparts of our containers."""
    torch = pytest.importorskip("torch")

    class Add(torch.nn.Module):
        def __init__(self, body, shortcut=None):
            super().__init__()
            self.body = body
            self.shortcut = shortcut or torch.nn.Identity()

        def forward(self, x):
            return self.body(x) + self.shortcut(x)

    class Concat(torch.nn.ModuleList):
        def forward(self, x):
            return torch.cat([branch(x) for branch in self], 1)

    return torch, torch.nn, Add, Concat


def to_torch(torch, x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def from_torch(y):
    return np.moveaxis(y.detach().numpy(), 1, -1)


def network_big(nn, Add, Concat):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same", bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        Add(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.ReLU(), nn.Conv2d(6, 8, 1)),
            nn.Conv2d(6, 8, 1, bias=False)),
        Concat([nn.Conv2d(8, 3, 1), nn.Sequential(nn.Conv2d(8, 2, (3, 1), padding=(1, 0)), nn.GroupNorm(2, 2))]),
        nn.ConvTranspose2d(5, 4, 2, stride=2), nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(96), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(96, 7), nn.LayerNorm(7), nn.Linear(7, 3),
    )  # fmt: skip


def fixed(nn, mean, std):
    """torchvision's Normalize as a module without arrays."""
    import torch

    class Fixed(nn.Module):
        def forward(self, x):
            a, b = (torch.tensor(v, dtype=x.dtype)[:, None, None] for v in (mean, std))
            return (x - a) / b

    return Fixed()


# Each pair is the same network, in ours and in PyTorch's layers.
PAIRS = {
    "everything": (MODEL, IN_SHAPE, network_big),
    "first network": (
        Sequential([Conv2D(4, 3), ReLU(), MaxPool2D(2), Flatten(), Dense(5), ReLU(), Dense(3)]),
        (8, 6, 2),
        lambda nn, *_: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3)
        ),
    ),
    "normalised pixels": (
        Sequential([Normalize((0.5, 0.2, 0.1), (0.3, 0.2, 2.0)), Flatten(), Dense(5), ReLU(), Dense(3)]),
        (4, 5, 3),
        lambda nn, *_: nn.Sequential(
            fixed(nn, (0.5, 0.2, 0.1), (0.3, 0.2, 2.0)), nn.Flatten(), nn.Linear(60, 5), nn.ReLU(), nn.Linear(5, 3)
        ),
    ),
    "one layer": (Dense(3), (4,), lambda nn, *_: nn.Linear(4, 3)),
    "conv 1d": (
        Sequential([Conv1D(6, 3, stride=2, groups=2), ELU(), Flatten(), Dense(3)]),
        (9, 4),
        lambda nn, *_: nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, groups=2), nn.ELU(), nn.Flatten(), nn.Linear(24, 3)),
    ),
    "conv 3d": (
        Sequential([Conv3D(4, (1, 2, 3)), BatchNorm(), Flatten(), Dense(3)]),
        (2, 4, 5, 3),
        lambda nn, *_: nn.Sequential(nn.Conv3d(3, 4, (1, 2, 3)), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(72, 3)),
    ),
    "transposed 1d": (
        Sequential([ConvTranspose1D(4, 3, stride=2, groups=2), Flatten(), Dense(2)]),
        (3, 6),
        lambda nn, *_: nn.Sequential(nn.ConvTranspose1d(6, 4, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(28, 2)),
    ),
    "transposed 2d": (
        Sequential([ConvTranspose2D(4, (2, 3), stride=2, padding=1, output_padding=1, dilation=(1, 2))]),
        (3, 4, 2),
        lambda nn, *_: nn.Sequential(
            nn.ConvTranspose2d(2, 4, (2, 3), stride=2, padding=1, output_padding=1, dilation=(1, 2))
        ),
    ),
    "transposed 3d": (
        Sequential([ConvTranspose3D(2, (1, 2, 3)), Flatten(), Dense(2)]),
        (2, 2, 1, 3),
        lambda nn, *_: nn.Sequential(nn.ConvTranspose3d(3, 2, (1, 2, 3)), nn.Flatten(), nn.Linear(36, 2)),
    ),
    "depthwise": (
        Sequential([Conv2D(6, 3, groups=3), AvgPool2D(2), Flatten(), Dense(2)]),
        (6, 4, 3),
        lambda nn, *_: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)),
    ),
    "global pool": (
        Sequential([Conv2D(5, 3), GlobalAvgPool(), BatchNorm(), Dense(2)]),
        (6, 4, 3),
        lambda nn, *_: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.BatchNorm1d(5), nn.Linear(5, 2)
        ),
    ),
    "global pool, flattened again": (
        Sequential([GlobalMaxPool(), Flatten(), Dense(2)]),
        (6, 4, 3),
        lambda nn, *_: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
    ),
    "no conv": (
        Sequential([Flatten(), LayerNorm(), Dense(4), Softmax()]),
        (2, 3, 5),
        lambda nn, *_: nn.Sequential(nn.Flatten(), nn.LayerNorm(30), nn.Linear(30, 4), nn.Softmax(1)),
    ),
    "flattened twice": (
        Sequential([Sequential([Flatten()]), Reshape((-1,)), Flatten(), Dense(4)]),
        (2, 3, 5),
        lambda nn, *_: nn.Sequential(nn.Sequential(nn.Flatten()), nn.Flatten(), nn.Flatten(), nn.Linear(30, 4)),
    ),
    "output is flat": (
        Sequential([Conv2D(4, 1), Flatten()]),
        (2, 3, 5),
        lambda nn, *_: nn.Sequential(nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Unflatten(1, (4, 2, 3))),
    ),
    "group norm of one group": (
        Sequential([Flatten(), GroupNorm(1), Dense(3)]),
        (2, 3, 5),
        lambda nn, *_: nn.Sequential(nn.Flatten(), nn.GroupNorm(1, 30), nn.Linear(30, 3)),
    ),
    "group norm on our order": (
        Sequential([GlobalAvgPool(), Dense(6), GroupNorm(3), Dense(3)]),
        (2, 3, 5),
        lambda nn, *_: nn.Sequential(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(5, 6), nn.GroupNorm(3, 6), nn.Linear(6, 3),
        ),
    ),
    "residual of dense layers behind Flatten": (
        Sequential([Flatten(), Residual(Sequential([Dense(8), ReLU(), Dense(30), BatchNorm()])), ReLU(), Dense(3)]),
        (2, 3, 5),
        lambda nn, Add, _: nn.Sequential(
            nn.Flatten(),
            Add(nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 30), nn.BatchNorm1d(30))),
            nn.ReLU(), nn.Linear(30, 3),
        ),
    ),
    "residual whose shortcut is dense": (
        Sequential([
            Conv2D(5, 1),
            Residual(Sequential([MaxPool2D(1), Flatten()]), Sequential([Flatten(), Dense(30)])),
            Dense(3),
        ]),
        (2, 3, 2),
        lambda nn, Add, _: nn.Sequential(
            nn.Conv2d(2, 5, 1),
            Add(nn.Sequential(nn.MaxPool2d(1), nn.Flatten()), nn.Sequential(nn.Flatten(), nn.Linear(30, 30))),
            nn.Linear(30, 3),
        ),
    ),
    "branches that flatten": (
        Sequential([
            Parallel(
                Flatten(), Sequential([Conv2D(2, 1), Flatten(), LayerNorm()]), Sequential([Flatten(), Dense(4)]),
                GlobalAvgPool(),
            ),
            BatchNorm(), Dense(3),
        ]),
        (2, 3, 5),
        lambda nn, _, Concat: nn.Sequential(
            Concat([
                nn.Flatten(), nn.Sequential(nn.Conv2d(5, 2, 1), nn.Flatten(), nn.LayerNorm(12)),
                nn.Sequential(nn.Flatten(), nn.Linear(30, 4)),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            ]),
            nn.BatchNorm1d(51), nn.Linear(51, 3),
        ),
    ),
    "one branch": (
        Sequential([Flatten(), Residual(Parallel(Dense(30))), Dense(3)]),
        (2, 3, 5),
        lambda nn, Add, Concat: nn.Sequential(nn.Flatten(), Add(Concat([nn.Linear(30, 30)])), nn.Linear(30, 3)),
    ),
    "decoder": (
        Sequential([
            Dense(24), BatchNorm(), ReLU(), Dropout(0.3), LayerNorm(), Reshape((2, 3, 4)),
            ConvTranspose2D(3, 2, stride=2),
        ]),
        (5,),
        lambda nn, *_: nn.Sequential(
            nn.Linear(5, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.LayerNorm(24),
            nn.Unflatten(1, (4, 2, 3)), nn.ConvTranspose2d(4, 3, 2, stride=2),
        ),
    ),
    "decoder with a norm of one group": (
        Sequential([Dense(24), GroupNorm(1), Reshape((2, 3, 4)), Conv2D(2, 1)]),
        (5,),
        lambda nn, *_: nn.Sequential(
            nn.Linear(5, 24), nn.GroupNorm(1, 24), nn.Unflatten(1, (4, 2, 3)), nn.Conv2d(4, 2, 1)
        ),
    ),
    "autoencoder": (
        Sequential([
            Conv2D(4, 3, padding=1), Flatten(), Dense(6), ReLU(), Residual(Dense(6)), Dense(24),
            Residual(Sequential([Dense(5), Dense(24)])), Reshape((2, 3, -1)), Conv2D(2, 1),
        ]),
        (2, 3, 2),
        lambda nn, Add, _: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), Add(nn.Linear(6, 6)),
            nn.Linear(6, 24), Add(nn.Sequential(nn.Linear(24, 5), nn.Linear(5, 24))),
            nn.Unflatten(1, (4, 2, 3)), nn.Conv2d(4, 2, 1),
        ),
    ),
    "flattened and shaped back": (
        Sequential([Conv2D(4, 1), Flatten(), BatchNorm(), Reshape((2, 3, 4)), Conv2D(2, 1)]),
        (2, 3, 2),
        lambda nn, *_: nn.Sequential(
            nn.Conv2d(2, 4, 1), nn.Flatten(), nn.BatchNorm1d(24), nn.Unflatten(1, (4, 2, 3)), nn.Conv2d(4, 2, 1)
        ),
    ),
}  # fmt: skip


def pair(name):
    """PyTorch, our model, and PyTorch's."""
    torch, nn, add, concat = modules()
    model, in_shape, make = PAIRS[name]
    return torch, model, in_shape, make(nn, add, concat).double().eval()


def compare(name, torch, model, in_shape, net, weights, stats):
    x = np.random.default_rng(5).normal(size=(3, *in_shape))
    ours = forward(model, weights, stats, x)
    theirs = from_torch(net(to_torch(torch, x)))
    if name == "output is flat":
        ours = ours.reshape(theirs.shape)
    assert ours.shape == theirs.shape
    assert np.abs(ours).max() > 1e-3
    assert np.abs(ours - theirs).max() <= 1e-10 * max(1, np.abs(ours).max())


@pytest.mark.parametrize("name", PAIRS)
def test_our_file_loads_in_pytorch_and_computes_the_same(path, name):
    torch, model, in_shape, net = pair(name)
    from safetensors.torch import load_file

    weights, stats = save(path, model, in_shape, meta={"step": 3})
    net.load_state_dict(load_file(path), strict=True)
    compare(name, torch, model, in_shape, net, weights, stats)
    assert differences(model, in_shape) == []


@pytest.mark.parametrize("name", PAIRS)
def test_a_file_of_pytorchs_loads_here_and_computes_the_same(path, name):
    torch, model, in_shape, net = pair(name)
    from safetensors.torch import save_file

    torch.manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    save_file(net.state_dict(), path)
    weights, stats = load_weights(path, model, in_shape)
    compare(name, torch, model, in_shape, net, weights, stats)


def test_pytorch_takes_our_file_as_it_is(path):
    torch, nn, add, concat = modules()
    from safetensors.torch import load_file

    save(path, dtype=np.float32, meta={"step": 17})
    net = network_big(nn, add, concat)
    net.load_state_dict(load_file(path))
    assert net[1].num_batches_tracked == 17
    assert torch.equal(net[11].weight, torch.from_numpy(tensors_of(path)["11.weight"]))


# What PyTorch's own modules compute in another way


@pytest.mark.parametrize(
    ("model", "in_shape", "texts"),
    [
        ([Flatten(), GroupNorm(2), Dense(3)], (2, 3, 4), ["layer 1 (GroupNorm(2)) has other groups there"]),
        ([Flatten(), GroupNorm(4), Dense(3)], (1, 1, 4), []),
        ([Flatten(), GroupNorm(2), Dense(3)], (2, 3, 1), []),
        ([Dense(24), GroupNorm(2), Reshape((2, 3, 4))], (5,), ["layer 2 (Reshape((2, 3, 4))) moves values"]),
        ([Dense(24), GroupNorm(2), Residual(Dense(24))], (5,), []),
        ([Flatten(), Reshape((2, 2, 6)), Conv2D(2, 1)], (2, 3, 4), ["layer 1 (Reshape((2, 2, 6))) moves values"]),
        ([Reshape((2, 2, 6)), Conv2D(2, 1)], (2, 3, 4), ["layer 0 (Reshape((2, 2, 6))) moves values"]),
        ([Reshape((3, 2, 4)), Conv2D(2, 1)], (2, 3, 4), []),  # the channels stay what they are
        ([Reshape((2, 3, 4)), Conv2D(2, 1)], (24,), ["layer 0 (Reshape((2, 3, 4))) moves values"]),
        ([Reshape((2, 3, 1)), Conv2D(2, 1)], (6,), []),
        (
            [Residual(Sequential([Flatten()]), Sequential([GlobalAvgPool(), Dense(8), Reshape((2, 2, 2)), Flatten()]))],
            (2, 4, 1),
            ["layer 0 (Residual) adds features that are in two orders there"],
        ),
        ([Dense(8), Parallel(Dense(4), Dense(4)), Reshape((2, 2, 2))], (3,), ["layer 2 (Reshape((2, 2, 2))) moves"]),
    ],
)
def test_where_pytorch_differs_is_told_and_the_file_is_still_whole(path, model, in_shape, texts):
    model = Sequential(model)
    found = differences(model, in_shape)
    assert len(found) == len(texts)
    for text, expected in zip(found, texts, strict=True):
        assert text.startswith(expected)
    weights, stats = save(path, model, in_shape)
    contents = read(path)
    assert_same(contents.weights, weights)
    assert_same(contents.stats, stats)


def test_a_group_norm_behind_flatten_goes_with_its_features(path):
    model = Sequential([Flatten(), GroupNorm(2), Dense(3)])
    weights, _ = save(path, model, (2, 3, 4))
    order = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1).ravel()
    found = tensors_of(path)
    assert np.array_equal(found["1.weight"], weights["1.weight"][order])
    assert np.array_equal(found["2.weight"], weights["2.weight"][:, order])


def test_a_reshape_behind_flatten_is_the_documented_one_in_pytorch(path):
    torch, nn, *_ = modules()
    from safetensors.torch import load_file

    class Reshaped(nn.Module):
        def forward(self, x):
            return x.movedim(1, -1).reshape(len(x), 2, 2, 6).movedim(-1, 1)

    model = Sequential([Conv2D(4, 1), Reshape((2, 2, 6)), Conv2D(2, 2), Flatten(), Dense(3)])
    weights, stats = save(path, model, (2, 3, 2))
    net = nn.Sequential(nn.Conv2d(2, 4, 1), Reshaped(), nn.Conv2d(6, 2, 2), nn.Flatten(), nn.Linear(2, 3)).double()
    net.load_state_dict(load_file(path), strict=True)
    compare("", torch, model, (2, 3, 2), net, weights, stats)


# Layers of one's own


@dataclass(frozen=True, repr=False)
class Swish(Layer):
    slope: float = 1.0

    def apply(self, weights, stats, x, run):
        return x / (1 + np.exp(-self.slope * x)), {}, None


@dataclass(frozen=True, repr=False)
class Scale(Layer):
    def init(self, in_shape, stream):
        return {"weight": np.ones(in_shape)}, {}


@dataclass(frozen=True, repr=False)
class Twice(Container):
    first: Layer = field(default_factory=lambda: Dense(24))
    second: Layer = field(default_factory=lambda: Dense(24))

    def parts(self):
        return [("first", self.first), ("second", self.second)]


def test_a_custom_layer_is_named_where_its_class_is_missing(path):
    save(path, Sequential([Dense(3), Swish()]), (2,))
    with pytest.raises(FileFormatError, match=r"model\.safetensors: .*no layer 'Swish'.*custom_layers=\[Swish\]"):
        read(path)
    assert read(path, [Swish]).model == Sequential([Dense(3), Swish()])


def test_a_custom_layer_without_arrays_hands_the_order_on(path):
    weights, _ = save(path, Sequential([Flatten(), Swish(), Dense(3)]), (2, 3, 4))
    order = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1).ravel()
    assert np.array_equal(tensors_of(path)["2.weight"], weights["2.weight"][:, order])


def test_the_arrays_of_custom_layers_are_stored_as_they_are(path):
    model = Sequential([Scale(), Flatten(), Scale(), Twice(), Dense(3)])
    weights, _ = save(path, model, (2, 3, 4))
    found = tensors_of(path)
    for name in ("0.weight", "2.weight", "3.first.weight", "4.weight"):
        assert np.array_equal(found[name], weights[name])
    contents = read(path, [Scale, Twice])
    assert contents.model == model
    assert_same(contents.weights, weights)


def test_custom_layers_with_arrays_keep_our_order(path):
    model = Sequential([Dense(24), Scale(), Reshape((2, 3, 4)), Flatten(), Twice(), Dense(3)])
    weights, _ = save(path, model, (2,))
    assert all(np.array_equal(a, weights[n]) for n, a in tensors_of(path).items())
    assert [text.partition(" moves")[0] for text in differences(model, (2,))] == ["layer 2 (Reshape((2, 3, 4)))"]
    # the shortcut hands the order on, past the custom layer that needs it as it is
    model = Sequential([Dense(24), Residual(Sequential([Scale(), Dense(24)])), Reshape((2, 3, 4))])
    weights, _ = save(path, model, (2,))
    assert all(np.array_equal(a, weights[n]) for n, a in tensors_of(path).items())
    assert [text.partition(" moves")[0] for text in differences(model, (2,))] == ["layer 2 (Reshape((2, 3, 4)))"]


# Files that do not fit


def test_what_does_not_fit_is_listed_with_totals(path):
    save(path, Sequential([Conv2D(8, 3), Dense(4)]), (5, 5, 1))
    with pytest.raises(FileFormatError) as e:
        load_weights(path, Sequential([Conv2D(8, 3), Conv2D(4, 1), GlobalAvgPool(), Dense(4)]), (5, 5, 3))
    assert str(e.value) == (
        f"{path} does not fit the model, which has 6 arrays; the file has 4:\n"
        "  missing, 2:\n"
        "    3.weight (4, 4)\n"
        "    3.bias (4,)\n"
        "  of another shape, 2:\n"
        "    0.weight (8, 1, 3, 3), the model has (8, 3, 3, 3)\n"
        "    1.weight (4, 8), the model has (4, 8, 1, 1)\n"
        "Names and shapes are PyTorch's. Load it into a model of the same layers, or rename its tensors."
    )


def test_a_long_list_is_cut(path):
    save(path, Sequential([Dense(4)] * 10), (4,))
    with pytest.raises(FileFormatError) as e:
        load_weights(path, Dense(4), (4,))
    text = str(e.value)
    assert "missing, 2:\n    weight (4, 4)\n    bias (4,)\n" in text
    assert "not in the model, 20:\n    0." in text
    assert "    … and 15 more\n" in text
    assert len(text.splitlines()) == 12


def test_a_file_of_pytorchs_holds_no_model(path):
    safetensors.numpy.save_file({"weight": np.zeros((3, 4), "f4")}, path, metadata={"format": "pt"})
    with pytest.raises(FileFormatError, match=r"holds tensors but no model of xpnn.*load_weights"):
        read(path)


def test_counters_of_pytorch_may_be_there_or_not(path):
    arrays = {n: np.ones(3, "f4") for n in ("weight", "bias", "running_mean", "running_var")}
    for more in ({}, {"num_batches_tracked": np.array(3)}):
        safetensors.numpy.save_file(arrays | more, path)
        assert load_weights(path, BatchNorm(), (3,))[1].keys() == {"running_mean", "running_var"}
    safetensors.numpy.save_file({"num_batches_tracked": np.array(3), **arrays}, path)
    with pytest.raises(FileFormatError, match=r"not in the model, 3:\n    num_batches_tracked \(\)\n    running_mean"):
        load_weights(path, LayerNorm(), (3,))


@pytest.mark.parametrize("dtype", ["float16", "int64", "bool", "bfloat16"])
def test_other_types_are_refused_in_words(path, dtype):
    if dtype == "bfloat16":
        torch = modules()[0]
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(3, 4, dtype=torch.bfloat16), "bias": torch.zeros(3)}, path)
    else:
        safetensors.numpy.save_file({"weight": np.zeros((3, 4), dtype), "bias": np.zeros(3, "f4")}, path)
    with pytest.raises(
        FileFormatError, match=r"weight is of type (F16|I64|BOOL|BF16); xpnn reads float32.*net\.float\(\)"
    ):
        load_weights(path, Dense(3), (4,))


def test_a_model_that_does_not_fit_its_samples_is_the_callers_error(path):
    save(path, Dense(3), (4,))
    with pytest.raises(ShapeError):
        load_weights(path, Conv2D(3, 3), (4,))


# Files that cannot be read


def test_a_missing_file_and_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*no\.safetensors; check the name"):
        read(tmp_path / "no.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere either; check the path"):
        load_weights(tmp_path / "nowhere" / "a.safetensors", Dense(3), (4,))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read("")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileFormatError, match=r"is a folder; name the file in it, e\.g\. .*model\.safetensors"):
        read(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"is a folder; name the file, e\.g\. .*model\.safetensors"):
        save(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="no regular file"):
        read(tmp_path / "pipe")


def test_an_empty_file(path):
    path.touch()
    with pytest.raises(FileFormatError, match="is empty; load another copy"):
        read(path)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"PK\x03\x04", "but a zip archive, as PyTorch's"),
        (b"\x80\x04\x95", "but a pickle"),
        (b"\x89HDF\r\n\x1a\n", "but an HDF5 file"),
        (b"\x93NUMPY\x01", r"but a NumPy array"),
        (b"hello", "no safetensors file; xpnn reads"),
        (b"hello, this is only text", "no safetensors file; xpnn reads"),
        (b"\xff" * 8 + b"{", "no safetensors file; xpnn reads"),
    ],
)
def test_a_file_of_another_format_is_named(path, start, kind):
    path.write_bytes(start + bytes(100))
    with pytest.raises(FileFormatError, match=rf"is no safetensors file.*{kind}|{kind}") as e:
        read(path)
    assert "safetensors.torch.save_file(net.state_dict(), path)" in str(e.value)


def test_a_file_cut_short_is_an_error_at_every_length(path):
    save(path, Dense(2), (3,))
    data = path.read_bytes()
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(FileFormatError, match=rf"is cut short: {size} of at least \d+ bytes are there"):
            read(path)


def test_a_file_that_goes_on_after_its_end(path):
    save(path, Dense(2), (3,))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileFormatError, match="is damaged"):
        read(path)


def test_a_flipped_bit_names_the_tensor(path):
    weights, _ = save(path)
    data = bytearray(path.read_bytes())
    place = data.find(np.moveaxis(weights["0.weight"], -1, 1).tobytes())
    data[place + 20] ^= 1
    path.write_bytes(data)
    for load in (read, lambda p: load_weights(p, MODEL, IN_SHAPE)):
        with pytest.raises(FileFormatError, match=r"is damaged: the tensor 0\.weight is not what was written"):
            load(path)


def test_a_flipped_bit_in_the_metadata(path):
    save(path, meta={"note": "mark"})
    path.write_bytes(path.read_bytes().replace(b"mark", b"mabk"))
    with pytest.raises(FileFormatError, match="is damaged: its metadata are not what was written"):
        read(path)


def test_no_flipped_bit_goes_unnoticed(path):
    save(path, Sequential([Dense(2), BatchNorm()]), (3,), moments={"velocity": {}}, meta={"step": 1})
    data = path.read_bytes()
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place * 5 % 8
        path.write_bytes(broken)
        with pytest.raises(FileFormatError):
            read(path)


def rewritten(path, change=None, rehash=True, **changes):
    """The file with other metadata, as a stranger might write them."""
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "np") as f:
        header = json.loads(f.metadata()["xpnn"])
    header |= changes
    text = json.dumps(change(header) if change else header)
    metadata = {"xpnn": text} | ({"xpnn.sha256": sha256(text.encode()).hexdigest()} if rehash else {})
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    return path


def test_rewriting_the_same_metadata_is_fine(path):
    save(path)
    assert read(rewritten(path)).model == MODEL


@pytest.mark.parametrize("rehash", [True, False])
def test_a_file_of_a_newer_format(path, rehash):
    save(path, Dense(3), (4,))
    rewritten(path, rehash=rehash, format=2, model="whatever", tensors=None)
    for load in (read, lambda p: load_weights(p, Dense(3), (4,))):
        with pytest.raises(FileFormatError, match=r"made by a newer xpnn \(format 2; this one reads 1\); upgrade: pip"):
            load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 0}, "not as xpnn writes them"),
        ({"format": "1"}, "not as xpnn writes them"),
        ({"format": None}, "not as xpnn writes them"),
        ({"tensors": []}, "not as xpnn writes them"),
        ({"in_shape": 4}, "not as xpnn writes them"),
        ({"in_shape": ["4"]}, "not as xpnn writes them"),
        ({"in_shape": None}, "not as xpnn writes them"),
        ({"meta": []}, "not as xpnn writes them"),
        ({"moments": {"velocity": 1}}, "not as xpnn writes them"),
        ({"dtype": 3}, "not as xpnn writes them"),
        ({"tensors": {}}, "is damaged: the tensor .* is in the file, but not in its list"),
        ({"tensors": {"other": ""}}, "is damaged: the tensor other is in the list, but not in the file"),
        ({"model": None}, "in the description of the model, at model: expected a layer"),
        ({"model": {"layer": "Nope"}}, "knows no layer 'Nope'"),
        ({"model": {"layer": "Dense", "options": {"units": -1}}}, "Dense cannot be made of these options"),
        ({"model": {"layer": "Conv2D", "options": {"channels": 1, "kernel": 1}}}, "does not fit its samples of shape"),
        ({"in_shape": []}, "does not fit its samples of shape"),
        ({"in_shape": [7]}, r"weight \(3, 4\), the model has \(3, 7\)"),
        ({"in_shape": [10**15]}, r"weight \(3, 4\), the model has \(3, 1000000000000000\)"),
    ],
)
def test_metadata_of_a_strangers_making(path, changes, message):
    save(path, Dense(3), (4,))
    with pytest.raises(FileFormatError, match=message) as e:
        read(rewritten(path, **changes))
    assert str(path) in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "[]", '"xpnn"'])
def test_metadata_that_are_no_json(path, text):
    hashed = {"xpnn": text, "xpnn.sha256": sha256(text.encode()).hexdigest()}
    safetensors.numpy.save_file({"a": np.zeros(3)}, path, metadata=hashed)
    with pytest.raises(FileFormatError, match=r"its metadata are (no JSON|not as xpnn writes them)"):
        read(path)


def test_metadata_without_their_hash(path):
    save(path)
    with pytest.raises(FileFormatError, match="not as xpnn writes them"):
        read(rewritten(path, rehash=False))


def header_of(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def test_a_header_that_lies(path):
    safetensors.numpy.save_file({"weight": np.zeros((3, 4)), "bias": np.zeros(3)}, path)
    header, data = header_of(path)
    lies = [
        {"weight": {**header["weight"], "shape": [3, 5]}},
        {"weight": {**header["weight"], "dtype": "F32"}},
        {"weight": {**header["weight"], "dtype": "F65"}},
        {"weight": {**header["weight"], "data_offsets": [0, 96]}, "bias": {**header["bias"], "data_offsets": [0, 24]}},
        {"weight": {**header["weight"], "data_offsets": [120, 24]}},
        {"weight": {**header["weight"], "data_offsets": [-1, 95]}},
        {"weight": {**header["weight"], "data_offsets": None}},
        {"weight": {**header["weight"], "shape": [2**63, 2]}},
        {"weight": 3},
    ]
    for lie in lies:
        text = json.dumps(header | lie).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        with pytest.raises(FileFormatError, match="is damaged"):
            load_weights(path, Dense(3), (4,))
    text = json.dumps(header | {"weight": {**header["weight"], "data_offsets": [24, 10**9]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(FileFormatError, match="cut short"):
        load_weights(path, Dense(3), (4,))


def test_the_hash_covers_type_and_shape(path):
    save(path, Dense(3), (4,))
    data = path.read_bytes()
    for old, new in ((b'"shape":[3,4]', b'"shape":[4,3]'), (b'"F64","shape":[3]', b'"I64","shape":[3]')):
        assert old in data
        path.write_bytes(data.replace(old, new))
        with pytest.raises(FileFormatError, match=r"is damaged: the tensor (weight|bias) is not what was written"):
            read(path)


# Files that cannot be written


def test_arrays_that_are_not_the_models(path):
    weights, stats = state(MODEL, IN_SHAPE)
    whole = {"model": MODEL, "in_shape": IN_SHAPE, "weights": weights, "stats": stats, "moments": None, "meta": {}}
    lacking = {n: a for n, a in weights.items() if n != "0.weight"}
    torchs = weights | {"4.1.0.weight": np.moveaxis(weights["4.1.0.weight"], -1, 1)}
    for changes, error, message in [
        ({"weights": lacking}, ValueError, r"these weights are not those of the model:\n  missing, 1:\n    0\.weight"),
        ({"weights": torchs}, ValueError, r"4\.1\.0\.weight \(2, 8, 3, 1\), the model has \(2, 3, 1, 8\)"),
        ({"stats": {}}, ValueError, "these statistics are not those of the model"),
        ({"moments": {"m": {"0.bias": weights["1.bias"]}}}, ValueError, r"moment m of 0\.bias"),
        ({"moments": {"m": {"1.bias": np.zeros(3)}}}, ValueError, r"moment m of 1\.bias has shape \(3,\)"),
        ({"moments": {"m.n": {}}}, ValueError, "name without dots"),
        ({"moments": {"": {}}}, ValueError, "name without dots"),
        ({"weights": weights | {"1.bias": np.zeros(6, "f2")}}, TypeError, r"1\.bias is an array of float16"),
        ({"weights": weights | {"1.bias": np.zeros(6, int)}}, TypeError, r"1\.bias is an array of int64"),
        ({"weights": weights | {"1.bias": [0.0] * 6}}, TypeError, r"1\.bias is a list; files are written from NumPy"),
        ({"meta": {"what": object()}}, TypeError, "which JSON cannot"),
        ({"in_shape": (4, 6)}, ShapeError, "expected samples of shape"),
    ]:
        with pytest.raises(error, match=message):
            write(path, **(whole | changes))
    assert os.listdir(path.parent) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write a\.safetensors into; make it first"):
        save(tmp_path / "nowhere" / "a.safetensors")


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "denied")])
def test_where_writing_fails_the_old_file_stays(path, monkeypatch, step, error):
    save(path)
    before = path.read_bytes()

    def fail(*args, **options):
        raise error

    if step == "open":
        monkeypatch.setattr(files, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=r"cannot write model\.safetensors into the folder") as e:
        save(path, seed=1)
    assert e.value.errno == error.errno
    assert type(e.value) is type(error)
    assert str(path.parent) in str(e.value)
    assert error.strerror in str(e.value)
    assert "the model.safetensors that was there is untouched" in str(e.value)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_leaves_the_old_file(path):
    resource = pytest.importorskip("resource")
    save(path, Dense(3), (4,))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write model\.safetensors into the folder .* untouched\. Make room"):
            save(path, Dense(3000), (4,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(path):
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=r"cannot write model\.safetensors into the folder"):
            save(path)
    finally:
        path.parent.chmod(0o700)


def test_an_interrupt_leaves_the_old_file(path, monkeypatch):
    save(path)
    before = path.read_bytes()

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, seed=1)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_file_and_folder_are_synchronised_around_the_replacement(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (calls.append(Path(os.readlink(f"/proc/self/fd/{f}"))), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    save(path)
    assert calls[1:] == ["replace", path.parent]
    assert calls[0].parent == path.parent
    assert calls[0] != path


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "runs").mkdir()
    latest, real = tmp_path / "latest.safetensors", tmp_path / "runs" / "1.safetensors"
    save(real)
    latest.symlink_to(real)
    weights, _ = save(latest, seed=1)
    assert latest.is_symlink()
    assert_same(read(real).weights, weights)


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_a_file_has_the_mode_of_any_other(path):
    other = path.with_name("other")
    other.touch()
    save(path)
    assert path.stat().st_mode == other.stat().st_mode


def test_what_a_killed_writer_left_is_removed_later(path):
    old, fresh = path.parent / ".xpnn-0.tmp", path.parent / ".xpnn-1.tmp"
    old.touch()
    fresh.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    save(path)
    assert not old.exists()
    assert fresh.exists()


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, _ = save("model.safetensors")
    assert_same(read("model.safetensors").weights, weights)


WRITER = """
import itertools, sys
import numpy as np
from xpnn.layers import Dense
from xpnn.train.files import write
for i in itertools.count():
    weights = {"weight": np.full((300, 300), float(i)), "bias": np.full(300, float(i))}
    write(sys.argv[1], model=Dense(300), in_shape=(300,), weights=weights, stats={}, moments=None, meta={"step": i})
    print(i, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("after", [0.0, 0.013, 0.03])
def test_a_killed_writer_leaves_a_whole_file(path, after):
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        seen = int(writer.stdout.readline())
        time.sleep(after)
        writer.kill()
        seen = max([seen, *(int(line) for line in writer.stdout.read().split())])
    contents = read(path)
    assert contents.meta["step"] in (seen, seen + 1)
    assert np.all(contents.weights["weight"] == contents.meta["step"])


def test_importing_files_imports_no_safetensors():
    code = "import sys, xpnn.train.files; print('safetensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
