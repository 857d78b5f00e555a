"""What layers say of shapes, options and arrays that do not fit, and of which layer they speak."""

import re

import numpy as np
import pytest

from xpnn import ops
from xpnn.errors import MixedBackendsError, ShapeError
from xpnn.layers import (
    ELU,
    GELU,
    AvgPool2D,
    BatchNorm,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    Parallel,
    ReLU,
    Reshape,
    Residual,
    Run,
    Sequential,
)
from xpnn.random import Stream

NET = Sequential([Conv2D(4, 3), Residual(Sequential([ReLU(), Conv2D(4, 3, padding="same")])), Flatten(), Dense(3)])


def f(*shape):
    return np.ones(shape, dtype=np.float32)


def weights(layer, in_shape):
    arrays, stats = layer.init(in_shape, Stream(0, "weights"))
    return tuple({k: v.astype(np.float32) for k, v in part.items()} for part in (arrays, stats))


def apply(layer, x, in_shape=None, training=False, **other):
    arrays, stats = weights(layer, in_shape or x.shape[1:])
    return layer.apply(arrays | other, stats, x, Run(ops.standard, training))


BAD = {
    "wrong channels": (
        lambda: apply(NET, f(2, 6, 6, 2), (6, 6, 1)),
        "layer 0 (Conv2D(4, 3)): conv: x has 2 channels (shape (2, 6, 6, 2), channels last), but the weights are made",
    ),
    "another image size": (
        lambda: apply(NET, f(2, 7, 7, 1), (6, 6, 1)),
        "layer 3 (Dense(3)): dense: x has 100 channels (shape (2, 100), channels last), but the weights are made for",
    ),
    "deep inside": (
        lambda: NET.apply(
            weights(NET, (6, 6, 1))[0] | {"1.body.1.weight": f(4, 3, 3, 5)}, {}, f(2, 6, 6, 1), Run(ops.standard)
        ),
        "layer 1, layer body, layer 1 (Conv2D(4, 3, padding='same')): conv: x has 4 channels",
    ),
    "kernel larger than the image": (
        lambda: NET.shape((2, 2, 1)),
        "layer 0 (Conv2D(4, 3)): conv: a window of (3, 3) is larger than its input of (2, 2) on spatial axis 0; use a",
    ),
    "too many pools": (
        lambda: Sequential([MaxPool2D(2), Sequential([MaxPool2D(2), MaxPool2D(2)])]).init((6, 6, 1), Stream(0, "")),
        "layer 1, layer 1 (MaxPool2D(2)): pool: a window of (2, 2) is larger than its input of (1, 1)",
    ),
    "integers": (
        lambda: apply(NET, f(2, 6, 6, 1).astype(int)),
        "layer 0 (Conv2D(4, 3)): conv: x has dtype int64; layers",
    ),
    "two dtypes": (
        lambda: apply(NET, f(2, 6, 6, 1).astype("float64")),
        "conv: x has dtype float64, but weight has float32",
    ),
    "no channels": (
        lambda: NET.shape((6, 6)),
        "expected samples of shape (H, W, C), came (6, 6); add a channel axis: images",
    ),
    "flat": (lambda: Conv2D(4, 3).shape((36,)), "came (36,); spatial layers come before Flatten and Dense"),
    "no channels in sequences": (lambda: Conv1D(4, 3).shape((6,)), "expected samples of shape (length, C), came (6,)"),
    "image for 1-d": (lambda: Conv1D(4, 3).shape((6, 6, 1)), "expected samples of shape (length, C), came (6, 6, 1)"),
    "image for 3-d": (lambda: Conv3D(4, 3).shape((6, 6, 1)), "expected samples of shape (D, H, W, C), came (6, 6, 1)"),
    "pool of rows": (lambda: MaxPool2D(2).shape((6, 6)), "expected samples of shape (H, W, C)"),
    "global pool of rows": (lambda: GlobalAvgPool().shape((6,)), "expected samples of shape (*spatial, C), came (6,)"),
    "single numbers": (lambda: Dense(3).shape(()), "came single numbers; add an axis: x[:, None]"),
    "Conv after Flatten": (
        lambda: apply(Sequential([Flatten(), Conv2D(3, 2)]), f(2, 3, 3, 1)),
        "layer 1 (Conv2D(3, 2))",
    ),
    "Residual: shape": (
        lambda: Residual(Conv2D(3, 3)).shape((5, 5, 3)),
        "the body makes (3, 3, 3) of (5, 5, 3), but the shortcut (5, 5, 3): they cannot be added; give the body",
    ),
    "Residual: shortcut": (
        lambda: Sequential([Dense(3), Residual(Dense(4), Dense(3))]).shape((2,)),
        "layer 1: the body makes (4,) of (3,), but the shortcut (3,)",
    ),
    "Residual: apply": (lambda: apply(Residual(Conv2D(3, 3)), f(2, 5, 5, 3)), "the body makes (3, 3, 3) of (5, 5, 3)"),
    "Residual: what would broadcast": (
        lambda: apply(Residual(Conv2D(3, 5)), f(2, 5, 5, 3)),
        "the body makes (1, 1, 3) of (5, 5, 3), but the shortcut (5, 5, 3)",
    ),
    "Parallel: shape": (
        lambda: Parallel(Conv2D(1, 1), Conv2D(1, 2)).shape((4, 4, 1)),
        "the branches make (4, 4, 1), (3, 3, 1) of (4, 4, 1): all sizes but the channels must agree",
    ),
    "Parallel: apply": (
        lambda: apply(Parallel(Conv2D(1, 1), Conv2D(1, 2)), f(2, 4, 4, 1)),
        "all sizes but the channels",
    ),
    "initializer": (
        lambda: Dense(3, initializer="xavier"),
        "initializer='xavier'; expected one of he_uniform, he_normal, glorot_uniform, glorot_normal",
    ),
    "initializer of a conv": (lambda: Conv2D(3, 3, initializer="he"), "initializer='he'; expected one of he_uniform"),
    "initializer of a conv transpose": (lambda: ConvTranspose2D(3, 3, initializer="he"), "initializer='he'"),
    "Dropout(1)": (lambda: Dropout(1.0), "Dropout: rate=1.0; expected the probability to drop a value, 0 ≤ rate < 1"),
    "Dropout without its mask": (
        lambda: apply(Dropout(0.5), f(2, 3), training=True),
        "training needs this layer's mask: hand in what draws() asks for",
    ),
    "Dropout(-1)": (lambda: Dropout(-0.1), "Dropout: rate=-0.1; expected"),
    "Dropout of no number": (lambda: Dropout("a"), "Dropout: rate='a'; expected the probability"),
    "slope": (lambda: LeakyReLU("a"), "LeakyReLU: slope='a'; expected a number"),
    "alpha": (lambda: ELU(float("inf")), "ELU: alpha=inf; expected a number"),
    "momentum": (lambda: BatchNorm(momentum=3), "BatchNorm: momentum=3; expected a number from 0 to 1"),
    "momentum below 0": (lambda: BatchNorm(-5), "BatchNorm: momentum=-5; expected a number from 0 to 1"),
    "epsilon": (lambda: BatchNorm(epsilon=-1), "BatchNorm: epsilon=-1; expected a number ≥ 0"),
    "epsilon of a layer": (lambda: LayerNorm(float("nan")), "LayerNorm: epsilon=nan; expected a number ≥ 0"),
    "epsilon of groups": (lambda: GroupNorm(2, True), "GroupNorm: epsilon=True; expected a number ≥ 0"),
    "GELU": (lambda: GELU("erf"), "GELU: approximate='erf'; expected 'none' or 'tanh'"),
    "no channels to make": (lambda: Conv2D(0, 3), "Conv2D: channels=0; expected a positive integer"),
    "no kernel": (lambda: Conv2D(3, (3, 0)), "Conv2D: kernel=(3, 0); expected a positive integer"),
    "half a kernel": (lambda: Conv2D(3, 2.5), "Conv2D: kernel=2.5; expected a positive integer"),
    "a true kernel": (lambda: Conv2D(3, True), "Conv2D: kernel=True; expected a positive integer"),
    "backwards": (lambda: Conv2D(3, 3, stride=-1), "Conv2D: stride=-1; expected a positive integer"),
    "no dilation": (
        lambda: ConvTranspose2D(3, 3, dilation=0),
        "ConvTranspose2D: dilation=0; expected a positive integer",
    ),
    "kernel for another number of axes": (
        lambda: Conv2D(3, (3, 3, 3)),
        "Conv2D: kernel=(3, 3, 3); expected an integer ≥ 1, or 2 of them, one a spatial axis",
    ),
    "stride for another number of axes": (lambda: Conv1D(3, 3, stride=(1, 1)), "Conv1D: stride=(1, 1); expected an"),
    "window for another number of axes": (lambda: MaxPool2D((2,)), "MaxPool2D: window=(2,); expected an integer ≥ 1"),
    "pool stride for another number of axes": (lambda: AvgPool2D(2, (2,)), "AvgPool2D: stride=(2,); expected an"),
    "output padding": (lambda: ConvTranspose2D(3, 3, output_padding=-1), "output_padding=-1; expected an integer ≥ 0"),
    "groups and channels": (lambda: Conv2D(3, 3, groups=2), "groups=2 does not divide channels=3"),
    "groups and input": (
        lambda: Conv2D(4, 3, groups=2).shape((5, 5, 3)),
        "groups=2 does not divide the 3 channels of the in",
    ),
    "transposed groups and channels": (lambda: ConvTranspose2D(3, 3, groups=2), "groups=2 does not divide channels=3"),
    "transposed groups and input": (
        lambda: ConvTranspose2D(4, 3, groups=2).shape((5, 5, 3)),
        "groups=2 does not divide the 3 channels of the input",
    ),
    "padding": (lambda: Conv2D(4, 3, padding="full"), "Conv2D: padding='full'; expected 'valid', 'same'"),
    "padding below 0": (lambda: Conv2D(4, 3, padding=-1), "Conv2D: padding=-1; expected 'valid', 'same', an integer"),
    "padding without a window": (lambda: AvgPool2D(2, padding="full"), "AvgPool2D: padding='full'; expected 'valid'"),
    "padding of a pool": (
        lambda: Sequential([AvgPool2D(2, padding=2)]).shape((4, 4, 1)),
        "layer 0 (AvgPool2D(2, padding=2)): pool: padding ((2, 2), (2, 2)) is more than half the window (2, 2)",
    ),
    "no window": (lambda: MaxPool2D(0), "MaxPool2D: window=0; expected a positive integer"),
    "no stride": (lambda: MaxPool2D(2, stride=0), "MaxPool2D: stride=0; expected a positive integer"),
    "no units": (lambda: Dense(0), "Dense: units=0; expected a positive integer"),
    "units of another kind": (lambda: Dense("3"), "Dense: units='3'; expected a positive integer"),
    "Reshape: size": (
        lambda: Reshape((3, 2)).shape((4,)),
        "samples of shape (4,) hold 4 values, which do not fill (3, 2)",
    ),
    "Reshape: remainder": (lambda: Reshape((3, -1)).shape((4,)), "do not fill (3, -1)"),
    "Reshape: two holes": (lambda: Reshape((-1, -1)).shape((4,)), "do not fill (-1, -1)"),
    "Reshape: nothing": (lambda: Reshape((0,)).shape((4,)), "do not fill (0,)"),
    "Reshape: a number": (lambda: Reshape(4), "Reshape: target=4; expected a tuple of sizes, e.g. (7, 7, 16)"),
    "GroupNorm: none": (lambda: GroupNorm(0), "GroupNorm: groups=0; expected a positive integer"),
    "GroupNorm: channels": (lambda: GroupNorm(3).shape((4,)), "groups=3 does not divide the 4 channels of the input"),
    "BatchNorm: one value": (
        lambda: apply(Sequential([Dense(3), BatchNorm()]), f(1, 3), training=True),
        "layer 1 (BatchNorm()): batch_norm: the batch has 1 value(s) a channel",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_message(call, message):
    with pytest.raises(ShapeError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequential([Flatten(), ReLU]), "Sequential takes a list of layers; came .*ReLU.*call it: ReLU"),
        (lambda: Sequential(Flatten(), Dense(3)), r"Sequential takes a list of layers, Sequential\(\[…\]\); came 2"),
        (lambda: Sequential(ReLU), "Sequential takes a list of layers; came .*ReLU"),
        (lambda: Sequential(ReLU()), r"Sequential takes a list of layers; came ReLU\(\)"),
        (lambda: Sequential([ReLU(), 3]), "Sequential takes a list of layers; came 3"),
        (lambda: Residual(ReLU), "Residual takes a layer.*came .*call it: ReLU"),
        (lambda: Residual([ReLU()]), r"Residual takes a layer, or Sequential\(.*came \(ReLU\(\),\)"),
        (lambda: Residual(ReLU(), Dense), "Residual takes a layer.*call it: Dense"),
        (lambda: Parallel(), "Parallel takes one or more layers; came none"),
        (lambda: Parallel([ReLU()]), r"Parallel takes layers, each as an argument of its own; came \[ReLU\(\)\]"),
        (lambda: Parallel(ReLU(), ReLU), "Parallel takes layers.*call it: ReLU"),
    ],
)
def test_containers_take_layers(make, message):
    with pytest.raises(TypeError, match=message):
        make()


SAME = "give the body padding='same', so that strides alone change its sizes"
ALSO = SAME + ", and a shortcut of the same strides and channels"
SHORTCUT = "give a shortcut that makes the same of it, e.g. shortcut="


@pytest.mark.parametrize(
    ("block", "in_shape", "advice"),
    [
        (Residual(Conv2D(8, 3)), (8, 8, 8), SAME),
        (Residual(Sequential([Conv2D(8, 3)]), Conv2D(8, 1)), (8, 8, 8), SAME),
        (Residual(Conv2D(4, 3)), (8, 8, 8), ALSO),
        (Residual(Conv2D(4, 3, padding="same")), (8, 8, 8), f"{SHORTCUT}Conv2D(4, 1)"),
        (Residual(Sequential([MaxPool2D(2)])), (7, 8, 4), f"{SHORTCUT}Conv2D(4, 1, stride=(3, 2))"),
        (Residual(Conv2D(8, 3, 2)), (16, 16, 8), ALSO),
        (Residual(Conv2D(8, 3, 2, padding=1)), (8, 8, 8), f"{SHORTCUT}Conv2D(8, 1, stride=2)"),
        (Residual(Conv1D(8, 3, 2, padding=1)), (7, 4), f"{SHORTCUT}Conv1D(8, 1, stride=2)"),
        (Residual(Dense(3)), (4,), f"{SHORTCUT}Dense(3)"),
        (Residual(Flatten()), (2, 2, 1), "let the body keep the axes of its input"),
        (Residual(ReLU(), Dense(3)), (4,), "leave the shortcut out"),
    ],
    ids=lambda value: repr(value) if isinstance(value, Residual) else "",
)
def test_what_brings_body_and_shortcut_together(block, in_shape, advice):
    with pytest.raises(ShapeError, match=re.escape(f"they cannot be added; {advice}") + "$"):
        block.shape(in_shape)


def test_arrays_of_two_backends():
    strict = pytest.importorskip("array_api_strict")
    arrays, _ = weights(NET, (6, 6, 1))
    image, other = f(2, 6, 6, 1), strict.asarray(arrays["1.body.1.weight"])
    remedy = re.escape("nothing is moved silently: bring both to one backend with backend.asarray(...)")
    with pytest.raises(MixedBackendsError, match=r"^layer 0 \(Conv2D\(4, 3\)\): conv: x is .*strict, .*" + remedy):
        NET.apply(arrays, {}, strict.asarray(image), Run(ops.standard))
    where = re.escape(
        "layer 1, layer body, layer 1 (Conv2D(4, 3, padding='same')): conv: x is an array of numpy, but weight"
    )
    with pytest.raises(MixedBackendsError, match=f"^{where}.*{remedy}"):
        NET.apply(arrays | {"1.body.1.weight": other}, {}, image, Run(ops.standard))
