"""Convolution and its transpose as matrix products over columns.

A column block holds, for some output positions, the inputs under the window side by side
(`(rows, K·C)`, K taps); the convolution is then one GEMM with the weights. Blocks are kept small enough
(`ops.column_bytes`) to stay in cache and are gathered again in backward instead of being remembered.
`conv_transpose` is the same two moves (`im2col`, `col2im`) with their roles exchanged.
See Dumoulin, Visin, *A guide to convolution arithmetic for deep learning*, 2016 (stride, dilation, transpose).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import array_api_extra as xpx

from xpnn.errors import ShapeError
from xpnn.ops._array import Array, channels, device, floats, itemsize, shape_of, vectors
from xpnn.ops._window import Padding, Pads, Sizes, Window, each, window

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
    """Convolution (cross-correlation, the kernel is not flipped) over any number of spatial axes.

    `y[n, o, c] = bias[c] + Σ_t Σ_i weight[c, t, i] · x[n, o·stride - before + t·dilation, i]`

    Args:
        x: `(N, *spatial, C)`.
        weight: `(C_out, *kernel, C / groups)`.
        bias: `(C_out,)` or None.
        stride, dilation: an integer, or one for each spatial axis.
        padding: `"valid"`, `"same"`, an integer, one for each axis, or (before, after) pairs; zeros.
        groups: channels are cut into so many groups that do not see each other.

    Returns:
        `y (N, *out, C_out)` and `backward(dy, *, input_gradient=True) → dx, dweight, dbias`.

    Raises:
        ShapeError: shapes or dtypes that do not fit, or a kernel larger than the padded input.
    """
    xp, w = geometry("conv", x, weight, bias, stride, padding, dilation, groups)
    columns = _Columns(ops, xp, w, x, x.shape[-1], groups)
    matrix = xp.reshape(weight, (groups, weight.shape[0] // groups, -1))  # (G, C_out/G, K·C/G)
    transposed = xp.matrix_transpose(matrix)
    offset = None if bias is None else xp.reshape(bias, (groups, 1, -1))

    def rows(block: _Block) -> Array:
        y = ops.matmul(columns.gather(x, block), transposed)
        return y if offset is None else xpx.at(y)[...].add(offset)  # the product is ours: in place

    y = columns.join([rows(block) for block in columns.blocks()])

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array | None]:
        dmatrix = dx = None
        for block in columns.blocks():
            d = columns.cut(dy, block)
            part = ops.matmul(xp.matrix_transpose(d), columns.gather(x, block))
            dmatrix = part if dmatrix is None else dmatrix + part
            if input_gradient:
                dx = columns.scatter(dx, ops.matmul(d, matrix), block)
        dweight = xp.reshape(dmatrix, weight.shape)
        dbias = None if bias is None else ops.total(dy, tuple(range(dy.ndim - 1)))
        return dx, dweight, dbias

    return y, backward


def conv_transpose(
    ops: Ops,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    output_padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None]]]:
    """Transposed convolution: the gradient of `conv` with respect to its input, as a layer of its own.

    The output has `(n - 1)·stride - before - after + dilation·(kernel - 1) + 1 + output_padding` values an
    axis; with `padding="same"` it has `n·stride`, as in Keras.

    Args:
        x: `(N, *spatial, C)`.
        weight: `(C, *kernel, C_out / groups)`: the weights of the convolution that this one transposes.
        bias: `(C_out,)` or None.
        stride, padding, dilation, groups: those of that convolution.
        output_padding: values added at the end of each output axis (less than the stride or the dilation).

    Returns:
        `y (N, *out, C_out)` and `backward(dy, *, input_gradient=True) → dx, dweight, dbias`.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
    """
    xp = floats("conv_transpose", x=x, weight=weight, bias=bias)
    if x.ndim != weight.ndim or x.ndim < 3:
        raise ShapeError(
            f"conv_transpose: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; expected "
            "(N, *spatial, C) and (C, *kernel, C_out / groups) with as many spatial axes in both"
        )
    _check_groups("conv_transpose", groups, weight.shape[0])
    channels("conv_transpose", x.shape, weight.shape[0], "the weights")
    c_out = weight.shape[-1] * groups
    vectors("conv_transpose", c_out, bias=shape_of(bias))
    spatial = tuple(x.shape[1:-1])
    w = transposed_window(spatial, tuple(weight.shape[1:-1]), stride, padding, output_padding, dilation)
    columns = _Columns(ops, xp, w, x, c_out, groups)
    matrix = xp.reshape(weight, (groups, weight.shape[0] // groups, -1))  # (G, C/G, K·C_out/G)
    y = None
    for block in columns.blocks():
        y = columns.scatter(y, ops.matmul(columns.cut(x, block), matrix), block)
    if bias is not None:
        y = y + bias

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array | None]:
        dmatrix, rows = None, []
        for block in columns.blocks():
            d = columns.gather(dy, block)
            part = ops.matmul(xp.matrix_transpose(columns.cut(x, block)), d)
            dmatrix = part if dmatrix is None else dmatrix + part
            if input_gradient:
                rows.append(ops.matmul(d, xp.matrix_transpose(matrix)))
        dx = columns.join(rows) if input_gradient else None
        dbias = None if bias is None else ops.total(dy, tuple(range(dy.ndim - 1)))
        return dx, xp.reshape(dmatrix, weight.shape), dbias

    return y, backward


def transposed_window(
    spatial: tuple[int, ...],
    kernel: Sizes,
    stride: Sizes,
    padding: Padding,
    output_padding: Sizes,
    dilation: Sizes,
) -> Window:
    """The geometry of the convolution that maps the output of a transposed one back to `spatial`."""
    op, axes = "conv_transpose", len(spatial)
    kernel, stride, dilation = (
        each(op, name, value, axes) for name, value in (("kernel", kernel), ("stride", stride), ("dilation", dilation))
    )
    extra = each(op, "output_padding", output_padding, axes, least=0)
    if any(e and e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise ShapeError(f"{op}: output_padding={extra} must be smaller than the stride {stride} or the dilation")
    if padding == "same":
        if any(extra):
            raise ShapeError(f"{op}: padding='same' settles the output size; leave output_padding={extra} out")
        out = tuple(m * s for m, s in zip(spatial, stride, strict=True))
        return window(op, out, kernel, stride, padding, dilation)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    full = tuple((m - 1) * s + r + e for m, s, r, e in zip(spatial, stride, reach, extra, strict=True))
    pads = window(op, full, kernel, stride, padding, dilation).pads
    out = tuple(m - before - after for m, (before, after) in zip(full, pads, strict=True))
    if min(out) < 1:
        raise ShapeError(f"{op}: padding {pads} leaves nothing of an output of {full}; use less padding")
    w = window(op, out, kernel, stride, pads, dilation)
    return Window(w.n, w.size, w.stride, w.dilation, w.pads, spatial)


_Block = tuple[slice, slice, slice]  # samples, rows of the first spatial axis, rows of the column matrix


class _Columns:
    """Moves blocks of columns `(G, rows, K·C/G)` out of an image `(N, *spatial, C)` and back into it."""

    def __init__(self, ops: Ops, xp: Any, w: Window, x: Array, c: int, groups: int) -> None:
        self.ops, self.xp, self.w, self.n, self.c, self.groups = ops, xp, w, x.shape[0], c, groups
        self.taps, self.geometry = prod(w.size), {"kernel": w.size, "stride": w.stride, "dilation": w.dilation}
        line = prod(w.out[1:]) * self.taps * c * itemsize(xp, x.dtype)
        self.full = all(m - r < s for m, r, s in zip(w.padded, w.reach(w.out), w.stride, strict=True))
        """Whether no more windows fit; a transposed convolution may have room for some in its output padding."""
        self.lines = max(1, min(w.out[0], ops.column_bytes // max(line, 1)))
        self.samples = max(1, ops.column_bytes // max(line * w.out[0], 1)) if self.lines == w.out[0] else 1

    def blocks(self) -> Iterator[_Block]:
        """Cut the outputs, in row-major order, into blocks of whole samples or of lines of one sample."""
        height, line, row = self.w.out[0], prod(self.w.out[1:]), 0
        for n in range(0, max(self.n, 1), self.samples):  # an empty batch is one empty block
            samples = slice(n, min(n + self.samples, self.n))
            for h in range(0, height, self.lines):
                lines = slice(h, min(h + self.lines, height))
                rows = (samples.stop - samples.start) * (lines.stop - lines.start) * line
                yield samples, lines, slice(row, row + rows)
                row += rows

    def gather(self, image: Array, block: _Block) -> Array:
        """The columns of a block: `(G, rows, K·C/G)`."""
        xp, g, (under, pads) = self.xp, self.groups, self._under(block)
        columns = self.ops.im2col(image[(block[0], *under, slice(None))], padding=pads, **self.geometry)
        if g == 1:
            return xp.reshape(columns, (1, -1, self.taps * self.c))
        columns = xp.reshape(columns, (-1, self.taps, g, self.c // g))
        return xp.reshape(xp.permute_dims(columns, (2, 0, 1, 3)), (g, -1, self.taps * (self.c // g)))

    def scatter(self, image: Array | None, columns: Array, block: _Block) -> Array:
        """Add the columns of a block to the places they were gathered from; None is an image of zeros."""
        xp, g, (samples, lines, rows) = self.xp, self.groups, block
        if g > 1:
            columns = xp.reshape(columns, (g, rows.stop - rows.start, self.taps, self.c // g))
            columns = xp.permute_dims(columns, (1, 2, 0, 3))
        shape = (samples.stop - samples.start, lines.stop - lines.start, *self.w.out[1:], self.taps * self.c)
        columns = xp.reshape(columns, shape)
        if shape[:2] == (self.n, self.w.out[0]) and self.full:  # the only block
            return self.ops.col2im(columns, spatial=self.w.n, padding=self.w.pads, **self.geometry)
        if image is None:
            image = xp.zeros((self.n, *self.w.n, self.c), dtype=columns.dtype, device=device(columns))
        under, pads = self._under(block)
        size = tuple(s.stop - s.start for s in under)
        part = self.ops.col2im(columns, spatial=size, padding=pads, **self.geometry)
        return xpx.at(image)[(samples, *under, slice(None))].add(part)

    def cut(self, image: Array, block: _Block) -> Array:
        """The rows of a block of an image without window: `(G, rows, C/G)`."""
        xp, g = self.xp, self.groups
        rows = xp.reshape(image, (prod(image.shape[:-1]), g, image.shape[-1] // g))
        return xp.permute_dims(rows[block[2], ...], (1, 0, 2))

    def join(self, parts: list[Array]) -> Array:
        """The blocks' rows `(G, rows, C/G)` as one image `(N, *out, C)`."""
        xp = self.xp
        y = parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)
        return xp.reshape(xp.permute_dims(y, (1, 0, 2)), (self.n, *self.w.out, y.shape[0] * y.shape[2]))

    def _under(self, block: _Block) -> tuple[tuple[slice, ...], Pads]:
        """The part of the image that lies under the windows of a block, and the padding around it."""
        lines, w = block[1], self.w
        reach = w.reach((lines.stop - lines.start, *w.out[1:]))
        return w.part((lines.start * w.stride[0], *(0 for _ in w.n[1:])), reach)


def geometry(
    op: str,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int = 1,
) -> tuple[Any, Window]:
    """The namespace and the window of a convolution, once its arrays are checked."""
    xp, of_bias = floats(op, x=x, weight=weight, bias=bias), None if bias is None else tuple(bias.shape)
    given = op, tuple(x.shape), tuple(weight.shape), of_bias, stride, padding, dilation, groups
    try:
        return xp, _window_of(*given)
    except TypeError:  # lists cannot be looked up
        return xp, _window_of.__wrapped__(*given)


@lru_cache(maxsize=4096)
def _window_of(
    op: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int,
) -> Window:
    """The window of a convolution of arrays of these shapes, once they are checked; remembered."""
    if len(x) != len(weight) or len(x) < 3:
        raise ShapeError(
            f"{op}: x has shape {x} and weight {weight}; expected (N, *spatial, C) "
            "and (C_out, *kernel, C / groups) with as many spatial axes in both"
        )
    _check_groups(op, groups, weight[0])
    channels(op, x, weight[-1] * groups, "the weights")
    vectors(op, weight[0], bias=bias)
    return window(op, x[1:-1], weight[1:-1], stride, padding, dilation)


def _check_groups(op: str, groups: int, rows: int) -> None:
    if groups < 1 or rows % groups:
        raise ShapeError(f"{op}: groups={groups} does not divide the {rows} rows of the weights; choose a divisor")
