"""Products of long matrices, in runs of rows.

BLAS copies its factors into an order of its own first, unless they are small: OpenBLAS has kernels for these on
processors with AVX-512. And NumPy keeps the interpreter's lock through a product that makes few numbers, however many
it adds up. Runs of rows, as one stack of matrices, are small where that is quicker; a sum over many rows has so many of
them that others can go on.
"""

from __future__ import annotations

import numpy as np

from xpnn_numpy.blas import small_product
from xpnn_numpy.kernels._rows import Host

LEAST_ROWS = 32
"""Of a run: with fewer, a call for each takes longer than a copy of the factors."""
LOCKED = 500
"""Numbers up to which NumPy keeps the lock."""


def multiply(a: Host, b: Host, out: Host) -> Host:
    """`a @ b` into `out`; `a` has many rows, and `b` few numbers. Or for each of a stack of `b`."""
    length = small_product() // max(b.shape[-2] * b.shape[-1], 1)
    if length < LEAST_ROWS or len(a) <= length:
        np.matmul(a, b, out=out)
        return out
    runs = -(-len(a) // length)
    length, b = len(a) // runs, np.ascontiguousarray(b)
    cut = runs * length
    np.matmul(_runs(a, runs, length), b[..., None, :, :], out=_runs(out, runs, length))
    if cut < len(a):
        np.matmul(a[cut:], b, out=out[..., cut:, :])
    return out


def multiply_across(a: Host, b: Host) -> Host:
    """`a.T @ b`: a sum over many rows."""
    size = a.shape[1] * b.shape[1]
    length = small_product() // max(size, 1)
    runs = 1 if length < LEAST_ROWS else -(-len(a) // length)
    runs = max(runs, min(LOCKED // max(size, 1) + 1, len(a) // LEAST_ROWS))
    if runs < 2:
        product: Host = np.matmul(a.T, b)
        return product
    length = len(a) // runs
    cut = runs * length
    product = np.add.reduce(np.matmul(_runs(a, runs, length).swapaxes(1, 2), _runs(b, runs, length)), 0)
    if cut < len(a):
        product += np.matmul(a[cut:].T, b[cut:])
    return product


def _runs(matrix: Host, runs: int, length: int) -> Host:
    """The first rows as a stack; to cut an axis takes no copy."""
    return matrix[..., : runs * length, :].reshape(*matrix.shape[:-2], runs, length, matrix.shape[-1])
