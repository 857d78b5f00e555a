"""The ops that NumPy does faster when it may write in place (`out=`) and look at memory in its own way (strides).

Each is the standard body over again, with its signature and its checks, and the suite holds the two together.
What they gain, measured on one core: sums and gathers run along memory, a choice is a product with a mask
(`where` takes ten times as long), and vectors of channels are repeated along some image rows, because NumPy pays
some ten nanoseconds for each run of its inner loop, however short, and copies runs shorter than its buffers.

All of them can be recorded (`xpnn_numpy.recording`): arrays are made by `empty` and `zeros`, copied by `whole` and seen
otherwise by `strided`, of `_rows`; what is left to a standard body that cannot be is `unrecorded`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xpnn_numpy.kernels.activation import add, relu, tanh
from xpnn_numpy.kernels.convolution import conv
from xpnn_numpy.kernels.joined import conv_avg_pool, conv_pool, conv_relu
from xpnn_numpy.kernels.linear import dense
from xpnn_numpy.kernels.loss import softmax_cross_entropy
from xpnn_numpy.kernels.norm import batch_norm
from xpnn_numpy.kernels.pool import avg_pool
from xpnn_numpy.kernels.sums import matmul, total

KERNELS: Mapping[str, Callable[..., Any]] = {
    "matmul": matmul,
    "total": total,
    "conv": conv,
    "conv_relu": conv_relu,
    "conv_pool": conv_pool,
    "conv_avg_pool": conv_avg_pool,
    "dense": dense,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "add": add,
    "relu": relu,
    "tanh": tanh,
    "softmax_cross_entropy": softmax_cross_entropy,
}
