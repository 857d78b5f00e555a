"""The rows of a comparison, and the probe of products."""

from math import inf

import numpy as np
import pytest

from xpnn import backend as backends
from xpnn.ops import Ops
from xpnn.parity import CASES, Finding, Side
from xpnn.parity.probe import FORMATS, coarse, product
from xpnn.parity.report import Row, table

CASE = next(case for case in CASES if case.name == "conv-plain")
EXACT = next(case for case in CASES if case.name == "relu-plain")


def test_the_worst_is_nearest_to_its_bound():
    near, far = Finding("y", 1, 1.0, None), Finding("dx", 64, 3.0, None)
    row = Row(CASE, {"a": [far, near], "b": [near, Finding("dx", 64, 0.5, "has dtype float64")], "c": []})
    assert row.worst("a") == near
    assert row.worst("b").name == "dx"
    assert row.worst("c") is None
    assert row.terms == 64
    assert row.faults == ["b: dx has dtype float64"]


def test_table():
    rows = [
        Row(CASE, {"a": [Finding("y", 64, 3.14159, None)], "b": [Finding("y", 64, 123456.0, "r = 1.23e+05")]}),
        Row(EXACT, {"a": [Finding("y", 0, 0.0, None)], "b": [Finding("y", 0, inf, "1 of 6 differ")]}),
        Row(EXACT, {"a": [Finding("y", 0, 0.0, None)]}),
    ]
    assert [line.split() for line in table(rows, ["a", "b"])[1:]] == [
        ["conv-plain", "ratio", "64", "3.1", "1e+05", "DIFFERS"],
        ["relu-plain", "exact", "=", "≠", "DIFFERS"],
        ["relu-plain", "exact", "=", "-", "same"],
    ]


def side(**kernels):
    return Side("numpy*", backends.get("numpy"), Ops(kernels))


def rounded_matmul(name):
    return product(FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
def test_coarse_products_are_found(name):
    assert coarse(side()) is None
    assert coarse(side(matmul=rounded_matmul(name))).startswith("matmul of size 16 gives 1.0 for 1.0002")


def test_one_coarse_element_is_found():
    def matmul(ops, a, b):
        y = np.matmul(a, b)
        y[..., -1, -1] = 1
        return y

    assert coarse(side(matmul=matmul)) is not None


def test_what_is_coarse_for_large_shapes_only_is_found():
    def matmul(ops, a, b):
        return rounded_matmul("TF32")(ops, a, b) if a.shape[0] > 256 else np.matmul(a, b)

    assert coarse(side(matmul=matmul)).startswith("matmul of size 1024")


def test_a_coarse_kernel_is_found_where_matmul_is_fine():
    inner = Ops({"matmul": rounded_matmul("TF32")})

    def dense(ops, x, weight, bias=None):
        return inner.dense(x, weight, bias)

    def conv(ops, x, weight, bias=None, *, stride=1, padding="valid", dilation=1, groups=1):
        return inner.conv(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)

    assert coarse(side(dense=dense)).startswith("dense of size 16")
    assert coarse(side(conv=conv)).startswith("conv of size 16")
