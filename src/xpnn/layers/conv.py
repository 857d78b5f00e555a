"""Convolution layers over one, two or three spatial axes: one class, named thrice."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from xpnn.errors import ShapeError
from xpnn.layers import initializers
from xpnn.layers.base import Applied, Arrays, Layer, Run, Shape, check_axes, check_window, own_name, positive
from xpnn.ops._array import Array
from xpnn.ops._window import Padding, Sizes, each, window
from xpnn.ops.convolution import transposed_window
from xpnn.random import Stream


@dataclass(frozen=True, repr=False)
class Conv(Layer):
    """Convolution: `(N, *spatial, C) → (N, *out, channels)`.

    Weights: `weight (channels, *kernel, C / groups)` and, with `bias`, `bias (channels,)`.

    Args:
        channels: number of kernels, the channels of the output.
        kernel: size of the kernels, an integer or one for each spatial axis.
        stride, dilation: steps of the window, and between its taps, likewise.
        padding: `"valid"`, `"same"`, an integer, one for each axis, or (before, after) pairs.
        groups: cut the channels into groups that do not see each other (`groups=C`: depthwise).
        bias: whether to add one.
        initializer: of the kernels, a name of `xpnn.layers.initializers`, e.g. `"glorot_uniform"`.
    """

    channels: int
    kernel: Sizes
    stride: Sizes = 1
    padding: Padding = "valid"
    dilation: Sizes = 1
    groups: int = 1
    bias: bool = True
    initializer: str = "he_uniform"

    spatial: ClassVar[int]
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, channels=self.channels, groups=self.groups)
        sizes = {"kernel": self.kernel, "stride": self.stride, "dilation": self.dilation}
        check_window(self, self.spatial, self.padding, **sizes)
        initializers.check(self.initializer)
        if self.channels % self.groups:
            raise ShapeError(f"{self!r}: groups={self.groups} does not divide channels={self.channels}")

    def shape(self, in_shape: Shape) -> Shape:
        """`(*spatial, C) → (*out, channels)`."""
        check_axes(self, in_shape, self.spatial)
        _check_groups(in_shape[-1], self.groups)
        w = window("conv", in_shape[:-1], self.kernel, self.stride, self.padding, self.dilation)
        return (*w.out, self.channels)

    def multiply_adds(self, in_shape: Shape) -> int:
        """One for each tap, input channel of its group and output."""
        taps = prod(each("conv", "kernel", self.kernel, self.spatial))
        return prod(self.shape(in_shape)) * taps * (in_shape[-1] // self.groups)

    def init(self, in_shape: Shape, stream: Stream) -> tuple[dict[str, Any], dict[str, Any]]:
        """Kernels by the initialiser, a bias of zeros."""
        kernel, c = each("conv", "kernel", self.kernel, self.spatial), in_shape[-1] // self.groups
        fans = c * prod(kernel), self.channels // self.groups * prod(kernel)
        shape = (self.channels, *kernel, c)
        weight = initializers.draw(self.initializer, stream.child("weight"), shape, *fans, kernel)
        return {"weight": weight} | ({"bias": np.zeros(self.channels)} if self.bias else {}), {}

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.conv`."""
        y, op_backward = run.ops.conv(
            x, weights["weight"], weights.get("bias"),
            stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        return y, {}, weighted(op_backward)


@own_name
class Conv1D(Conv):
    """Convolution of sequences `(N, length, C) → (N, out, channels)`."""

    spatial = 1


@own_name
class Conv2D(Conv):
    """Convolution of images `(N, H, W, C) → (N, OH, OW, channels)`."""

    spatial = 2


@own_name
class Conv3D(Conv):
    """Convolution of volumes `(N, D, H, W, C) → (N, OD, OH, OW, channels)`."""

    spatial = 3


@dataclass(frozen=True, repr=False)
class ConvTranspose(Conv):
    """Transposed convolution, which enlarges: `(N, *spatial, C) → (N, *out, channels)`.

    Weights: `weight (C, *kernel, channels / groups)` and, with `bias`, `bias (channels,)`.

    Args:
        channels: the channels of the output.
        kernel, stride, dilation: those of the convolution that it transposes, integers or one for each spatial axis.
        padding: that of the convolution, `"valid"`, an integer, one for each axis, or (before, after) pairs; `"same"`
            multiplies sizes by the stride.
        groups: cut the channels into groups that do not see each other.
        bias: whether to add one.
        initializer: of the kernels, a name of `xpnn.layers.initializers`, e.g. `"glorot_uniform"`.
        output_padding: values added at the end of each output axis.
    """

    output_padding: Sizes = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        each(type(self).__name__, "output_padding", self.output_padding, self.spatial, least=0)

    def shape(self, in_shape: Shape) -> Shape:
        """`(*spatial, C) → (*out, channels)`."""
        check_axes(self, in_shape, self.spatial)
        _check_groups(in_shape[-1], self.groups)
        w = transposed_window(in_shape[:-1], self.kernel, self.stride, self.padding, self.output_padding, self.dilation)
        return (*w.n, self.channels)

    def multiply_adds(self, in_shape: Shape) -> int:
        """Those of the convolution that it transposes: one for each tap, output channel of its group and input."""
        taps = prod(each("conv_transpose", "kernel", self.kernel, self.spatial))
        return prod(in_shape) * taps * (self.channels // self.groups)

    def init(self, in_shape: Shape, stream: Stream) -> tuple[dict[str, Any], dict[str, Any]]:
        """Kernels by the initialiser, a bias of zeros."""
        kernel, c = each("conv_transpose", "kernel", self.kernel, self.spatial), in_shape[-1]
        out = self.channels // self.groups
        shape = (c, *kernel, out)
        fans = c // self.groups * prod(kernel), out * prod(kernel)
        weight = initializers.draw(self.initializer, stream.child("weight"), shape, *fans, kernel)
        return {"weight": weight} | ({"bias": np.zeros(self.channels)} if self.bias else {}), {}

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.conv_transpose`."""
        y, op_backward = run.ops.conv_transpose(
            x, weights["weight"], weights.get("bias"),
            stride=self.stride, padding=self.padding, output_padding=self.output_padding,
            dilation=self.dilation, groups=self.groups,
        )  # fmt: skip
        return y, {}, weighted(op_backward)


@own_name
class ConvTranspose1D(ConvTranspose):
    """Transposed convolution of sequences `(N, length, C) → (N, out, channels)`."""

    spatial = 1


@own_name
class ConvTranspose2D(ConvTranspose):
    """Transposed convolution of images `(N, H, W, C) → (N, OH, OW, channels)`."""

    spatial = 2


@own_name
class ConvTranspose3D(ConvTranspose):
    """Transposed convolution of volumes `(N, D, H, W, C) → (N, OD, OH, OW, channels)`."""

    spatial = 3


def weighted(op_backward: Any) -> Any:
    """The backward of a layer with `weight` and perhaps `bias` from that of its op."""

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx, dweight, dbias = op_backward(dy, input_gradient=input_gradient)
        return dx, {"weight": dweight} | ({} if dbias is None else {"bias": dbias})

    return backward


def _check_groups(channels: int, groups: int) -> None:
    if channels % groups:
        raise ShapeError(f"groups={groups} does not divide the {channels} channels of the input; choose a divisor")
