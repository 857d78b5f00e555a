"""Convolutions of 3 × 3 with fewer multiplications (Winograd, 1980; Lavin and Gray, 2016, arXiv:1509.09308).

Four outputs, 2 × 2, see 4 × 4 inputs. This tile of inputs d, and the kernel g, go through linear maps whose factors are
0, ±1 and ½, and so does what becomes of them:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

    Bᵀ = 1  0 -1  0     G = 1  0  0     Aᵀ = 1  1  1  0
         0  1  1  0         ½  ½  ½          0  1 -1 -1
         0 -1  1  0         ½ -½  ½
         0  1  0 -1         0  0  1

With many channels the middle is sixteen products of matrices, `(tiles, C) · (C, C_out)`: 16 multiplications for four
outputs instead of 36. The gradient of the kernel is the same read backwards, its sixteen products sums over all tiles:

    dg = Gᵀ [Σ (Bᵀ d B) ⊙ (A dy Aᵀ)] G

Each output depends on the inputs under its own kernel alone, as in the plain sum. Its rounding
errors are as small against the largest input times the largest weight, but not against its own products: where a weight
of 0 hides an input that is far larger than the others, the plain sum is the better one (`XPNN_KERNELS=plain`). And
sums of zeros alone are not exactly 0, as they are in the gradient of kernels where `dy` is sparse, behind a max-pool
or ReLU: it comes from tiles only where the convolution has no bias, as most often in front of a normalisation.

Tiles of 4 × 4 outputs take another 44 % of the multiplications away (and resnet20 a fourth less time), but there the
inputs that an output does not see cancel only up to their rounding: a NaN or a large value beside it reaches it, and
where `dy` is sparse errors were 158 units of rounding, by the measure of `xpnn.parity`, which accepts 32; these make 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from xpnn.ops._window import Window
from xpnn_numpy.fast._compiled import Host, compiled, emits
from xpnn_numpy.fast._product import BYTES, MOST, WIDE, add_up, moves, multiply, slack, tiled
from xpnn_numpy.fast._responses import rectify, sum_and_rectify, win
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.kernels.convolution import full

TILES = 80
"""At a time, at the most: what is made of them stays in the second-level cache."""
STRETCHES = 4
"""Parts of the tiles, at the most, each of which has sums of its own."""
LEAST_CHANNELS, LEAST_TILES = max(16, BYTES // 4), 64
"""From which on the maps take less time than they save; and there is a whole vector of channels."""
LINE = 64
"""Bytes that come from memory at a time."""
MOST_WEIGHTS = 9 << 16
"""Up to which the sums of the gradient of the kernels stay in a cache."""
Matrix = list[list[Any]]
_int64, _bit = ir.IntType(64), ir.IntType(1)


@lru_cache(maxsize=4096)
def suits(w: Window, pool: tuple[int, ...], n: int, c: int, c_out: int) -> bool:
    """Whether a convolution of `n` images, perhaps with a max-pool behind it, is done in tiles."""
    return (
        w.size == (3, 3)
        and {*w.stride, *w.dilation} == {1}
        and min(min(pair) for pair in w.pads) >= 0
        and pool in ((), (2, 2))
        and min(c, c_out) >= LEAST_CHANNELS
        and n * (w.out[0] // 2) * (w.out[1] // 2) >= LEAST_TILES
    )


@lru_cache(maxsize=4096)
def turned(w: Window) -> Window:
    """The convolution of `dy` that is the gradient of the input, where the stride is 1."""
    return replace(w, n=w.out, pads=full(w), out=w.n)


def before(w: Window) -> tuple[int, int]:
    """The padding above and on the left."""
    (above, _), (left, _) = w.pads
    return above, left


def _from_image(size: int, combine: Any) -> Any:
    """A function of compiled code: a map of a tile of an image, `size` × `size` vectors, to 4 × 4 others.

    Vector `(i, j)` is read at `start + i·down + j·right`; where bit i is not set in `rows`, or j in `columns`, it is
    outside of the image, and `zeros` are read. What becomes of it is written to `to + (4·i + j)·apart`.
    """

    def typed(
        typing: Any, x: Any, start: Any, down: Any, right: Any, rows: Any, columns: Any, zeros: Any, y: Any, to: Any,
        apart: Any,
    ) -> Any:  # fmt: skip
        return types.void(x, *[types.int64] * 5, zeros, y, types.int64, types.int64), code

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, zeros, y = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 6, 7))
        load, store, _ = moves(context, builder, signature.args[0].dtype)
        _, start, down, right, rows, columns, _, _, to, apart = args
        seen = [[builder.trunc(builder.lshr(bits, _int64(i)), _bit) for i in range(size)] for bits in (rows, columns)]
        places = _places(builder, builder.gep(x, [start]), down, right, size)
        d = [
            [
                load(builder.select(builder.and_(row, column), place, zeros))
                for column, place in zip(seen[1], line, strict=True)
            ]
            for row, line in zip(seen[0], places, strict=True)
        ]
        _store(
            store,
            _along_both(builder, combine, d),
            _places(builder, builder.gep(y, [to]), builder.mul(apart, _int64(4)), apart, 4),
        )
        return context.get_dummy_value()

    return emits(typed)


@emits
def _take_line(
    typing: Any, x: Any, start: Any, down: Any, right: Any, rows: Any, columns: Any, count: Any, zeros: Any, y: Any,
    to: Any, beside: Any, apart: Any,
) -> Any:  # fmt: skip
    """A function of compiled code: `Bᵀ d B` of tiles side by side, each with two columns of the one before.

    Vector `(i, j)` of the line is read at `start + i·down + j·right`; where bit i is not set in `rows`, or j is not in
    the range `columns`, it is outside of the image, and `zeros` are read. What becomes of `(i, j)` of tile t is written
    to `to + t·beside + (4·i + j)·apart`.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, zeros, y = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 7, 8))
        load, store, _ = moves(context, builder, signature.args[0].dtype)
        _, start, down, right, rows, columns, count, _, _, to, beside, apart = args
        (low, high), first = cgutils.unpack_tuple(builder, columns, 2), builder.gep(x, [start])
        lines, steps, width = [], [], builder.sub(high, low)
        for i in range(4):
            seen = builder.trunc(builder.lshr(rows, _int64(i)), _bit)
            lines.append(builder.select(seen, builder.gep(first, [builder.mul(down, _int64(i))]), zeros))
            steps.append(builder.select(seen, right, _int64(0)))

        def column(j: Any) -> list[Any]:
            seen = builder.icmp_unsigned("<", builder.sub(j, low), width)
            places = [builder.gep(line, [builder.mul(step, j)]) for line, step in zip(lines, steps, strict=True)]
            return [v for (v,) in _b(builder, [[load(builder.select(seen, place, zeros))] for place in places])]

        out, fourth = builder.gep(y, [to]), builder.mul(apart, _int64(4))
        shared = [[cgutils.alloca_once_value(builder, v) for v in column(_int64(j))] for j in (0, 1)]  # registers
        with cgutils.for_range(builder, count) as loop:
            j = builder.shl(loop.index, _int64(1))
            columns = [[builder.load(place) for place in places] for places in shared]
            columns += [column(builder.add(j, _int64(2))), column(builder.add(j, _int64(3)))]
            _store(builder.store, columns[2:], shared)
            first = builder.gep(out, [builder.mul(loop.index, beside)])
            _store(store, _turned(_b(builder, columns)), _places(builder, first, fourth, apart, 4))
        return context.get_dummy_value()

    integer = types.int64
    return types.void(x, *[integer] * 4, columns, integer, zeros, y, *[integer] * 3), code


def _to_image(relu: bool, shortcut: bool) -> Any:
    """A function of compiled code: `Aᵀ m A` of 4 × 4 vectors that lie so far apart, to 2 × 2 places of an image.

    The bias is added, and where `shortcut` what lies in those places of `other`, which is not read otherwise; where
    `relu`, the maximum with 0 is written.
    """

    def typed(
        typing: Any, m: Any, start: Any, apart: Any, bias: Any, at: Any, other: Any, y: Any, to: Any, below: Any,
        beside: Any,
    ) -> Any:  # fmt: skip
        integer = types.int64
        return types.void(m, integer, integer, bias, integer, other, y, integer, integer, integer), code

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        m, bias, other, y = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 5, 6)
        )
        load, store, kind = moves(context, builder, signature.args[0].dtype)
        _, start, apart, _, at, _, _, to, below, beside = args
        places = _places(builder, builder.gep(m, [start]), builder.mul(apart, _int64(4)), apart, 4)
        d = [[load(place) for place in line] for line in places]
        d[1][1] = builder.fadd(d[1][1], load(builder.gep(bias, [at])))  # it alone goes into all four as it is
        made, zero = _along_both(builder, _a, d), ir.Constant(kind, None)
        if shortcut:
            theirs = _places(builder, builder.gep(other, [to]), below, beside, 2)
            made = [_each(builder.fadd, a, [load(b) for b in line]) for a, line in zip(made, theirs, strict=True)]
        if relu:
            made = [[builder.select(builder.fcmp_ordered("<=", a, zero), zero, a) for a in line] for line in made]
        _store(store, made, _places(builder, builder.gep(y, [to]), below, beside, 2))
        return context.get_dummy_value()

    return emits(typed)


def _places(builder: Any, first: Any, down: Any, right: Any, many: int) -> Matrix:
    """Those of `many` × `many` vectors."""
    rows = [builder.gep(first, [builder.mul(down, _int64(i))]) for i in range(many)]
    return [[builder.gep(row, [builder.mul(right, _int64(j))]) for j in range(many)] for row in rows]


def _along_both(builder: Any, combine: Any, d: Matrix) -> Matrix:
    """A map along both axes of vectors."""
    half = combine(builder, d)
    return _turned(combine(builder, _turned(half)))


def _turned(d: Matrix) -> Matrix:
    return [list(column) for column in zip(*d, strict=True)]


def _store(store: Any, values: Matrix, places: Matrix) -> None:
    for line, row in zip(values, places, strict=True):
        for value, place in zip(line, row, strict=True):
            store(value, place)


def _b(builder: Any, d: Matrix) -> Matrix:
    """`Bᵀ d`."""
    plus, minus = builder.fadd, builder.fsub
    return [_each(minus, d[0], d[2]), _each(plus, d[1], d[2]), _each(minus, d[2], d[1]), _each(minus, d[1], d[3])]


def _a(builder: Any, m: Matrix) -> Matrix:
    """`Aᵀ m`."""
    plus, minus = builder.fadd, builder.fsub
    return [_each(plus, _each(plus, m[0], m[1]), m[2]), _each(minus, _each(minus, m[1], m[2]), m[3])]


def _g(builder: Any, g: Matrix) -> Matrix:
    """`G g`."""
    half = ir.Constant(g[0][0].type, [0.5] * g[0][0].type.count)
    inner = [builder.fmul(half, b) for b in g[1]]
    outer = [builder.fmul(half, sum_) for sum_ in _each(builder.fadd, g[0], g[2])]
    return [g[0], _each(builder.fadd, outer, inner), _each(builder.fsub, outer, inner), g[2]]


def _from_a(builder: Any, dy: Matrix) -> Matrix:
    """`A dy`, but for the sign of the last row."""
    return [dy[0], _each(builder.fadd, dy[0], dy[1]), _each(builder.fsub, dy[0], dy[1]), dy[1]]


def _each(operation: Any, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    return [operation(*pair) for pair in zip(a, b, strict=True)]


@emits
def _prefetch(typing: Any, x: Any, at: Any) -> Any:
    """Have the line of memory that `x[at]` lies in brought into the second-level cache; nothing is waited for."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, number = context.make_array(signature.args[0])(context, builder, args[0]).data, ir.IntType(32)
        place = builder.bitcast(builder.gep(first, [args[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [place, number(0), number(2), number(1)])  # of data, to read
        return context.get_dummy_value()

    return types.void(x, types.int64), code


_spread, _prepare = _from_image(2, _from_a), _from_image(3, _g)
_give, _give_relu, _give_sum = _to_image(False, False), _to_image(True, False), _to_image(True, True)


@compiled
def convolve(
    x: Host, before: tuple[int, int], panels: Host, bias: Host, relu: bool, shortcut: Host, y: Host, place: Host
) -> None:
    """Fill `y`, and the places of its maxima where there is a pool.

    `before` is the padding above and on the left of `x`, `panels` are those of the kernels. The `shortcut` is flat; if
    it is not empty, there is ReLU.
    """
    down, across = _tiles(y, place)
    tiles = len(y) * down * across
    parts = cut(tiles, 16 * x.shape[3] * y.shape[3])
    block = min(tiled(-(-tiles // parts), WIDE), TILES)
    parts = min(parts, -(-tiles // block))
    share(_convolve_part, (parts, block, x, before, panels, bias, relu, shortcut, y, place), parts)


@compiled
def _tiles(y: Host, place: Host) -> tuple[int, int]:
    """How many there are along each axis of an image: one for each maximum, or for four outputs."""
    return (y.shape[1], y.shape[2]) if len(place) else ((y.shape[1] + 1) // 2, (y.shape[2] + 1) // 2)


@compiled
def panels(weight: Host, backwards: bool) -> Host:
    """`G g Gᵀ` of each kernel `(C_out, 9, C)`, as sixteen matrices in the panels of `multiply`.

    `backwards` for the convolution with the kernels turned around, from `C_out` channels to `C`.
    """
    kernels, width = _kernels(weight, backwards), 2 * BYTES // weight.itemsize
    count, _, n = kernels.shape
    made = np.empty((16, n // width, count, width), weight.dtype)
    parts = cut(count, n << 8)  # each takes as long as so many multiply-adds
    share(_panels_part, (parts, kernels, made), parts)
    return made


@compiled
def _kernels(weight: Host, backwards: bool) -> Host:
    """`(C, 9, C_out)`, or turned around `(C_out, 9, C)`, with zeros behind each row up to whole panels."""
    (c_out, taps, c), width = weight.shape, 2 * BYTES // weight.itemsize
    count, n = (c_out, c) if backwards else (c, c_out)
    kernels = np.zeros((count, taps, tiled(n, width)), weight.dtype)
    for i in range(c_out):
        for t in range(taps):
            row = weight[i, t]
            for k in range(c):
                if backwards:
                    kernels[i, taps - 1 - t, k] = row[k]
                else:
                    kernels[k, t, i] = row[k]
    return kernels


@compiled
def _panels_part(part: int, parts: int, kernels: Host, panels: Host) -> None:
    """Those of some of the channels that go in; of a kernel all three rows and columns are there, `7`."""
    (_, _, count, width), lanes, n = panels.shape, BYTES // kernels.itemsize, kernels.shape[2]
    zeros, g, flat = np.zeros(lanes, kernels.dtype), kernels.reshape(-1), panels.reshape(-1)
    begin, end = stretch(count, part, parts)
    for k in range(begin, end):
        for j in range(0, n, lanes):
            to = (j // width * count + k) * width + j % width
            _prepare(g, 9 * k * n + j, 3 * n, n, 7, 7, zeros, flat, to, n * count)


@compiled
def _convolve_part(
    part: int, parts: int, block: int, x: Host, before: tuple[int, int], panels: Host, bias: Host, relu: bool,
    shortcut: Host, y: Host, place: Host,
) -> None:  # fmt: skip
    """Some blocks of tiles."""
    (_, oh, ow, c_out), (down, across), c = y.shape, _tiles(y, place), panels.shape[2]
    pooled, lanes, flat, image = len(place) > 0, BYTES // x.itemsize, y.reshape(-1), x.reshape(-1)
    cols, rows = np.arange(c), np.minimum(np.arange(block + MOST), block - 1) * c
    apart, after = block * c + 16, block * c_out + slack(c_out)  # no power of two, which a cache has few places for
    v, m = np.zeros(16 * apart, x.dtype), np.empty(16 * after, x.dtype)
    out = np.empty(4 * c_out * (block if pooled else 1), x.dtype)
    tiles = len(y) * down * across
    begin, last_block = stretch(-(-tiles // block), part, parts)
    end = min(last_block * block, tiles)
    for first in range(begin * block, end, block):
        many = min(block, end - first)
        _take_tiles(x, before, (down, across), first, many, v, apart)
        for k in range(16):  # meanwhile there comes what the next block is made of, and where this one goes
            near, far = first + many * k // 16, first + many * (k + 1) // 16
            _fetch(image, near + many, far + many, tiles, 2 * x.shape[2] * c)
            _fetch(flat, near, far, tiles, 0)
            _fetch(shortcut, near, far, tiles, 0)
            multiply(v[k * apart :], rows, many, cols, panels[k].reshape(-1), c_out, m[k * after :])
        i, h, w = first // (down * across), first // across % down, first % across
        for t in range(many):
            start = ((i * oh + 2 * h) * ow + 2 * w) * c_out
            inside = 2 * h + 1 < oh and 2 * w + 1 < ow
            for k in range(0, c_out, lanes):
                k = min(k, c_out - lanes)
                at = t * c_out + k
                if pooled:
                    _give(m, at, after, bias, k, out, out, at, 2 * many * c_out, many * c_out)
                elif not inside:
                    _give(m, at, after, bias, k, out, out, k, 2 * c_out, c_out)
                elif len(shortcut):
                    _give_sum(m, at, after, bias, k, shortcut, flat, start + k, ow * c_out, c_out)
                elif relu:
                    _give_relu(m, at, after, bias, k, flat, flat, start + k, ow * c_out, c_out)
                else:
                    _give(m, at, after, bias, k, flat, flat, start + k, ow * c_out, c_out)
            if not (pooled or inside):
                for p in range(min(2, oh - 2 * h)):
                    for q in range(min(2, ow - 2 * w)):
                        to = start + (p * ow + q) * c_out
                        responses = flat[to : to + c_out]
                        for k in range(c_out):
                            responses[k] = out[(2 * p + q) * c_out + k]
                        if relu:
                            sum_and_rectify(responses, shortcut[to : to + c_out])
            i, h, w = _next(i, h, w, down, across)
        if pooled:
            maxima, won = flat[first * c_out : (first + many) * c_out], place[first : first + many].reshape(-1)
            win(out, maxima, won, 4)
            if relu:
                rectify(maxima, won)


@compiled
def _fetch(x: Host, first: int, last: int, tiles: int, beyond: int) -> None:
    """Have what lies under some of all tiles, or so far beyond it, come from memory while products are made.

    For by itself it comes only when it is read, and that is between products, tile by tile.
    """
    for at in range(first * len(x) // tiles, last * len(x) // tiles, LINE // x.itemsize):
        _prefetch(x, beyond + at)


@compiled
def _take_tiles(
    x: Host, before: tuple[int, int], tiles: tuple[int, int], first: int, many: int, v: Host, apart: int
) -> None:
    """`Bᵀ d B` of some tiles, as sixteen matrices `(tiles, C)` that begin so far apart; around `x` there are zeros."""
    (_, height, width, c), (above, left), (down, across) = x.shape, before, tiles
    i, h, w = first // (down * across), first // across % down, first % across
    image, lanes, zeros = x.reshape(-1), BYTES // x.itemsize, np.zeros(BYTES // x.itemsize, x.dtype)
    t = 0
    while t < many:
        top, side, count = 2 * h - above, 2 * w - left, min(across - w, many - t)
        start, rows = ((i * height + top) * width + side) * c, _inside(top, height)
        for k in range(0, c, lanes):
            k = min(k, c - lanes)  # the last vector repeats some of the one before, and reads nothing behind the image
            _take_line(
                image, start + k, width * c, c, rows, (-side, width - side), count, zeros, v, t * c + k, c, apart
            )
        t, w = t + count, 0
        h += 1
        if h == down:
            i, h = i + 1, 0


@compiled
def _inside(first: int, size: int) -> int:
    """A bit for each of the four places from `first` on, set where there is one."""
    bits = 0
    for i in range(4):
        bits |= (0 <= first + i < size) << i
    return bits


@compiled
def weight_gradient(x: Host, before: tuple[int, int], dy: Host) -> Host:
    """That of the transposed matrix, `(9·C, C_out)`."""
    down, across, (c, c_out) = (dy.shape[1] + 1) // 2, (dy.shape[2] + 1) // 2, (x.shape[3], dy.shape[3])
    tiles = len(dy) * down * across
    parts = min(cut(tiles, 16 * c * c_out), -(-tiles // TILES), STRETCHES)
    size = (c + MOST) * tiled(c_out, 2 * BYTES // x.itemsize)
    sums, dmatrix = np.zeros((parts, 16, size), x.dtype), np.empty((9 * c, c_out), x.dtype)
    share(_weight_gradient_part, (x, before, dy, sums), parts)
    folds = cut(c, 256 * parts * c_out)
    share(_fold_part, (folds, sums, dmatrix), folds)
    return dmatrix


@compiled
def _fold_part(part: int, parts: int, sums: Host, dmatrix: Host) -> None:
    """`Gᵀ u G` of the sums of all parts of tiles, for some of the input's channels."""
    c, c_out, width, two = len(dmatrix) // 9, dmatrix.shape[1], 2 * BYTES // sums.itemsize, sums.dtype.type(2)
    u, half = np.empty((16, c_out), sums.dtype), np.empty((3, 4, c_out), sums.dtype)
    begin, end = stretch(c, part, parts)
    for i in range(begin, end):
        u[:] = 0
        for s in range(len(sums)):
            for k in range(16):
                for first in range(0, c_out, width):
                    line, row = sums[s, k, first * (c + MOST) + i * width :], u[k, first:]
                    for v in range(np.uint64(min(width, c_out - first))):
                        row[v] += line[v]
        for t in range(4):
            for j in range(c_out):
                outer, inner = (u[4 + t, j] + u[8 + t, j]) / two, (u[4 + t, j] - u[8 + t, j]) / two
                half[0, t, j], half[1, t, j], half[2, t, j] = u[t, j] + outer, inner, outer - u[12 + t, j]
        for t in range(3):
            for j in range(c_out):
                outer, inner = (half[t, 1, j] + half[t, 2, j]) / two, (half[t, 1, j] - half[t, 2, j]) / two
                dmatrix[3 * t * c + i, j] = half[t, 0, j] + outer
                dmatrix[(3 * t + 1) * c + i, j] = inner
                dmatrix[(3 * t + 2) * c + i, j] = outer - half[t, 3, j]


@compiled
def _weight_gradient_part(part: int, x: Host, before: tuple[int, int], dy: Host, sums: Host) -> None:
    """The sums over some blocks of tiles."""
    (_, oh, ow, c_out), c, lanes = dy.shape, x.shape[3], BYTES // x.itemsize
    down, across, image, flat = (oh + 1) // 2, (ow + 1) // 2, x.reshape(-1), dy.reshape(-1)
    rows, cols = np.minimum(np.arange(c + MOST), c - 1), np.arange(TILES) * c
    apart, after = TILES * c + 16, TILES * c_out + 16  # no powers of two, which a cache has few places for
    v, m = np.empty(16 * apart, x.dtype), np.zeros(16 * after, x.dtype)
    space, zeros = np.zeros(TILES * 2 * BYTES // x.itemsize, x.dtype), np.zeros(lanes, x.dtype)
    tiles = len(dy) * down * across
    begin, last_block = stretch(-(-tiles // TILES), part, len(sums))
    end = min(last_block * TILES, tiles)
    for first in range(begin * TILES, end, TILES):
        many = min(TILES, end - first)
        _take_tiles(x, before, (down, across), first, many, v, apart)
        i, h, w = first // (down * across), first // across % down, first % across
        for t in range(many):
            start = ((i * oh + 2 * h) * ow + 2 * w) * c_out
            below, beside = _inside(2 * h, oh), _inside(2 * w, ow)
            for k in range(0, c_out, lanes):
                k = min(k, c_out - lanes)
                _spread(flat, start + k, ow * c_out, c_out, below, beside, zeros, m, t * c_out + k, after)
            i, h, w = _next(i, h, w, down, across)
        for k in range(16):
            near, far = first + many * (k + 16) // 16, first + many * (k + 17) // 16
            _fetch(image, near, far, tiles, 2 * x.shape[2] * c)
            _fetch(flat, near, far, tiles, 0)
            b = m[k * after : k * after + many * c_out].reshape(many, c_out)
            add_up(v[k * apart :], rows, cols[:many], b, 0, space, sums[part, k])


@compiled
def _next(i: int, h: int, w: int, down: int, across: int) -> tuple[int, int, int]:
    """The tile after this one: image, row, column."""
    if w + 1 < across:
        return i, h, w + 1
    return (i, h + 1, 0) if h + 1 < down else (i + 1, 0, 0)
