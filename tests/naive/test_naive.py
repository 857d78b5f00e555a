import ast
import doctest
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from xpnn import naive

SHAPES = [(6, 6, 1), (7, 5, 3), (3, 3, 1), (5, 8, 2)]


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def differences(f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Gradient of the scalar f at x by central differences, one element after the other."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (f(up) - f(down)) / (2 * step)
    return gradient


def assert_same_gradient(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float64
    size = np.linalg.norm(expected)
    assert size > 0
    assert np.linalg.norm(found - expected) / size <= 1e-6


def convolution(rng, channels, kernels=4, size=3):
    layer = naive.Convolution.random(kernels, size, channels, rng)
    return naive.Convolution(layer.weight, rng.normal(size=kernels))


def softmax(rng, features, classes=5):
    return naive.Softmax(rng.normal(size=(classes, features)), rng.normal(size=classes))


# Convolution


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_is_windows_times_kernels(rng, shape):
    layer = convolution(rng, shape[2])
    image = rng.normal(size=shape)
    windows = sliding_window_view(image, (3, 3), axis=(0, 1))  # OH, OW, C, KH, KW
    expected = np.tensordot(windows, layer.weight, axes=([3, 4, 2], [1, 2, 3])) + layer.bias
    np.testing.assert_allclose(layer.forward(image), expected, rtol=1e-12, atol=1e-12)


def test_convolution_by_hand():
    image = np.arange(1.0, 13).reshape(3, 4, 1)
    layer = naive.Convolution(np.array([1.0, 10, 100, 1000]).reshape(1, 2, 2, 1), np.array([0.5]))
    # the kernel is not flipped: 1*1 + 10*2 + 100*5 + 1000*6 at the top left
    assert layer.forward(image)[:, :, 0].tolist() == [[6521.5, 7632.5, 8743.5], [10965.5, 12076.5, 13187.5]]


@pytest.mark.parametrize("kernel", [(3, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_gradients(rng, shape, kernel):
    C = shape[2]
    weight, bias, image = rng.normal(size=(4, *kernel, C)), rng.normal(size=4), rng.normal(size=shape)
    layer = naive.Convolution(weight, bias)
    dy = rng.normal(size=layer.forward(image).shape)
    dimage, gradients = layer.backward(dy)

    def loss(image, weight, bias):
        return float(np.sum(naive.Convolution(weight, bias).forward(image) * dy))

    assert set(gradients) == {"weight", "bias"}
    assert_same_gradient(dimage, differences(lambda x: loss(x, weight, bias), image))
    assert_same_gradient(gradients["weight"], differences(lambda x: loss(image, x, bias), weight))
    assert_same_gradient(gradients["bias"], differences(lambda x: loss(image, weight, x), bias))


def test_convolution_patches(rng):
    image = rng.normal(size=(4, 5, 2))
    found = list(convolution(rng, 2).patches_generator(image))
    assert [(row, column) for _, row, column in found] == [(r, c) for r in range(2) for c in range(3)]
    for patch, row, column in found:
        np.testing.assert_array_equal(patch, image[row : row + 3, column : column + 3])


def test_random_convolution_is_the_tutorials():
    layer = naive.Convolution.random(2, 3, 4, np.random.default_rng(7))
    np.testing.assert_array_equal(layer.weight, np.random.default_rng(7).normal(size=(2, 3, 3, 4)) / 9)
    np.testing.assert_array_equal(layer.bias, np.zeros(2))


# MaxPool


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 6, 1), (7, 5, 3), (3, 3, 1), (5, 8, 2)])
def test_pool_values_and_gradient(rng, shape, size):
    image = rng.permutation(math.prod(shape)).astype(np.float64).reshape(shape)  # no two alike
    layer = naive.MaxPool(size)
    y = layer.forward(image)
    OH, OW, C = shape[0] // size, shape[1] // size, shape[2]
    cut = image[: OH * size, : OW * size]
    np.testing.assert_array_equal(y, cut.reshape(OH, size, OW, size, C).max(axis=(1, 3)))
    dy = rng.normal(size=y.shape)
    expected = differences(lambda x: float(np.sum(naive.MaxPool(size).forward(x) * dy)), image)
    assert_same_gradient(layer.backward(dy), expected)
    np.testing.assert_array_equal(layer.backward(dy)[OH * size :], 0)
    np.testing.assert_array_equal(layer.backward(dy)[:, OW * size :], 0)


def test_pool_patches(rng):
    image = rng.normal(size=(5, 7, 2))
    found = list(naive.MaxPool(2).patches_generator(image))
    assert [(row, column) for _, row, column in found] == [(r, c) for r in range(2) for c in range(3)]
    for patch, row, column in found:
        np.testing.assert_array_equal(patch, image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2])


def test_ties_give_the_gradient_to_the_first_maximum():
    image = np.zeros((2, 6, 2))
    image[:, 2:4, 0] = [[1, 2], [2, 2]]  # tied on (0, 1), (1, 0), (1, 1)
    image[:, 4:6, 0] = [[-1, -2], [-1, -1]]
    image[:, 4:6, 1] = [[0, 0], [5, 5]]
    layer = naive.MaxPool(2)
    layer.forward(image)
    dimage = layer.backward(np.array([[[1.0, 2], [3, 4], [5, 6]]]))
    assert dimage[:, :, 0].tolist() == [[1, 0, 0, 3, 5, 0], [0, 0, 0, 0, 0, 0]]
    assert dimage[:, :, 1].tolist() == [[2, 0, 4, 0, 0, 0], [0, 0, 0, 0, 6, 0]]


# Softmax


@pytest.mark.parametrize("label", [0, 3, 4])
def test_softmax_gradients(rng, label):
    features = rng.normal(size=(2, 3, 2))
    layer = softmax(rng, 12)
    layer.forward(features)
    dfeatures, gradients = layer.backward(label)

    def loss(features, weight, bias):
        other = naive.Softmax(weight, bias)
        other.forward(features)
        return other.loss(label)

    assert set(gradients) == {"weight", "bias"}
    assert_same_gradient(dfeatures, differences(lambda x: loss(x, layer.weight, layer.bias), features))
    assert_same_gradient(gradients["weight"], differences(lambda x: loss(features, x, layer.bias), layer.weight))
    assert_same_gradient(gradients["bias"], differences(lambda x: loss(features, layer.weight, x), layer.bias))


def test_softmax_by_the_definition(rng):
    layer = softmax(rng, 12)
    features = rng.normal(size=(2, 3, 2))
    probabilities = layer.forward(features)
    # features are flattened row by row, channels last
    powers = [math.exp(sum(w * x for w, x in zip(row, features.ravel(), strict=True)) + b)
              for row, b in zip(layer.weight, layer.bias, strict=True)]  # fmt: skip
    np.testing.assert_allclose(probabilities, np.array(powers) / sum(powers), rtol=1e-12)
    for label in range(5):
        assert layer.loss(label) == pytest.approx(-math.log(powers[label] / sum(powers)), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_does_not_overflow(dtype):
    layer = naive.Softmax(np.eye(3, dtype=dtype), np.zeros(3, dtype=dtype))
    probabilities = layer.forward(np.array([1000, 0, 1000], dtype=dtype))
    assert probabilities.tolist() == [0.5, 0, 0.5]
    assert layer.loss(1) == pytest.approx(1000 + math.log(2))  # log(0) would be infinite
    assert layer.loss(0) == pytest.approx(math.log(2))
    dfeatures, gradients = layer.backward(1)
    assert dfeatures.tolist() == [0.5, -1, 0.5]
    assert np.all(np.isfinite(gradients["weight"]))
    layer.forward(np.array([-1000, -1000, -1000], dtype=dtype))
    assert layer.loss(2) == pytest.approx(math.log(3))


# All layers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_and_inputs_are_left_alone(rng, dtype):
    image = rng.normal(size=(7, 7, 2)).astype(dtype)
    before = image.copy()
    for layer in (convolution(rng, 2), naive.MaxPool(2)):
        y = layer.forward(image)
        assert y.dtype == dtype
        dy = np.ones_like(y)
        found = layer.backward(dy)
        again = layer.backward(dy)  # may be called again
        if isinstance(layer, naive.Convolution):
            (found, gradients), (again, _) = found, again
            assert gradients["weight"].dtype == layer.weight.dtype == np.float64
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, again)
        np.testing.assert_array_equal(dy, 1)
    head = softmax(rng, image.size)
    assert head.forward(image).dtype == dtype
    assert head.backward(0)[0].dtype == dtype
    np.testing.assert_array_equal(image, before)


def test_backward_changes_no_weight_and_update_no_callers_array(rng):
    weight, bias = rng.normal(size=(2, 3, 3, 1)), np.zeros(2)
    layer = naive.Convolution(weight, bias)
    before = weight.copy()
    y = layer.forward(rng.normal(size=(5, 5, 1)))
    _, gradients = layer.backward(y)
    np.testing.assert_array_equal(layer.weight, before)
    layer.update(gradients, lr=0.1)
    np.testing.assert_allclose(layer.weight, before - 0.1 * gradients["weight"], rtol=1e-15)
    np.testing.assert_allclose(layer.bias, -0.1 * gradients["bias"], rtol=1e-15)
    np.testing.assert_array_equal(weight, before)


# Network


def small(rng, classes=3):
    """Two convolutions: the first one learns only through the gradient to the second one's input."""
    layers = [
        naive.Convolution.random(3, 3, 1, rng),
        naive.MaxPool(2),
        naive.Convolution.random(2, 2, 3, rng),
    ]
    return naive.Network([*layers, naive.Softmax.random(classes, 8, rng)])


def test_network_gradients(rng):
    network = small(rng)
    image = rng.normal(size=(9, 9, 1))
    loss, correct, gradients = network.gradients(image, 1)
    probabilities = network.forward(image)
    assert loss == pytest.approx(-math.log(probabilities[1]))
    assert correct is bool(np.argmax(probabilities) == 1)
    assert [set(found) for found in gradients] == [
        {"weight", "bias"},
        set(),
        {"weight", "bias"},
        {"weight", "bias"},
    ]
    for layer, found in zip(network.layers, gradients, strict=True):
        for name in found:
            original = getattr(layer, name)

            def f(x, layer=layer, name=name):
                setattr(layer, name, x)
                network.forward(image)
                return network.head.loss(1)

            expected = differences(f, original)
            setattr(layer, name, original)
            assert_same_gradient(found[name], expected)


def test_update_moves_every_layer_against_its_gradient(rng):
    network = small(rng)
    before = [dict(vars(layer)) for layer in network.layers]
    _, _, gradients = network.gradients(rng.normal(size=(9, 9, 1)), 2)
    network.update(gradients, lr=0.25)
    for layer, old, found in zip(network.layers, before, gradients, strict=True):
        for name in found:
            np.testing.assert_allclose(getattr(layer, name), old[name] - 0.25 * found[name], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_lowers_the_loss(rng, dtype):
    labels = rng.integers(0, 3, size=12)
    images = rng.normal(size=(12, 9, 9, 1)).astype(dtype) * 0.1
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 1
    network = small(rng)
    start = [layer.weight for layer in network.layers if not isinstance(layer, naive.MaxPool)]
    history = network.train(images, labels, epochs=12, lr=0.1, rng=rng)
    losses = [loss for loss, _ in history]
    assert len(history) == 12
    assert losses[0] > 0.9  # log(3) = 1.10 is a blind guess
    assert losses[-1] < 0.2
    assert history[-1][1] == 1
    end = [layer.weight for layer in network.layers if not isinstance(layer, naive.MaxPool)]
    assert all(np.max(np.abs(a - b)) > 1e-2 for a, b in zip(start, end, strict=True))


def test_training_is_one_step_for_each_image_in_order(rng):
    images, labels = rng.normal(size=(3, 9, 9, 1)), np.array([2, 0, 2])
    one, two = small(np.random.default_rng(1)), small(np.random.default_rng(1))
    history = one.train(images, labels, epochs=2, lr=0.1)
    for epoch in range(2):
        seen = []
        for image, label in zip(images, labels, strict=True):
            loss, correct, gradients = two.gradients(image, int(label))
            two.update(gradients, 0.1)
            seen.append((loss, correct))
        mean_loss, accuracy = np.mean(seen, axis=0)
        assert history[epoch] == pytest.approx((mean_loss, accuracy))
    np.testing.assert_array_equal(one.layers[0].weight, two.layers[0].weight)


def test_training_with_rng_shuffles_anew_each_epoch(rng):
    images, labels = rng.normal(size=(4, 9, 9, 1)), np.array([0, 1, 2, 0])
    one, two = small(np.random.default_rng(1)), small(np.random.default_rng(1))
    one.train(images, labels, epochs=2, lr=0.1, rng=np.random.default_rng(3))
    draws = np.random.default_rng(3)
    order = [i for _ in range(2) for i in draws.permutation(4)]
    two.train(images[order], labels[order], epochs=1, lr=0.1)
    np.testing.assert_array_equal(one.layers[0].weight, two.layers[0].weight)


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 12, 3)])
def test_article(rng, shape):
    network = naive.article(rng, shape)
    conv, pool, head = network.layers
    assert conv.weight.shape == (16, 3, 3, shape[2])
    assert pool.size == 2
    assert head.bias.shape == (10,)
    probabilities = network.forward(rng.random(shape))
    assert probabilities.shape == (10,)
    assert probabilities.sum() == pytest.approx(1)


# Errors: what came, what was expected, what to do


def ready_head(rng):
    head = softmax(rng, 4)
    head.forward(np.ones((2, 2, 1)))
    return head


def ready_convolution(rng):
    layer = convolution(rng, 1)
    layer.forward(np.ones((4, 4, 1)))
    return layer


def ready_pool(rng):
    layer = naive.MaxPool(2)
    layer.forward(np.ones((4, 4, 1)))
    return layer


WRONG = {
    "grey without channel": (
        lambda rng: convolution(rng, 1).forward(np.ones((5, 5))),
        ValueError, ["Convolution", "(5, 5)", "(H, W, 1)", "np.newaxis"],
    ),
    "batch": (
        lambda rng: naive.MaxPool(2).forward(np.ones((8, 4, 4, 1))),
        ValueError, ["MaxPool", "(8, 4, 4, 1)", "(H, W, C)", "one image at a time"],
    ),
    "channels": (
        lambda rng: convolution(rng, 3).forward(np.ones((5, 5, 1))),
        ValueError, ["Convolution", "(5, 5, 1)", "(H, W, 3)", "build the layer for 1"],
    ),
    "too small for the kernel": (
        lambda rng: convolution(rng, 1).forward(np.ones((5, 2, 1))),
        ValueError, ["Convolution", "(5, 2, 1)", "3 rows and 3 columns", "larger image"],
    ),
    "too small for the pool": (
        lambda rng: naive.MaxPool(3).forward(np.ones((2, 9, 1))),
        ValueError, ["MaxPool", "(2, 9, 1)", "3 rows and 3 columns", "larger image"],
    ),
    "bytes": (
        lambda rng: convolution(rng, 1).forward(np.ones((5, 5, 1), dtype=np.uint8)),
        TypeError, ["Convolution", "uint8", "floats", "/ 255"],
    ),
    "features": (
        lambda rng: softmax(rng, 12).forward(np.ones((2, 3, 1))),
        ValueError, ["Softmax", "(2, 3, 1)", "6 features", "expected 12", "Build the layer for 6"],
    ),
    "bytes as features": (
        lambda rng: softmax(rng, 4).forward(np.ones(4, dtype=np.uint8)),
        TypeError, ["Softmax", "uint8", "floats", "astype"],
    ),
    "label above": (
        lambda rng: ready_head(rng).loss(5),
        ValueError, ["Softmax", "label is 5", "from 0 to 4", "Number the classes from 0"],
    ),
    "label below": (
        lambda rng: ready_head(rng).backward(-1),
        ValueError, ["Softmax", "label is -1", "from 0 to 4", "Number the classes from 0"],
    ),
    "label no whole number": (
        lambda rng: ready_head(rng).backward(1.0),
        ValueError, ["Softmax", "label is 1.0", "whole number"],
    ),
    "label in a network": (
        lambda rng: small(rng).train(np.ones((1, 9, 9, 1)), np.array([3]), epochs=1, lr=0.1),
        ValueError, ["Softmax", "3", "from 0 to 2"],
    ),
    "dy of a convolution": (
        lambda rng: ready_convolution(rng).backward(np.ones((2, 2, 1))),
        ValueError, ["Convolution", "(2, 2, 1)", "(2, 2, 4)", "Call forward"],
    ),
    "dy of a pool": (
        lambda rng: ready_pool(rng).backward(np.ones((4, 4, 1))),
        ValueError, ["MaxPool", "(4, 4, 1)", "(2, 2, 1)", "Call forward"],
    ),
    "backward first, convolution": (
        lambda rng: convolution(rng, 1).backward(np.ones((2, 2, 4))),
        RuntimeError, ["Convolution", "Call forward first"],
    ),
    "backward first, pool": (
        lambda rng: naive.MaxPool(2).backward(np.ones((2, 2, 4))),
        RuntimeError, ["MaxPool", "Call forward first"],
    ),
    "backward first, softmax": (
        lambda rng: softmax(rng, 4).backward(0),
        RuntimeError, ["Softmax", "Call forward first"],
    ),
    "loss first": (
        lambda rng: softmax(rng, 4).loss(0),
        RuntimeError, ["Softmax", "Call forward first"],
    ),
    "weight": (
        lambda rng: naive.Convolution(np.ones((4, 3, 3)), np.ones(4)),
        ValueError, ["Convolution", "(4, 3, 3)", "(C_out, KH, KW, C_in)", "random"],
    ),
    "empty weight": (
        lambda rng: naive.article(rng, (3, 3, 1)),
        ValueError, ["Softmax", "(10, 0)", "(classes, features)"],
    ),
    "bias": (
        lambda rng: naive.Softmax(np.ones((3, 4)), np.ones(4)),
        ValueError, ["Softmax", "(4,)", "(3,)", "each of the 3 outputs"],
    ),
    "integer weight": (
        lambda rng: naive.Softmax(np.ones((3, 4), dtype=int), np.ones(3)),
        TypeError, ["Softmax", "weight", "int", "floats", "weight.astype"],
    ),
    "pool size": (
        lambda rng: naive.MaxPool(0),
        ValueError, ["MaxPool", "size is 0", "from 1", "MaxPool(2)"],
    ),
    "softmax not last": (
        lambda rng: naive.Network([softmax(rng, 4), naive.MaxPool(2)]),
        ValueError, ["Network", "Softmax, MaxPool", "put it last"],
    ),
    "two softmaxes": (
        lambda rng: naive.Network([softmax(rng, 4), softmax(rng, 4)]),
        ValueError, ["Network", "Softmax, Softmax", "exactly one"],
    ),
    "no layers": (
        lambda rng: naive.Network([]),
        ValueError, ["Network", "no layers", "one Softmax"],
    ),
    "a layer twice": (
        lambda rng: naive.Network([pool := naive.MaxPool(2), pool, softmax(rng, 4)]),
        ValueError, ["Network", "twice", "Build a second layer"],
    ),
    "labels missing": (
        lambda rng: small(rng).train(np.ones((2, 9, 9, 1)), np.array([0]), epochs=1, lr=0.1),
        ValueError, ["Network", "2 images and 1 labels", "one label for each image"],
    ),
    "no images": (
        lambda rng: small(rng).train(np.ones((0, 9, 9, 1)), np.zeros(0, dtype=int), epochs=1, lr=0.1),
        ValueError, ["Network", "0 images", "at least one"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_to_do(rng, name):
    call, kind, words = WRONG[name]
    with pytest.raises(kind) as caught:
        call(rng)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


# The package itself


def test_naive_needs_only_numpy():
    for file in Path(naive.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                modules = [node.module]
            else:
                continue
            for module in modules:
                known = {"__future__", "numpy", "collections", "typing"}
                assert module.split(".")[0] in known or module.startswith("xpnn.naive")


def test_the_example_in_the_docstring():
    found = doctest.testmod(naive)
    assert found.attempted > 5
    assert found.failed == 0
