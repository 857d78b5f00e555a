"""Convolution and max-pool joined: the pooled maxima without an image of all the responses in between.

The windows of the pool tile the responses, so each place in the window (a *phase*) is a convolution by itself,
with the stride of both. The maximum over a window is then one of whole arrays, phase against phase, as in a
tournament; bias and ReLU, which keep the order, follow on the winners alone, and responses that the pool would
drop are never computed. Backward runs the tournament down again: the gradient goes to the winner of each
game, the earlier phase where both are equal, so the first maximum gets it all.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

import array_api_extra as xpx

from xpnn.ops._array import Array
from xpnn.ops._window import Padding, Sizes, Window, each
from xpnn.ops.convolution import cropped, geometry, padded
from xpnn.ops.pool import pool_window

if TYPE_CHECKING:
    from xpnn.ops import Ops

Levels = list[list[Array]]


def conv_pool(
    ops: Ops,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    pool: Sizes,
    relu: bool = False,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None]]]:
    """`max_pool(conv(x, weight) + bias)`, and ReLU after it (or between, which is the same) where `relu`.

    Args:
        x: `(N, *spatial, C)`.
        weight: `(C_out, *kernel, C)`.
        bias: `(C_out,)` or None.
        pool: the window of the pool, which is also its stride; what is left over at the end is dropped.
        relu: whether ReLU follows.
        stride, padding, dilation: of the convolution.

    Returns:
        `y (N, *pooled, C_out)` and `backward(dy, *, input_gradient=True) → dx, dweight, dbias`.

    Raises:
        ShapeError: shapes or dtypes that do not fit, or a window larger than the responses.
    """
    xp, w = geometry("conv_pool", x, weight, bias, stride, padding, dilation)
    phases = _phases(w, pool)
    image = padded(xp, x, w)
    step = tuple(s * p for s, p in zip(w.stride, each("conv_pool", "pool", pool, len(w.n)), strict=True))
    parts = [ops.conv(image[part], weight, stride=step, dilation=w.dilation) for part in phases]
    levels = tournament(xp.maximum, [y for y, _ in parts])
    y = levels[-1][0]
    if bias is not None:
        y = y + bias
    if relu:
        y = ops.relu(y)[0]

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array | None]:
        d = dy * xp.astype(y > 0, dy.dtype) if relu else dy
        dweight, dimage = xp.zeros_like(weight), xp.zeros_like(image) if input_gradient else None
        for part, (_, part_backward), dpart in zip(phases, parts, _prizes(xp, levels, d), strict=True):
            dx, dw, _ = part_backward(dpart, input_gradient=input_gradient)
            dweight = dweight + dw
            if input_gradient:
                dimage = xpx.at(dimage)[part].add(dx)
        dbias = None if bias is None else ops.total(d, tuple(range(d.ndim - 1)))
        return (cropped(dimage, w) if input_gradient else None), dweight, dbias

    return y, backward


def tournament(maximum: Callable[[Array, Array], Array], phases: list[Array]) -> Levels:
    """The rounds of a knock-out between neighbours: first the phases, at the end the maximum alone."""
    levels = [phases]
    while len(levels[-1]) > 1:
        games = zip(levels[-1][::2], levels[-1][1::2], strict=False)
        bye = levels[-1][len(levels[-1]) // 2 * 2 :]
        levels.append([maximum(a, b) for a, b in games] + bye)
    return levels


def pooled(w: Window, pool: Sizes) -> Window:
    """The checked windows of a pool over the responses of `w`."""
    return pool_window("conv_pool", w.out, pool, None, "valid", 1, False)


def _phases(w: Window, pool: Sizes) -> list[tuple[slice, ...]]:
    """For each place in the window of the pool, in row-major order, the part of the padded input that it sees."""
    p = pooled(w, pool)
    slices = [
        [slice(a * s, a * s + (out - 1) * s * size + d * (k - 1) + 1) for a in range(size)]
        for s, d, k, size, out in zip(w.stride, w.dilation, w.size, p.size, p.out, strict=True)
    ]
    return [(slice(None), *part, slice(None)) for part in product(*slices)]


def _prizes(xp: Any, levels: Levels, d: Array) -> list[Array]:
    """The gradient of each phase, from that of the maximum."""
    prizes = [d]
    for level in reversed(levels[:-1]):
        shared = []
        for i, prize in enumerate(prizes):
            if 2 * i + 1 == len(level):  # without an opponent
                shared.append(prize)
                continue
            a, b = level[2 * i], level[2 * i + 1]
            left = prize * xp.astype(a >= b, prize.dtype)
            shared += [left, prize - left]
        prizes = shared
    return prizes
