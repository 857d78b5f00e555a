"""Convolution: columns gathered by strides, products into place, and backward as a convolution of `dy`.

A view with overlapping strides shows under each output the window of inputs; copying a block of it is the
gather of the standard body in one call. Columns of one channel are gathered with the taps first
(`(K, rows)`, transposed for the product at no cost): the copy then runs along an image row, and not along the
three numbers of a kernel's.

With stride 1 the gradient of the input is again a convolution: of `dy`, padded, with the kernel turned around. Where
`x` is no larger than the response and has not far fewer channels, the columns of `dy` are gathered too, and the same
columns against `x` make the gradient of the weights. Elsewhere that would be more work than the convolution itself,
and each tap's share is added up where it was read. See Dumoulin, Visin, 2016, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn.ops import convolution as standard
from xpnn.ops._window import Padding, Pads, Sizes, Window
from xpnn_numpy.kernels._products import multiply, multiply_across
from xpnn_numpy.kernels._rows import Host, along, rows

if TYPE_CHECKING:
    from xpnn.ops import Ops

Part = tuple[slice, ...]
Block = tuple[slice, slice]
"""Samples, and lines of the first spatial axis."""
SHARE = 4
"""Times the size of a block: in which the shares of the taps are added up, for each is a call of NumPy's."""
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
        return standard.conv(ops, x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    _, w = standard.geometry("conv", x, weight, bias, stride, padding, dilation)
    x = np.ascontiguousarray(x)
    matrix, windows = weight.reshape(len(weight), -1), Windows(pad(x, w.pads), w)
    y = np.empty((len(x), *w.out, len(weight)), x.dtype)
    for block in windows.blocks(ops.column_bytes):
        multiply(windows.gather(block), matrix.T, y[block].reshape(-1, len(weight)))
    if bias is not None:
        np.add(rows(y), along(y, bias), out=rows(y))
    by_dy = suits(w, len(x), x.shape[-1], len(weight), prod(w.out))
    kept = None if by_dy else windows  # a padded image beside each image would be half the memory of a network

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host | None]:
        dy = np.ascontiguousarray(dy)
        dbias = None if bias is None else ops.total(dy, tuple(range(dy.ndim - 1)))
        if kept is None:
            return *of_dy(ops, pad(dy, full(w)), w, weight, input_gradient, x), dbias
        dx = kept.scattered(cut(dy, kept, SHARE * ops.column_bytes), weight)[inner(w)] if input_gradient else None
        return dx, kept.weight_gradient(cut(dy, kept, ops.column_bytes), weight), dbias

    return y, backward


class Windows:
    """The windows of a contiguous, padded image, as views and as columns.

    With a `pool`, outputs are phase-major: those at one place of the pool's windows lie together.
    """

    def __init__(self, image: Host, w: Window, pool: tuple[int, ...] = ()) -> None:
        self.image, self.pool, self.channels, self.columns = image, pool, image.shape[-1], dict[Any, Host]()
        self.kernel, self.length, self.out, self.line, self.places, self.taps = _layout(
            image.shape, image.itemsize, w, pool
        )
        self.runs = _runs(image.shape, image.dtype, w, pool)

    def blocks(self, column_bytes: int) -> Iterator[Block]:
        """Cut the outputs into blocks of whole samples, or of lines of one sample."""
        n, lines, count = len(self.image), self.out[0], max(1, column_bytes // max(self.line, 1))
        if count >= lines:
            step = count // lines
            yield from ((slice(i, min(i + step, n)), slice(0, lines)) for i in range(0, n, step))
        else:
            yield from (
                (slice(i, i + 1), slice(h, min(h + count, lines))) for i in range(n) for h in range(0, lines, count)
            )

    def gather(self, block: Block) -> Host:
        """The columns of a block, `(rows, K·C)`; of one channel they are small, and remembered."""
        if self.channels > 1:
            return self._copied(block).reshape(-1, self.length)
        key = block[0].start, block[1].start
        if key not in self.columns:
            self.columns[key] = self._copied(block).reshape(self.length, -1).T
        return self.columns[key]

    def _copied(self, block: Block) -> Host:
        """What lies under the windows of a block, run by run."""
        before, shape, strides, run = self.runs
        if 0 in shape:
            return np.empty(0, self.image.dtype)
        copied = np.ascontiguousarray(np.ndarray(shape, run, self.image, strides=strides)[(*before, *block)])
        return copied.view(self.image.dtype)

    def under(self, image: Host, block: Block) -> Host:
        """What lies in an image like this one under the windows of a block, a view."""
        shape, strides = (*self.pool, len(image), *self.out, *self.kernel), self.places + self.taps
        if 0 in shape:
            return np.empty(shape, image.dtype)
        every = (slice(None),) * len(self.pool)
        return np.ndarray(shape, image.dtype, image, strides=strides)[(*every, *block)]

    def weight_gradient(self, dy: list[tuple[Block, Host]], weight: Host) -> Host:
        """That of the weights, from the gradients of blocks of responses."""
        dmatrix = None
        for block, d in dy:
            part = multiply_across(self.gather(block), d.reshape(-1, len(weight)))
            dmatrix = part if dmatrix is None else np.add(dmatrix, part, out=dmatrix)
        return np.zeros_like(weight) if dmatrix is None else dmatrix.T.reshape(weight.shape)

    def scattered(self, dy: list[tuple[Block, Host]], weight: Host) -> Host:
        """An image like this one, with the gradients of its columns added up where these were gathered."""
        dimage, (c_out, *kernel, c) = np.zeros_like(self.image), weight.shape
        by_tap = np.ascontiguousarray(_outputs_last(weight)).reshape(-1, c_out, c)
        for block, d in dy:
            part, matrix = self.under(dimage, block), d.reshape(-1, c_out)
            dcolumns = multiply(matrix, by_tap, np.empty((len(by_tap), len(matrix), c), weight.dtype))
            for tap, dcolumn in zip(np.ndindex(*kernel), dcolumns, strict=True):
                under = part[(..., *tap, slice(None))]  # one tap of all windows touches no input twice
                under += dcolumn.reshape(under.shape)
        return dimage


@lru_cache(maxsize=4096)
def _layout(
    shape: tuple[int, ...], itemsize: int, w: Window, pool: tuple[int, ...]
) -> tuple[tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...], tuple[int, ...]]:
    """What does not change from step to step.

    A window with its channels and how many values that is, the windows along each axis and the bytes of a line of
    their columns; the bytes from one of a contiguous image to the next, and from tap to tap.
    """
    kernel = (*w.size, shape[-1])
    out = tuple(m // p for m, p in zip(w.out, pool, strict=True)) if pool else w.out
    sample, *spatial, last = (prod(shape[i:]) * itemsize for i in range(1, len(shape) + 1))
    steps = tuple(m * s for m, s in zip(spatial, w.stride, strict=True))
    over = tuple(m * p for m, p in zip(steps, pool, strict=True)) if pool else steps
    taps = tuple(m * d for m, d in zip(spatial, w.dilation, strict=True))
    length = prod(kernel)
    line = prod(pool) * prod(out[1:]) * length * itemsize
    return kernel, length, out, line, (*(steps if pool else ()), sample, *over), (*taps, last)


@lru_cache(maxsize=4096)
def _runs(
    shape: tuple[int, ...], dtype: Any, w: Window, pool: tuple[int, ...]
) -> tuple[Part, tuple[int, ...], tuple[int, ...], Any]:
    """How columns are copied: the axes before a block's, the shape and strides of a view of runs, and a run as a type.

    A run is what lies together both in the image and in its columns; as one value it is copied at once.
    """
    kernel, _, out, _, places, taps = _layout(shape, dtype.itemsize, w, pool)
    every, n = (slice(None),), shape[0]
    outputs = *pool, n, *out
    if shape[-1] > 1:
        along = 2 if w.dilation[-1] == 1 else 1  # the taps of an image row, or the channels of one tap
        run = prod(kernel[-along:])
        before, shape, strides = every * len(pool), outputs + kernel[:-along], places + taps[:-along]
    else:
        along = 1 if not pool and w.stride[-1] == 1 and len(out) > 1 else 0  # the outputs of an image row, or one
        run = prod(out[len(out) - along :])
        ends = len(outputs) - along
        before, shape, strides = every * (len(kernel) + len(pool)), kernel + outputs[:ends], taps + places[:ends]
    return before, shape, strides, np.dtype((np.void, run * dtype.itemsize)) if run > 1 else dtype


def cut(dy: Host, windows: Windows, column_bytes: int) -> list[tuple[Block, Host]]:
    """`dy` in blocks whose columns take so much."""
    return [(block, dy[block]) for block in windows.blocks(column_bytes)]


@lru_cache(maxsize=4096)
def suits(w: Window, n: int, channels: int, c_out: int, responses: int) -> bool:
    """Whether columns of `dy` are the cheaper ones, which serve both gradients.

    There are more of them where the input is larger than the response, and they are longer where it has fewer channels.
    Where `dy` is small that does not count beside a call of NumPy's for each tap.
    """
    of_stride_1 = set(w.stride) == {1} and all(min(pair) >= 0 for pair in full(w))  # no padding beyond a kernel's reach
    few = n * prod(w.n) * c_out <= SMALL
    return of_stride_1 and (few or 8 * prod(w.n) <= 9 * responses) and 4 * channels >= c_out


def of_dy(ops: Ops, image: Host, w: Window, weight: Host, input_gradient: bool, x: Host) -> tuple[Host | None, Host]:
    """The gradients of the input (or None) and of the weights, from `dy` fully padded."""
    c_out, *kernel, c = weight.shape
    around, ones = (slice(None), *(slice(None, None, -1) for _ in kernel)), (1,) * len(kernel)
    windows = Windows(image, Window(image.shape[1:-1], w.size, ones, w.dilation, (), w.n))
    turned = _outputs_last(weight[around]).reshape(-1, c)
    dx = np.empty((len(image), *w.n, c), image.dtype) if input_gradient else None
    dturned = None
    for block in windows.blocks(ops.column_bytes):
        columns = windows.gather(block)
        if dx is not None:
            multiply(columns, turned, dx[block].reshape(-1, c))
        part = multiply_across(x[block].reshape(-1, c), columns)
        dturned = part if dturned is None else np.add(dturned, part, out=dturned)
    if dturned is None:
        return dx, np.zeros_like(weight)
    return dx, dturned.reshape(c, *kernel, c_out).swapaxes(0, -1)[around]


def _outputs_last(weight: Host) -> Host:
    """`(*kernel, C_out, C)`; `np.moveaxis` takes five times as long."""
    kernel = range(1, weight.ndim - 1)
    return weight.transpose(*kernel, 0, weight.ndim - 1)


def full(w: Window) -> tuple[tuple[int, int], ...]:
    """The padding of `dy` with which its convolution has the size of `x`."""
    reach = [d * (k - 1) for d, k in zip(w.dilation, w.size, strict=True)]
    return tuple((r - a, r - b) for r, (a, b) in zip(reach, w.pads, strict=True))


def pad(x: Host, pads: Pads) -> Host:
    """`x` with zeros around it, contiguous; itself where there are none."""
    if not any(map(any, pads)):
        return x
    shape, borders, within = _border(x.shape, pads)
    image = np.empty(shape, x.dtype)
    for border in borders:  # it alone is cleared: the image is written once
        image[border] = 0
    image[within] = x
    return image


@lru_cache(maxsize=4096)
def _border(shape: tuple[int, ...], pads: Pads) -> tuple[tuple[int, ...], list[Part], Part]:
    """The shape of a padded image, and where in it the padding and the image are."""
    padded, borders = [shape[0]], list[Part]()
    within: Part = (slice(None),)
    for m, (a, b) in zip(shape[1:-1], pads, strict=True):
        borders += [(*within, cut) for cut in (slice(0, a), slice(a + m, a + m + b)) if cut.start < cut.stop]
        within = *within, slice(a, a + m)
        padded.append(m + a + b)
    return (*padded, shape[-1]), borders, within


def inner(w: Window) -> tuple[slice, ...]:
    """Where in the padded image the image itself lies."""
    return (slice(None), *(slice(a, a + m) for m, (a, _) in zip(w.n, w.pads, strict=True)))
