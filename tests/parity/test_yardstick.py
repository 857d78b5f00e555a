"""What the comparison of backends accepts and refuses."""

from math import inf, nan

import numpy as np
import pytest
from harness import variants

from xpnn import parity
from xpnn.conformance.harness import check
from xpnn.layers import Dense, Dropout, Sequential
from xpnn.ops import Ops
from xpnn.parity import CASES, PARTS, Data, Placed, bound, expected, missing, of_layer, of_op, ratio

NUMPY, *_, READ_ONLY = variants("numpy")
BY_NAME = {case.name: case for case in CASES}
U = 2.0**-24  # of float32


def test_every_op_and_layer_has_cases():
    assert missing() == []
    assert len(BY_NAME) == len(CASES)


def test_a_new_op_or_layer_without_a_case_is_missed(monkeypatch):
    monkeypatch.setattr(Ops, "new", lambda ops, x: x, raising=False)
    assert missing() == ["new"]


def test_ratio():
    a, reference, yardstick = (
        np.asarray([1.0, 2.0, 0.0]),
        np.asarray([1.0, 2.0 + 3 * U, 0.0]),
        np.asarray([1.0, 2.0, 0.0]),
    )
    assert ratio(a, reference, yardstick, "float32") == 1.5
    assert ratio(a, a, yardstick, "float32") == 0
    assert ratio(a, reference, yardstick, "float64") == 1.5 * 2**29
    assert ratio(np.asarray(1.0), np.asarray(0.0), np.asarray(0.0), "float32") == inf
    assert ratio(np.asarray(nan), np.asarray(0.0), np.asarray(1.0), "float32") == inf
    assert ratio(np.asarray(inf), np.asarray(0.0), np.asarray(1.0), "float32") == inf
    assert ratio(np.ones((0, 3)), np.ones((0, 3)), np.ones((0, 3)), "float32") == 0
    with pytest.raises(ValueError, match=r"shape \(2, 1\); expected \(2,\)"):
        ratio(np.ones((2, 1)), np.ones(2), np.ones(2), "float32")
    assert [bound(n) for n in (1, 4, 64, 10**6)] == [4, 8, 32, 32]


def test_yardstick_of_a_linear_case():
    """Of `y = x @ w` it is `|x| @ |w|`, and terms are counted."""
    case = BY_NAME["matmul-plain"]
    a, b = case.arrays().values()
    np.testing.assert_array_equal(expected(case).yardsticks["y"], np.abs(a) @ np.abs(b))
    assert expected(case).terms == {"y": 4}
    conv = expected(BY_NAME["conv-plain"])
    assert conv.terms == {"y": 2 * 3 * 3 + 1, "dx": 2 * 2 * 4, "dweight": 2 * 4 * 2, "dbias": 2 * 4 * 2}


def test_yardstick_by_differences_is_the_formula():
    """`|f| + Σ |∂f/∂x|·|x|`, of the result and of the gradient, for x·sigmoid(x)."""
    case = BY_NAME["silu-plain"]
    x, found = case.arrays()["x"], expected(case)
    s = 1 / (1 + np.exp(-x))
    first, second = s * (1 + x * (1 - s)), s * (1 - s) * (2 + x * (1 - 2 * s))
    np.testing.assert_allclose(found.yardsticks["y"], np.abs(x * s) + np.abs(x * first), rtol=1e-5)
    dx = np.abs(found.dy * first)
    np.testing.assert_allclose(found.yardsticks["dx"], 2 * dx + np.abs(x * second * found.dy), rtol=1e-4)
    assert found.terms == {"y": 1, "dx": 2}


def test_data_are_the_same_in_float32_and_hold_no_kink():
    for case in CASES:
        for name, a in case.arrays().items():
            if a is None or a.dtype != np.float64:
                continue
            np.testing.assert_array_equal(a, a.astype(np.float32), err_msg=f"{case} {name}")
            if case.data[name].fill not in ("ties", "unit") and case.subject not in PARTS:
                assert np.abs(a).min() > 1e-5, f"{case} {name}"


def fails(case, dtype="float32", **kernels):
    """Whether a case is refused with these kernels in the places of the standard bodies."""
    placed = Placed(case, NUMPY.backend, dtype, ops=Ops(kernels))
    try:
        check(case, placed.results(), dtype)
    except AssertionError:
        return True
    return False


def coarse(bits):
    """A matrix product whose inputs keep so many bits: 11 in TF32 and float16, 8 in bfloat16."""

    def cut(a):
        mantissa, exponent = np.frexp(a)
        return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(a.dtype)

    return lambda ops, a, b: np.matmul(cut(a), cut(b))


@pytest.mark.parametrize(
    "name", ["matmul-plain", "matmul-long", "conv-plain", "conv-depthwise", "conv_transpose-1d", "dense-long"]
)
def test_coarse_products_are_refused(name):
    case = BY_NAME[name]
    assert not fails(case)
    assert not fails(case, matmul=coarse(24))
    assert fails(case, matmul=coarse(11))
    assert fails(case, matmul=coarse(8))
    assert fails(case, "float64", matmul=lambda ops, a, b: np.matmul(a.astype("f4"), b.astype("f4")).astype("f8"))


def test_wrong_kernels_are_refused():
    def no_mask(ops, x):
        return np.maximum(x, 0), lambda dy, *, input_gradient=True: (dy,)

    def wrong_gradient(ops, x):
        y = np.tanh(x)
        return y, lambda dy, *, input_gradient=True: (dy * (1 - y),)

    assert fails(BY_NAME["relu-plain"], relu=no_mask)
    assert fails(BY_NAME["ReLU-plain"], relu=no_mask)
    assert fails(BY_NAME["tanh-plain"], tanh=wrong_gradient)


def test_writes_in_place_are_refused():
    """By the variant of NumPy whose results are read-only; what is made to be filled may be filled."""
    x = READ_ONLY.backend.asarray(np.arange(6.0).reshape(2, 3))
    for result in (
        x,
        x * 2,
        x[0],
        np.sum(x, axis=0),
        np.reshape(x, (3, 2)),
        x.astype("float32"),
        np.concatenate([x, x]),
    ):
        with pytest.raises(ValueError, match="read-only"):
            result[...] = 1
    with pytest.raises(ValueError, match="read-only"):
        np.add(x, 1, out=x)
    with pytest.raises(ValueError, match="read-only"):
        x += 1
    y = np.zeros_like(x)
    y[...] += x
    np.add(y, x, out=y)
    np.testing.assert_array_equal(y, 2 * np.arange(6.0).reshape(2, 3))

    def in_place(ops, x):
        x *= x > 0
        return x, lambda dy, *, input_gradient=True: (dy,)

    with pytest.raises(ValueError, match="read-only"):
        Placed(BY_NAME["relu-plain"], READ_ONLY.backend, "float32", ops=Ops({"relu": in_place})).results()


def test_a_case_of_ones_own():
    """As a stranger makes them: data by shape or by kind, options by name."""
    case = of_op("conv", "mine", (1, 3, 2), Data((2, 2, 2), "positive"), stride=2)
    assert list(case.data) == ["x", "weight", "bias"]
    assert case.data["bias"] is None
    assert (case.arrays()["weight"] >= 0.5).all()
    assert expected(case).values.keys() == {"y", "dx", "dweight"}
    case = of_layer("mine", Sequential([Dropout(0.5), Dense(2)]), (3,), training=True)
    assert list(case.data) == ["x", "1.weight", "1.bias", "0.keep"]
    assert case.batched == ("x", "0.keep")
    assert case.arrays()["0.keep"].dtype == bool
    assert expected(case).values.keys() == {"y", "dx", "d1.weight", "d1.bias"}
    with pytest.raises(ValueError, match="fill='odd'"):
        Data((2,), "odd").draw(parity.cases.Stream(0, "x"))
