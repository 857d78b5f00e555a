"""The product at the heart of a convolution, whose left factor is never made; and that of a dense layer.

The columns of a convolution are values of one image, each of them many times over: `a[rows[i] + cols[k]]`, with the
places of the outputs as rows and those of the taps as columns, or the other way round. So

    y[i, :] = Σ_k a[rows[i] + cols[k]] · b[k, :]

is its forward pass (rows: outputs, `b`: weights), the gradient of its input (the same over `dy`) and that of its
weights (rows: taps, `b`: `dy`), and nothing is gathered or copied. A tile of some rows and one or two vectors of `y`
stays in registers while `k` runs over some terms, as in any fast product (Goto and van de Geijn, 2008,
doi:10.1145/1356052.1356053).

`add_runs` is for what is known to be sparse: sums of few rows of values that lie together, each kept in registers.

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

from xpnn_numpy.fast._compiled import Host, compiled, emits

FEATURES = binding.get_host_cpu_features()
BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx") else 16
"""Of a vector."""
WIDE = 8 if FEATURES.get("avx512f") or FEATURES.get("neon") else 6
"""Rows of a tile of two vectors: with two of `b` and one of `a` they fit 32 or 16 registers."""
NARROW = 10
"""Rows of a tile of one vector: their addresses fit the other registers."""
HALVES = BYTES == 64
"""Whether vectors of half the size are used: of 64 bytes, some processors take half the time for them."""
DOWN, ACROSS = 3, 5 if BYTES == 64 else 4
"""Rows of one array and of the other in a tile of sums along them: with one and all of these they fit the registers."""
MOST = max(WIDE, NARROW)
TILES = lcm(WIDE, NARROW)
"""Rows that either tile divides."""
TERMS = 128
"""Added one after the other, as in `ops.total`."""
FAR = 256
"""Bytes between rows of `b` from which on they are copied together: further ones push each other out of a cache."""


def moves(context: Any, builder: Any, dtype: Any, size: int = BYTES) -> tuple[Any, Any, Any]:
    """What loads a vector of so many bytes from a place, what stores one there, and its type."""
    kind, align = ir.VectorType(context.get_value_type(dtype), size * 8 // dtype.bitwidth), dtype.bitwidth // 8

    def load(place: Any) -> Any:
        return builder.load(builder.bitcast(place, kind.as_pointer()), align=align)

    def store(value: Any, place: Any) -> None:
        builder.store(value, builder.bitcast(place, kind.as_pointer()), align=align)

    return load, store, kind


def chunk(many: int, more: bool) -> Any:
    """A function of compiled code: so many values from one place to another, added there where `more`."""

    def typed(typing: Any, x: Any, source: Any, y: Any, target: Any) -> Any:
        return types.void(x, types.int64, y, types.int64), code

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        x, y = (context.make_array(kinds[i])(context, builder, args[i]).data for i in (0, 2))
        load, store, _ = moves(context, builder, kinds[0].dtype, many * kinds[0].dtype.bitwidth // 8)
        value, place = load(builder.gep(x, [args[1]])), builder.gep(y, [args[3]])
        store(builder.fadd(load(place), value) if more else value, place)
        return context.get_dummy_value()

    return emits(typed)


@emits
def add_run(typing: Any, x: Any, source: Any, y: Any, target: Any, length: Any) -> Any:
    """Add so many values to others: of runs this short a compiler's loop takes longer."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds, int64 = signature.args, ir.IntType(64)
        x, y = (context.make_array(kinds[i])(context, builder, args[i]).data for i in (0, 2))
        x, y, length = builder.gep(x, [args[1]]), builder.gep(y, [args[3]]), args[4]

        def add(at: Any, many: int) -> None:
            load, store, _ = moves(context, builder, kinds[0].dtype, many * kinds[0].dtype.bitwidth // 8)
            place = builder.gep(y, [at])
            store(builder.fadd(load(place), load(builder.gep(x, [at]))), place)

        with cgutils.for_range(builder, builder.lshr(length, int64(4))) as loop:
            add(builder.shl(loop.index, int64(4)), 16)
        for many in (8, 4, 2, 1):
            with builder.if_then(builder.icmp_unsigned("!=", builder.and_(length, int64(many)), int64(0))):
                add(builder.and_(length, int64(-2 * many)), many)
        return context.get_dummy_value()

    return types.void(x, types.int64, y, types.int64, types.int64), code


def multiply_add(context: Any, builder: Any, kind: Any) -> Any:
    """The multiply-add of vectors."""
    name = f"llvm.fmuladd.v{kind.count}{'f32' if isinstance(kind.element, ir.FloatType) else 'f64'}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)


def _everywhere(builder: Any, value: Any, kind: Any) -> Any:
    """A vector of one value."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        one, ir.Constant(kind, None), ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None)
    )


def _run(many: int) -> Any:
    """A function of compiled code: add `Σ_i factors[i]·x[starts[i] + shift + …]` to so many vectors of `y`."""

    def typed(typing: Any, x: Any, starts: Any, factors: Any, count: Any, shift: Any, y: Any, at: Any) -> Any:
        return types.void(x, starts, factors, types.int64, types.int64, y, types.int64), code

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds, (count, shift, at) = signature.args, (args[i] for i in (3, 4, 6))
        x, starts, factors, y = (context.make_array(kinds[i])(context, builder, args[i]).data for i in (0, 1, 2, 5))
        load, store, kind = moves(context, builder, kinds[0].dtype)
        fused = multiply_add(context, builder, kind)
        first, out = builder.gep(x, [shift]), builder.gep(y, [at])
        sums = [cgutils.alloca_once(builder, kind) for _ in range(many)]  # which become registers
        for s in sums:
            builder.store(ir.Constant(kind, None), s)
        with cgutils.for_range(builder, count) as loop:
            source = builder.gep(first, [builder.load(builder.gep(starts, [loop.index]))])
            factor = _everywhere(builder, builder.load(builder.gep(factors, [loop.index])), kind)
            for v, s in enumerate(sums):
                value = load(builder.gep(source, [ir.IntType(64)(v * kind.count)]))
                builder.store(builder.call(fused, [factor, value, builder.load(s)]), s)
        for v, s in enumerate(sums):
            place = builder.gep(out, [ir.IntType(64)(v * kind.count)])
            store(builder.fadd(load(place), builder.load(s)), place)
        return context.get_dummy_value()

    return emits(typed)


def tile(rows: int, vectors: int, size: int = BYTES, *, placed: bool = False) -> Any:
    """A function of compiled code: `rows` rows and so many vectors of `y`, set, or added to where `more`.

    Rows of `b` are a `step` apart; where they are `placed`, that is an array of their places.
    """

    def typed(
        typing: Any, a: Any, places: Any, cols: Any, count: Any, b: Any, step: Any, y: Any, y_step: Any, more: Any
    ) -> Any:
        integer = types.int64
        return types.void(a, places, cols, integer, b, step if placed else integer, y, integer, types.boolean), code

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        a, places, cols, b, y = (context.make_array(kinds[i])(context, builder, args[i]).data for i in (0, 1, 2, 4, 6))
        count, step, y_step, more = args[3], args[5], args[7], args[8]
        int64 = ir.IntType(64)
        if placed:  # what goes from row to row is the place of the place
            of_b, step = context.make_array(kinds[5])(context, builder, args[5]).data, int64(1)
        else:
            of_b = b
        load_from, store, vector = moves(context, builder, kinds[0].dtype, size)
        zero, fused = ir.Constant(vector, None), multiply_add(context, builder, vector)

        def pointer(start: Any, i: int) -> Any:
            return builder.gep(start, [int64(i * vector.count)])

        def load(start: Any, i: int) -> Any:
            return load_from(pointer(start, i))

        outs = [builder.gep(y, [builder.mul(int64(i), y_step)]) for i in range(rows)]
        starts = [builder.gep(a, [builder.load(builder.gep(places, [int64(i)]))]) for i in range(rows)]
        sums = [[builder.select(more, load(out, v), zero) for v in range(vectors)] for out in outs]
        end, none = builder.gep(cols, [count]), [[zero] * vectors for _ in range(rows)]
        before = builder.block
        block, body, joined, after = (builder.append_basic_block() for _ in range(4))
        builder.branch(block)

        builder.position_at_end(block)  # some terms, whose sum starts anew
        first_col, first_row = builder.phi(cols.type), builder.phi(of_b.type)
        totals = [[builder.phi(vector) for _ in line] for line in sums]
        ahead = builder.gep(first_col, [int64(TERMS)])
        stop = builder.select(builder.icmp_unsigned("<", ahead, end), ahead, end)
        builder.branch(body)

        builder.position_at_end(body)
        at, row = builder.phi(cols.type), builder.phi(of_b.type)
        running = [[builder.phi(vector) for _ in line] for line in sums]
        lies = builder.gep(b, [builder.load(row)]) if placed else row
        col, factors = builder.load(at), [load(lies, v) for v in range(vectors)]
        following = []
        for start, line in zip(starts, running, strict=True):
            value = _everywhere(builder, builder.load(builder.gep(start, [col])), vector)
            following.append([builder.call(fused, [value, f, s]) for f, s in zip(factors, line, strict=True)])
        at_next, row_next = builder.gep(at, [int64(1)]), builder.gep(row, [step])
        builder.cbranch(builder.icmp_unsigned("<", at_next, stop), body, joined)

        builder.position_at_end(joined)
        added = [
            [builder.fadd(t, s) for t, s in zip(*lines, strict=True)] for lines in zip(totals, following, strict=True)
        ]
        builder.cbranch(builder.icmp_unsigned("<", at_next, end), block, after)

        outer = [[first_col, first_row], *totals], [[cols, of_b], *sums], before, [[at_next, row_next], *added], joined
        inner = [[at, row], *running], [[first_col, first_row], *none], block, [[at_next, row_next], *following], body
        for phis, firsts, came, laters, again in (outer, inner):
            for phi, first, later in zip(*(chain(*values) for values in (phis, firsts, laters)), strict=True):
                phi.add_incoming(first, came)
                phi.add_incoming(later, again)
        builder.position_at_end(after)
        for out, line in zip(outs, added, strict=True):
            for v, value in enumerate(line):
                store(value, pointer(out, v))
        return context.get_dummy_value()

    return emits(typed)


@emits
def dots(typing: Any, a: Any, rows: Any, b: Any, others: Any, count: Any, sums: Any, at: Any) -> Any:
    """Add `Σ_k a[rows[i] + k]·b[others[j] + k]` over so many vectors to one for each i and j of a tile."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        a, rows, b, others, sums = (
            context.make_array(kinds[i])(context, builder, args[i]).data for i in (0, 1, 2, 3, 5)
        )
        load, store, kind = moves(context, builder, kinds[0].dtype)
        fused, int64 = multiply_add(context, builder, kind), ir.IntType(64)
        left = [builder.gep(a, [builder.load(builder.gep(rows, [int64(i)]))]) for i in range(DOWN)]
        right = [builder.gep(b, [builder.load(builder.gep(others, [int64(j)]))]) for j in range(ACROSS)]
        totals = [[cgutils.alloca_once(builder, kind) for _ in right] for _ in left]  # which become registers
        for line in totals:
            for total in line:
                builder.store(ir.Constant(kind, None), total)
        with cgutils.for_range(builder, args[4]) as loop:
            k = builder.mul(loop.index, int64(kind.count))
            values = [load(builder.gep(place, [k])) for place in right]
            for place, line in zip(left, totals, strict=True):
                factor = load(builder.gep(place, [k]))
                for value, total in zip(values, line, strict=True):
                    builder.store(builder.call(fused, [factor, value, builder.load(total)]), total)
        out = builder.gep(sums, [args[6]])
        for i, total in enumerate(total for line in totals for total in line):
            place = builder.gep(out, [int64(i * kind.count)])
            store(builder.fadd(load(place), builder.load(total)), place)
        return context.get_dummy_value()

    return types.void(a, rows, b, others, types.int64, sums, types.int64), code


_wide, _narrow, _half = tile(WIDE, 2), tile(NARROW, 1), tile(NARROW, 1, BYTES // 2)
LONG = 12
"""Vectors of a run that are added up at a time: with a factor they fit the registers."""
FEW = 6
"""Terms below which each is added by itself."""
_long, _middle, _short = _run(LONG), _run(4), _run(1)


@compiled
def add_runs(
    x: Host, starts: Host, factors: Host, count: int, shifts: Host, y: Host, at: int, places: Host, length: int
) -> None:
    """To `y[at + places[r] + k]` add the sum of `factors[i]·x[starts[i] + shifts[r] + k]` over so many `i`.

    For each run `r`, and `k` up to its `length`.
    """
    lanes, limit = BYTES // x.itemsize, length if count >= FEW else 0
    for r in range(len(shifts)):
        k, source, target = 0, shifts[r], at + places[r]
        while limit - k >= LONG * lanes:
            _long(x, starts, factors, count, source + k, y, target + k)
            k += LONG * lanes
        while limit - k >= 4 * lanes:
            _middle(x, starts, factors, count, source + k, y, target + k)
            k += 4 * lanes
        while limit - k >= lanes:
            _short(x, starts, factors, count, source + k, y, target + k)
            k += lanes
        b, rest = np.uint64(target + k), np.uint64(length - k)
        for i in range(count if rest else 0):
            a, factor = np.uint64(starts[i] + source + k), factors[i]
            for v in range(rest):
                y[b + v] += factor * x[a + v]


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
        pack(b, first, width, panels[first * count :])
    return panels


@compiled
def pack(b: Host, first: int, width: int, panel: Host) -> None:
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
        if HALVES and 4 * (n - first) <= width:
            for i in range(0, many, NARROW):
                _half(a, rows[i:], cols, len(cols), b, width, y[i * n + first :], n, False)
        elif 2 * (n - first) <= width:
            for i in range(0, many, NARROW):
                _narrow(a, rows[i:], cols, len(cols), b, width, y[i * n + first :], n, False)
        else:
            for i in range(0, many, WIDE):
                _wide(a, rows[i:], cols, len(cols), b, width, y[i * n + first :], n, False)


@compiled
def multiply_tile(a: Host, rows: Host, tall: bool, cols: Host, b: Host, step: int, y: Host, y_step: int) -> None:
    """Set one panel's width of a tile's rows of `y`, from rows of `b` that lie a `step` apart.

    A `tall` tile has `NARROW` rows, another one `WIDE`.
    """
    if tall:
        half = BYTES // a.itemsize
        _narrow(a, rows, cols, len(cols), b, step, y, y_step, False)
        _narrow(a, rows, cols, len(cols), b[half:], step, y[half:], y_step, False)
    else:
        _wide(a, rows, cols, len(cols), b, step, y, y_step, False)


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
            pack(b[first:last], column, width, space)
            part, step = space, width
        if HALVES and 4 * (n - column) <= width:
            for i in range(0, many, NARROW):
                _half(a, rows[i:], cols, len(cols), part, step, y[i * width :], width, True)
        elif 2 * (n - column) <= width:
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
