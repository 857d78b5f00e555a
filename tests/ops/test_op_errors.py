"""What an op says of arrays that do not fit: what came, what was expected, what to do."""

import re

import numpy as np
import pytest

from xpnn import ops
from xpnn.conformance.test_errors import test_arrays_of_two_libraries, test_arrays_that_do_not_fit  # noqa: F401
from xpnn.errors import MixedBackendsError, ShapeError
from xpnn.ops import Ops


def f(*shape):
    return np.ones(shape, dtype=np.float32)


def i(*shape):
    return np.zeros(shape, dtype=np.int32)


IMAGE, KERNEL = f(1, 4, 4, 3), f(2, 2, 2, 3)
BAD = {
    "conv: wrong channels": (
        lambda: ops.conv(IMAGE, f(2, 2, 2, 4)),
        "conv: x has 3 channels (shape (1, 4, 4, 3), channels last), but the weights are made for 4",
    ),
    "conv: too large": (
        lambda: ops.conv(f(1, 2, 2, 3), f(2, 3, 2, 3)),
        "conv: a window of (3, 2) is larger than its input of (2, 2) on spatial axis 0; use a smaller window, more "
        "padding (padding='same') or fewer pools",
    ),
    "conv: too large with padding and dilation": (
        lambda: ops.conv(f(1, 2, 2, 3), KERNEL, dilation=2, padding=((0, 0), (0, 1))),
        "(2, 2) with dilation (2, 2) is larger than its input of (2, 2) with padding ((0, 0), (0, 1)) on spatial",
    ),
    "conv: integers": (lambda: ops.conv(i(1, 4, 4, 3), KERNEL), "x has dtype int32; layers compute in floating point"),
    "conv: two dtypes": (
        lambda: ops.conv(IMAGE, KERNEL.astype("float64")),
        "conv: x has dtype float32, but weight has float64; cast one to the other",
    ),
    "conv: groups": (lambda: ops.conv(f(1, 4, 4, 4), f(3, 2, 2, 2), groups=2), "groups=2 does not divide the 3 rows"),
    "conv: no groups": (lambda: ops.conv(IMAGE, KERNEL, groups=0), "groups=0 does not divide"),
    "conv: axes": (
        lambda: ops.conv(f(1, 4, 3), KERNEL),
        "x has shape (1, 4, 3) and weight (2, 2, 2, 3); expected (N, *",
    ),
    "conv: no axes": (lambda: ops.conv(f(4, 3), f(2, 3)), "expected (N, *spatial, C)"),
    "conv: bias": (lambda: ops.conv(IMAGE, KERNEL, f(3)), "bias has shape (3,); expected (2,), one value a channel"),
    "conv: bias that would broadcast": (lambda: ops.conv(IMAGE, KERNEL, f(1)), "bias has shape (1,); expected (2,)"),
    "conv: stride": (lambda: ops.conv(IMAGE, KERNEL, stride=0), "stride=0; expected an integer ≥ 1, or 2 of them"),
    "conv: strides": (
        lambda: ops.conv(IMAGE, KERNEL, stride=(1, 2, 3)),
        "stride=(1, 2, 3); expected an integer ≥ 1, or 2",
    ),
    "conv: padding": (
        lambda: ops.conv(IMAGE, KERNEL, padding="full"),
        "padding='full'; expected 'valid', 'same', an int",
    ),
    "conv: paddings": (lambda: ops.conv(IMAGE, KERNEL, padding=(1, 2, 3)), "padding=(1, 2, 3); expected 'valid'"),
    "conv: negative padding": (lambda: ops.conv(IMAGE, KERNEL, padding=-1), "expected 'valid', 'same', an integer ≥ 0"),
    "conv: a list": (lambda: ops.conv([[1.0]], KERNEL), "conv: x is a list, not an array"),
    "conv_transpose: wrong channels": (lambda: ops.conv_transpose(IMAGE, f(4, 2, 2, 2)), "x has 3 channels"),
    "conv_transpose: bias": (
        lambda: ops.conv_transpose(IMAGE, f(3, 2, 2, 2), f(3)),
        "bias has shape (3,); expected (2,), one value a channel",
    ),
    "conv_transpose: output padding": (
        lambda: ops.conv_transpose(IMAGE, f(3, 2, 2, 2), stride=2, output_padding=2),
        "output_padding=(2, 2) must be smaller than the stride (2, 2) or the dilation",
    ),
    "conv_transpose: same and output padding": (
        lambda: ops.conv_transpose(IMAGE, f(3, 2, 2, 2), stride=2, padding="same", output_padding=1),
        "padding='same' settles the output size",
    ),
    "conv_transpose: all padded away": (
        lambda: ops.conv_transpose(f(1, 1, 1, 3), f(3, 2, 2, 2), padding=1),
        "padding ((1, 1), (1, 1)) leaves nothing of an output of (2, 2)",
    ),
    "conv_transpose: groups": (
        lambda: ops.conv_transpose(IMAGE, f(3, 2, 2, 2), groups=2),
        "does not divide the 3 rows",
    ),
    "conv_transpose: axes": (
        lambda: ops.conv_transpose(f(1, 4, 3), f(3, 2, 2, 2)),
        "expected (N, *spatial, C) and (C, *",
    ),
    "dense: wrong features": (lambda: ops.dense(f(2, 3), f(4, 5)), "dense: x has 3 channels"),
    "dense: bias": (lambda: ops.dense(f(2, 3), f(4, 3), f(3)), "bias has shape (3,); expected (4,)"),
    "dense: weight": (
        lambda: ops.dense(f(2, 3), f(3)),
        "x has shape (2, 3) and weight (3,); expected (N, ..., in) and",
    ),
    "max_pool: too large": (lambda: ops.max_pool(IMAGE, window=5), "max_pool: a window of (5, 5) is larger than"),
    "max_pool: padding": (
        lambda: ops.max_pool(IMAGE, window=2, padding=2),
        "padding ((2, 2), (2, 2)) is more than half the window (2, 2): a window could lie in the padding alone",
    ),
    "max_pool: taps around the input": (
        lambda: ops.max_pool(f(1, 2, 3, 1), window=2, stride=1, dilation=4, padding=2),
        "with dilation (4, 4) and padding ((2, 2), (2, 2)) a window of (2, 2) sees nothing of the input of (2, 3)",
    ),
    "avg_pool: taps around the input": (
        lambda: ops.avg_pool(f(1, 1, 1), window=2, dilation=2, padding=1),
        "sees nothing",
    ),
    "avg_pool: padding": (lambda: ops.avg_pool(IMAGE, window=3, padding=((0, 2), (0, 0))), "more than half the window"),
    "max_pool: no axes": (lambda: ops.max_pool(f(4, 4), window=2), "x has no spatial axes"),
    "max_pool: integers": (lambda: ops.max_pool(i(1, 4, 4, 1), window=2), "x has dtype int32"),
    "max_pool: window": (
        lambda: ops.max_pool(IMAGE, window=(2, 2, 2)),
        "window=(2, 2, 2); expected an integer ≥ 1, or 2",
    ),
    "max_pool: no window": (lambda: ops.max_pool(IMAGE, window=0), "window=0; expected an integer ≥ 1"),
    "global_max_pool: no axes": (lambda: ops.global_max_pool(f(4, 4)), "expected (N, *spatial, C) with spatial axes"),
    "global_avg_pool: no places": (lambda: ops.global_avg_pool(f(4, 0, 3)), "x has shape (4, 0, 3)"),
    "batch_norm: wrong channels": (
        lambda: ops.batch_norm(f(3, 4), f(3), f(3), f(3), f(3), training=True),
        "batch_norm: x has 4 channels (shape (3, 4), channels last), but its weights are made for 3",
    ),
    "batch_norm: one value": (
        lambda: ops.batch_norm(f(1, 3), f(3), f(3), f(3), f(3), training=True),
        "the batch has 1 value(s) a channel; its variance needs at least 2: use a larger batch",
    ),
    "batch_norm: statistics": (
        lambda: ops.batch_norm(f(3, 3), f(3), f(3), f(1), f(3), training=False),
        "running_mean has shape (1,); expected (3,), one value a channel",
    ),
    "layer_norm: wrong channels": (lambda: ops.layer_norm(f(3, 4), f(3), f(3)), "layer_norm: x has 4 channels"),
    "layer_norm: bias": (lambda: ops.layer_norm(f(3, 4), f(4), f(1)), "layer_norm: bias has shape (1,); expected (4,)"),
    "group_norm: groups": (
        lambda: ops.group_norm(f(3, 4), f(4), f(4), groups=3),
        "groups=3 does not divide the 4 chan",
    ),
    "group_norm: no groups": (lambda: ops.group_norm(f(3, 4), f(4), f(4), groups=0), "groups=0 does not divide"),
    "group_norm: wrong channels": (lambda: ops.group_norm(f(3, 4), f(2), f(4), groups=2), "x has 4 channels"),
    "relu: integers": (lambda: ops.relu(i(3)), "relu: x has dtype int32; layers compute in floating point: convert"),
    "gelu: approximation": (lambda: ops.gelu(f(3), approximate="erf"), "approximate='erf'; expected 'none' or 'tanh'"),
    "dropout: mask of another shape": (
        lambda: ops.dropout(f(3, 4), np.ones(4, dtype=bool), rate=0.5),
        "keep has shape (4,) and dtype bool; expected bool of the shape of x, (3, 4)",
    ),
    "dropout: mask of numbers": (lambda: ops.dropout(f(3, 4), f(3, 4), rate=0.5), "dtype float32; expected bool"),
    "cross-entropy: too many labels": (
        lambda: ops.softmax_cross_entropy(f(3, 4), i(4)),
        "labels have shape (4,) and dtype int32 for scores of shape (3, 4); expected integers of shape (3,)",
    ),
    "cross-entropy: labels in a column": (
        lambda: ops.softmax_cross_entropy(f(3, 4), i(3, 1)),
        "labels have shape (3, 1)",
    ),
    "cross-entropy: labels of floats": (lambda: ops.softmax_cross_entropy(f(3, 4), f(3)), "expected integers"),
    "cross-entropy: weights": (
        lambda: ops.softmax_cross_entropy(f(3, 4), i(3), f(1)),
        "class_weights has shape (1,); expected (4,)",
    ),
    "cross-entropy: no samples": (lambda: ops.softmax_cross_entropy(f(0, 4), i(0)), "the batch is empty"),
    "nll: labels of floats": (lambda: ops.nll(f(3, 4), f(3)), "nll: labels have shape (3,) and dtype float32"),
    "mse: shapes": (
        lambda: ops.mse(f(3, 1), f(3)),
        "mse: x has shape (3, 1) and target (3,); expected the same (an extra axis would broadcast to all pairs",
    ),
    "mse: no samples": (lambda: ops.mse(f(0, 1), f(0, 1)), "the batch is empty (shape (0, 1))"),
    "huber: dtypes": (lambda: ops.huber(f(3, 1), i(3, 1)), "x has dtype float32, but target has int32"),
    "binary: shapes": (lambda: ops.binary_cross_entropy(f(3, 1), f(1, 3)), "x has shape (3, 1) and target (1, 3)"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_message(call, message):
    with pytest.raises(ShapeError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda one, two: ops.conv(one(IMAGE), two(KERNEL)),
        lambda one, two: ops.dense(one(f(2, 3)), one(f(4, 3)), two(f(4))),
        lambda one, two: ops.layer_norm(one(f(2, 3)), two(f(3)), two(f(3))),
        lambda one, two: ops.dropout(one(f(2, 3)), two(np.ones((2, 3), dtype=bool)), rate=0.5),
        lambda one, two: ops.softmax_cross_entropy(one(f(2, 3)), two(i(2))),
        lambda one, two: ops.softmax_cross_entropy(one(f(2, 3)), one(i(2)), two(f(3))),
        lambda one, two: ops.mse(one(f(2, 3)), two(f(2, 3))),
    ],
)
def test_arrays_of_two_backends(call):
    strict = pytest.importorskip("array_api_strict")
    message = r"is an array of (numpy|array_api_strict), but \w+ is one of .*: bring both .* with backend\.asarray"
    for pair in ((strict.asarray, np.asarray), (np.asarray, strict.asarray)):
        with pytest.raises(MixedBackendsError, match=message):
            call(*pair)


def test_kernels_must_fit():
    with pytest.raises(
        ValueError, match="a kernel for 'con': there is no such op; there are matmul, total, im2col, col2im,"
    ):
        Ops({"con": lambda ops, x: x})
    with pytest.raises(ValueError, match=r"the kernel for 'relu' takes .*; expected .*, as the standard body"):
        Ops({"relu": lambda ops, x, y: x})
    with pytest.raises(ValueError, match="the kernel for 'elu' takes"):
        Ops({"elu": lambda ops, x, *, alpha=2.0: x})
    assert Ops({"relu": lambda ops, x: (ops, x)}).relu(3)[1] == 3


def test_lists_do_as_tuples():
    w = f(2, 3, 3, 3)
    lists, _ = ops.conv(IMAGE, w, stride=[1, 2], padding=[[1, 0], [0, 1]], dilation=[1, 1])
    tuples, _ = ops.conv(IMAGE, w, stride=(1, 2), padding=((1, 0), (0, 1)), dilation=(1, 1))
    np.testing.assert_array_equal(lists, tuples)
