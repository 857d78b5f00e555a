"""The two sums below all ops, without the layers of calls between them and NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import sums as standard
from xpnn.ops._array import namespace
from xpnn_numpy.kernels._rows import Host

if TYPE_CHECKING:
    from xpnn.ops import Ops


def matmul(ops: Ops, a: Host, b: Host) -> Host:
    """See `xpnn.ops.matmul`."""
    namespace("matmul", a=a, b=b)
    product: Host = np.matmul(a, b)
    return product


def total(ops: Ops, x: Host, axis: int | tuple[int, ...], *, keepdims: bool = False) -> Host:
    """See `xpnn.ops.total`."""
    axes, terms = (axis,) if isinstance(axis, int) else axis, 1
    for a in axes:
        terms *= x.shape[a]
    if terms > standard.BLOCK:
        result: Host = standard.total(ops, x, axis, keepdims=keepdims)
    else:
        result = np.add.reduce(x, axes, None, None, keepdims)  # type: ignore[call-overload]
    return result
