"""Pooling: the largest or the mean value of each window.

No padded copy is made: a tap of the window is paired with just those outputs for which it falls on a real
input, so padding can never win a maximum and needs no `-inf`. The gradient of a maximum goes to the first
one in row-major order, on every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import array_api_extra as xpx

from xpnn.errors import ShapeError
from xpnn.ops._array import Array, device, floats
from xpnn.ops._window import Padding, Sizes, Window, window

if TYPE_CHECKING:
    from xpnn.ops import Ops

Backward = Callable[..., tuple[Array | None]]


def max_pool(
    ops: Ops,
    x: Array,
    *,
    window: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Backward]:
    """The maximum of each window; its gradient goes to the first maximum only.

    Args:
        x: `(N, *spatial, C)`.
        window: size of the window.
        stride: default: the window, so that windows do not overlap.
        padding: as in `conv`, at most half the window; never wins.
        dilation: distance between the taps of a window.
        ceil_mode: keep a last window that hangs over the end (by PyTorch's rule), instead of dropping it.

    Returns:
        `y (N, *out, C)` and `backward(dy) → (dx,)`.

    Raises:
        ShapeError: a window larger than the padded input, padding of more than half the window, or a window
            that sees padding alone.
    """
    xp = floats("max_pool", x=x)
    w = pool_window("max_pool", tuple(x.shape[1:-1]), window, stride, padding, dilation, ceil_mode)
    taps = [(w.inside(tap), w.covers(w.inside(tap)[0])) for tap in w.taps()]

    y = _first(xp, x, w)
    for (outputs, inputs), covers in taps:
        under = x[_full(inputs)]
        larger = xp.maximum(y[_full(outputs)], under)
        y = larger if covers else xpx.at(y)[_full(outputs)].set(larger)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None]:
        if not input_gradient:
            return (None,)
        dx = xp.zeros_like(x)
        free = xp.ones(y.shape, dtype=xp.bool, device=device(x))  # windows whose maximum is still to come
        for (outputs, inputs), covers in taps:
            outputs, inputs = _full(outputs), _full(inputs)
            open_ = free if covers else free[outputs]
            hit = (x[inputs] == y[outputs]) & open_
            free = free ^ hit if covers else xpx.at(free)[outputs].set(open_ ^ hit)
            place = xpx.at(dx)[inputs]
            share = dy[outputs] * xp.astype(hit, dy.dtype)
            dx = place.set(share) if w.disjoint else place.add(share)
        return (dx,)

    return y, backward


def avg_pool(
    ops: Ops,
    x: Array,
    *,
    window: Sizes,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, Backward]:
    """The mean of each window.

    Args:
        x: `(N, *spatial, C)`.
        window, stride, padding, dilation, ceil_mode: as in `max_pool`.
        count_include_pad: whether zeros of the padding count in the mean; what a window of `ceil_mode` has
            beyond the padding never does.

    Returns:
        `y (N, *out, C)` and `backward(dy) → (dx,)`.

    Raises:
        ShapeError: a window larger than the padded input, or padding of more than half the window.
    """
    xp = floats("avg_pool", x=x)
    w = pool_window("avg_pool", tuple(x.shape[1:-1]), window, stride, padding, dilation, ceil_mode)
    axes = [(axis, one) for axis, one in enumerate(w.axes(), start=1)]

    count: Any = prod(w.size)
    counted = w if not count_include_pad else Window(w.padded, w.size, w.stride, w.dilation, _NONE[: len(w.n)], w.out)
    cells = [counted.inside(tap)[0] for tap in w.taps()]
    if not all(map(counted.covers, cells)):
        count = xp.zeros((1, *w.out, 1), dtype=x.dtype, device=device(x))
        for cell in cells:
            count = xpx.at(count)[_full(cell)].add(1.0)

    y = x
    for axis, one in axes:  # the sum over a window is one axis after the other, fewer terms than taps
        y = _moved(xp, y, one, axis, one.out[0])
    y = y / count

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None]:
        if not input_gradient:
            return (None,)
        dx = dy / count
        for axis, one in reversed(axes):
            dx = _moved(xp, dx, one, axis, one.n[0], back=True)
        return (dx,)

    return y, backward


def _moved(xp: Any, x: Array, w: Window, axis: int, size: int, back: bool = False) -> Array:
    """Along one axis, what lies under each window added up; `back`: each window's value added to what lies under it."""
    y = xp.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]), dtype=x.dtype, device=device(x))
    before = (slice(None),) * axis
    for tap in w.taps():
        outputs, inputs = ((*before, part[0], ...) for part in w.inside(tap))
        y = xpx.at(y)[inputs].add(x[outputs]) if back else xpx.at(y)[outputs].add(x[inputs])
    return y


def global_max_pool(ops: Ops, x: Array) -> tuple[Array, Backward]:
    """The maximum over all spatial axes: `(N, *spatial, C) → (N, C)`; the first maximum gets the gradient."""
    xp = floats("global_max_pool", x=x)
    n, places, c = _spatial("global_max_pool", x)
    rows = xp.reshape(x, (n, places, c))
    y = xp.max(rows, axis=1)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None]:
        if not input_gradient:
            return (None,)
        place = xp.reshape(xp.arange(places, device=device(x)), (1, places, 1))
        first = xp.min(xp.where(rows == y[:, None, :], place, places), axis=1, keepdims=True)
        return (xp.reshape(xp.where(place == first, dy[:, None, :], 0.0), x.shape),)

    return y, backward


def global_avg_pool(ops: Ops, x: Array) -> tuple[Array, Backward]:
    """The mean over all spatial axes: `(N, *spatial, C) → (N, C)`; `backward(dy) → (dx,)`."""
    xp = floats("global_avg_pool", x=x)
    (n, places, c), shape = _spatial("global_avg_pool", x), x.shape  # of `x` nothing is kept
    y = ops.total(x, tuple(range(1, x.ndim - 1))) / places

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None]:
        if not input_gradient:
            return (None,)
        share = xp.reshape(dy / places, (n, *(1 for _ in shape[1:-1]), c))
        return (xp.broadcast_to(share, shape),)

    return y, backward


_NONE = ((0, 0),) * 8


def pool_window(
    op: str,
    spatial: tuple[int, ...],
    size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil_mode: bool,
) -> Window:
    """The checked geometry of a pool over images of size `spatial`."""
    if not spatial:
        raise ShapeError(f"{op}: x has no spatial axes; expected (N, *spatial, C)")
    return _checked(op, window(op, spatial, size, size if stride is None else stride, padding, dilation, ceil_mode))


@lru_cache(maxsize=4096)
def _checked(op: str, w: Window) -> Window:
    """`w`, once it is known to suit a pool."""
    if any(2 * max(pads) > d * (k - 1) + 1 for pads, k, d in zip(w.pads, w.size, w.dilation, strict=True)):
        raise ShapeError(
            f"{op}: padding {w.pads} is more than half the window {w.size}: a window could lie in the padding "
            "alone; use less padding or a larger window"
        )
    if not _all_see_input(w):
        raise ShapeError(
            f"{op}: with dilation {w.dilation} and padding {w.pads} a window of {w.size} sees nothing of the input of "
            f"{w.n}: its taps step over it; use less padding or dilation"
        )
    return w


def _all_see_input(w: Window) -> bool:
    """Whether each window has a tap on a real input."""
    axes = zip(w.n, w.size, w.stride, w.dilation, w.pads, w.out, strict=True)
    return all(
        any(0 <= o * s - before + t * d < n for t in range(k))
        for n, k, s, d, (before, _), out in axes
        for o in range(out)
    )


def _first(xp: Any, x: Array, w: Window) -> Array:
    """For each window the input under its first tap that is not padding."""
    for axis, (s, d, (before, _), out) in enumerate(zip(w.stride, w.dilation, w.pads, w.out, strict=True), start=1):
        if before == 0:
            last = (out - 1) * s
            x = x[(slice(None),) * axis + (slice(0, last + 1, s), ...)]
        else:
            start = xp.arange(out, device=device(x)) * s - before
            x = xp.take(x, xp.where(start < 0, start % d, start), axis=axis)
    return x


def _full(slices: tuple[slice, ...]) -> tuple[Any, ...]:
    """Slices over the spatial axes as an index into `(N, *spatial, C)`."""
    return (slice(None), *slices, slice(None))


def _spatial(op: str, x: Array) -> tuple[int, int, int]:
    if x.ndim < 3 or prod(x.shape[1:-1]) == 0:
        raise ShapeError(f"{op}: x has shape {tuple(x.shape)}; expected (N, *spatial, C) with spatial axes")
    return x.shape[0], prod(x.shape[1:-1]), x.shape[-1]
