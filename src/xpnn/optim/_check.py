"""What optimizers and schedules ask of their numbers."""

from __future__ import annotations

from math import inf
from typing import Any


def number(of: Any, *names: str, below: float = inf) -> None:
    """Check that these fields hold numbers from 0 up to, but not including, `below`."""
    for name in names:
        value = getattr(of, name)
        if not isinstance(value, float | int) or isinstance(value, bool) or not 0 <= value < below:
            limit = "" if below == inf else f" and below {below:g}"
            raise ValueError(f"{type(of).__name__}: {name}={value!r}; expected a number ≥ 0{limit}")


def count(of: Any, name: str, least: int = 1) -> None:
    """Check that this field holds an integer of at least `least`."""
    value = getattr(of, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{type(of).__name__}: {name}={value!r}; expected an integer ≥ {least}")
