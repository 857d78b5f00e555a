"""The product at the heart of a convolution, whose left factor is never made.

The columns of a convolution are values of one image, each of them many times over: `a[rows[i] + cols[k]]`, with the
places of the outputs as rows and those of the taps as columns, or the other way round. So

    y[i, :] = Σ_k a[rows[i] + cols[k]] · b[k, :]

is its forward pass (rows: outputs, `b`: weights), the gradient of its input (the same over `dy`) and that of its
weights (rows: taps, `b`: `dy`), and nothing is gathered or copied. A tile of some rows and one or two vectors of `y`
stays in registers while `k` runs over some terms, as in any fast product (Goto and van de Geijn, 2008,
doi:10.1145/1356052.1356053).

Vectors and registers are the machine's; the code is written in LLVM's own terms, for what a compiler makes of loops
over them is not to be relied on.
"""

from __future__ import annotations

from itertools import chain
from math import lcm
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xpnn_numpy.fast._compiled import Host, compiled

FEATURES = binding.get_host_cpu_features()
BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx") else 16
"""Of a vector."""
WIDE = 8 if FEATURES.get("avx512f") or FEATURES.get("neon") else 6
"""Rows of a tile of two vectors: with two of `b` and one of `a` they fit 32 or 16 registers."""
NARROW = 10
"""Rows of a tile of one vector: their addresses fit the other registers."""
MOST = max(WIDE, NARROW)
TILES = lcm(WIDE, NARROW)
"""Rows that either tile divides."""
TERMS = 128
"""Added one after the other, as in `ops.total`."""
FAR = 256
"""Bytes between rows of `b` from which on they are copied together: further ones push each other out of a cache."""


def vectors(context: Any, builder: Any, dtype: Any) -> tuple[Any, Any]:
    """What loads a vector from a place, and what stores one there."""
    kind, align = ir.VectorType(context.get_value_type(dtype), BYTES * 8 // dtype.bitwidth), dtype.bitwidth // 8

    def load(place: Any) -> Any:
        return builder.load(builder.bitcast(place, kind.as_pointer()), align=align)

    def store(value: Any, place: Any) -> None:
        builder.store(value, builder.bitcast(place, kind.as_pointer()), align=align)

    return load, store


def _tile(rows: int, vectors: int) -> Any:
    """A function of compiled code: `rows` rows and so many vectors of `y`, set, or added to where `more`."""

    def typed(
        typing: Any, a: Any, places: Any, cols: Any, count: Any, b: Any, step: Any, y: Any, y_step: Any, more: Any
    ) -> Any:
        integer = types.int64
        return types.void(a, places, cols, integer, b, integer, y, integer, types.boolean), code

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        a, places, cols, b, y = (context.make_array(kinds[i])(context, builder, args[i]).data for i in (0, 1, 2, 4, 6))
        count, step, y_step, more = args[3], args[5], args[7], args[8]
        bits = kinds[0].dtype.bitwidth
        lanes, int64 = BYTES * 8 // bits, ir.IntType(64)
        vector = ir.VectorType(context.get_value_type(kinds[0].dtype), lanes)
        zero = ir.Constant(vector, None)
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f{bits}"
        )

        def pointer(start: Any, i: int) -> Any:
            return builder.bitcast(builder.gep(start, [int64(i * lanes)]), vector.as_pointer())

        def load(start: Any, i: int) -> Any:
            return builder.load(pointer(start, i), align=bits // 8)

        def everywhere(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
            return builder.shuffle_vector(one, zero, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None))

        outs = [builder.gep(y, [builder.mul(int64(i), y_step)]) for i in range(rows)]
        starts = [builder.gep(a, [builder.load(builder.gep(places, [int64(i)]))]) for i in range(rows)]
        sums = [[builder.select(more, load(out, v), zero) for v in range(vectors)] for out in outs]
        end, none = builder.gep(cols, [count]), [[zero] * vectors for _ in range(rows)]
        before = builder.block
        block, body, joined, after = (builder.append_basic_block() for _ in range(4))
        builder.branch(block)

        builder.position_at_end(block)  # some terms, whose sum starts anew
        first_col, first_row = builder.phi(cols.type), builder.phi(b.type)
        totals = [[builder.phi(vector) for _ in line] for line in sums]
        ahead = builder.gep(first_col, [int64(TERMS)])
        stop = builder.select(builder.icmp_unsigned("<", ahead, end), ahead, end)
        builder.branch(body)

        builder.position_at_end(body)
        at, row = builder.phi(cols.type), builder.phi(b.type)
        running = [[builder.phi(vector) for _ in line] for line in sums]
        col, factors = builder.load(at), [load(row, v) for v in range(vectors)]
        following = []
        for start, line in zip(starts, running, strict=True):
            value = everywhere(builder.load(builder.gep(start, [col])))
            following.append([builder.call(fused, [value, f, s]) for f, s in zip(factors, line, strict=True)])
        at_next, row_next = builder.gep(at, [int64(1)]), builder.gep(row, [step])
        builder.cbranch(builder.icmp_unsigned("<", at_next, stop), body, joined)

        builder.position_at_end(joined)
        added = [
            [builder.fadd(t, s) for t, s in zip(*lines, strict=True)] for lines in zip(totals, following, strict=True)
        ]
        builder.cbranch(builder.icmp_unsigned("<", at_next, end), block, after)

        outer = [[first_col, first_row], *totals], [[cols, b], *sums], before, [[at_next, row_next], *added], joined
        inner = [[at, row], *running], [[first_col, first_row], *none], block, [[at_next, row_next], *following], body
        for phis, firsts, came, laters, again in (outer, inner):
            for phi, first, later in zip(*(chain(*values) for values in (phis, firsts, laters)), strict=True):
                phi.add_incoming(first, came)
                phi.add_incoming(later, again)
        builder.position_at_end(after)
        for out, line in zip(outs, added, strict=True):
            for v, value in enumerate(line):
                builder.store(value, pointer(out, v), align=bits // 8)
        return context.get_dummy_value()

    return intrinsic(typed)


_wide, _narrow = _tile(WIDE, 2), _tile(NARROW, 1)


@compiled
def slack(n: int) -> int:
    """How many values `multiply` may write behind the last of its rows of `n`."""
    return MOST * n + BYTES


@compiled
def tiled(n: int, tile: int) -> int:
    """`n`, up to the end of the last tile."""
    return (n + tile - 1) // tile * tile


@compiled
def packed(b: Host) -> Host:
    """The columns of `b` in panels of two vectors, one panel after the other; the last is filled up with zeros."""
    (count, n), width = b.shape, 2 * BYTES // b.itemsize
    panels = np.zeros(tiled(n, width) * count, b.dtype)
    for first in range(0, n, width):
        _copy(b, first, width, panels[first * count :])
    return panels


@compiled
def _copy(b: Host, first: int, width: int, panel: Host) -> None:
    """Columns `first …` of `b`, `width` of them or what there are."""
    many = np.uint64(min(width, b.shape[1] - first))
    for k in range(len(b)):
        i, row = np.uint64(k * width), b[k, first:]
        for v in range(many):
            panel[i + v] = row[v]


@compiled
def multiply(a: Host, rows: Host, many: int, cols: Host, panels: Host, n: int, y: Host) -> None:
    """Set `many` rows of `y`, of `n` values each, with `b` in panels; `rows` goes on to the end of a tile.

    Whole tiles of whole vectors are written, so that the last ones spoil the beginning of the rows that follow. These
    must come later: rows go up, panels down.
    """
    width = 2 * BYTES // a.itemsize
    for first in range(tiled(n, width) - width, -1, -width):
        b = panels[first * len(cols) :]
        if 2 * (n - first) <= width:
            for i in range(0, many, NARROW):
                _narrow(a, rows[i:], cols, len(cols), b, width, y[i * n + first :], n, False)
        else:
            for i in range(0, many, WIDE):
                _wide(a, rows[i:], cols, len(cols), b, width, y[i * n + first :], n, False)


@compiled
def add_up(a: Host, rows: Host, cols: Host, b: Host, first: int, space: Host, sums: Host) -> None:
    """Add the product with rows `first …` of `b` to `sums`, whose panels are those of `packed`.

    `rows` goes on for another tile; `space` is for a panel of `b`, where it is not used as it lies. In the last one
    the vectors reach into the next row: what comes of it stays in columns that `unpack` leaves out.
    """
    n, width, many, last = b.shape[1], 2 * BYTES // a.itemsize, len(rows) - MOST, first + len(cols)
    for column in range(0, n, width):
        part, step, y = b.reshape(-1)[first * n + column :], n, sums[column * len(rows) :]
        if n * b.itemsize > FAR or (len(b) - last) * n < width - (n - column):
            _copy(b[first:last], column, width, space)
            part, step = space, width
        if 2 * (n - column) <= width:
            for i in range(0, many, NARROW):
                _narrow(a, rows[i:], cols, len(cols), part, step, y[i * width :], width, True)
        else:
            for i in range(0, many, WIDE):
                _wide(a, rows[i:], cols, len(cols), part, step, y[i * width :], width, True)


@compiled
def unpack(panels: Host, y: Host) -> None:
    """Add the sums of `add_up` to `y`."""
    (many, n), width = y.shape, 2 * BYTES // panels.itemsize
    for first in range(0, n, width):
        for i in range(many):
            for v in range(min(width, n - first)):
                y[i, first + v] += panels[first * (many + MOST) + i * width + v]
