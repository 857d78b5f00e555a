"""Comparing backends: whether two compute the same, and which one is off where they do not.

Each side is judged by itself, against float64 on NumPy and in units of rounding (`yardstick`), on the cases that
every op and layer has (`cases`), computed by the standard bodies and by every kernel in their places (`sides`), or on
any function over arrays (`functions`).
"""

from xpnn.parity.cases import CASES, LAYERS, LOSSES, OPS, SUMS, Case, Data, missing, of_layer, of_op
from xpnn.parity.functions import assert_parity
from xpnn.parity.sides import Finding, Placed, Side, compare, judge, sides
from xpnn.parity.yardstick import Expected, bound, expected, ratio, results

__all__ = [
    "CASES", "LAYERS", "LOSSES", "OPS", "SUMS", "Case", "Data", "Expected", "Finding", "Placed", "Side",
    "assert_parity", "bound", "compare", "expected", "judge", "missing", "of_layer", "of_op", "ratio", "results",
    "sides",
]  # fmt: skip
