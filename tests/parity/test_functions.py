"""`assert_parity`: which functions it accepts, and what it says of the others."""

import re

import array_api_strict
import numpy as np
import pytest
from array_api_compat import array_namespace
from harness import variants

from xpnn import backend as backends
from xpnn.errors import BackendError, ShapeError
from xpnn.parity import assert_parity
from xpnn.parity.functions import GROUPS, yardstick_of
from xpnn.random import Stream

X = Stream(0, "functions").normal((6, 5))
STRICT = variants("strict")[0].backend


def on_strict(x):
    """Whether a function is being computed on the side that the tests spoil."""
    return array_namespace(x) is array_api_strict


def softplus(x):
    xp = array_namespace(x)
    return xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(x, xp.zeros_like(x))


def spoilt(change, fn=softplus):
    """`fn`, changed on strict alone."""

    def spoilt(*x):
        y = fn(*x)
        return change(y) if on_strict(x[0]) else y

    return spoilt


def report(fn, *arrays, **options):
    with pytest.raises(AssertionError) as caught:
        assert_parity(fn, *arrays, backends=["numpy", STRICT], **options)
    return str(caught.value)


def test_right_functions(variant, backend):
    for dtype in variant.dtypes:
        assert_parity(softplus, X, backends=[backend], dtype=dtype)
        assert_parity(lambda a, b: array_namespace(a).matmul(a, b), X, X.T, backends=[backend], n=5, dtype=dtype)
        assert_parity(lambda x: {"y": x * 2, "positive": x > 0}, X, backends=[backend], dtype=dtype)
        assert_parity(lambda x: (x, array_namespace(x).argmax(x, axis=1)), X, backends=[backend], dtype=dtype)
        assert_parity(lambda x, i: x + i.shape[0], 1.5, np.arange(3), backends=[backend], dtype=dtype)
        assert_parity(lambda x: array_namespace(x).sum(x), np.zeros((0, 3)), backends=[backend], dtype=dtype)


def test_values_that_are_not_finite_are_compared():
    def log(x):
        return array_namespace(x).log(x)

    x = np.asarray([-1.0, 0.0, 2.0, np.inf, np.nan])
    assert_parity(log, x, backends=["numpy", "strict"])

    def change(y):
        y[1] = 0.0
        return y

    assert "r = inf, at most 4; worst at (1,): 0.0, reference -inf" in report(spoilt(change, log), x)


def test_numbers_below_the_smallest_normal_one():
    assert_parity(lambda x: array_namespace(x).exp(x), np.asarray([-100.0, -95.0, -90.0]), backends=["numpy"])


def test_the_report():
    def change(y):
        y[2, 3] += 1e-4
        return y

    lines = report(spoilt(change), X, n=4).splitlines()
    assert lines[0] == (
        "spoilt in float32: strict is off, numpy not (float64 on NumPy is the reference, r at most 8 for n = 4)"
    )
    assert re.fullmatch(r"numpy   \(6, 5\) float32  ok   r = [\d.]+", lines[1])
    value = softplus(X.astype("float32").astype("float64"))[2, 3]
    found = re.fullmatch(
        r"strict  \(6, 5\) float32  OFF  r = (.+), at most 8; worst at \(2, 3\): (.+), reference (.+)", lines[2]
    )
    assert float(found[1]) > 100
    assert float(found[2]) - float(found[3]) == pytest.approx(1e-4, rel=1e-2)
    assert float(found[3]) == pytest.approx(value)
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda y: y + 1e-6, "strict  (6, 5) float32  OFF  r = "),
        (lambda y: y[1:, :], "strict  (5, 5) float32  OFF  has shape (5, 5); expected (6, 5)"),
        (lambda y: array_api_strict.astype(y, array_api_strict.float64), "OFF  has dtype float64; expected float32"),
        (lambda y: array_api_strict.astype(y, array_api_strict.int32), "OFF  has dtype int32; expected float32"),
        (lambda y: (y, y), "OFF  gives 2 arrays (0, 1); expected one array"),
        (lambda y: np.asarray([1.0]), "OFF  is no array of strict"),
        (
            lambda y: y.to_device(array_api_strict.Device("device2")),
            "OFF  is on array_api_strict.Device('device2'); ex",
        ),
    ],
)
def test_faults(change, said):
    text = report(spoilt(change), X)
    assert "strict is off, numpy not" in text
    assert said in text


def test_integers_and_bools_are_compared_by_value():
    def sign(x):
        return {"positive": x > 0, "count": array_namespace(x).sum(array_namespace(x).astype(x > 0, x.dtype)) > 3}

    assert_parity(sign, X, backends=["numpy", "strict"])

    def change(y):
        y["positive"][4, 0] = not bool(y["positive"][4, 0])
        return y

    truth = bool(X[4, 0] > 0)
    assert f"1 of 30 differ; first at (4, 0): {not truth}, reference {truth}" in report(spoilt(change, sign), X)


def test_numbers_of_terms():
    """An error of 10 units passes where 64 terms are summed, and not where one is."""

    def change(y):
        return y * (1 + 14 * 2.0**-24)

    def product(x):
        return x * 3.0

    assert_parity(spoilt(change, product), X, backends=["strict"], n=64)
    assert "at most 4" in report(spoilt(change, product), X)


def test_the_yardstick_is_the_sum():
    """Exactly with no more numbers than groups, and for elementwise functions of any size."""

    def f(arrays):
        return {"y": np.sum(arrays[0] * arrays[1], keepdims=True)}

    arrays = [Stream(i, "f").normal((GROUPS // 2,)) for i in range(2)]
    exact = np.abs(f(arrays)["y"]) + 2 * np.abs(arrays[0] * arrays[1]).sum()
    np.testing.assert_allclose(yardstick_of(f, arrays, f(arrays))["y"], exact, rtol=1e-6)
    x = Stream(0, "g").normal((50, 60))
    values = {"y": np.tanh(x)}
    found = yardstick_of(lambda arrays: {"y": np.tanh(arrays[0])}, [x], values)["y"]
    np.testing.assert_allclose(found, np.abs(values["y"]) + np.abs((1 - values["y"] ** 2) * x), rtol=1e-5)


def test_the_yardstick_of_many_numbers_is_below_the_sum():
    x = Stream(0, "many").normal((100, 200))
    values = {"y": np.sum(x, axis=1)}
    found = yardstick_of(lambda arrays: {"y": np.sum(arrays[0], axis=1)}, [x], values)["y"]
    exact = np.abs(values["y"]) + np.abs(x).sum(axis=1)
    assert (found <= exact * (1 + 1e-6)).all()
    assert (found > exact / 2).all()


def test_inputs_are_the_same_on_every_side():
    """Rounded first, and each side's own: what one function writes to its inputs, no other sees."""
    x = np.asarray([0.1, 0.2])

    def write(x):
        x[0] = 0.0
        return x * 3

    assert_parity(write, x, backends=["numpy", "strict"])
    assert x[0] == 0.1


def test_errors_of_the_call():
    with pytest.raises(BackendError, match=r"there is no backend 'numpi'.*did you mean 'numpy'"):
        assert_parity(softplus, X, backends=["numpi"])
    with pytest.raises(ValueError, match="the backend numpy on cpu is given twice"):
        assert_parity(softplus, X, backends=["numpy", backends.get("numpy")])
    assert_parity(softplus, X, backends=[STRICT, backends.get("strict")])  # two devices are two sides
    with pytest.raises(ValueError, match="no backends; name at least one"):
        assert_parity(softplus, X, backends=[])
    for n in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=rf"n={n}; expected the number of terms"):
            assert_parity(softplus, X, backends=["numpy"], n=n)
    with pytest.raises(ValueError, match="dtype='float16'; expected float32 or float64"):
        assert_parity(softplus, X, backends=["numpy"], dtype="float16")
    with pytest.raises(ShapeError, match=r"argument 1 is a array_api_strict\..*; give host arrays"):
        assert_parity(softplus, X, STRICT.asarray(X), backends=["numpy"])
    with pytest.raises(ShapeError, match=r"argument 0 has dtype complex128; expected real"):
        assert_parity(softplus, X + 1j, backends=["numpy"])


def test_a_backend_that_cannot_be_used():
    unusable = [name for name in backends.names() if backends.find(name).why_unavailable()]
    if not unusable:
        pytest.skip("all installed backends can be used here")
    with pytest.raises(BackendError, match=f"the backend '{unusable[0]}' cannot be used here: .*"):
        assert_parity(softplus, X, backends=["numpy", unusable[0]])


def test_errors_of_the_function():
    for result in (None, 3.0, "y", {}, [], [[1.0]]):
        with pytest.raises(TypeError, match=r"<lambda> returns .*; expected an array, or several"):
            assert_parity(lambda x, result=result: result, X, backends=["numpy"])
    with pytest.raises(TypeError, match="was given float64, but it came back as float32; keep the dtype"):
        assert_parity(lambda x: array_namespace(x).astype(x, array_namespace(x).float32), X, backends=["numpy"])
    with pytest.raises(TypeError, match="was given NumPy arrays, but it came back as a array_api_strict"):
        assert_parity(lambda x: STRICT.asarray(X), X, backends=["numpy"])

    def methods(x):
        return x.no_such_method() if on_strict(x) else x

    with pytest.raises(AttributeError) as caught:
        assert_parity(methods, X, backends=["numpy", "strict"])
    assert caught.value.__notes__ == ["raised on the backend 'strict'"]
