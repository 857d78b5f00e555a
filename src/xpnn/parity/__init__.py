"""Comparing backends: whether two compute the same, and which one is off where they do not.

Each side is judged by itself, against float64 on NumPy and in units of rounding (`yardstick`), on the cases that
every op and layer has (`cases`), computed by the standard bodies and by every kernel in their places (`sides`), or on
any function over arrays (`functions`). A whole network is judged layer by layer (`network`), by how far two trainings
drift apart (`drift`), and by the accuracy they reach (`training`).
"""

from xpnn.parity.cases import CASES, LAYERS, LOSSES, OPS, PARTS, Case, Data, missing, of_layer, of_op
from xpnn.parity.drift import DriftReport, drift
from xpnn.parity.functions import assert_parity
from xpnn.parity.network import compare_network
from xpnn.parity.network_report import NetworkReport
from xpnn.parity.sides import Finding, Placed, Side, compare, judge, sides
from xpnn.parity.training import TrainingReport, compare_training, permutation_p
from xpnn.parity.yardstick import Expected, bound, expected, ratio, results

__all__ = [
    "CASES", "LAYERS", "LOSSES", "OPS", "PARTS", "Case", "Data", "DriftReport", "Expected", "Finding", "NetworkReport",
    "Placed", "Side", "TrainingReport", "assert_parity", "bound", "compare", "compare_network", "compare_training",
    "drift", "expected", "judge", "missing", "of_layer", "of_op", "permutation_p", "ratio", "results", "sides",
]  # fmt: skip
