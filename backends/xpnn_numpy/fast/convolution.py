"""Convolution, alone or with ReLU or a pool behind it, in one compiled call forward and some backward.

Most of them are a product whose left factor is never made (`_product`); with many channels a kernel of 3 × 3 goes in
tiles (`_winograd`). What follows forward (maximum or mean, bias, a shortcut, activation) is done block by block, while
a block is in the cache. Of a max-pool only the place of each maximum is remembered. So only one response of a window
has a gradient at all, often (with ReLU) none: with many columns each of these is followed by itself (`_maxima`), in
runs of a kernel's row: a fraction of the products' work. With few, products are quicker all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from operator import floordiv
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xpnn.ops import convolution as standard
from xpnn.ops import joined, unkept
from xpnn.ops._window import Padding, Sizes, Window
from xpnn_numpy.fast import _planar, _windows, _winograd
from xpnn_numpy.fast._compiled import Host, compiled, fitting, plain, takes
from xpnn_numpy.fast._maxima import fold, follow
from xpnn_numpy.fast._product import BYTES, MOST, TILES, add_run, add_up, multiply, pack, packed, slack, tiled, unpack
from xpnn_numpy.fast._responses import LOSER, NO_GRID, average, averaged_back, offset, rectify, sum_and_rectify, win
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.fast._windows import among
from xpnn_numpy.fast._winograd import STRETCHES
from xpnn_numpy.fast.activation import through
from xpnn_numpy.fast.pool import SIZE, N, grid
from xpnn_numpy.kernels import convolution as numpys
from xpnn_numpy.kernels import joined as numpys_joined
from xpnn_numpy.kernels._rows import repeated

if TYPE_CHECKING:
    from xpnn.ops import Ops

Result = tuple[Host, Callable[..., tuple[Host | None, Host, Host | None]]]
BLOCK_BYTES = 1 << 16
"""Of the responses that are made at a time."""
MOVED = 1 << 20
"""Bytes of responses up to which threads take channels instead of rows, where weights are more than inputs: to move
what one core has packed to another takes as long as half of the product."""
BLOCK = 128
"""Outputs whose gradients are added up at a time: with what lies under them they stay in the first-level cache."""
OVERLAP = MOST + BYTES // 4
"""Rows at the end of a part, of one value at least, that are made elsewhere and copied: `multiply` writes whole tiles
of whole vectors, and would spoil the rows of the next part, or what lies behind the last one."""
FOLLOWED = 48
"""Columns from which on each maximum is followed by itself."""


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
) -> Result:
    """See `xpnn.ops.conv`; with groups, or more than three spatial axes, it is NumPy's."""
    _, w = standard.geometry("conv", x, weight, bias, stride, padding, dilation, groups)
    if groups != 1 or not takes(x):
        return numpys.conv(ops, x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return _convolved(ops, x, weight, bias, w, (), False)


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
    """See `xpnn.ops.conv_relu`; with more than three spatial axes it is NumPy's."""
    _, w = standard.geometry("conv_relu", x, weight, bias, stride, padding, dilation)
    joined.check_shortcut(x, weight, shortcut, w)
    if not takes(x):
        return numpys_joined.conv_relu(
            ops, x, weight, bias, shortcut, stride=stride, padding=padding, dilation=dilation
        )
    y, conv_backward = _convolved(ops, x, weight, bias, w, (), True, shortcut=shortcut)
    summed = shortcut is not None  # of it nothing is kept

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None, Host | None]:
        d = through("conv_relu", dy, y)
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
) -> Result:
    """See `xpnn.ops.conv_pool`; with more than three spatial axes, or huge windows, it is NumPy's."""
    _, w = standard.geometry("conv_pool", x, weight, bias, stride, padding, dilation)
    size = joined.pooled("conv_pool", w, pool).size
    if not takes(x) or prod(size) >= LOSER:
        return numpys_joined.conv_pool(
            ops, x, weight, bias, pool=pool, relu=relu, stride=stride, padding=padding, dilation=dilation
        )
    return _convolved(ops, x, weight, bias, w, size, relu)


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
) -> Result:
    """See `xpnn.ops.conv_avg_pool`; in 64 bits, where windows do not tile lines, and in Winograd's tiles its parts."""
    _, w = standard.geometry("conv_avg_pool", x, weight, bias, stride, padding, dilation)
    p = joined.pooled("conv_avg_pool", w, pool)
    by_tiles = _winograd.suits(w, (), len(x), x.shape[-1], len(weight))
    if by_tiles or not takes(x) or x.dtype != np.float32 or not p.tiles or max(p.size[:-2], default=1) > 1:
        return joined.conv_avg_pool(
            ops, x, weight, bias, pool=pool, activation=activation, stride=stride, padding=padding, dilation=dilation
        )
    tanh = joined.checked(activation) == "tanh"
    if _planar.suits(w, p, x.shape[-1], len(weight)):
        return _averaged(ops, x, weight, bias, w, p, tanh)
    return _convolved(ops, x, weight, bias, w, (), False, p, tanh)


def _averaged(ops: Ops, x: Host, weight: Host, bias: Host | None, w: Window, pool: Window, tanh: bool) -> Result:
    """A convolution of one channel, activation and average, along the pixels."""
    x, weight, given = plain(x), plain(weight), _planar.layout(w, pool, len(weight), x.itemsize)
    means = np.empty((len(x), *pool.out, len(weight)), x.dtype)
    shift = np.zeros(len(weight), x.dtype) if bias is None else plain(bias)
    active = _planar.convolve(x, weight, shift, given, tanh, means, keep=ops.backward)

    def backward(dmeans: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        dmeans = fitting("conv_avg_pool", dmeans, means.shape, x.dtype)
        dy = np.empty((len(x) if input_gradient else 0, *w.out, len(weight)), x.dtype)
        dmatrix = _planar.gradients(x, active, dmeans, given, tanh, dy)
        dx = _input_gradient(dy, weight, w) if input_gradient else None
        return dx, dmatrix[:, :-1].reshape(weight.shape), None if bias is None else dmatrix[:, -1].copy()

    return means, backward if ops.backward else unkept


def _convolved(
    ops: Ops, x: Host, weight: Host, bias: Host | None, w: Window, pool: tuple[int, ...], relu: bool,
    mean: Window | None = None, tanh: bool = False, shortcut: Host | None = None,
) -> Result:  # fmt: skip
    x, c_out, image = plain(x), len(weight), None
    by_tiles, places, taps, shape, before, none = _plan(w, pool, len(x), x.shape[-1], c_out, x.dtype)
    y = means = np.empty(shape, x.dtype)
    rows, g = y.reshape(-1, c_out), grid(mean) if mean else NO_GRID
    place = np.empty(rows.shape, np.uint8) if pool else none.places
    other = none.rows if shortcut is None else plain(shortcut).reshape(-1, c_out)
    if by_tiles:
        shift, panels = np.zeros(c_out, x.dtype) if bias is None else plain(bias), ops.made(weight, _tile_panels)
        _winograd.convolve(x, before, panels, shift, relu, other.reshape(-1), y, place)
    else:
        image = _padded(x, w.pads)
        if mean:
            means = np.empty((len(x), *mean.out, c_out), x.dtype)
        averaged = g, tanh, means.reshape(-1, c_out) if mean else none.rows
        after = none.values if bias is None else ops.made(bias, repeated, max(1, 256 // c_out)), relu, other
        # weights that stay come in panels; of others each part lays out its own
        columns, panels = (_columns(weight), none.values) if ops.backward else (none.rows.T, ops.made(weight, _panels))
        _forward(image, places, taps, columns, panels, after, rows, place, averaged)
        if not pool and 2 * image.size > y.size:
            image = None  # one beside each image would be half the memory of a network

    if not ops.backward:
        return means, unkept
    active, shape = y if mean else None, means.shape  # of other responses nothing is kept
    weight, dense = plain(weight), bias is None and not (pool or relu)  # often in front of a norm: few zeros in `dy`
    matrix = weight.reshape(c_out, -1)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        dy = fitting("conv_avg_pool" if mean else "conv_pool" if pool else "conv", dy, shape, x.dtype)
        if active is not None:
            dmeans, dy = dy, np.empty_like(active)
            averaged_back(dmeans.reshape(-1, c_out), active.reshape(-1, c_out), g, tanh, dy.reshape(-1, c_out))
        rows, dx = dy.reshape(-1, c_out), None
        dbias = None if bias is None else _bias_gradient(rows, place).astype(x.dtype)
        run, many = x.shape[-1] * (w.size[-1] if w.dilation[-1] == 1 else 1), len(taps) >= FOLLOWED
        if pool and (many or input_gradient):
            dmatrix, dimage = follow(kept(), places, taps, rows, place, run, matrix, input_gradient)
            dx = dimage.reshape(len(x), *w.padded, x.shape[-1])[numpys.inner(w)] if input_gradient else None
        elif input_gradient and _winograd.suits(_winograd.turned(w), (), len(x), c_out, x.shape[-1]):
            dx = _tiled_gradient(dy, weight, w)
        elif input_gradient and _windows.spreads(w, x.shape[-1], c_out, BYTES // x.itemsize):
            dimage = np.zeros((len(x), prod(w.padded) * x.shape[-1]), x.dtype)
            dx = _spread(rows, matrix, places[0], taps, run, dimage)
            dx = dx.reshape(len(x), *w.padded, x.shape[-1])[numpys.inner(w)]
        elif input_gradient:
            dx = _input_gradient(dy, weight, w)
        if by_tiles and dense and matrix.size <= _winograd.MOST_WEIGHTS:
            dmatrix = _winograd.weight_gradient(x, before, dy).T
        elif not (pool and many):
            dmatrix = _weight_gradient(kept(), places, taps, rows, place).T
        return dx, dmatrix.reshape(weight.shape), dbias

    def kept() -> Host:
        return _padded(x, w.pads) if image is None else image

    return means, backward


class Nothing(NamedTuple):
    """Arrays without values: a flat one, one with a row for each response, and one of places."""

    values: Host
    rows: Host
    places: Host


class Plan(NamedTuple):
    """Whether a convolution is done in tiles, and what these are told of its padding; places of outputs and taps."""

    by_tiles: bool
    places: Host
    taps: Host
    shape: tuple[int, ...]
    before: tuple[int, int]
    none: Nothing


@lru_cache(maxsize=4096)
def _plan(w: Window, pool: tuple[int, ...], n: int, c: int, c_out: int, dtype: Any) -> Plan:
    """What does not change from step to step."""
    by_tiles, windows = _winograd.suits(w, pool, n, c, c_out), pool or (1,) * len(w.out)
    places, taps = _windows.forward(w, windows, c)
    shape, before = (n, *map(floordiv, w.out, windows), c_out), _winograd.before(w) if by_tiles else (0, 0)
    none = Nothing(np.empty(0, dtype), np.empty((0, c_out), dtype), np.empty((0, c_out), np.uint8))
    return Plan(by_tiles, places, taps, shape, before, none)


def _columns(weight: Host) -> Host:
    """The weights as what columns are multiplied by, `(K·C, C_out)`."""
    return plain(weight).reshape(len(weight), -1).T


def _panels(weight: Host) -> Host:
    """The same in panels."""
    return packed(_columns(weight))


def _tile_panels(weight: Host) -> Host:
    """The same of one in tiles."""
    return _winograd.panels(plain(weight).reshape(len(weight), 9, -1), False)


def _padded(x: Host, pads: _windows.Pads) -> Host:
    """The images with zeros around them, one a row."""
    shape, before, padded = _windows.frame(x.shape[1:], pads)
    if shape == padded:
        return x.reshape(len(x), prod(padded))
    image = np.empty((len(x), *padded), x.dtype)
    _pad(x.reshape(len(x), *shape), before, image)
    return image.reshape(len(x), prod(padded))


def _tiled_gradient(dy: Host, weight: Host, w: Window) -> Host:
    """The gradient of the input in Winograd's tiles: a convolution of `dy` with the kernels turned around."""
    turned, (c_out, *_, c) = _winograd.turned(w), weight.shape
    dx, panels = np.empty((len(dy), *w.n, c), dy.dtype), _winograd.panels(weight.reshape(c_out, 9, c), True)
    zeros, none, nowhere = np.zeros(c, dy.dtype), np.empty(0, dy.dtype), np.empty((0, c), np.uint8)
    _winograd.convolve(dy, _winograd.before(turned), panels, zeros, False, none, dx, nowhere)
    return dx


def _input_gradient(dy: Host, weight: Host, w: Window) -> Host:
    """That of a convolution: one of `dy` for each place between the strides (Dumoulin, Visin, 2016, section 4)."""
    c, (pads, parts) = weight.shape[-1], _windows.backward(w, len(weight))
    image, dx = _padded(dy, pads), np.empty((len(dy), *w.n, c) if len(parts) > 1 else 0, dy.dtype)
    none, nowhere = np.empty(0, dy.dtype), np.empty((0, c), np.uint8)
    nothing = none, False, np.empty((0, c), dy.dtype)
    for inputs, taps, places, offsets in parts:
        part = np.empty((len(dy), *(len(range(n)[i]) for n, i in zip(w.n, inputs, strict=True)), c), dy.dtype)
        if len(offsets):
            met = weight[(slice(None), *taps)].transpose(*range(1, weight.ndim - 1), 0, -1).reshape(-1, c)
            averaged = NO_GRID, False, np.empty((0, c), dy.dtype)
            _forward(image, places, offsets, plain(met), none, nothing, part.reshape(-1, c), nowhere, averaged)
        else:  # a stride longer than the kernel: no output sees them
            part[...] = 0
        if len(parts) == 1:
            return part
        of_three_axes = (slice(None), *(None,) * (3 - len(inputs)))
        _copy(part[of_three_axes], dx[(slice(None), *inputs)][of_three_axes])
    return dx


@compiled
def _copy(x: Host, y: Host) -> None:
    """Copy images of three axes to where others lie."""
    parts = min(len(x), cut(x.size, 4))
    share(_copy_part, (parts, x, y), parts)


@compiled
def _copy_part(part: int, parts: int, x: Host, y: Host) -> None:
    (begin, end), c = stretch(len(x), part, parts), np.uint64(x.shape[4])
    for i in range(begin, end):
        for i0 in range(x.shape[1]):
            for i1 in range(x.shape[2]):
                for i2 in range(x.shape[3]):
                    row, to = x[i, i0, i1, i2], y[i, i0, i1, i2]
                    for k in range(c):
                        to[k] = row[k]


@compiled
def _spread(dy: Host, matrix: Host, places: Host, taps: Host, length: int, image: Host) -> Host:
    """The gradient of the input, added up in `image`, which is clear: each output's goes to what lies under it.

    Taps lie together in runs of `length`.
    """
    parts = min(len(image), cut(len(dy), matrix.size))
    share(_spread_part, (parts, dy.reshape(-1), matrix.shape, packed(matrix), places, taps, length, image), parts)
    return image


@compiled
def _spread_part(
    part: int, parts: int, dy: Host, shape: tuple[int, int], panels: Host, places: Host, taps: Host, length: int,
    image: Host,
) -> None:  # fmt: skip
    """Of some images."""
    (c_out, columns), (begin, end) = shape, stretch(len(image), part, parts)
    rows, cols, starts = np.empty(TILES + MOST, np.int64), np.arange(c_out), taps[::length].copy()
    products = np.empty(TILES * columns + slack(columns), dy.dtype)
    for i in range(begin, end):
        dx = image[i]
        for first in range(0, len(places), TILES):
            count = min(TILES, len(places) - first)
            for j in range(len(rows)):
                rows[j] = (i * len(places) + first + min(j, count - 1)) * c_out
            multiply(dy, rows, count, cols, panels, columns, products)
            a = 0
            for j in range(count):
                for start in starts:
                    add_run(products, a, dx, places[first + j] + start, length)
                    a += length


@compiled
def _pad(x: Host, before: tuple[int, ...], image: Host) -> None:
    """Copy images of three axes, the channels in the last one, to where `before` says, and zeros around them."""
    parts = min(len(x), cut(image.size, 4))
    share(_pad_part, (parts, x, before, image), parts)


@compiled
def _pad_part(part: int, parts: int, x: Host, before: tuple[int, ...], image: Host) -> None:
    (n0, n1, n2), (b0, b1, b2) = x.shape[1:], before
    begin, end = stretch(len(x), part, parts)
    for i in range(begin, end):
        for i0 in range(image.shape[1]):
            for i1 in range(image.shape[2]):
                line = image[i, i0, i1]
                inside = b0 <= i0 < b0 + n0 and b1 <= i1 < b1 + n1
                first, last = (b2, b2 + n2) if inside else (len(line), len(line))
                for k in range(min(first, len(line))):
                    line[k] = 0
                if inside:
                    row, shift = x[i, i0 - b0, i1 - b1], np.uint64(b2)
                    for k in range(np.uint64(n2)):
                        line[shift + k] = row[k]
                for k in range(last, len(line)):
                    line[k] = 0


@compiled
def _forward(
    x: Host, places: Host, taps: Host, weight: Host, panels: Host, after: tuple[Host, bool, Host], y: Host, place: Host,
    averaged: tuple[Host, bool, Host],
) -> None:  # fmt: skip
    """Fill `y` and the places of its maxima, or the means of its windows.

    `weight` is `(K·C, C_out)`; where there are `panels` of it, these are used instead. What comes `after` is a bias,
    and ReLU, before which a shortcut is added; of both there may be none.
    """
    phases, c_out = len(places), y.shape[1]
    parts, groups = cut(len(y), phases * len(taps) * c_out), cut(c_out, phases * len(taps) * len(y))
    few = phases * y.size * y.itemsize <= MOVED and len(taps) * c_out > x.size
    ready, width = len(panels) > 0, 2 * BYTES // y.itemsize
    if few and groups > 1 and not len(averaged[2]):
        own = panels if ready else np.zeros(tiled(c_out, width) * len(taps), y.dtype)
        share(_forward_channels_part, (groups, x, places, taps, weight, own, ready, after, y, place), groups)
        return
    most = max(BLOCK_BYTES // (phases * c_out * y.itemsize * TILES), 1) * TILES
    block = max(min(tiled(-(-len(y) // parts), TILES), most), TILES)
    g, _, means = averaged
    if len(means):  # whole lines of windows
        line = g[SIZE, 1] * g[N, 2]
        block = max(block // line, 1) * line
    parts = min(parts, -(-len(y) // block))
    whole = panels if ready else packed(weight)
    share(_forward_part, (parts, block, x, places, taps, whole, after, y, place, averaged), parts)


@compiled
def _forward_part(
    part: int, parts: int, block: int, x: Host, places: Host, taps: Host, panels: Host, after: tuple[Host, bool, Host],
    y: Host, place: Host, averaged: tuple[Host, bool, Host],
) -> None:  # fmt: skip
    """Some blocks of rows of `y`."""
    (bias, relu, shortcut), (g, tanh, means) = after, averaged
    (phases, _), c_out, pooled, image = places.shape, y.shape[1], len(place) > 0, x.reshape(-1)
    rows = np.empty(block + MOST, np.int64)
    responses = np.empty((phases * block if pooled else OVERLAP) * c_out + slack(c_out), y.dtype)
    begin, last_block = stretch(-(-len(y) // block), part, parts)
    end = min(last_block * block, len(y))
    for first in range(begin * block, end, block):
        last = min(first + block, end)
        direct = first if pooled else min(max(end - OVERLAP, first), last)  # up to here rows are made where they belong
        for phase in range(phases):
            among(places[phase], x.shape[1], first, last, rows)
            multiply(image, rows, direct - first, taps, panels, c_out, y[first:].reshape(-1))
            out = responses[phase * (last - first) * c_out :]
            multiply(image, rows[direct - first :], last - direct, taps, panels, c_out, out)
        if pooled:
            win(responses, y[first:last].reshape(-1), place[first:last].reshape(-1), phases)
        else:
            rest = y[direct:last].reshape(-1)
            for k in range(len(rest)):
                rest[k] = responses[k]
        if len(bias):
            offset(y[first:last].reshape(-1), bias)
        if relu and pooled:
            rectify(y[first:last].reshape(-1), place[first:last].reshape(-1))
        elif relu:
            sum_and_rectify(y[first:last].reshape(-1), shortcut[first:last].reshape(-1))
        if len(means):
            average(first, last, y, g, tanh, means)


@compiled
def _forward_channels_part(
    part: int, groups: int, x: Host, places: Host, taps: Host, weight: Host, panels: Host, ready: bool,
    after: tuple[Host, bool, Host], y: Host, place: Host,
) -> None:  # fmt: skip
    """Some channels of `y`, of all rows; their panels are made here where they are not `ready`."""
    (bias, relu, shortcut), width = after, 2 * BYTES // x.itemsize
    n, phases, image = len(y), len(places), x.reshape(-1)
    begin, last = stretch(tiled(y.shape[1], width) // width, part, groups)
    first, end = begin * width, min(last * width, y.shape[1])
    c, rows = end - first, np.empty(n + MOST, np.int64)
    if not ready:
        for column in range(first, end, width):
            pack(weight, column, width, panels[column * len(taps) :])
    responses = np.empty(phases * n * c + slack(c), y.dtype)
    for phase in range(phases):
        among(places[phase], x.shape[1], 0, n, rows)
        multiply(image, rows, n, taps, panels[first * len(taps) :], c, responses[phase * n * c :])
    best, won = responses[: n * c], np.empty(n * c if len(place) else 0, np.uint8)
    if len(place):
        best = np.empty(n * c, y.dtype)
        win(responses, best, won, phases)
    if len(bias):
        for i in range(n):
            for k in range(c):
                best[i * c + k] += bias[first + k]
    if relu and len(place):
        rectify(best, won)
    elif relu:
        if len(shortcut):
            for i in range(n):
                for k in range(c):
                    best[i * c + k] += shortcut[i, first + k]
        sum_and_rectify(best, shortcut[:0].reshape(-1))
    for i in range(n):  # by itself each value: for copies of slices numba compiles their errors, for a second each
        for k in range(c):
            y[i, first + k] = best[i * c + k]
        for k in range(c if len(place) else 0):
            place[i, first + k] = won[i * c + k]


@compiled
def _weight_gradient(x: Host, places: Host, taps: Host, dy: Host, place: Host) -> Host:
    """That of the transposed matrix, `(K·C, C_out)`: each part has some of the taps and a stretch of the outputs."""
    c_out, width = dy.shape[1], 2 * BYTES // x.itemsize
    parts = cut(len(dy) * len(places), len(taps) * c_out)
    groups = max(min(parts, len(taps) // 64, 4), 1)
    stretches = min(parts // groups, -(-len(dy) // BLOCK), STRETCHES)
    size = ((len(taps) + groups - 1) // groups + MOST) * tiled(c_out, width)
    sums, dmatrix = np.zeros((groups * stretches, size), x.dtype), np.zeros((len(taps), c_out), x.dtype)
    share(_weight_gradient_part, (groups, x, places, taps, dy, place, sums), len(sums))
    for part in range(len(sums)):
        first, last = stretch(len(taps), part % groups, groups)
        unpack(sums[part], dmatrix[first:last])
    return dmatrix


@compiled
def _weight_gradient_part(
    part: int, groups: int, x: Host, places: Host, taps: Host, dy: Host, place: Host, sums: Host
) -> None:
    pooled, image, (tap, taps_end) = len(place) > 0, x.reshape(-1), stretch(len(taps), part % groups, groups)
    own = taps[tap:taps_end]
    rows, cols = np.empty(len(own) + MOST, np.int64), np.empty(BLOCK + MOST, np.int64)
    for i in range(len(rows)):
        rows[i] = own[min(i, len(own) - 1)]
    space = np.zeros(BLOCK * 2 * BYTES // x.itemsize, x.dtype)
    spread = np.empty((BLOCK if pooled else 0, dy.shape[1]), dy.dtype)
    begin, end = stretch(-(-len(dy) // BLOCK), part // groups, len(sums) // groups)
    for first in range(begin * BLOCK, min(end * BLOCK, len(dy)), BLOCK):
        last = min(first + BLOCK, len(dy))
        for phase in range(len(places)):
            among(places[phase], x.shape[1], first, last, cols)
            if pooled:
                _to_phase(dy[first:last], place[first:last], phase, spread)
            b, start = (spread[: last - first], 0) if pooled else (dy, first)
            add_up(image, rows, cols[: last - first], b, start, space, sums[part])


@compiled
def _bias_gradient(dy: Host, place: Host) -> Host:
    """Each channel's sum, in 64 bits; what ReLU cut off has no gradient."""
    sums = np.zeros((min(cut(len(dy), 4 * dy.shape[1]), STRETCHES), dy.shape[1]))
    share(_bias_gradient_part, (dy, place, sums), len(sums))
    fold(sums)
    total: Host = sums[0]
    return total


@compiled
def _bias_gradient_part(part: int, dy: Host, place: Host, totals: Host) -> None:
    """In blocks of few terms."""
    (begin, end), c_out, d, won = stretch(len(dy), part, len(totals)), dy.shape[1], dy.reshape(-1), place.reshape(-1)
    width = max(1, 256 // c_out) * c_out  # some rows side by side
    sums, zero = np.zeros(width, dy.dtype), dy.dtype.type(0)
    for first in range(begin * c_out, end * c_out, 64 * width):
        last = min(first + 64 * width, end * c_out)
        for start in range(first, last, width):
            i = np.uint64(start)
            many = np.uint64(min(width, last - start))
            if len(won):
                for k in range(many):
                    a = d[i + k]
                    sums[k] += zero if won[i + k] == LOSER else a
            else:
                for k in range(many):
                    sums[k] += d[i + k]
        for k in range(width):
            totals[part, k % c_out] += sums[k]
            sums[k] = 0


@compiled
def _to_phase(dy: Host, place: Host, phase: int, spread: Host) -> None:
    """The gradient of the responses at one place of the pool's windows from that of the maximum."""
    d, won, out, zero = dy.reshape(-1), place.reshape(-1), spread.reshape(-1), dy.dtype.type(0)
    for k in range(len(d)):
        a = d[k]
        out[k] = a if won[k] == phase else zero
