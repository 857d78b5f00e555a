"""Activations in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops._array import floats
from xpnn.ops.activation import Result
from xpnn_numpy.kernels._rows import Host, rectify

if TYPE_CHECKING:
    from xpnn.ops import Ops


def relu(ops: Ops, x: Host) -> Result:
    """See `xpnn.ops.relu`."""
    floats("relu", x=x)
    y = rectify(np.ascontiguousarray(x), np.empty(x.shape, x.dtype))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        return (np.multiply(dy, y > 0) if input_gradient else None,)

    return y, backward


def tanh(ops: Ops, x: Host) -> Result:
    """See `xpnn.ops.tanh`."""
    floats("tanh", x=x)
    y = np.tanh(x)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None]:
        if not input_gradient:
            return (None,)
        dx = np.multiply(y, y)
        np.subtract(1, dx, out=dx)
        return (np.multiply(dx, dy, out=dx),)

    return y, backward
