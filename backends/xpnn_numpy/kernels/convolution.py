"""Convolution: columns (`_windows`, `_tiles`), products into place, and backward as a convolution of `dy`.

With stride 1 the gradient of the input is again a convolution: of `dy`, padded, with the kernel turned around. Where
`x` is no larger than the response and has not far fewer channels, the columns of `dy` are gathered too, and the same
columns against `x` make the gradient of the weights. Elsewhere that would be more work than the convolution itself,
and each tap's share is added up where it was read. See Dumoulin, Visin, 2016, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import convolution as standard
from xpnn.ops import unkept
from xpnn.ops._window import Padding, Pads, Sizes, Window
from xpnn_numpy.kernels._in_place import InPlace, seen_in_place
from xpnn_numpy.kernels._rows import Host, by_channel, empty, whole
from xpnn_numpy.kernels._squares import Squares, squared
from xpnn_numpy.kernels._taps import SHARE, of_taps
from xpnn_numpy.kernels._tiles import Tiles, tiled
from xpnn_numpy.kernels._windows import Block, Windows, pad
from xpnn_numpy.recording import unrecorded

if TYPE_CHECKING:
    from xpnn.ops import Ops

grouped = unrecorded(standard.conv)
SMALL = 1 << 12
"""Values of `dy`, as many as the input has places, of which columns take less time than such a call for each tap."""


def conv(
    ops: Ops,
    x: Host,
    weight: Host,
    bias: Host | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    groups: int = 1,
) -> tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]:
    """See `xpnn.ops.conv`; with groups it is the standard body itself."""
    if groups != 1:
        return grouped(ops, x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    _, w = standard.geometry("conv", x, weight, bias, stride, padding, dilation)
    return convolved(ops, x, weight, bias, w, lambda part, block: None, dense=bias is None)


def convolved(
    ops: Ops,
    x: Host,
    weight: Host,
    bias: Host | None,
    w: Window,
    finish: Callable[[Host, Block], None],
    *,
    dense: bool,
) -> tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]:
    """A convolution; `finish` does what follows to a block of responses. `dense`: where `dy` has few zeros."""
    x = whole(x)
    windows = windows_of(x, w, len(weight), backward=ops.backward)
    by_square = isinstance(windows, Tiles) and not ops.backward and squared(w, len(x), x.shape[-1], len(weight))
    seen = Squares(x, w) if by_square else windows
    factor, y = ops.made(weight, seen.factor), empty((len(x), *w.out, len(weight)), x)

    def biased(part: Host) -> None:
        if bias is not None:
            by_channel(np.add, part, bias, out=part, made=ops.made)

    for block in seen.blocks(ops.column_bytes):
        part = y[block]
        seen.respond(seen.gather(block), factor, part, biased)
        finish(part, block)
    by_dy = suits(w, len(x), x.shape[-1], len(weight), prod(w.out))
    kept = None if by_dy else windows  # a padded image beside each image would be half the memory of a network

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        dy = whole(dy)
        dbias = None if bias is None else ops.total(dy, tuple(range(dy.ndim - 1)))
        if kept is None:
            return *of_dy(ops, dy, full(w), w, weight, input_gradient, x, dense=dense), dbias
        same = kept if dense else plain(kept)
        dx = None
        if input_gradient:
            spread = kept.for_shares(w)
            dx = of_responses(cut(dy, spread, SHARE * ops.column_bytes), spread, weight)
        return dx, of_columns(same, cut(dy, same, ops.column_bytes), weight), dbias

    return y, backward if ops.backward else unkept


def windows_of(x: Host, w: Window, c_out: int, pool: tuple[int, ...] = (), *, backward: bool) -> Windows | Tiles:
    """The windows of an image: in tiles where that is quicker."""
    if tiled(w, pool, len(x), x.shape[-1], c_out, backward):
        return InPlace(x, w) if not pool and seen_in_place(w, c_out) else Tiles(x, w, pool)
    return Windows(pad(x, w.pads), w, pool, keep=backward)


def plain(windows: Windows | Tiles) -> Windows:
    """The windows without tiles, for the gradient of the weights where `dy` may be sparse (see `_tiles`)."""
    if not isinstance(windows, Tiles):
        return windows
    return Windows(pad(windows.image, windows.w.pads), windows.w, windows.pool)


def of_columns(windows: Windows | Tiles, dy: list[tuple[Block, Host]], weight: Host) -> Host:
    """The gradient of the weights, from those of blocks of responses."""
    dfactor = None
    for block, d in dy:
        part = windows.across(windows.gather(block), d)
        dfactor = part if dfactor is None else np.add(dfactor, part, out=dfactor)
    return np.zeros_like(weight) if dfactor is None else windows.of_factor(dfactor, weight.shape)


def of_responses(dy: Iterable[tuple[Block, Host]], windows: Windows | Tiles, weight: Host) -> Host:
    """The gradient of the input from those of blocks of responses, each tap's share added up where it was read."""
    if isinstance(windows, Tiles):
        return windows.spread(dy, weight)
    return of_taps(dy, windows.w, weight, len(windows.image))[inner(windows.w)]


def cut(dy: Host, windows: Windows | Tiles, column_bytes: int) -> list[tuple[Block, Host]]:
    """`dy` in blocks whose columns take so much."""
    return [(block, dy[block]) for block in windows.blocks(column_bytes)]


@lru_cache(maxsize=4096)
def suits(w: Window, n: int, channels: int, c_out: int, responses: int) -> bool:
    """Whether columns of `dy` are cheaper than those of the input, for they serve both gradients.

    There are more of them where the input is larger than the response, and they are longer where the input has fewer
    channels. Where `dy` is small neither counts beside a call of NumPy's for each tap.
    """
    of_stride_1 = set(w.stride) == {1} and all(min(pair) >= 0 for pair in full(w))  # no padding beyond a kernel's reach
    few = n * prod(w.n) * c_out <= SMALL
    return of_stride_1 and (few or 8 * prod(w.n) <= 9 * responses) and 4 * channels >= c_out


def of_dy(
    ops: Ops, dy: Host, pads: Pads, w: Window, weight: Host, wanted: bool, x: Host, *, dense: bool
) -> tuple[Host | None, Host]:
    """The gradients of the input (or None) and of the weights, from `dy` and its padding, which may have many zeros."""
    ones = (1,) * len(w.size)
    around_dy = Window(dy.shape[1:-1], w.size, ones, w.dilation, pads, w.n)
    windows = windows_of(dy, around_dy, x.shape[-1], backward=True)
    windows = windows if dense else plain(windows)
    around = (slice(None), *(slice(None, None, -1) for _ in ones))
    turned = whole(weight[around].swapaxes(0, -1))  # a kernel for each channel of x
    factor, dx, dfactor = windows.factor(turned), np.empty_like(x) if wanted else None, None
    for block in windows.blocks(ops.column_bytes):
        columns = windows.gather(block)
        if dx is not None:
            windows.respond(columns, factor, dx[block])
        part = windows.across(columns, x[block])
        dfactor = part if dfactor is None else np.add(dfactor, part, out=dfactor)
    if dfactor is None:
        return dx, np.zeros_like(weight)
    return dx, windows.of_factor(dfactor, turned.shape).swapaxes(0, -1)[around]


def full(w: Window) -> tuple[tuple[int, int], ...]:
    """The padding of `dy` with which its convolution has the size of `x`."""
    reach = [d * (k - 1) for d, k in zip(w.dilation, w.size, strict=True)]
    return tuple((r - a, r - b) for r, (a, b) in zip(reach, w.pads, strict=True))


def inner(w: Window) -> tuple[slice, ...]:
    """Where in the padded image the image itself lies."""
    return (slice(None), *(slice(a, a + m) for m, (a, _) in zip(w.n, w.pads, strict=True)))
