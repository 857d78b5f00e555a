"""Pooling layers over one, two or three spatial axes; they have no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xpnn.errors import ShapeError
from xpnn.layers.base import Applied, Arrays, Layer, Run, Shape, check_axes, check_window, own_name
from xpnn.ops._array import Array
from xpnn.ops._window import Padding, Sizes
from xpnn.ops.pool import pool_window


@dataclass(frozen=True, repr=False)
class MaxPool(Layer):
    """The maximum of each window: `(N, *spatial, C) → (N, *out, C)`; the first maximum gets the gradient.

    Args:
        window: its size, an integer or one for each spatial axis.
        stride: likewise; default: the window, so that windows do not overlap.
        padding: `"valid"`, `"same"`, an integer, one for each axis, or (before, after) pairs; at most half the window,
            and it never wins.
        dilation: distance between the taps of a window.
        ceil_mode: keep a last window that hangs over the end.
    """

    window: Sizes
    stride: Sizes | None = None
    padding: Padding = "valid"
    dilation: Sizes = 1
    ceil_mode: bool = False

    spatial: ClassVar[int]
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        stride = self.window if self.stride is None else self.stride
        check_window(self, self.spatial, self.padding, window=self.window, stride=stride, dilation=self.dilation)

    def shape(self, in_shape: Shape) -> Shape:
        """`(*spatial, C) → (*out, C)`."""
        check_axes(self, in_shape, self.spatial)
        w = pool_window("pool", in_shape[:-1], self.window, self.stride, self.padding, self.dilation, self.ceil_mode)
        return (*w.out, in_shape[-1])

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.max_pool`."""
        y, op_backward = run.ops.max_pool(
            x, window=self.window, stride=self.stride, padding=self.padding, dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )  # fmt: skip
        return y, {}, unweighted(op_backward)


@own_name
class MaxPool1D(MaxPool):
    """Max-pooling of sequences `(N, length, C) → (N, out, C)`; the first maximum gets the gradient."""

    spatial = 1


@own_name
class MaxPool2D(MaxPool):
    """Max-pooling of images `(N, H, W, C) → (N, OH, OW, C)`; the first maximum gets the gradient."""

    spatial = 2


@own_name
class MaxPool3D(MaxPool):
    """Max-pooling of volumes `(N, D, H, W, C) → (N, OD, OH, OW, C)`; the first maximum gets the gradient."""

    spatial = 3


@dataclass(frozen=True, repr=False)
class AvgPool(MaxPool):
    """The mean of each window: `(N, *spatial, C) → (N, *out, C)`.

    Args:
        window: its size, an integer or one for each spatial axis.
        stride: likewise; default: the window, so that windows do not overlap.
        padding: `"valid"`, `"same"`, an integer, one for each axis, or (before, after) pairs; at most half the window.
        dilation: distance between the taps of a window.
        ceil_mode: keep a last window that hangs over the end.
        count_include_pad: whether zeros of the padding count in the mean.
    """

    count_include_pad: bool = True

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.avg_pool`."""
        y, op_backward = run.ops.avg_pool(
            x, window=self.window, stride=self.stride, padding=self.padding, dilation=self.dilation,
            ceil_mode=self.ceil_mode, count_include_pad=self.count_include_pad,
        )  # fmt: skip
        return y, {}, unweighted(op_backward)


@own_name
class AvgPool1D(AvgPool):
    """Average-pooling of sequences `(N, length, C) → (N, out, C)`."""

    spatial = 1


@own_name
class AvgPool2D(AvgPool):
    """Average-pooling of images `(N, H, W, C) → (N, OH, OW, C)`."""

    spatial = 2


@own_name
class AvgPool3D(AvgPool):
    """Average-pooling of volumes `(N, D, H, W, C) → (N, OD, OH, OW, C)`."""

    spatial = 3


@dataclass(frozen=True, repr=False)
class GlobalMaxPool(Layer):
    """The maximum over all spatial axes, of any number: `(N, *spatial, C) → (N, C)`."""

    per_sample: ClassVar[bool] = True
    op: ClassVar[str] = "global_max_pool"

    def shape(self, in_shape: Shape) -> Shape:
        """`(*spatial, C) → (C,)`."""
        if len(in_shape) < 2:
            raise ShapeError(f"expected samples of shape (*spatial, C), came {in_shape}; it comes before Flatten")
        return in_shape[-1:]

    def multiply_adds(self, in_shape: Shape) -> int:
        """0 by convention, see `Layer`."""
        return 0

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See the op of that name in `xpnn.ops`."""
        y, op_backward = getattr(run.ops, self.op)(x)
        return y, {}, unweighted(op_backward)


@dataclass(frozen=True, repr=False)
class GlobalAvgPool(GlobalMaxPool):
    """The mean over all spatial axes, of any number: `(N, *spatial, C) → (N, C)` (Lin, Chen, Yan, 2014)."""

    op: ClassVar[str] = "global_avg_pool"


def unweighted(op_backward: Any) -> Any:
    """The backward of a layer without weights from that of its op."""

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return op_backward(dy, input_gradient=input_gradient)[0], {}

    return backward
