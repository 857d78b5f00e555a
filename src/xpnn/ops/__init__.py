"""The maths, written once against the array API standard (2024.12).

An op is a pure function `op(*arrays, **options) → y, backward`; `backward(dy)` returns one gradient for each
array argument, None where it was None or is not trained. It may be called any number of times, and writes
neither `dy` nor the inputs; `backward(dy, input_gradient=False)` leaves the gradient of the first out (not in
losses, which always give it).

    y, backward = ops.conv(x, weight, bias, padding="same")
    dx, dweight, dbias = backward(dy)

In the source an op has one more parameter, `ops`: the set that it belongs to and calls its neighbours
through. `xpnn.ops.conv` belongs to the standard set; `backend.ops.conv` to a set in which that backend's
kernels stand in the places of the standard bodies. So nothing is looked up during a step.

`matmul` and `total`, `im2col` and `col2im` are not ops but the sums and the moves that ops go through; they return an
array only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from xpnn.ops import activation as _activation
from xpnn.ops import columns as _columns
from xpnn.ops import convolution as _convolution
from xpnn.ops import joined as _joined
from xpnn.ops import linear as _linear
from xpnn.ops import loss as _loss
from xpnn.ops import norm as _norm
from xpnn.ops import pool as _pool
from xpnn.ops import sums as _sums
from xpnn.ops._made import Made, anew
from xpnn.ops._whole import Whole, alone


class Ops:
    """A set of ops bound together: the standard bodies, with `kernels` in the places of some of them.

    Args:
        kernels: op name → function of the same signature as the standard body, `ops` included.
        column_bytes: size of the blocks in which a convolution gathers its columns.
        whole: joins a sum over these samples with those over the rest of the batch; see `xpnn.ops._whole`.
        backward: whether a backward is ever called. Where not, a kernel may keep nothing for it, and return `unkept`.
        made: makes of weights what a kernel computes with, perhaps once for weights that stay; see `xpnn.ops._made`.
    """

    matmul = _sums.matmul
    total = _sums.total
    im2col = _columns.im2col
    col2im = _columns.col2im
    conv = _convolution.conv
    conv_transpose = _convolution.conv_transpose
    conv_relu = _joined.conv_relu
    conv_pool = _joined.conv_pool
    conv_avg_pool = _joined.conv_avg_pool
    dense = _linear.dense
    max_pool = _pool.max_pool
    avg_pool = _pool.avg_pool
    global_max_pool = _pool.global_max_pool
    global_avg_pool = _pool.global_avg_pool
    batch_norm = _norm.batch_norm
    layer_norm = _norm.layer_norm
    group_norm = _norm.group_norm
    add = _activation.add
    relu = _activation.relu
    leaky_relu = _activation.leaky_relu
    elu = _activation.elu
    gelu = _activation.gelu
    sigmoid = _activation.sigmoid
    silu = _activation.silu
    tanh = _activation.tanh
    softmax = _activation.softmax
    log_softmax = _activation.log_softmax
    dropout = _activation.dropout
    softmax_cross_entropy = _loss.softmax_cross_entropy
    nll = _loss.nll
    mse = _loss.mse
    huber = _loss.huber
    binary_cross_entropy = _loss.binary_cross_entropy

    def __init__(
        self,
        kernels: Mapping[str, Callable[..., Any]] | None = None,
        column_bytes: int = 1 << 20,
        whole: Whole = alone,
        backward: bool = True,
        made: Made = anew,
    ) -> None:
        self.column_bytes, self.whole, self.backward, self.made = column_bytes, whole, backward, made
        self.replaced = tuple(sorted(kernels or ()))
        for name, kernel in (kernels or {}).items():
            body = getattr(Ops, name, None)
            if not inspect.isfunction(body) or name.startswith("_"):
                raise ValueError(f"a kernel for {name!r}: there is no such op; there are {', '.join(names())}")
            asked, given = _signature(body), _signature(kernel)
            if asked != given:
                raise ValueError(f"the kernel for {name!r} takes {given}; expected {asked}, as the standard body")
            setattr(self, name, MethodType(kernel, self))


def unkept(*_: Any, **__: Any) -> Any:
    """The backward of a kernel that kept nothing for it."""
    raise RuntimeError(
        "these ops are for predictions, Ops(..., backward=False), and keep nothing for backward: take others, "
        "e.g. those of a backend, `backend.ops`"
    )


def names() -> list[str]:
    """The names of all ops."""
    return [name for name, value in vars(Ops).items() if inspect.isfunction(value) and name[0] != "_"]


def _signature(f: Callable[..., Any]) -> inspect.Signature:
    """Without annotations."""
    return inspect.Signature([p.replace(annotation=p.empty) for p in inspect.signature(f).parameters.values()])


standard = Ops()

matmul = standard.matmul
total = standard.total
im2col = standard.im2col
col2im = standard.col2im
conv = standard.conv
conv_transpose = standard.conv_transpose
conv_relu = standard.conv_relu
conv_pool = standard.conv_pool
conv_avg_pool = standard.conv_avg_pool
dense = standard.dense
max_pool = standard.max_pool
avg_pool = standard.avg_pool
global_max_pool = standard.global_max_pool
global_avg_pool = standard.global_avg_pool
batch_norm = standard.batch_norm
layer_norm = standard.layer_norm
group_norm = standard.group_norm
add = standard.add
relu = standard.relu
leaky_relu = standard.leaky_relu
elu = standard.elu
gelu = standard.gelu
sigmoid = standard.sigmoid
silu = standard.silu
tanh = standard.tanh
softmax = standard.softmax
log_softmax = standard.log_softmax
dropout = standard.dropout
softmax_cross_entropy = standard.softmax_cross_entropy
nll = standard.nll
mse = standard.mse
huber = standard.huber
binary_cross_entropy = standard.binary_cross_entropy
