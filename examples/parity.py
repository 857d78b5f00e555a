"""Parity of your own code: a function written once against the array API, held to the same result on every backend.

    python examples/parity.py --backend numpy torch jax
    python examples/parity.py --backend numpy torch --broken torch     # what the report says of a fault

Exit status 1 where a backend is off.
"""

import argparse
import sys

import numpy as np
from array_api_compat import array_namespace

from xpnn.parity import assert_parity

parser = argparse.ArgumentParser(description="Hold a function on some backends against float64 on NumPy.")
parser.add_argument("--backend", nargs="+", default=["numpy"], metavar="NAME", help="numpy, cupy, torch, …")
parser.add_argument("--broken", metavar="NAME", help="compute with three decimals on this one, to see the report")
args = parser.parse_args()


def attention(queries, keys, values):
    """Scaled dot-product attention: softmax(q·kᵀ / √d)·v, for (N, d), (M, d) and (M, e)."""
    xp = array_namespace(queries, keys, values)
    scores = xp.matmul(queries, keys.T) / queries.shape[1] ** 0.5
    if args.broken and args.broken in xp.__name__ and queries.dtype == xp.float32:
        scores = xp.round(scores * 1000) / 1000
    weights = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
    return xp.matmul(weights / xp.sum(weights, axis=1, keepdims=True), values)


rng = np.random.default_rng(0)
queries, keys, values = (rng.normal(size=shape) for shape in [(20, 16), (30, 16), (30, 8)])
try:
    assert_parity(attention, queries, keys, values, backends=args.backend, n=30)  # its longest sum has 30 terms
except AssertionError as e:
    sys.exit(str(e))
print(f"attention agrees with float64 on {', '.join(args.backend)}")
