"""Convolution whose input gradient is one more convolution, where that moves fewer columns than to add them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xpnn.ops import convolution as standard
from xpnn.ops._array import Array
from xpnn.ops._window import Padding, Sizes, Window

if TYPE_CHECKING:
    from xpnn.ops import Ops


def conv(
    ops: Ops,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    groups: int = 1,
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None]]]:
    """See `xpnn.ops.conv`."""
    xp, w = standard.geometry("conv", x, weight, bias, stride, padding, dilation, groups)
    y, columns_backward = standard.conv(
        ops, x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    pads = _full(w)
    if groups > 1 or max(w.stride) > 1 or len(weight) > x.shape[-1] or min(map(min, pads)) < 0:
        return y, columns_backward

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array | None]:
        _, dweight, dbias = columns_backward(dy, input_gradient=False)
        if not input_gradient:
            return None, dweight, dbias
        axes = tuple(range(1, weight.ndim - 1))
        turned = xp.permute_dims(xp.flip(weight, axis=axes), (weight.ndim - 1, *axes, 0))
        return standard.conv(ops, dy, turned, padding=pads, dilation=w.dilation)[0], dweight, dbias

    return y, backward


def _full(w: Window) -> tuple[tuple[int, int], ...]:
    """The padding with which every window of a convolution that steps by one sees the gradient of its output."""
    spans = (d * (k - 1) for k, d in zip(w.size, w.dilation, strict=True))
    return tuple((span - before, span - after) for span, (before, after) in zip(spans, w.pads, strict=True))
