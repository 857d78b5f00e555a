"""Activations in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import activation as standard
from xpnn.ops import unkept
from xpnn.ops._array import floats
from xpnn.ops.activation import Result
from xpnn_numpy.kernels._rows import Host, empty, rectify, whole

if TYPE_CHECKING:
    from xpnn.ops import Ops


def add(ops: Ops, a: Host, b: Host, *, relu: bool = False) -> tuple[Host, Callable[..., tuple[Host | None, Host]]]:
    """See `xpnn.ops.add`."""
    standard.check_add(a, b)
    y = np.add(a, b, out=empty(a.shape, a))
    if relu:
        rectify(y, out=y)
    kept = y if relu else None

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host]:
        d = np.multiply(dy, kept > 0) if kept is not None else dy
        return (d if input_gradient else None), d

    return y, backward if ops.backward else unkept


def relu(ops: Ops, x: Host) -> Result:
    """See `xpnn.ops.relu`."""
    floats("relu", x=x)
    y = rectify(whole(x), empty(x.shape, x))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        return (np.multiply(dy, y > 0) if input_gradient else None,)

    return y, backward if ops.backward else unkept


def tanh(ops: Ops, x: Host) -> Result:
    """See `xpnn.ops.tanh`."""
    floats("tanh", x=x)
    y = np.tanh(x)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        return (of_tanh(y, dy) if input_gradient else None,)

    return y, backward if ops.backward else unkept


def of_tanh(y: Host, dy: Host) -> Host:
    """The gradient of what has the hyperbolic tangent `y`: `(1 - y²)·dy`."""
    dx = np.multiply(y, y)
    np.subtract(1, dx, out=dx)
    return np.multiply(dx, dy, out=dx)
