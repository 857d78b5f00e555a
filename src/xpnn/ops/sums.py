"""The two sums that all other ops go through, so that a backend replaces each of them once."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from xpnn.ops._array import Array, namespace

if TYPE_CHECKING:
    from xpnn.ops import Ops

BLOCK = 128  # terms added one after the other; the rounding error of a sum grows with this, not with n


def matmul(ops: Ops, a: Array, b: Array) -> Array:
    """Matrix product `a @ b` over the last two axes; leading axes are batches."""
    return namespace("matmul", a=a, b=b).matmul(a, b)


def total(ops: Ops, x: Array, axis: int | tuple[int, ...], *, keepdims: bool = False) -> Array:
    """Sum over `axis`, in blocks of at most 128 terms whose sums are summed in turn.

    A plain sum of n terms in one chain loses up to n units in the last place, one in blocks about
    log₁₂₈(n) · 128 (Higham, *The accuracy of floating point summation*, 1993). The order is fixed.
    """
    xp = namespace("total", x=x)
    axes = tuple(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis))
    terms = prod(x.shape[a] for a in axes)
    if terms <= BLOCK:
        return xp.sum(x, axis=axes, keepdims=keepdims)
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    shape = tuple(1 if a in axes else x.shape[a] for a in range(x.ndim) if keepdims or a in kept)
    width = prod(shape)
    if axes != tuple(range(len(axes))):
        x = xp.permute_dims(x, axes + kept)
    x = xp.reshape(x, (terms, width))
    while x.shape[0] > BLOCK:
        rows = x.shape[0] // BLOCK  # a block is every rows-th term, so that memory is read in long runs
        sums = xp.sum(xp.reshape(x[: rows * BLOCK, ...], (BLOCK, rows * width)), axis=0)
        sums = xp.reshape(sums, (rows, width))
        x = xp.concat([sums, x[rows * BLOCK :, ...]]) if x.shape[0] % BLOCK else sums
    return xp.reshape(xp.sum(x, axis=0), shape)
