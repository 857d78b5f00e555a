"""How the kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import intrinsic

from xpnn.errors import ShapeError

F = TypeVar("F", bound=Callable[..., Any])
Host = np.ndarray[Any, Any]
emits = cast(Callable[[Callable[..., Any]], Any], intrinsic)
"""Of a function that says which LLVM code a call of it in compiled code becomes."""


def compiled(f: F) -> F:
    """`f` as machine code that runs without the interpreter lock, remembered on disk.

    Of the liberties of fast maths only the fused multiply-add is taken: NaN, infinities and the order of sums stay.
    """
    kernel = numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")(f)
    kernel._cache._cache_file._source_stamp = _stamp()  # numba's own looks at the file of `f`, not at what is inlined
    return cast(F, kernel)


@cache
def _stamp() -> str:
    """A digest of all sources of the kernels."""
    return sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def takes(x: Host) -> bool:
    """Whether the kernels are compiled for arrays such as `x`: images, volumes, signals in 32 or 64 bits."""
    return x.ndim <= 5 and (x.dtype == np.float32 or x.dtype == np.float64)


def plain(x: Host) -> Host:
    """`x`, contiguous and writable: each other kind of array would be compiled for anew."""
    x = np.ascontiguousarray(x)
    return x.view(np.ndarray) if x.flags.writeable else np.array(x)


def fitting(op: str, dy: Host, shape: tuple[int, ...], dtype: Any) -> Host:
    """`dy` as compiled code takes it, which does not see where an array ends."""
    dy = plain(np.asarray(dy, dtype))
    if dy.shape != shape:
        raise ShapeError(f"{op}: dy has shape {dy.shape}; expected that of the output, {shape}")
    return dy
