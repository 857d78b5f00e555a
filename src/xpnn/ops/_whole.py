"""Sums over a batch of which an op may see a part only.

A backend may cut a batch and compute the parts side by side. What depends on the whole of it, the statistics of
batch normalisation, then goes through `ops.whole(part, n)`: given the sum over the samples that are here and
how many terms it has, it returns the sum and the number of terms over all parts, the same to each.
"""

from __future__ import annotations

from collections.abc import Callable

from xpnn.ops._array import Array

Whole = Callable[[Array, int], tuple[Array, int]]


def alone(part: Array, n: int) -> tuple[Array, int]:
    """Nothing is cut: the part is the whole."""
    return part, n
