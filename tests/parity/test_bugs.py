"""Faults that real projects shipped, as kernels of a backend: the comparison must refuse each, for what it is.

The last ones round otherwise and are right: they must pass.
"""

import inspect
import re
from itertools import count

import numpy as np
import pytest

from xpnn import backend as backends
from xpnn.ops import Ops
from xpnn.parity import CASES, Side, judge
from xpnn.parity.probe import FORMATS, product

NUMPY, STANDARD = backends.get("numpy"), Ops()


def dropped_tap(ops, x, weight, bias=None, **options):
    weight = weight.copy()
    weight[:, -1] = 0
    return STANDARD.conv(x, weight, bias, **options)


def row_not_written(ops, x, weight, bias=None, **options):
    y, backward = STANDARD.conv(x, weight, bias, **options)
    y = y.copy()
    y[:, -1] = 0
    return y, backward


def groups_mixed_up(ops, x, weight, bias=None, **options):
    y, backward = STANDARD.conv(x, weight, bias, **options)

    def wrong(dy, **given):
        dx, dweight, dbias = backward(dy, **given)
        return dx, np.roll(dweight, len(dweight) // options.get("groups", 1), axis=0), dbias

    return y, wrong


def bias_twice(ops, x, weight, bias=None):
    return STANDARD.dense(x, weight, None if bias is None else 2 * bias)


def padding_wins(ops, x, *, padding="valid", **options):
    y, backward = STANDARD.max_pool(x, padding=padding, **options)
    return (y if padding == "valid" else np.maximum(y, 0)), backward


def half_accumulator(ops, a, b):
    total = np.zeros(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1]), np.float16)
    for k in range(a.shape[-1]):
        total += (a[..., k, None] * b[..., k, None, :]).astype(np.float16)
    return total.astype(a.dtype)


def label_wraps(ops, logits, labels, class_weights=None, **options):
    if options:
        return STANDARD.softmax_cross_entropy(logits, labels, class_weights, **options)
    return STANDARD.softmax_cross_entropy(logits, labels % logits.shape[-1], class_weights)


def race():
    calls = count()

    def total(ops, x, **options):
        y = STANDARD.total(x, **options)
        return y * (1 + 2e-7 * (next(calls) % 3 == 1))  # within the bound: only the bits tell

    return total


def crept_in(ops, x):
    y, backward = STANDARD.sigmoid(x)
    return y, lambda dy, **given: tuple(d * np.float64(1) for d in backward(dy, **given))


def overlap_forgotten(ops, x, **options):
    """Where windows overlap a gradient is written over another, not added to it."""
    y, backward = STANDARD.max_pool(x, **options)
    return y, lambda dy, **given: tuple(
        np.sign(d) * np.minimum(np.abs(d), np.abs(dy).max()) for d in backward(dy, **given)
    )


def epsilon_outside(ops, x, scale, bias, running_mean, running_var, *, epsilon=1e-5, **options):
    return STANDARD.batch_norm(x, scale, bias, running_mean, running_var, epsilon=epsilon * 100, **options)


FAULTS = {
    "a tap of the kernel dropped": ("conv", dropped_tap, "y r = "),
    "an output row not written": ("conv", row_not_written, "y r = "),
    "groups mixed up in backward": ("conv", groups_mixed_up, "dweight r = "),
    "bias added twice": ("dense", bias_twice, "y r = "),
    "padding that wins a maximum": ("max_pool", padding_wins, r"y \d+ of \d+ differ"),
    "an accumulator in half precision": ("matmul", half_accumulator, "y r = "),
    "factors in TF32": ("matmul", product(FORMATS["TF32"]), "y r = "),
    "factors in float16": ("matmul", product(FORMATS["float16"]), "y r = "),
    "a label out of range that wraps": ("softmax_cross_entropy", label_wraps, "y r = "),
    "a race": ("total", race(), "y differs between 3 equal calls"),
    "a float64 that crept in": ("sigmoid", crept_in, "dx has dtype float64; expected float32"),
    "a gradient written over another": ("max_pool", overlap_forgotten, r"dx \d+ of \d+ differ"),
    "another epsilon": ("batch_norm", epsilon_outside, "y r = "),
    "a call that fails": ("elu", lambda ops, x, **options: 1 / 0, "y raises ZeroDivisionError: division by zero"),
}


def faults(op, kernel, backend=NUMPY):
    """What is said of a backend with this kernel, by case."""
    kernel.__signature__ = inspect.signature(getattr(Ops, op))
    side = Side("faulty", backend, Ops({op: kernel}, backend.column_bytes))
    cases = [case for case in CASES if case.subject == op]
    assert cases
    return [f"{case}: {f.name} {f.fault}" for case in cases for f in judge(case, side) if f.fault]


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_refused(name):
    op, kernel, said = FAULTS[name]
    found = faults(op, kernel)
    assert any(re.match(rf"\S+: {said}", f) for f in found), found


def test_result_on_another_device_is_refused():
    strict = backends.get("strict", "device1")

    def elsewhere(ops, x):
        y, backward = STANDARD.relu(x)
        return y.to_device(type(strict)(None).device), backward

    assert set(faults("relu", elsewhere, strict)) == {
        f"{case}: y is on array_api_strict.Device('CPU_DEVICE'); expected array_api_strict.Device('device1')"
        for case in CASES
        if case.subject == "relu"
    }


RIGHT = {
    "another order of a sum": (
        "total",
        lambda ops, x, *, axis, keepdims=False: np.sum(x, axis=axis, keepdims=keepdims),
    ),
    "another order of a product": ("matmul", lambda ops, a, b: np.matmul(a[..., ::-1], b[..., ::-1, :])),
    "a formula of one's own": ("tanh", lambda ops, x: (np.tanh(x), STANDARD.tanh(x)[1])),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name):
    assert faults(*RIGHT[name]) == []
