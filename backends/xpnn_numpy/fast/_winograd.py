"""Convolutions of 3 × 3 with fewer multiplications (Winograd, 1980; Lavin and Gray, 2016, arXiv:1509.09308).

Four outputs, 2 × 2, see 4 × 4 inputs. This tile of inputs d, and the kernel g, go through linear maps whose factors are
0, ±1 and ½, and so does what becomes of them:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

    Bᵀ = 1  0 -1  0     G = 1  0  0     Aᵀ = 1  1  1  0
         0  1  1  0         ½  ½  ½          0  1 -1 -1
         0 -1  1  0         ½ -½  ½
         0  1  0 -1         0  0  1

With many channels the middle is sixteen products of matrices, `(tiles, C) · (C, C_out)`: 16 multiplications for four
outputs instead of 36. Each output depends on the inputs under its own kernel alone, as in the plain sum. Its rounding
errors are as small against the largest input times the largest weight, but not against its own products: where a weight
of 0 hides an input that is far larger than the others, the plain sum is the better one (`XPNN_KERNELS=plain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from xpnn.ops._window import Window
from xpnn_numpy.fast._compiled import Host, compiled
from xpnn_numpy.fast._product import BYTES, MOST, moves, multiply, slack, tiled
from xpnn_numpy.fast._responses import rectify, win
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.kernels.convolution import full

TILES = 48
"""At a time: what is made of them stays in the second-level cache."""
LEAST_CHANNELS, LEAST_TILES = 32, 192
"""From which on the maps take less time than they save."""
Matrix = list[list[Any]]
_int64 = ir.IntType(64)


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
def even(w: Window) -> Window:
    """The same outputs, with so much padding at the ends that whole tiles see nothing else."""
    return replace(w, pads=tuple((a, b + out % 2) for (a, b), out in zip(w.pads, w.out, strict=True)))


@lru_cache(maxsize=4096)
def turned(w: Window) -> Window:
    """The convolution of `dy` that is the gradient of the input, where the stride is 1."""
    return replace(w, n=w.out, pads=full(w), out=w.n)


def _mapped(size: int, combine: Any) -> Any:
    """A function of compiled code: a map of 4 × 4 vectors along both of their axes, to `size` × `size`.

    Vector `(i, j)` is read at `start + i·down + j·right`, and written in the same way.
    """

    def typed(typing: Any, x: Any, start: Any, down: Any, right: Any, y: Any, to: Any, below: Any, beside: Any) -> Any:
        integer = types.int64
        return types.void(x, integer, integer, integer, y, integer, integer, integer), code

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, y = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 4))
        load, store, _ = moves(context, builder, signature.args[0].dtype)

        def places(data: Any, start: Any, down: Any, right: Any, many: int) -> Matrix:
            rows = [builder.gep(data, [builder.add(start, builder.mul(down, _int64(i)))]) for i in range(many)]
            return [[builder.gep(row, [builder.mul(right, _int64(j))]) for j in range(many)] for row in rows]

        _, start, down, right, _, to, below, beside = args
        half = combine(builder, [[load(place) for place in row] for row in places(x, start, down, right, 4)])
        whole = combine(builder, [list(column) for column in zip(*half, strict=True)])
        for row, line in zip(places(y, to, below, beside, size), zip(*whole, strict=True), strict=True):
            for place, value in zip(row, line, strict=True):
                store(value, place)
        return context.get_dummy_value()

    return intrinsic(typed)


def _b(builder: Any, d: Matrix) -> Matrix:
    """`Bᵀ d`."""
    plus, minus = builder.fadd, builder.fsub
    return [_each(minus, d[0], d[2]), _each(plus, d[1], d[2]), _each(minus, d[2], d[1]), _each(minus, d[1], d[3])]


def _a(builder: Any, m: Matrix) -> Matrix:
    """`Aᵀ m`."""
    plus, minus = builder.fadd, builder.fsub
    return [_each(plus, _each(plus, m[0], m[1]), m[2]), _each(minus, _each(minus, m[1], m[2]), m[3])]


def _each(operation: Any, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    return [operation(*pair) for pair in zip(a, b, strict=True)]


_take, _give = _mapped(4, _b), _mapped(2, _a)


@compiled
def convolve(x: Host, width: int, weight: Host, backwards: bool, bias: Host, relu: bool, y: Host, place: Host) -> None:
    """Fill `y`, and the places of its maxima where there is a pool.

    `x` has a padded image of so many columns a row, `weight` is `(C_out, 9, C)`; `backwards` for the convolution with
    the kernels turned around, from `C_out` channels to `C`.
    """
    panels, down, across = _panels(weight, backwards), *_tiles(y, place)
    tiles = len(y) * down * across
    parts = min(cut(tiles, 16 * weight.shape[0] * weight.shape[2]), -(-tiles // TILES))
    share(_convolve_part, (parts, x, width, panels, bias, relu, y, place), parts)


@compiled
def _tiles(y: Host, place: Host) -> tuple[int, int]:
    """How many there are along each axis of an image: one for each maximum, or for four outputs."""
    return (y.shape[1], y.shape[2]) if len(place) else ((y.shape[1] + 1) // 2, (y.shape[2] + 1) // 2)


@compiled
def _panels(weight: Host, backwards: bool) -> Host:
    """`G g Gᵀ` of each kernel, as sixteen matrices in the panels of `multiply`."""
    c_out, _, c = weight.shape
    (count, n), width = (c_out, c) if backwards else (c, c_out), 2 * BYTES // weight.itemsize
    panels = np.zeros((16, tiled(n, width) // width, count, width), weight.dtype)
    half, g = np.empty((4, 3)), np.empty(9)
    for k in range(count):
        for j in range(n):
            for t in range(9):
                g[t] = weight[k, 8 - t, j] if backwards else weight[j, t, k]
            for t in range(3):
                outer, inner = g[t] + g[6 + t], g[3 + t]
                half[0, t], half[1, t] = g[t], (outer + inner) / 2
                half[2, t], half[3, t] = (outer - inner) / 2, g[6 + t]
            for t in range(4):
                outer, inner = half[t, 0] + half[t, 2], half[t, 1]
                panels[4 * t, j // width, k, j % width] = half[t, 0]
                panels[4 * t + 1, j // width, k, j % width] = (outer + inner) / 2
                panels[4 * t + 2, j // width, k, j % width] = (outer - inner) / 2
                panels[4 * t + 3, j // width, k, j % width] = half[t, 2]
    return panels


@compiled
def _convolve_part(
    part: int, parts: int, x: Host, width: int, panels: Host, bias: Host, relu: bool, y: Host, place: Host
) -> None:
    """Some blocks of tiles."""
    (_, oh, ow, c_out), (down, across), c = y.shape, _tiles(y, place), panels.shape[2]
    pooled, lanes, image, flat = len(place) > 0, BYTES // x.itemsize, x.reshape(-1), y.reshape(-1)
    cols, rows = np.arange(c), np.minimum(np.arange(TILES + MOST), TILES - 1) * c
    before, after = TILES * c + 16, TILES * c_out + slack(c_out)  # no power of two, which a cache has few places for
    v, m = np.zeros(16 * before, x.dtype), np.empty(16 * after, x.dtype)
    out = np.empty(4 * c_out * (TILES if pooled else 1), x.dtype)
    begin, last_block = stretch(-(-(len(y) * down * across) // TILES), part, parts)
    end = min(last_block * TILES, len(y) * down * across)
    for first in range(begin * TILES, end, TILES):
        many = min(TILES, end - first)
        i, h, w = first // (down * across), first // across % down, first % across
        for t in range(many):
            start = i * x.shape[1] + 2 * (h * width + w) * c
            for k in range(0, c, lanes):
                k = min(
                    k, c - lanes
                )  # the last vector repeats some of the one before, and reads nothing behind the image
                _take(image, start + k, width * c, c, v, t * c + k, 4 * before, before)
            i, h, w = _next(i, h, w, down, across)
        for k in range(16):
            multiply(v[k * before :], rows, many, cols, panels[k].reshape(-1), c_out, m[k * after :])
        for t in range(many):  # of Aᵀ m A, m₁₁ alone goes into all four outputs as it is
            for k in range(c_out):
                m[5 * after + t * c_out + k] += bias[k]
        i, h, w = first // (down * across), first // across % down, first % across
        for t in range(many):
            start = ((i * oh + 2 * h) * ow + 2 * w) * c_out
            inside = 2 * h + 1 < oh and 2 * w + 1 < ow
            for k in range(0, c_out, lanes):
                k = min(k, c_out - lanes)
                if pooled:
                    _give(m, t * c_out + k, 4 * after, after, out, t * c_out + k, 2 * many * c_out, many * c_out)
                elif inside:
                    _give(m, t * c_out + k, 4 * after, after, flat, start + k, ow * c_out, c_out)
                else:
                    _give(m, t * c_out + k, 4 * after, after, out, k, 2 * c_out, c_out)
            if not (pooled or inside):
                for p in range(min(2, oh - 2 * h)):
                    for q in range(min(2, ow - 2 * w)):
                        for k in range(c_out):
                            flat[start + (p * ow + q) * c_out + k] = out[(2 * p + q) * c_out + k]
            i, h, w = _next(i, h, w, down, across)
        if pooled:
            maxima, won = flat[first * c_out : (first + many) * c_out], place[first : first + many]
            win(out, maxima, won, 4)
            if relu:
                rectify(maxima, won.reshape(-1))


@compiled
def _next(i: int, h: int, w: int, down: int, across: int) -> tuple[int, int, int]:
    """The tile after this one: image, row, column."""
    if w + 1 < across:
        return i, h, w + 1
    return (i, h + 1, 0) if h + 1 < down else (i + 1, 0, 0)
