"""Coarse products: whether a side makes them, and whether the comparison would notice.

TF32 and float16 keep 11 bits of each factor, bfloat16 8. GPUs take them for float32 where a setting allows it, often
for some shapes only, and tolerances of a per mille let them pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from xpnn.backend import get
from xpnn.ops import Ops
from xpnn.ops._array import Array
from xpnn.parity.cases import CASES, Case, Host
from xpnn.parity.sides import Placed, Side, compare

SIZES = (16, 64, 256, 1024)
"""Of the matrices that are probed: libraries have another kernel for each."""
FORMATS: Mapping[str, Callable[[Host], Host]] = {
    "TF32": lambda a: rounded(a, 11),
    "float16": lambda a: a.astype(np.float16).astype(a.dtype),
    "bfloat16": lambda a: rounded(a, 8),
}
"""What is kept of a factor."""
PRODUCTS = ("matmul", "conv", "conv_transpose", "dense", "Conv1D", "Conv2D", "Conv3D", "Dense")


def coarse(side: Side) -> str | None:
    """What shows that `side` rounds the factors of its float32 products, or None.

    `(1 + 2⁻¹²)·I @ 1` is `1 + 2⁻¹²` exactly, in whatever order it is summed; of factors with 11 bits it is 1.
    """
    fine = np.float32(1 + 2**-12)
    for n in SIZES:
        for name, product in _products(side, n, fine):
            found = side.backend.to_numpy(product)
            if not np.all(found == fine):
                return f"{name} of size {n} gives {found[found != fine].flat[0]} for {fine}"
    return None


def _products(side: Side, n: int, fine: np.float32) -> Iterator[tuple[str, Array]]:
    unit, ones = np.eye(n, dtype=np.float32), np.ones((n, n), np.float32)
    for one, other in ((fine * unit, ones), (ones, fine * unit)):  # each of the two factors
        a, b = side.backend.asarray(one), side.backend.asarray(other)
        yield "matmul", side.ops.matmul(a, b)
        yield "dense", side.ops.dense(a, b)[0]
    if n > 256:
        return
    kernel = np.zeros((n, 3, 3, n), np.float32)
    kernel[:, 1, 1, :] = unit
    image = np.ones((1, 6, 6, n), np.float32)
    for one, other in ((fine * image, kernel), (image, fine * kernel)):
        y, _ = side.ops.conv(side.backend.asarray(one), side.backend.asarray(other), padding=1)
        yield "conv", y


def rounded(a: Host, bits: int) -> Host:
    """`a` with so many bits of each mantissa."""
    mantissa, exponent = np.frexp(a)
    kept: Host = np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(a.dtype)
    return kept


def product(kept: Callable[[Host], Host]) -> Callable[..., Any]:
    """A kernel for `matmul` on NumPy with coarse factors, one of `FORMATS`."""
    return lambda ops, a, b: np.matmul(kept(a), kept(b))


def notices(cases: Iterable[Case] = CASES) -> dict[str, tuple[int, int]]:
    """For each coarse format how many of the cases with products (else of `matmul`'s) NumPy is refused, of how many."""
    backend = get("numpy")
    tried = [case for case in cases if case.subject in PRODUCTS] or [c for c in CASES if c.subject == "matmul"]
    found = {}
    for name, kept in FORMATS.items():
        ops = Ops({"matmul": product(kept)})
        refused = [
            any(f.fault for f in compare(case, Placed(case, backend, "float32", ops=ops).results(), "float32"))
            for case in tried
        ]
        found[name] = sum(refused), len(refused)
    return found
