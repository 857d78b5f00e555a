"""Normalisation layers; `weight` scales and `bias` shifts each channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xpnn.errors import ShapeError
from xpnn.layers.base import Applied, Arrays, Layer, Run, Shape, number, positive
from xpnn.ops._array import Array
from xpnn.random import Stream


@dataclass(frozen=True, repr=False)
class BatchNorm(Layer):
    """Normalise each channel over the batch and all spatial axes; any shape with channels last.

    Weights: `weight (C,)`, `bias (C,)`. Statistics: `running_mean (C,)`, `running_var (C,)`, which
    prediction uses. In training the samples of a batch depend on each other.

    Args:
        momentum: weight of the batch in the new running statistics (PyTorch's sense), 0 … 1.
        epsilon: added to the variance.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    per_sample: ClassVar[bool] = False
    divisible: ClassVar[bool] = True  # its sums go through `ops.whole`
    relu: ClassVar[bool] = False  # a layer of its own follows, unless lowering joins the two

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, most=1, momentum=self.momentum)
        number(self, epsilon=self.epsilon)

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def init(self, in_shape: Shape, stream: Stream) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scale 1, shift 0, mean 0, variance 1."""
        c = in_shape[-1]
        return affine(c), {"running_mean": np.zeros(c), "running_var": np.ones(c)}

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.batch_norm`."""
        (y, mean, var), op_backward = run.ops.batch_norm(
            x, weights["weight"], weights["bias"], stats["running_mean"], stats["running_var"],
            training=run.training, momentum=self.momentum, epsilon=self.epsilon, relu=self.relu,
        )  # fmt: skip
        return y, {"running_mean": mean, "running_var": var}, scaled(op_backward)


@dataclass(frozen=True, repr=False)
class LayerNorm(Layer):
    """Normalise the last axis of each row by itself.

    Weights: `weight (C,)`, `bias (C,)`.

    Args:
        epsilon: added to the variance.
    """

    epsilon: float = 1e-5

    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, epsilon=self.epsilon)

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def init(self, in_shape: Shape, stream: Stream) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scale 1, shift 0."""
        return affine(in_shape[-1]), {}

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.layer_norm`."""
        y, op_backward = run.ops.layer_norm(x, weights["weight"], weights["bias"], epsilon=self.epsilon)
        return y, {}, scaled(op_backward)


@dataclass(frozen=True, repr=False)
class GroupNorm(Layer):
    """Normalise each sample over groups of channels and all spatial axes.

    Weights: `weight (C,)`, `bias (C,)`.

    Args:
        groups: number of groups the channels are cut into.
        epsilon: added to the variance.
    """

    groups: int
    epsilon: float = 1e-5

    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, groups=self.groups)
        number(self, epsilon=self.epsilon)

    def shape(self, in_shape: Shape) -> Shape:
        """That of the input, whose channels the groups must divide."""
        if in_shape[-1] % self.groups:
            raise ShapeError(f"groups={self.groups} does not divide the {in_shape[-1]} channels of the input")
        return in_shape

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def init(self, in_shape: Shape, stream: Stream) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scale 1, shift 0."""
        return affine(in_shape[-1]), {}

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.group_norm`."""
        y, op_backward = run.ops.group_norm(
            x, weights["weight"], weights["bias"], groups=self.groups, epsilon=self.epsilon
        )
        return y, {}, scaled(op_backward)


def affine(c: int) -> dict[str, Any]:
    """A scale of ones and a shift of zeros."""
    return {"weight": np.ones(c), "bias": np.zeros(c)}


def scaled(op_backward: Any) -> Any:
    """The backward of a normalisation layer from that of its op."""

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx, dscale, dbias, *_ = op_backward(dy, input_gradient=input_gradient)
        return dx, {"weight": dscale, "bias": dbias}

    return backward
