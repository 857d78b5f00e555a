"""Values and gradients of the standard bodies on NumPy in float64, to which the tests of cases hold all backends."""

import numpy as np
import pytest
import reference

from xpnn import naive, ops, parity
from xpnn.parity import CASES, LAYERS, OPS, PARTS

CONV = [c for c in OPS if c.subject == "conv" and len(c.data["x"].shape) == 4 and not c.options]
POOL = [c for c in OPS if c.subject == "max_pool" and c.options == {"window": 2}]


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=repr)


def test_every_op_has_a_formula():
    assert list(reference.VALUES) == ops.names()


@named(OPS)
def test_value_of_an_op(case):
    found = parity.expected(case).values
    expected = reference.VALUES[case.subject](*case.arrays().values(), **case.options)
    if case.subject == "batch_norm":
        expected, mean, var = expected
        np.testing.assert_allclose(found["running_mean"], mean, rtol=1e-12, strict=True)
        np.testing.assert_allclose(found["running_var"], var, rtol=1e-12, strict=True)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-12, atol=1e-13)


@named(LAYERS)
def test_value_of_a_layer(case):
    arrays = case.arrays()
    y, stats = reference.layer_value(case.layer, arrays, arrays["x"], case.training)
    found = parity.expected(case).values
    np.testing.assert_allclose(found["y"], y, rtol=1e-12, atol=1e-13, strict=True)
    for name, value in stats.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, strict=True)


@named([c for c in CASES if c.smooth and c.subject not in PARTS])
def test_gradient(case):
    """By central differences, each array along a random direction."""
    expected, arrays, step = parity.expected(case), case.arrays(), 1e-6
    rng = np.random.default_rng(7)
    for name, a in arrays.items():
        if f"d{name}" not in expected.values:
            continue
        direction = rng.uniform(0.5, 1.5, a.shape) * rng.choice([-1, 1], a.shape)
        up, down = (
            np.sum(case.call(ops.standard, arrays | {name: a + h * direction})[0]["y"] * expected.dy)
            for h in (step, -step)
        )
        slopes = expected.values[f"d{name}"] * direction
        error = abs((up - down) / (2 * step) - np.sum(slopes)) / max(np.sum(np.abs(slopes)), 1e-3)
        assert error <= 1e-6, f"d{name} is off by {error:.3g}"


@named([c for c in OPS if c.subject == "max_pool"])
def test_first_maximum_gets_the_gradient(case):
    expected = parity.expected(case)
    dx = reference.max_pool_gradient(case.arrays()["x"], expected.dy, **case.options)
    np.testing.assert_array_equal(expected.values["dx"], dx)


@named([c for c in OPS if c.subject == "global_max_pool"])
def test_first_of_all_gets_the_gradient(case):
    expected, x = parity.expected(case), case.arrays()["x"]
    dx = reference.max_pool_gradient(
        x, expected.dy.reshape(len(x), *(1 for _ in x.shape[1:-1]), -1), window=x.shape[1:-1]
    )
    np.testing.assert_array_equal(expected.values["dx"], dx)


@named([c for c in OPS if c.subject == "conv_pool"])
def test_joined_is_one_after_the_other(case):
    """Also where responses are tied, and in which order bias, pool and ReLU come."""
    expected, options = parity.expected(case), dict(case.options)
    pool, relu = options.pop("pool"), options.pop("relu", False)
    responses, conv_backward = ops.conv(*case.arrays().values(), **options)
    y, pool_backward = ops.max_pool(responses, window=pool)
    y, relu_backward = ops.relu(y) if relu else (y, lambda dy: (dy,))
    gradients = conv_backward(*pool_backward(*relu_backward(expected.dy)))
    np.testing.assert_allclose(expected.values["y"], y, rtol=1e-12, atol=1e-13)
    for name, gradient in zip(("dx", "dweight", "dbias"), gradients, strict=True):
        if gradient is not None:
            np.testing.assert_allclose(expected.values[name], gradient, rtol=1e-11, atol=1e-12)


@named([c for c in OPS if c.subject == "conv_relu"])
def test_joined_relu_is_one_after_the_other(case):
    expected, (x, weight, bias, shortcut) = parity.expected(case), case.arrays().values()
    responses, conv_backward = ops.conv(x, weight, bias, **case.options)
    y, relu_backward = ops.relu(responses if shortcut is None else responses + shortcut)
    (d,) = relu_backward(expected.dy)
    np.testing.assert_array_equal(expected.values["y"], y)
    assert np.mean(y == 0) > 0.2
    gradients = *conv_backward(d), None if shortcut is None else d
    for name, gradient in zip(("dx", "dweight", "dbias", "dshortcut"), gradients, strict=True):
        if gradient is not None:
            np.testing.assert_array_equal(expected.values[name], gradient)


@named([c for c in OPS if c.subject == "conv_avg_pool"])
def test_joined_means_are_one_after_the_other(case):
    expected, options = parity.expected(case), dict(case.options)
    pool, activation = options.pop("pool"), options.pop("activation")
    responses, conv_backward = ops.conv(*case.arrays().values(), **options)
    active, activation_backward = getattr(ops, activation)(responses)
    y, pool_backward = ops.avg_pool(active, window=pool)
    gradients = conv_backward(*activation_backward(*pool_backward(expected.dy)))
    np.testing.assert_allclose(expected.values["y"], y, rtol=1e-12, atol=1e-13)
    for name, gradient in zip(("dx", "dweight", "dbias"), gradients, strict=True):
        if gradient is not None:
            np.testing.assert_allclose(expected.values[name], gradient, rtol=1e-11, atol=1e-12)


def test_an_activation_that_goes_with_no_average():
    with pytest.raises(ValueError, match=r"conv_avg_pool: activation='gelu'; expected one of relu, tanh"):
        ops.conv_avg_pool(np.ones((1, 2, 2, 1)), np.ones((1, 1, 1, 1)), pool=2, activation="gelu")


@named([c for c in OPS if c.subject == "relu"])
def test_slope_of_relu_at_zero_is_zero(case):
    expected = parity.expected(case)
    np.testing.assert_array_equal(expected.values["dx"], np.where(case.arrays()["x"] > 0, expected.dy, 0))


@named(CONV)
def test_convolution_is_the_naive_one(case):
    x, weight, bias = case.arrays().values()
    layer = naive.Convolution(weight, np.zeros(len(weight)) if bias is None else bias)
    expected, dweight, dbias = parity.expected(case), 0, 0
    for n, image in enumerate(x):
        np.testing.assert_allclose(expected.values["y"][n], layer.forward(image), rtol=1e-12, atol=1e-13)
        dx, gradients = layer.backward(expected.dy[n])
        np.testing.assert_allclose(expected.values["dx"][n], dx, rtol=1e-12, atol=1e-13)
        dweight, dbias = dweight + gradients["weight"], dbias + gradients["bias"]
    np.testing.assert_allclose(expected.values["dweight"], dweight, rtol=1e-12, atol=1e-12)
    if bias is not None:
        np.testing.assert_allclose(expected.values["dbias"], dbias, rtol=1e-12, atol=1e-12)


@named(POOL)
def test_max_pool_is_the_naive_one(case):
    x, size, expected = case.arrays()["x"], case.options["window"], parity.expected(case)
    for n, image in enumerate(x):
        layer = naive.MaxPool(size)
        np.testing.assert_array_equal(expected.values["y"][n], layer.forward(image))
        np.testing.assert_array_equal(expected.values["dx"][n], layer.backward(expected.dy[n]))


def test_softmax_and_loss_are_the_naive_ones():
    rng = np.random.default_rng(3)
    x, weight, bias = rng.normal(size=(4, 6)), rng.normal(size=(5, 6)), rng.normal(size=5)
    labels = np.asarray([0, 4, 1, 4])
    logits, dense_backward = ops.dense(x, weight, bias)
    loss, loss_backward = ops.softmax_cross_entropy(logits, labels)
    dx, dweight, dbias = dense_backward(loss_backward(1.0)[0])
    layer = naive.Softmax(weight, bias)
    found = []
    for n, row in enumerate(x):
        np.testing.assert_allclose(ops.softmax(logits)[0][n], layer.forward(row), rtol=1e-13)
        found.append((layer.loss(labels[n]), *layer.backward(labels[n])))
    np.testing.assert_allclose(loss, sum(f[0] for f in found), rtol=1e-13)
    np.testing.assert_allclose(dx, np.stack([f[1] for f in found]), rtol=1e-12, atol=1e-14)
    for name, gradient in (("weight", dweight), ("bias", dbias)):
        np.testing.assert_allclose(gradient, sum(f[2][name] for f in found), rtol=1e-12, atol=1e-14)
