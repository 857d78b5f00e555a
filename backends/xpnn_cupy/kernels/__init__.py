"""The ops that take fewer passes over memory in kernels of our own, and what CuPy refuses while a graph is recorded.

Each is the standard body over again, with its signature and its checks, and the suite holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xpnn_cupy.kernels.activation import add, relu, tanh
from xpnn_cupy.kernels.columns import col2im, im2col
from xpnn_cupy.kernels.convolution import conv
from xpnn_cupy.kernels.joined import conv_pool
from xpnn_cupy.kernels.loss import softmax_cross_entropy
from xpnn_cupy.kernels.norm import batch_norm
from xpnn_cupy.kernels.pool import avg_pool
from xpnn_cupy.products import matmul

KERNELS: Mapping[str, Callable[..., Any]] = {
    "matmul": matmul,
    "im2col": im2col,
    "col2im": col2im,
    "conv": conv,
    "conv_pool": conv_pool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "add": add,
    "relu": relu,
    "tanh": tanh,
    "softmax_cross_entropy": softmax_cross_entropy,
}
