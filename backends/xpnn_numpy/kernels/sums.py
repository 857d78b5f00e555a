"""The two sums below all ops, without the layers of calls between them and NumPy."""

from __future__ import annotations

from math import prod
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
    axes = (axis,) if isinstance(axis, int) else axis
    terms = prod([x.shape[a] for a in axes])
    if terms <= standard.BLOCK:
        result: Host = np.add.reduce(x, axes, None, None, keepdims)  # type: ignore[call-overload]
    elif keepdims or axes != tuple(range(len(axes))):
        result = standard.total(ops, x, axis, keepdims=keepdims)
    else:
        shape = x.shape[len(axes) :]
        result = _leading(x.reshape(terms, prod(shape))).reshape(shape)
    return result


def _leading(x: Host) -> Host:
    """The sum of rows, in the order of the standard body but for a last block by itself."""
    if standard.BLOCK < len(x) < 2 * standard.BLOCK:  # what a small batch has: two calls instead of five
        x = np.add.reduceat(x, (0, standard.BLOCK), 0)
    while len(x) > standard.BLOCK:
        rows = len(x) // standard.BLOCK
        cut = rows * standard.BLOCK
        sums = np.add.reduce(x[:cut].reshape(standard.BLOCK, -1), 0).reshape(rows, -1)
        x = np.concatenate([sums, x[cut:]]) if cut < len(x) else sums
    result: Host = np.add.reduce(x, 0)
    return result
