"""What ops make of weights before they compute with them: laid out in another order, mapped, repeated.

In training weights are others at each step. In predictions they stay, and for one image to lay them out takes as long
as to use them. So ops go through `ops.made(weights, make, *options)`, which may remember.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnn.ops._array import Array

Made = Callable[..., Any]


def anew(weights: Array, make: Callable[..., Any], *options: Any) -> Any:
    """`make(weights, *options)`."""
    return make(weights, *options)


class Once:
    """The same, made once of each array: for weights that nobody writes to, until it is told to `forget`."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Array, Any]] = {}

    def __call__(self, weights: Array, make: Callable[..., Any], *options: Any) -> Any:
        key = id(weights), make, options
        found = self._made.get(key)
        if found is None:  # the array is kept as well: no other has its id meanwhile
            found = self._made[key] = weights, make(weights, *options)
        return found[1]

    def forget(self) -> None:
        """All of it."""
        self._made.clear()
