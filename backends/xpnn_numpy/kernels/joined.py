"""Convolution and max-pool joined: columns gathered phase-major, one product, a tournament of whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn.ops import joined as standard
from xpnn.ops._window import Padding, Sizes, Window
from xpnn.ops.convolution import geometry
from xpnn_numpy.kernels._rows import Host, along, rectify, rows
from xpnn_numpy.kernels.convolution import Block, Windows, full, inner, is_unit, of_dy, pad, suits

if TYPE_CHECKING:
    from xpnn.ops import Ops


def conv_pool(
    ops: Ops,
    x: Host,
    weight: Host,
    bias: Host | None = None,
    *,
    pool: Sizes,
    relu: bool = False,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]:
    """See `xpnn.ops.conv_pool`."""
    _, w = geometry("conv_pool", x, weight, bias, stride, padding, dilation)
    size = standard.pooled(w, pool).size
    x = np.ascontiguousarray(x)
    windows, matrix, c_out = Windows(pad(x, w.pads), w, size), weight.reshape(len(weight), -1), len(weight)
    y = np.empty((len(x), *windows.out, c_out), x.dtype)
    rounds: list[tuple[Block, standard.Levels]] = []
    for block in windows.blocks(ops.column_bytes):
        part = y[block]
        responses = (windows.gather(block) @ matrix.T).reshape(-1, *part.shape)
        levels = standard.tournament(np.maximum, list(responses))
        rounds.append((block, levels))
        part[...] = levels[-1][0]
    if bias is not None:
        np.add(rows(y), along(y, bias), out=rows(y))
    if relu:
        rectify(y, out=y)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        d = np.multiply(dy, y > 0) if relu else np.ascontiguousarray(dy)
        dbias = None if bias is None else ops.total(d, tuple(range(d.ndim - 1)))
        by_block = [(block, _prizes(levels, d[block])) for block, levels in rounds]
        dx, dweight, by_dy = None, None, suits(w, weight, prod(size) * prod(windows.out))
        if by_dy or (input_gradient and is_unit(w)):
            image = _unpooled(by_block, w, size, (len(x), c_out), x.dtype)
            dx, dweight = of_dy(ops, image, w, weight, input_gradient, x if by_dy else None)
        elif input_gradient:
            dx = windows.scattered(by_block, matrix)[inner(w)]
        return dx, windows.weight_gradient(by_block, weight) if dweight is None else dweight, dbias

    return y, backward


def _prizes(levels: standard.Levels, d: Host) -> Host:
    """The gradient of each phase, `(phases, …)`, from that of the maximum."""
    prizes = d[None]
    for level in reversed(levels[:-1]):
        shared = np.empty((len(level), *d.shape), d.dtype)
        for i in range(len(level) // 2):
            np.multiply(prizes[i], level[2 * i] >= level[2 * i + 1], out=shared[2 * i])
            np.subtract(prizes[i], shared[2 * i], out=shared[2 * i + 1])
        if len(level) % 2:  # the last had no opponent
            shared[-1] = prizes[-1]
        prizes = shared
    return prizes


def _unpooled(
    by_block: list[tuple[Block, Host]], w: Window, size: tuple[int, ...], ends: tuple[int, int], dtype: Any
) -> Host:
    """The gradient of the responses with its full padding, zero where the pool dropped one."""
    pads, (n, c_out) = full(w), ends
    image = np.zeros((n, *(m + a + b for m, (a, b) in zip(w.out, pads, strict=True)), c_out), dtype)
    responses = image[(slice(None), *(slice(a, a + m) for m, (a, _) in zip(w.out, pads, strict=True)))]
    for phase, place in enumerate(np.ndindex(*size)):
        at = tuple(slice(a, m // p * p, p) for a, p, m in zip(place, size, w.out, strict=True))
        under = responses[(slice(None), *at)]
        for block, d in by_block:
            under[block] = d[phase]
    return image
