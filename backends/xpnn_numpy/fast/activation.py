"""Activations in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn.ops import activation as standard
from xpnn.ops._array import floats
from xpnn.ops.activation import Result
from xpnn_numpy.fast._compiled import Host, compiled, fitting, plain, takes
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.kernels import activation as numpys

if TYPE_CHECKING:
    from xpnn.ops import Ops


def add(ops: Ops, a: Host, b: Host, *, relu: bool = False) -> tuple[Host, Callable[..., tuple[Host | None, Host]]]:
    """See `xpnn.ops.add`."""
    standard.check_add(a, b)
    if not takes(a):
        return numpys.add(ops, a, b, relu=relu)
    y = np.empty(a.shape, a.dtype)
    _add(plain(a).reshape(-1), plain(b).reshape(-1), relu, y.reshape(-1))
    kept = y if relu else None

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host]:
        d = dy if kept is None else through("add", dy, kept)
        return (d if input_gradient else None), d

    return y, backward


def relu(ops: Ops, x: Host) -> Result:
    """See `xpnn.ops.relu`."""
    if not takes(x):
        return numpys.relu(ops, x)
    floats("relu", x=x)
    y = np.empty(x.shape, x.dtype)
    _rectify(plain(x).reshape(-1), y.reshape(-1))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        return (through("relu", dy, y) if input_gradient else None,)  # of `x` nothing is kept

    return y, backward


def tanh(ops: Ops, x: Host) -> Result:
    """See `xpnn.ops.tanh`; in 64 bits forward is NumPy's."""
    if not takes(x):
        return numpys.tanh(ops, x)
    floats("tanh", x=x)
    y = np.empty(x.shape, x.dtype)
    if x.dtype == np.float32:
        _saturate(plain(x).reshape(-1), y.reshape(-1))
    else:
        np.tanh(x, out=y)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        if not input_gradient:
            return (None,)
        dx = np.empty(y.shape, y.dtype)  # of `x` nothing is kept
        _flatten(fitting("tanh", dy, y.shape, y.dtype).reshape(-1), y.reshape(-1), dx.reshape(-1))
        return (dx,)

    return y, backward


def through(op: str, dy: Host, y: Host) -> Host:
    """What of `dy` comes through ReLU, which made `y`."""
    dx = np.empty(y.shape, y.dtype)
    _through(fitting(op, dy, y.shape, y.dtype).reshape(-1), y.reshape(-1), dx.reshape(-1))
    return dx


@compiled
def _add(a: Host, b: Host, relu: bool, y: Host) -> None:
    parts = cut(len(y), 4)
    share(_add_part, (parts, a, b, relu, y), parts)


@compiled
def _add_part(part: int, parts: int, a: Host, b: Host, relu: bool, y: Host) -> None:
    zero, (begin, end) = y.dtype.type(0), stretch(len(y), part, parts)
    a, b, y = a[begin:end], b[begin:end], y[begin:end]
    if relu:
        for i in range(len(y)):
            total = a[i] + b[i]
            y[i] = zero if total <= zero else total  # NaN is not
    else:
        for i in range(len(y)):
            y[i] = a[i] + b[i]


@compiled
def _rectify(x: Host, y: Host) -> None:
    parts = cut(len(x), 4)
    share(_rectify_part, (parts, x, y), parts)


@compiled
def _rectify_part(part: int, parts: int, x: Host, y: Host) -> None:
    zero, (begin, end) = x.dtype.type(0), stretch(len(x), part, parts)
    x, y = x[begin:end], y[begin:end]  # an index that begins at 0 is never negative: no vector code is made otherwise
    for i in range(len(x)):
        y[i] = zero if x[i] <= zero else x[i]  # NaN is not


@compiled
def _saturate(x: Host, y: Host) -> None:
    parts = cut(len(x), 32)
    share(_saturate_part, (parts, x, y), parts)


@compiled
def _saturate_part(part: int, parts: int, x: Host, y: Host) -> None:
    begin, end = stretch(len(x), part, parts)
    x, y = x[begin:end], y[begin:end]
    for i in range(len(x)):
        y[i] = saturated(x[i])


@compiled
def saturated(x: Any) -> float:
    """`x·P(x²) / Q(x²)` in 64 bits: within 1.5e-9 of tanh, so that nearly all that is left is the last rounding.

    P and Q are fitted by least squares of the relative error for |x| ≤ 9.1, weighted anew until it is level
    (Sanathanan and Koerner, 1963); there, and beyond, tanh is 1 in 32 bits.
    """
    value = float(x)
    a = 9.1 if value > 9.1 else value  # NaN is not
    a = -9.1 if a < -9.1 else a
    t = a * a
    p = 2.7912028327e-05 + t * (3.035572125e-08 - t * 1.2033754419e-11)
    p = 0.99999999856 + t * (0.13676140664 + t * (0.003863597821 + t * p))
    q = 0.47009472602 + t * (0.027228528976 + t * (0.00039302916095 + t * 1.2807007633e-06))
    return a * p / (1.0 + t * q)


@compiled
def _through(dy: Host, y: Host, dx: Host) -> None:
    parts = cut(len(dy), 4)
    share(_through_part, (parts, dy, y, dx), parts)


@compiled
def _through_part(part: int, parts: int, dy: Host, y: Host, dx: Host) -> None:
    zero, (begin, end) = dy.dtype.type(0), stretch(len(dy), part, parts)
    dy, y, dx = dy[begin:end], y[begin:end], dx[begin:end]
    for i in range(len(dx)):
        a = dy[i]
        dx[i] = a if y[i] > zero else zero


@compiled
def _flatten(dy: Host, y: Host, dx: Host) -> None:
    parts = cut(len(dy), 4)
    share(_flatten_part, (parts, dy, y, dx), parts)


@compiled
def _flatten_part(part: int, parts: int, dy: Host, y: Host, dx: Host) -> None:
    one, (begin, end) = dy.dtype.type(1), stretch(len(dy), part, parts)
    dy, y, dx = dy[begin:end], y[begin:end], dx[begin:end]
    for i in range(len(dx)):
        dx[i] = dy[i] * (one - y[i] * y[i])
