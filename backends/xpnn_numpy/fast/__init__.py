"""Kernels compiled by numba, for what NumPy does in many short calls (the extra `xpnn[fast]`).

Why: threads share one interpreter, and whoever calls NumPy gives its lock up and has to wait for it again, so that
calls of less than some 200 µs gain nothing from a second thread. Here a convolution with its pool is one long call
without the lock, and what NumPy does pass by pass over an image is done in one pass while the data are in the cache.

Helpers take parts of each kernel (`_team`): a batch need not be cut into lanes for threads.
The bits do not depend on how many there are. The first run on a machine compiles for some forty seconds; what it made
stays on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numba

from xpnn_numpy.fast._team import team
from xpnn_numpy.fast.activation import add, relu, tanh
from xpnn_numpy.fast.convolution import conv, conv_avg_pool, conv_pool, conv_relu
from xpnn_numpy.fast.linear import dense
from xpnn_numpy.fast.loss import softmax_cross_entropy
from xpnn_numpy.fast.norm import batch_norm
from xpnn_numpy.fast.pool import avg_pool, max_pool
from xpnn_numpy.fast.update import UPDATES

__all__ = ["COMPILER", "KERNELS", "UPDATES", "sharing"]

COMPILER = f"numba {numba.__version__}"
sharing = team.sharing
KERNELS: Mapping[str, Callable[..., Any]] = {
    "conv": conv,
    "conv_relu": conv_relu,
    "conv_pool": conv_pool,
    "conv_avg_pool": conv_avg_pool,
    "dense": dense,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "add": add,
    "relu": relu,
    "tanh": tanh,
    "softmax_cross_entropy": softmax_cross_entropy,
}
