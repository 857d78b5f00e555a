"""Options as descriptions keep them: plain Python values, which `repr` and files can write."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """NumPy's scalars as Python's own numbers, lists as tuples, and what is in them likewise."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def keep_plain(of: Any) -> None:
    """Make all fields of a frozen dataclass plain."""
    for f in fields(of):
        object.__setattr__(of, f.name, plain(getattr(of, f.name)))
