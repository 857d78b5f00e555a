"""Activations in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops._array import floats
from xpnn.ops.activation import Result
from xpnn_numpy.fast._compiled import Host, compiled, plain, takes
from xpnn_numpy.kernels import activation as numpys

if TYPE_CHECKING:
    from xpnn.ops import Ops


def relu(ops: Ops, x: Host) -> Result:
    """See `xpnn.ops.relu`."""
    if not takes(x):
        return numpys.relu(ops, x)
    floats("relu", x=x)
    y = np.empty(x.shape, x.dtype)
    _rectify(plain(x).reshape(-1), y.reshape(-1))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        if not input_gradient:
            return (None,)
        dx = np.empty(x.shape, x.dtype)
        _through(plain(dy).reshape(-1), y.reshape(-1), dx.reshape(-1))
        return (dx,)

    return y, backward


def tanh(ops: Ops, x: Host) -> Result:
    """See `xpnn.ops.tanh`; forward NumPy's own vector code is the faster one."""
    if not takes(x):
        return numpys.tanh(ops, x)
    floats("tanh", x=x)
    y = np.tanh(plain(x))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        if not input_gradient:
            return (None,)
        dx = np.empty(x.shape, x.dtype)
        _flatten(plain(dy).reshape(-1), y.reshape(-1), dx.reshape(-1))
        return (dx,)

    return y, backward


@compiled
def _rectify(x: Host, y: Host) -> None:
    for i in range(len(x)):
        a = x[i]
        y[i] = 0 if a <= 0 else a  # NaN is not


@compiled
def _through(dy: Host, y: Host, dx: Host) -> None:
    for i in range(len(dy)):
        a = dy[i]
        dx[i] = a if y[i] > 0 else 0


@compiled
def _flatten(dy: Host, y: Host, dx: Host) -> None:
    for i in range(len(dy)):
        dx[i] = dy[i] * (1 - y[i] * y[i])
