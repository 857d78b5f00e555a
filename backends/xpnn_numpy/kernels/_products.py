"""Products of long matrices, in runs of rows.

BLAS copies its factors into an order of its own first, unless they are small: OpenBLAS has kernels for these on
processors with AVX-512. And NumPy keeps the interpreter's lock through a product that makes few numbers, however many
it adds up. Runs of rows, as one stack of matrices, are small where that is quicker; a sum over many rows has so many of
them that others can go on.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from xpnn_numpy.blas import small_product
from xpnn_numpy.kernels._rows import Host

LEAST_ROWS = 32
"""Of a run: with fewer, a call for each takes longer than a copy of the factors."""
LOCKED, LONG = 500, 1 << 20
"""Numbers up to which NumPy keeps the lock, and multiply-adds from which on that is long."""


def multiply(a: Host, b: Host, out: Host) -> Host:
    """`a @ b` into `out`; `a` has many rows, and `b` few numbers. Or for stacks of each."""
    rows, length = a.shape[-2], small_product() // max(b.shape[-2] * b.shape[-1], 1)
    if length < LEAST_ROWS or rows <= length:
        np.matmul(a, b, out=out)
        return out
    runs, b = _fewest(rows, length), np.ascontiguousarray(b)
    length = rows // runs
    cut = runs * length
    np.matmul(_runs(a, runs, length), b[..., None, :, :], out=_runs(out, runs, length))
    if cut < rows:
        np.matmul(a[..., cut:, :], b, out=out[..., cut:, :])
    return out


def multiply_across(a: Host, b: Host) -> Host:
    """`a.T @ b`: a sum over many rows. Or for stacks of each."""
    rows, size = a.shape[-2], a.shape[-1] * b.shape[-1]
    length = small_product() // max(size, 1)
    runs = 1 if length < LEAST_ROWS else _fewest(rows, length)
    if rows * size >= LONG:
        runs = max(runs, min(LOCKED // max(size, 1) + 1, rows // LEAST_ROWS))
    if runs < 2:
        product: Host = np.matmul(a.swapaxes(-1, -2), b)
        return product
    length = rows // runs
    cut = runs * length
    product = np.add.reduce(np.matmul(_runs(a, runs, length).swapaxes(-1, -2), _runs(b, runs, length)), -3)
    if cut < rows:
        product += np.matmul(a[..., cut:, :].swapaxes(-1, -2), b[..., cut:, :])
    return product


@lru_cache(maxsize=4096)
def _fewest(rows: int, length: int) -> int:
    """How many runs of at most so many rows there are: a few more than needed, if that leaves no rows over."""
    fewest = max(1, -(-rows // length))
    return next((runs for runs in range(fewest, fewest * 5 // 4 + 1) if rows % runs == 0), fewest)


def _runs(matrix: Host, runs: int, length: int) -> Host:
    """The first rows as a stack; to cut an axis takes no copy."""
    return matrix[..., : runs * length, :].reshape(*matrix.shape[:-2], runs, length, matrix.shape[-1])
