"""A convolution joined with what follows.

ReLU comes block by block; for a max-pool columns are gathered phase-major: one product, a tournament of whole arrays.
An average over few kernels of one channel is taken in bands (`_bands`), any other after the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import joined as standard
from xpnn.ops import unkept
from xpnn.ops._window import Padding, Sizes, Window
from xpnn.ops.convolution import geometry
from xpnn_numpy.kernels._bands import Bands, banded
from xpnn_numpy.kernels._planes import Planes
from xpnn_numpy.kernels._rows import Host, by_channel, empty, rectify, whole, zeros
from xpnn_numpy.kernels._taps import of_taps
from xpnn_numpy.kernels._windows import Block, pad
from xpnn_numpy.kernels.activation import of_tanh
from xpnn_numpy.kernels.convolution import (
    convolved,
    full,
    inner,
    of_columns,
    of_dy,
    of_responses,
    plain,
    suits,
    windows_of,
)

if TYPE_CHECKING:
    from xpnn.ops import Ops


def conv_relu(
    ops: Ops,
    x: Host,
    weight: Host,
    bias: Host | None = None,
    shortcut: Host | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Host, Callable[..., tuple[Host | None, Host, Host | None, Host | None]]]:
    """See `xpnn.ops.conv_relu`."""
    _, w = geometry("conv_relu", x, weight, bias, stride, padding, dilation)
    standard.check_shortcut(x, weight, shortcut, w)

    def finish(part: Host, block: Block) -> None:
        if shortcut is not None:
            np.add(part, shortcut[block], out=part)
        rectify(part, out=part)

    y, conv_backward = convolved(ops, x, weight, bias, w, finish, dense=False)
    summed = shortcut is not None  # of it nothing is kept

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None, Host | None]:
        d = np.multiply(dy, y > 0)
        return *conv_backward(d, input_gradient=input_gradient), d if summed else None

    return y, backward if ops.backward else unkept


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
    size = standard.pooled("conv_pool", w, pool).size
    x = whole(x)
    c_out = len(weight)
    windows = windows_of(x, w, c_out, size, backward=ops.backward)
    factor, y = ops.made(weight, windows.factor), empty((len(x), *windows.out, c_out), x)
    won: list[tuple[Block, list[Host]]] = []
    for block in windows.blocks(ops.column_bytes):
        part, columns = y[block], windows.gather(block)
        phases = windows.respond(columns, factor, empty((prod(size), *part.shape), x))
        if ops.backward:
            won.append((block, _tournament(phases, part)))
        else:
            np.maximum.reduce(phases, 0, out=part)
        del columns, phases  # so that those of the next block are in the same memory, which is in the cache
    if bias is not None:
        by_channel(np.add, y, bias, out=y, made=ops.made)
    if relu:
        rectify(y, out=y)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        d = np.multiply(dy, y > 0) if relu else whole(dy)
        dbias = None if bias is None else ops.total(d, tuple(range(d.ndim - 1)))
        by_block = [(block, _prizes(rounds, d[block], prod(size))) for block, rounds in won]
        if suits(w, len(x), x.shape[-1], c_out, prod(size) * prod(windows.out)):
            image = _unpooled(by_block, w, size, (len(x), c_out), x)
            none = ((0, 0),) * len(size)
            return *of_dy(ops, image, none, w, weight, input_gradient, x, dense=False), dbias
        dx = None
        if input_gradient:
            dx = of_responses(_laid_out(by_block, size), windows.for_shares(_kept(w, size)), weight)
        return dx, of_columns(plain(windows), by_block, weight), dbias

    return y, backward if ops.backward else unkept


def conv_avg_pool(
    ops: Ops,
    x: Host,
    weight: Host,
    bias: Host | None = None,
    *,
    pool: Sizes,
    activation: str,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]:
    """See `xpnn.ops.conv_avg_pool`; where it is not done in bands, it is the standard body itself."""
    if x.shape[-1:] == (1,):
        _, w = geometry("conv_avg_pool", x, weight, bias, stride, padding, dilation)
        size, tanh = standard.pooled("conv_avg_pool", w, pool).size, standard.checked(activation) == "tanh"
        if banded(w, size, len(x), len(weight)):
            return _averaged(ops, x, weight, bias, w, size, tanh)
    return standard.conv_avg_pool(
        ops, x, weight, bias, pool=pool, activation=activation, stride=stride, padding=padding, dilation=dilation
    )


def _averaged(
    ops: Ops, x: Host, weight: Host, bias: Host | None, w: Window, size: tuple[int, ...], tanh: bool
) -> tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]:
    """A convolution of one channel, activation and average, in bands."""
    planes, bands = Planes(pad(whole(x), w.pads), w, size), ops.made(weight, Bands, w, size)
    n, places, c_out = len(x), prod(size), len(weight)
    y, done = empty((n, *bands.out, c_out), x), list[tuple[Block, Host, Host]]()
    for block in bands.blocks(n, ops.column_bytes):
        seen = planes.seen(block).reshape(prod(bands.reach), -1)
        active = bands.respond(seen)
        if bias is not None:
            np.add(active, bias[:, None], out=active)
        if tanh:
            np.tanh(active, out=active)
        else:
            rectify(active, out=active)
        np.divide(np.add.reduce(active, 0), places, out=y[block].reshape(-1, c_out).T)
        if ops.backward:
            done.append((block, seen, active))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        dy, dfactors, dbiases, by_block = whole(dy), [], [], []
        for block, seen, active in done:
            d = np.divide(dy[block].reshape(-1, c_out).T, places, out=np.empty_like(active[0]))
            d = of_tanh(active, d) if tanh else np.multiply(d, active > 0)
            dfactors.append(bands.across(seen, d))
            dbiases.append(np.add.reduce(d, (0, 2)))
            if input_gradient:
                by_block.append((block, bands.in_order(d, block)))
        dx = of_taps(_laid_out(by_block, size), _kept(w, size), weight, n)[inner(w)] if input_gradient else None
        dbias = None if bias is None else reduce(np.add, dbiases)
        return dx, bands.of_factor(reduce(np.add, dfactors)), dbias

    return y, backward if ops.backward else unkept


def _tournament(phases: Host, y: Host) -> list[Host]:
    """Fill `y` with the maxima over the phases; returns of each round who won.

    The responses themselves, which take eight times as much, are not.
    """
    rounds, a = list[Host](), phases
    for players in _rounds(len(phases)):
        games, odd = divmod(players, 2)
        winners = y[None] if players == 2 else empty((games + odd, *y.shape), y)
        left, right = a[: 2 * games : 2], a[1 : 2 * games : 2]
        np.maximum(left, right, out=winners[:games])
        rounds.append(left >= right)
        if odd:
            winners[-1] = a[-1]  # without an opponent
        a = winners
    if len(phases) == 1:
        y[...] = phases[0]
    return rounds


def _prizes(rounds: list[Host], d: Host, phases: int) -> Host:
    """The gradient of each phase from that of the maximum: the tournament backwards."""
    prizes = d[None]
    for players, won in zip(reversed(_rounds(phases)), reversed(rounds), strict=True):
        games, shared = players // 2, empty((players, *d.shape), d)
        left, right = shared[: 2 * games : 2], shared[1 : 2 * games : 2]
        np.multiply(prizes[:games], won, out=left)
        np.subtract(prizes[:games], left, out=right)
        if players % 2:
            shared[-1] = prizes[-1]
        prizes = shared
    return prizes


@lru_cache(maxsize=4096)
def _rounds(phases: int) -> tuple[int, ...]:
    """How many play in each round."""
    return () if phases == 1 else (phases, *_rounds(-(-phases // 2)))


@lru_cache(maxsize=4096)
def _kept(w: Window, size: tuple[int, ...]) -> Window:
    """The windows whose responses a pool does not drop."""
    out = tuple(m // p * p for m, p in zip(w.out, size, strict=True))
    return Window(w.n, w.size, w.stride, w.dilation, w.pads, out)


def _laid_out(by_block: list[tuple[Block, Host]], size: tuple[int, ...]) -> Iterator[tuple[Block, Host]]:
    """Blocks of responses, each phase `(N, *out, C_out)` at its places."""
    for (samples, lines), d in by_block:
        ends = (m * p for m, p in zip(d.shape[2:-1], size, strict=True))
        responses = empty((d.shape[1], *ends, d.shape[-1]), d)
        for phase, place in zip(d, np.ndindex(*size), strict=True):
            responses[(slice(None), *(slice(a, None, p) for a, p in zip(place, size, strict=True)))] = phase
        yield (samples, slice(lines.start * size[0], lines.stop * size[0])), responses


def _unpooled(
    by_block: list[tuple[Block, Host]], w: Window, size: tuple[int, ...], ends: tuple[int, int], like: Host
) -> Host:
    """The gradient of the responses with its full padding, zero where the pool dropped one."""
    pads, (n, c_out) = full(w), ends
    image = zeros((n, *(m + a + b for m, (a, b) in zip(w.out, pads, strict=True)), c_out), like)
    kept = image[(slice(None), *(slice(a, a + m) for m, (a, _) in zip(_kept(w, size).out, pads, strict=True)))]
    for block, responses in _laid_out(by_block, size):
        kept[block] = responses
    return image
