"""What is timed: steps of one network on one batch, the same for all sides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xpnn import models
from xpnn.layers import Sequential
from xpnn.layers.base import Layer, Shape
from xpnn.layers.conv import Conv
from xpnn.layers.pool import MaxPool
from xpnn.ops._window import Window, window
from xpnn.ops.pool import pool_window
from xpnn.random import Stream

LR, MOMENTUM = 1e-3, 0.9  # labels are random: larger steps overflow, which slows every side down
IMAGES = {"tiny-cnn": (8, 8, 1), "resnet20": (32, 32, 3)}


@dataclass(frozen=True)
class Work:
    """Steps of one network: forward, backward and update, or forward alone; float32, fed from memory."""

    model_name: str
    batch: int
    training: bool

    @property
    def mode(self) -> str:
        """The name of what is done, train or predict."""
        return "train" if self.training else "predict"

    def __str__(self) -> str:
        return f"{self.model_name}, batch {self.batch}, {self.mode}"

    @cached_property
    def model(self) -> Sequential:
        """The network's description."""
        return models.get(self.model_name)

    @cached_property
    def in_shape(self) -> Shape:
        """The shape of an image, (H, W, C)."""
        return IMAGES.get(self.model_name, (28, 28, 1))

    @cached_property
    def images(self) -> np.ndarray[Any, Any]:
        """`(batch, H, W, C)`."""
        return np.random.default_rng(0).random((self.batch, *self.in_shape), dtype=np.float32)

    @cached_property
    def labels(self) -> np.ndarray[Any, Any]:
        """`(batch,)`, at random."""
        return np.random.default_rng(1).integers(0, 10, self.batch)

    @cached_property
    def flops(self) -> int:
        """Twice the multiply-adds of convolutions and dense layers for an image; the rest is not counted.

        Training takes three times as many, for there are two gradients, less the gradient of the input.
        """
        counts = [layer.multiply_adds(shape) for _, layer, shape in self.model.walk(self.in_shape)]
        forward = [2 * count for count in counts if count]
        return 3 * sum(forward) - forward[0] if self.training else sum(forward)


def initial_arrays(model: Layer, in_shape: Shape, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """The weights and statistics that all sides begin with: those of a trainer."""
    weights, stats = model.init(in_shape, Stream(seed, "weights"))
    return {path: np.asarray(a, np.float32) for path, a in (weights | stats).items()}


def window_of(layer: Conv | MaxPool, in_shape: Shape) -> Window:
    """The window of a convolution or a pool, one number for each axis."""
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    if isinstance(layer, MaxPool):
        return pool_window("pool", in_shape[:-1], layer.window, stride, padding, dilation, layer.ceil_mode)
    return window("conv", in_shape[:-1], layer.kernel, stride or 1, padding, dilation)


def unknown(layer: Layer, library: str) -> NotImplementedError:
    """The error for a layer that a peer has no counterpart of."""
    return NotImplementedError(f"the peer in {library} has no {layer!r}; leave --against {library} out")
