"""Numbers at the edges: nothing overflows where the result is finite, and NaN is handed on."""

import numpy as np
import pytest

pytestmark = pytest.mark.eager

FAR = [-1e4, -500.0, 0.0, 500.0, 1e4]


@pytest.fixture
def far(backend):
    return backend.asarray(np.asarray([FAR], dtype=np.float32))


@pytest.mark.parametrize(
    ("op", "values", "slopes"),
    [
        ("relu", [0, 0, 0, 500, 1e4], [0, 0, 0, 1, 1]),
        ("leaky_relu", [-100, -5, 0, 500, 1e4], [0.01, 0.01, 0.01, 1, 1]),
        ("elu", [-1, -1, 0, 500, 1e4], [0, 0, 1, 1, 1]),
        ("gelu", [0, 0, 0, 500, 1e4], [0, 0, 0.5, 1, 1]),
        ("sigmoid", [0, 0, 0.5, 1, 1], [0, 0, 0.25, 0, 0]),
        ("silu", [0, 0, 0, 500, 1e4], [0, 0, 0.5, 1, 1]),
        ("tanh", [-1, -1, 0, 1, 1], [0, 0, 1, 0, 0]),
        ("softmax", [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]),
        ("log_softmax", [-2e4, -10500, -1e4, -9500, 0], [1, 1, 1, 1, -4]),
    ],
)
def test_far_from_zero(backend, far, op, values, slopes):
    y, backward = getattr(backend.ops, op)(far)
    (dx,) = backward(backend.xp.ones_like(far))
    np.testing.assert_allclose(backend.to_numpy(y)[0], values, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(backend.to_numpy(dx)[0], slopes, rtol=1e-6, atol=1e-30)


def test_gelu_by_tanh_far_from_zero(backend, far):
    y, backward = backend.ops.gelu(far, approximate="tanh")
    np.testing.assert_allclose(backend.to_numpy(y)[0], [0, 0, 0, 500, 1e4], rtol=1e-6)
    np.testing.assert_allclose(
        backend.to_numpy(backward(backend.xp.ones_like(far))[0])[0], [0, 0, 0.5, 1, 1], rtol=1e-6
    )


def test_losses_far_from_zero(backend, far):
    labels = backend.asarray(np.asarray([0], dtype=np.int32))
    loss, backward = backend.ops.softmax_cross_entropy(far, labels)
    assert float(backend.to_numpy(loss)) == 2e4
    np.testing.assert_array_equal(backend.to_numpy(backward(1.0)[0])[0], [-1, 0, 0, 0, 1])

    target = backend.asarray(np.asarray([[1, 0, 0.5, 0, 1]], dtype=np.float32))
    loss, backward = backend.ops.binary_cross_entropy(far, target)
    np.testing.assert_allclose(float(backend.to_numpy(loss)), 1e4 + np.log(2) + 500, rtol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(backward(1.0)[0])[0], [-1, 0, 0, 1, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("relu", {}), ("leaky_relu", {}), ("elu", {}), ("gelu", {}), ("gelu", {"approximate": "tanh"}), ("sigmoid", {}),
        ("silu", {}), ("tanh", {}), ("softmax", {}), ("log_softmax", {}), ("max_pool", {"window": 2}),
        ("avg_pool", {"window": 2}), ("global_max_pool", {}), ("global_avg_pool", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [(0, 0), (1, 0), (1, 1)])
def test_nan_comes_out(backend, op, options, place):
    """A step is stopped by a loss that is not finite; no op may hide one."""
    x = np.ones((1, 2, 2, 1), dtype=np.float32)
    x[0, *place, 0] = np.nan
    y, _ = getattr(backend.ops, op)(backend.asarray(x), **options)
    assert np.isnan(backend.to_numpy(y)).any()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_nan_comes_out_of_a_joined_pool(backend, place, relu):
    x, weight = np.ones((1, 2, 2, 1), dtype=np.float32), np.ones((1, 1, 1, 1), dtype=np.float32)
    x[0, *place, 0] = np.nan
    y, _ = backend.ops.conv_pool(backend.asarray(x), backend.asarray(weight), pool=2, relu=relu)
    assert np.isnan(backend.to_numpy(y)).all()


@pytest.mark.parametrize("at", ["x", "shortcut"])
def test_nan_comes_out_of_a_joined_relu(backend, at):
    arrays = {name: np.ones((1, 2, 2, 1), dtype=np.float32) for name in ("x", "shortcut")}
    arrays[at][0, 0, 1, 0] = np.nan
    x, shortcut = map(backend.asarray, arrays.values())
    y, _ = backend.ops.conv_relu(x, backend.asarray(np.ones((1, 1, 1, 1), dtype=np.float32)), None, shortcut)
    assert np.isnan(backend.to_numpy(y)).reshape(-1).tolist() == [False, True, False, False]


def test_long_sums_keep_their_digits(backend):
    """10⁵ terms added one after the other lose 7 bits; in blocks none to speak of."""
    x = np.full((100_003, 2), 0.1, dtype=np.float32)
    total = backend.to_numpy(backend.ops.total(backend.asarray(x), 0))
    np.testing.assert_allclose(total, 100_003 * np.float64(np.float32(0.1)), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), (1, 2), (0, 2), (0, 1, 2), (-1, 0)])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4), (130, 2, 3), (3, 260, 2), (0, 2, 3)])
def test_total_over_any_axes(backend, shape, axis, keepdims):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 7
    found = backend.to_numpy(backend.ops.total(backend.asarray(x), axis, keepdims=keepdims))
    np.testing.assert_array_equal(found, np.sum(x, axis=axis, keepdims=keepdims))
    assert found.dtype == np.float32


@pytest.mark.parametrize(("dtype", "classes"), [("int8", 200), ("uint8", 300)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignored_label": 2}], ids=str)
def test_labels_of_few_bits_hit_no_class_beyond_them(backend, dtype, classes, options):
    """In eight bits the last classes have the numbers of others."""
    logits = backend.asarray(np.arange(3.0 * classes).reshape(3, classes) % 7, "float32")
    labels = np.asarray([3, 1, 100])
    losses, gradients = [], []
    for kind in (dtype, "int32"):
        loss, backward = backend.ops.softmax_cross_entropy(logits, backend.asarray(labels.astype(kind)), **options)
        losses.append(float(loss))
        gradients.append(backend.to_numpy(backward(1.0)[0]))
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(*gradients)


def test_a_label_out_of_range_hits_no_class(backend):
    logits = backend.asarray(np.arange(600.0).reshape(3, 200) % 7, "float32")
    for kind in ("int8", "int32"):
        labels = backend.asarray(np.asarray([-100, 1, 2], kind))
        _, backward = backend.ops.softmax_cross_entropy(logits, labels)
        np.testing.assert_array_equal(backend.to_numpy(backward(1.0)[0])[0], 0)
