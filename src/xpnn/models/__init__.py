"""Named networks: `get("lenet5")` gives a description, ready to train."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from xpnn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Layer,
    MaxPool2D,
    ReLU,
    Residual,
    Sequential,
    Tanh,
)


def article(classes: int = 10) -> Sequential:
    """The tutorial's network: 16 kernels of 3×3, max-pool 2, dense; no activation in between."""
    return Sequential([Conv2D(16, 3), MaxPool2D(2), Flatten(), Dense(classes)])


def tiny_cnn(classes: int = 10) -> Sequential:
    """Two convolutions, one pool of overlapping windows and dropout: for few images as small as the 8×8 digits."""
    return Sequential(
        [
            Conv2D(32, 3, padding="same", bias=False),
            BatchNorm(),
            ReLU(),
            Conv2D(32, 3, padding="same", bias=False),
            BatchNorm(),
            ReLU(),
            MaxPool2D(3, stride=2, padding=1),
            Dropout(0.5),
            Flatten(),
            Dense(classes),
        ]
    )


def small_cnn(classes: int = 10) -> Sequential:
    """Two rounds of convolution and pool, then two dense layers: for images of 28×28."""
    return Sequential(
        [
            Conv2D(32, 3),
            ReLU(),
            MaxPool2D(2),
            Conv2D(64, 3),
            ReLU(),
            MaxPool2D(2),
            Flatten(),
            Dense(128),
            ReLU(),
            Dense(classes),
        ]
    )


def deep_cnn(classes: int = 10) -> Sequential:
    """Six unpadded convolutions, 28×28 down to 2×2: deep and narrow (Simonyan, Zisserman, 2015), with batch norm.

    One pool, early: it leaves a quarter of the places, where the 3×3 convolutions are cheap. The norm comes after
    the pool, which commutes with it up to the sign of its scale. `examples/mnist.py` trains it to 0.9970 on MNIST.
    """

    def block(channels: int, kernel: int = 3, pool: bool = False) -> list[Layer]:
        conv = Conv2D(channels, kernel, bias=False)
        return [conv, *([MaxPool2D(2)] if pool else []), BatchNorm(), ReLU()]

    layers = block(32, 5, pool=True)
    for channels in (64, 64, 64, 128, 128):
        layers += block(channels)
    return Sequential([*layers, Flatten(), Dropout(0.3), Dense(classes)])


def lenet5(classes: int = 10) -> Sequential:
    """LeNet-5 for images of 28×28, padded to its 32×32 (LeCun et al., 1998), with plain averages as pools."""
    return Sequential(
        [
            Conv2D(6, 5, padding=2),
            Tanh(),
            AvgPool2D(2),
            Conv2D(16, 5),
            Tanh(),
            AvgPool2D(2),
            Flatten(),
            Dense(120),
            Tanh(),
            Dense(84),
            Tanh(),
            Dense(classes),
        ]
    )


def resnet20(classes: int = 10) -> Sequential:
    """ResNet-20 for images of 32×32 (He et al., 2016), with 1×1 convolutions where a shortcut changes shape."""

    def conv(channels: int, kernel: int, stride: int = 1) -> Conv2D:
        return Conv2D(channels, kernel, stride=stride, padding=kernel // 2, bias=False)

    def block(channels: int, stride: int) -> list[Layer]:
        body = [conv(channels, 3, stride), BatchNorm(), ReLU(), conv(channels, 3), BatchNorm()]
        shortcut = Sequential([conv(channels, 1, stride), BatchNorm()]) if stride > 1 else None
        return [Residual(Sequential(body), shortcut), ReLU()]

    layers: list[Layer] = [conv(16, 3), BatchNorm(), ReLU()]
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        layers += block(channels, stride) + block(channels, 1) + block(channels, 1)
    return Sequential([*layers, GlobalAvgPool(), Dense(classes)])


MODELS: dict[str, Callable[[int], Sequential]] = {
    "article": article,
    "tiny-cnn": tiny_cnn,
    "small-cnn": small_cnn,
    "deep-cnn": deep_cnn,
    "lenet5": lenet5,
    "resnet20": resnet20,
}


def get(name: str, classes: int = 10) -> Sequential:
    """A network by name.

    Args:
        name: one of `MODELS`.
        classes: number of outputs.

    Raises:
        ValueError: there is no such network.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}{hint}")
    return MODELS[name](classes)
