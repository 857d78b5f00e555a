"""Products of long or wide matrices, in runs of rows or columns.

BLAS copies its factors into an order of its own first, unless they are small: OpenBLAS has kernels for these on
processors with AVX-512. And NumPy keeps the interpreter's lock through a product that makes few numbers, however many
it adds up. Runs, as one stack of matrices, are small where that is quicker; a sum over many rows has so many of them
that others can go on.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from xpnn_numpy.blas import small_product
from xpnn_numpy.kernels._rows import Host, empty, whole

LEAST = 4
"""Rows of a run: BLAS takes four at a time."""
LEAST_ADDED, TALL = 32, 512
"""Rows of a run whose result is added to those of others: the fewest there are, and as many as make that no work."""
FEW = 32
"""Rows, up to which runs are of columns: all of `b` would be read again for each run of so few rows."""
MOST_ACROSS, LEAST_ACROSS = 1200, 128
"""By a transposed `b` a product is small for OpenBLAS if it makes no more numbers than this; and it takes less time for
that if each of them is the sum of so many."""
MANY = 128
"""Rows, from which on a transposed `b` that has sums of fewer is copied first."""
LOCKED, LONG = 500, 1 << 20
"""Numbers up to which NumPy keeps the lock, and multiply-adds from which on that is long."""


def multiply(a: Host, b: Host, out: Host) -> Host:
    """`a @ b` into `out`; or for stacks of each, of which `b` may have fewer axes.

    As it is where that is small or cannot be made so; of few rows, in runs of columns; else in runs of rows.
    """
    rows, columns = a.shape[-2], b.shape[-1]
    if small_product() and b.shape[-2] < LEAST_ACROSS and rows >= MANY:
        b = whole(b)
    most = _most(b)
    least = LEAST if a.strides[-1] == a.itemsize else 2 * LEAST
    if rows * columns <= most:
        np.matmul(a, b, out=out)
    elif rows <= FEW and most >= 2 * LEAST * rows:
        _in_runs(b.swapaxes(-1, -2), a.swapaxes(-1, -2), out.swapaxes(-1, -2), _length(columns, most // rows))
    elif most >= least * columns:
        _in_runs(a, b, out, _length(rows, most // columns))
    else:
        np.matmul(a, b, out=out)
    return out


def multiply_across(a: Host, b: Host) -> Host:
    """`a.T @ b`: a sum over many rows. Or for stacks of each."""
    rows, size = a.shape[-2], a.shape[-1] * b.shape[-1]
    if rows * size <= small_product():
        product: Host = np.matmul(a.swapaxes(-1, -2), b)
        return product
    runs = _fewest(rows, max(small_product() // max(size, 1), TALL)) if small_product() else 1
    if rows * size >= LONG:
        runs = max(runs, min(LOCKED // max(size, 1) + 1, rows // LEAST_ADDED))
    length = rows // runs
    cut = runs * length
    across, others = _runs(a, runs, length).swapaxes(-1, -2), _runs(b, runs, length)
    products = multiply(across, others, empty((*across.shape[:-1], b.shape[-1]), a))
    product = np.add.reduce(products, -3) if runs > 1 else products[..., 0, :, :]
    if cut < rows:
        product += np.matmul(a[..., cut:, :].swapaxes(-1, -2), b[..., cut:, :])
    return product


def _most(b: Host) -> int:
    """How many numbers a product by this matrix may make, to be small."""
    inner: int = b.shape[-2]
    most = small_product() // max(inner, 1)
    if b.strides[-1] == b.itemsize:
        return most
    return min(most, MOST_ACROSS) if inner >= LEAST_ACROSS else 0


def _in_runs(a: Host, b: Host, out: Host, length: int) -> None:
    """A product in runs of so many rows, and what is left over."""
    runs = a.shape[-2] // length
    cut = runs * length
    np.matmul(_runs(a, runs, length), b[..., None, :, :], out=_runs(out, runs, length))
    if cut < a.shape[-2]:
        np.matmul(a[..., cut:, :], b, out=out[..., cut:, :])


@lru_cache(maxsize=4096)
def _length(rows: int, most: int) -> int:
    """How long runs are, of at most so many rows: a little less than that, if it leaves none over, or runs are even."""
    longest = most // LEAST * LEAST
    whole = (length for length in range(longest, longest * 3 // 4 - 1, -LEAST) if rows % length == 0)
    runs = -(-rows // longest)
    return next(whole, -(-rows // (runs * LEAST)) * LEAST)


@lru_cache(maxsize=4096)
def _fewest(rows: int, length: int) -> int:
    """How many runs of at most so many rows there are: a few more than needed, if that leaves no rows over."""
    fewest = max(1, -(-rows // length))
    return next((runs for runs in range(fewest, fewest * 5 // 4 + 1) if rows % runs == 0), fewest)


def _runs(matrix: Host, runs: int, length: int) -> Host:
    """The first rows as a stack; to cut an axis takes no copy."""
    return matrix[..., : runs * length, :].reshape(*matrix.shape[:-2], runs, length, matrix.shape[-1])
