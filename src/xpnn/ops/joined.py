"""A convolution joined with what follows it: ReLU, perhaps of the sum with a shortcut, or a pool.

The windows of a max-pool tile the responses, so each place in the window (a *phase*) is every so-many-th response, and
the maximum over a window is one of whole arrays, phase against phase, as in a tournament. Bias and ReLU, which keep the
order, follow on the maxima alone; responses that the pool would drop are never computed. Backward runs the tournament
down again: the gradient goes to the winner of each game, the earlier phase where both are equal, so the first maximum
gets it all.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

import array_api_extra as xpx

from xpnn.errors import ShapeError
from xpnn.ops._array import Array, floats, namespace
from xpnn.ops._window import Padding, Sizes, Window
from xpnn.ops.convolution import geometry
from xpnn.ops.pool import pool_window

if TYPE_CHECKING:
    from xpnn.ops import Ops

ACTIVATIONS = ("relu", "tanh")
"""What may stand before an average."""
Levels = list[list[Array]]


def conv_relu(
    ops: Ops,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    shortcut: Array | None = None,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None, Array | None]]]:
    """`relu(conv(x, weight) + bias + shortcut)`, as at the end of a residual block: here one after the other.

    Args:
        x: `(N, *spatial, C)`.
        weight: `(C_out, *kernel, C)`.
        bias: `(C_out,)` or None.
        shortcut: `(N, *out, C_out)` or None.
        stride, padding, dilation: of the convolution.

    Returns:
        `y (N, *out, C_out)` and `backward(dy, *, input_gradient=True) → dx, dweight, dbias, dshortcut`.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
    """
    _, w = geometry("conv_relu", x, weight, bias, stride, padding, dilation)
    check_shortcut(x, weight, shortcut, w)  # before anything is computed
    responses, conv_backward = ops.conv(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
    y, last_backward = ops.relu(responses) if shortcut is None else ops.add(responses, shortcut, relu=True)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array | None, Array | None]:
        dresponses, *dshortcut = last_backward(dy)
        return *conv_backward(dresponses, input_gradient=input_gradient), dshortcut[0] if dshortcut else None

    return y, backward


def check_shortcut(x: Array, weight: Array, shortcut: Array | None, w: Window) -> None:
    """Check that the shortcut can be added to the responses of `w`."""
    floats("conv_relu", x=x, shortcut=shortcut)
    expected = (x.shape[0], *w.out, weight.shape[0])
    if shortcut is not None and tuple(shortcut.shape) != expected:
        raise ShapeError(
            f"conv_relu: the shortcut has shape {tuple(shortcut.shape)}; expected that of the responses, {expected}: "
            "bring it there, e.g. by a convolution with kernels of 1, of the same strides and channels"
        )


def conv_pool(
    ops: Ops,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    pool: Sizes,
    relu: bool = False,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None]]]:
    """`max_pool(conv(x, weight) + bias)`, and ReLU after it (or between, which is the same) where `relu`.

    Args:
        x: `(N, *spatial, C)`.
        weight: `(C_out, *kernel, C)`.
        bias: `(C_out,)` or None.
        pool: the window of the pool, which is also its stride; what is left over at the end is dropped.
        relu: whether ReLU follows.
        stride, padding, dilation: of the convolution.

    Returns:
        `y (N, *pooled, C_out)` and `backward(dy, *, input_gradient=True) → dx, dweight, dbias`.

    Raises:
        ShapeError: shapes or dtypes that do not fit, or a window larger than the responses.
    """
    return by_responses(ops, best, x, weight, bias, pool, relu, stride, padding, dilation)


Best = Callable[["Ops", Array, Array | None, tuple[int, ...], bool], tuple[Array, Callable[[Array], Any]]]


def by_responses(
    ops: Ops,
    best: Best,
    x: Array,
    weight: Array,
    bias: Array | None,
    pool: Sizes,
    relu: bool,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None]]]:
    """`conv_pool`, by a convolution and what `best` makes of its responses."""
    xp, w = geometry("conv_pool", x, weight, bias, stride, padding, dilation)
    p = pooled("conv_pool", w, pool)
    kept = w.reach(tuple(out * size for out, size in zip(p.out, p.size, strict=True)))  # by the pool, of the responses
    under, pads = w.part((0,) * len(kept), kept)
    seen = (slice(None), *under, slice(None))
    responses, conv_backward = ops.conv(x[seen], weight, stride=w.stride, padding=pads, dilation=w.dilation)
    y, best_backward = best(ops, responses, bias, p.size, relu)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array | None]:
        dresponses, dbias = best_backward(dy)
        dx, dweight, _ = conv_backward(dresponses, input_gradient=input_gradient)
        if dx is not None and dx.shape != x.shape:
            dx = xpx.at(xp.zeros_like(x))[seen].set(dx)
        return dx, dweight, dbias

    return y, backward


def best(
    ops: Ops, responses: Array, bias: Array | None, size: tuple[int, ...], relu: bool
) -> tuple[Array, Callable[[Array], tuple[Array, Array | None]]]:
    """The maxima of windows of `size` that tile the responses, with bias and ReLU; backward → dresponses, dbias."""
    xp = namespace("conv_pool", responses=responses)
    taps = product(*map(range, size))
    phases = [(slice(None), *(slice(a, None, s) for a, s in zip(tap, size, strict=True)), slice(None)) for tap in taps]
    levels = tournament(xp.maximum, [responses[phase] for phase in phases])
    y = levels[-1][0]
    if bias is not None:
        y = y + bias
    if relu:
        y = ops.relu(y)[0]

    def backward(dy: Array) -> tuple[Array, Array | None]:
        d = dy * xp.astype(y > 0, dy.dtype) if relu else dy
        dresponses = xp.zeros_like(responses)
        for phase, prize in zip(phases, _prizes(xp, levels, d), strict=True):
            dresponses = xpx.at(dresponses)[phase].set(prize)
        return dresponses, None if bias is None else ops.total(d, tuple(range(d.ndim - 1)))

    return y, backward


def tournament(maximum: Callable[[Array, Array], Array], phases: list[Array]) -> Levels:
    """The rounds of a knock-out between neighbours: first the phases, at the end the maximum alone."""
    levels = [phases]
    while len(levels[-1]) > 1:
        games = zip(levels[-1][::2], levels[-1][1::2], strict=False)
        bye = levels[-1][len(levels[-1]) // 2 * 2 :]
        levels.append([maximum(a, b) for a, b in games] + bye)
    return levels


def pooled(op: str, w: Window, pool: Sizes) -> Window:
    """The checked windows of a pool over the responses of `w`."""
    return pool_window(op, w.out, pool, None, "valid", 1, False)


def conv_avg_pool(
    ops: Ops,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    pool: Sizes,
    activation: str,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array | None]]]:
    """`avg_pool(activation(conv(x, weight) + bias))`, as in LeCun et al., 1998: here one after the other.

    Args:
        x: `(N, *spatial, C)`.
        weight: `(C_out, *kernel, C)`.
        bias: `(C_out,)` or None.
        pool: the window of the pool, which is also its stride; what is left over at the end is dropped.
        activation: `"relu"` or `"tanh"`.
        stride, padding, dilation: of the convolution.

    Returns:
        `y (N, *pooled, C_out)` and `backward(dy, *, input_gradient=True) → dx, dweight, dbias`.

    Raises:
        ShapeError: shapes or dtypes that do not fit, or a window larger than the responses.
        ValueError: another activation.
    """
    _, w = geometry("conv_avg_pool", x, weight, bias, stride, padding, dilation)
    pooled("conv_avg_pool", w, pool)  # checked before anything is computed
    responses, conv_backward = ops.conv(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
    active, active_backward = getattr(ops, checked(activation))(responses)
    y, pool_backward = ops.avg_pool(active, window=pool)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array | None]:
        (dresponses,) = active_backward(*pool_backward(dy))
        dx, dweight, dbias = conv_backward(dresponses, input_gradient=input_gradient)
        return dx, dweight, dbias

    return y, backward


def checked(activation: str) -> str:
    """The name of an activation that may stand before an average."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"conv_avg_pool: activation={activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    return activation


def _prizes(xp: Any, levels: Levels, d: Array) -> list[Array]:
    """The gradient of each phase, from that of the maximum."""
    prizes = [d]
    for level in reversed(levels[:-1]):
        shared = []
        for i, prize in enumerate(prizes):
            if 2 * i + 1 == len(level):  # without an opponent
                shared.append(prize)
                continue
            a, b = level[2 * i], level[2 * i + 1]
            left = prize * xp.astype(a >= b, prize.dtype)
            shared += [left, prize - left]
        prizes = shared
    return prizes
