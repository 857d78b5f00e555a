"""CuPy's kernels on the CPU: their CUDA C++ compiled by g++, their views of memory as NumPy's."""

import cuda_on_cpu
import numpy as np
import pytest
from cuda_on_cpu import memory
from xpnn_numpy import NumPyBackend

from xpnn import ops, parity
from xpnn.errors import MixedBackendsError, ShapeError
from xpnn.ops import Ops
from xpnn.parity import CASES, Placed
from xpnn.random import Stream

pytestmark = pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="there is no g++")

MODULES = cuda_on_cpu.modules()
KERNELS = cuda_on_cpu.kernels(MODULES)
FUSED = Ops(KERNELS, column_bytes=1 << 30)
REPLACED = [case for case in CASES if case.subject in KERNELS]
GEOMETRIES = [
    {"kernel": 3}, {"kernel": (1, 2), "stride": (2, 1)}, {"kernel": (2, 3), "dilation": (3, 1)}, {"kernel": 1},
    {"kernel": 1, "stride": 2}, {"kernel": (4, 1), "stride": 3}, {"kernel": 3, "padding": "same"},
    {"kernel": (2, 3), "stride": (1, 2), "padding": ((3, 0), (1, 4))},
]  # fmt: skip


class OnCPU(NumPyBackend):
    """NumPy's arrays, as CuPy's kernels take them."""

    kernels = KERNELS

    def _place(self, x):
        return memory(x)


@pytest.fixture
def launched(monkeypatch):
    """The kernels that were launched: name, type and width."""
    seen, launch = [], cuda_on_cpu.RawKernel.__call__

    def note(self, *args):
        seen.append(self.told)
        launch(self, *args)

    monkeypatch.setattr(cuda_on_cpu.RawKernel, "__call__", note)
    return seen


def images(dtype):
    """In all the ways in which pixels may lie, with channels that four and two divide or not."""
    for c in (1, 2, 3, 4, 8):
        x = Stream(0, "pixels", str(c)).normal((4, 8, 9, 2 * c)).astype(dtype)
        yield x[..., :c].copy()
        yield x[:, :-1, 1:, :c]
        yield x[..., 1 : c + 1]
        yield x[:, ::-1, ::-1, :c]
        yield x[..., ::2]
        yield x[:0, ..., :c]
        yield np.broadcast_to(x[:1, ..., :c], (4, 8, 9, c))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_columns_are_those_of_the_standard_body(geometry, dtype):
    for x in images(dtype):
        found = FUSED.im2col(memory(x), **geometry)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, ops.im2col(x, **geometry))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("c", [3, 4])
def test_columns_are_summed_in_the_order_of_the_standard_body(geometry, c, launched):
    columns = ops.im2col(Stream(0, "pixels").normal((4, 8, 9, c)).astype("float32"), **geometry)
    found = FUSED.col2im(memory(columns), spatial=(8, 9), **geometry)
    np.testing.assert_array_equal(found, ops.col2im(columns, spatial=(8, 9), **geometry))
    assert launched == [("xpnn_col2im", "float", 4 if c == 4 else 1)]


FIRST = [next(case for case in REPLACED if case.subject == name) for name in KERNELS]


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in REPLACED), *((case, "float64") for case in FIRST)], ids=repr
)
def test_case(case, dtype):
    side = parity.Side("kernels", OnCPU(), FUSED)
    assert [f for f in parity.judge(case, side, dtype) if f.fault] == []


@pytest.mark.parametrize("case", REPLACED, ids=repr)
def test_layout_in_memory_does_not_matter(case):
    """The same bits from rows that lie apart, and from addresses that only short words fit."""

    def apart(xp, a):
        return memory(np.stack([a, a], axis=-1)[..., 0])

    def one_further(xp, a):
        if a.dtype != np.float32:
            return a
        moved = cuda_on_cpu.empty(a.size + 1, a.dtype)[1:].reshape(a.shape)
        moved[...] = a
        return moved

    backend = OnCPU()
    expected = Placed(case, backend, "float32", ops=FUSED).results()
    for layout in (apart, one_further):
        found = Placed(case, backend, "float32", ops=FUSED, layout=layout).results()
        for name, a in expected.items():
            np.testing.assert_array_equal(found[name], a)


@pytest.mark.parametrize(("channels", "offset", "width"), [(8, 0, 4), (6, 0, 2), (3, 0, 1), (8, 1, 1), (8, 2, 2)])
def test_width_of_a_thread(channels, offset, width, launched):
    x = cuda_on_cpu.empty(5 * channels + offset, "float32")[offset:].reshape(5, channels)
    x[...] = Stream(0, "x").normal(x.shape)
    vectors = [cuda_on_cpu.empty(channels, "float32") for _ in range(4)]
    for vector in vectors:
        vector[...] = 1
    FUSED.batch_norm(memory(x), *vectors, training=False)
    assert launched == [("xpnn_norm_normalise", "float", width)]


def test_batch_norm_of_more_parts_than_a_block_has_threads():
    x, dy = (Stream(0, name).normal((MODULES["norm"].TERMS[0] * 300 + 3, 3)) for name in ("x", "dy"))
    vectors = [Stream(0, "vector", str(i)).uniform((3,)) + 0.5 for i in range(4)]
    expected, backward = ops.batch_norm(x + 3, *vectors, training=True, relu=True)
    found, back = FUSED.batch_norm(memory(x + 3), *map(memory, vectors), training=True, relu=True)
    for a, b in zip([*found, *back(memory(dy))[:3]], [*expected, *backward(dy)[:3]], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "add", "batch_norm", "conv_pool"])
def test_rectified_nan_is_nan(name):
    x = memory(np.full((2, 4, 4, 4), np.nan, "float32"))
    one = [memory(np.ones(4, "float32")) for _ in range(4)]
    weight = memory(np.ones((4, 1, 1, 4), "float32"))
    y = {
        "relu": lambda: FUSED.relu(x)[0],
        "add": lambda: FUSED.add(x, x, relu=True)[0],
        "batch_norm": lambda: FUSED.batch_norm(x, *one, training=False, relu=True)[0][0],
        "conv_pool": lambda: FUSED.conv_pool(x, weight, pool=2, relu=True)[0],
    }[name]()
    assert np.isnan(y).all()


@pytest.mark.parametrize("place", range(4))
def test_nan_is_the_maximum_of_a_window(place):
    x = np.arange(4, dtype="float32")
    x[place] = np.nan
    y, _ = FUSED.conv_pool(memory(x.reshape(1, 2, 2, 1)), memory(np.ones((1, 1, 1, 1), "float32")), pool=2)
    assert np.isnan(y).all()


def test_a_gradient_unlike_the_output_is_refused():
    x = memory(np.ones((2, 4, 4, 2), "float32"))
    one = [memory(np.ones(2, "float32")) for _ in range(4)]
    backwards = {
        "relu": FUSED.relu(x)[1],
        "tanh": FUSED.tanh(x)[1],
        "add": FUSED.add(x, x, relu=True)[1],
        "batch_norm": FUSED.batch_norm(x, *one, training=True)[1],
        "avg_pool": FUSED.avg_pool(x, window=1)[1],
        "conv_pool": FUSED.conv_pool(x, memory(np.ones((2, 1, 1, 2), "float32")), pool=1)[1],
    }
    for op, backward in backwards.items():
        text = rf"{op}: dy has shape \(1, 4, 4, 2\) and dtype float32; expected those of the output, \(2, 4, 4, 2\) and"
        with pytest.raises(ShapeError, match=text):
            backward(x[:1])
        with pytest.raises(ShapeError, match="and dtype float64; expected"):
            backward(memory(x.astype("float64")))
        with pytest.raises(MixedBackendsError, match=f"{op}: dy is a ndarray; bring it to CuPy with backend.asarray"):
            backward(np.asarray(x))


def test_arrays_of_numpy_are_computed_where_they_are(launched):
    x = np.ones((2, 3), "float32")
    for op in ("relu", "tanh"):
        y, backward = getattr(FUSED, op)(x)
        assert type(y) is type(backward(x)[0]) is np.ndarray
    assert launched == []


def test_an_unknown_label_hides_no_nan():
    logits = memory(np.array([[np.nan, 1], [1, 2]], "float32"))
    loss, backward = FUSED.softmax_cross_entropy(logits, memory(np.array([-1, 0])))
    assert np.isnan(loss)
    assert np.isnan(backward(1.0)[0][0]).all()


def test_known_statistics_do_not_depend_on_x():
    x = memory(np.array([[np.inf, 1], [2, 3]], "float32"))
    one = [memory(np.ones(2, "float32")) for _ in range(4)]
    dx = FUSED.batch_norm(x, *one, training=False)[1](memory(np.ones((2, 2), "float32")))[0]
    np.testing.assert_allclose(dx, 1 / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_what_has_no_kernel_is_the_standard_body(launched):
    x = memory(Stream(0, "x").normal((2, 4, 4, 4)).astype("float16"))
    vectors = [memory(np.ones(4, "float16")) for _ in range(4)]
    for op, *args in (("relu", x), ("tanh", x), ("add", x, x)):
        np.testing.assert_array_equal(getattr(FUSED, op)(*args)[0], getattr(ops, op)(*args)[0])
    found, expected = (o.batch_norm(x, *vectors, training=False)[0][0] for o in (FUSED, ops))
    np.testing.assert_array_equal(found, expected)
    assert launched == []


def test_labels_of_many_classes(launched):
    limit = MODULES["loss"].CLASSES
    for classes in (limit, limit + 1):
        logits = memory(Stream(0, "z").normal((5, classes)).astype("float32"))
        labels = memory(np.array([0, 1, classes - 1, -1, classes]))
        (found, back), (expected, backward) = (o.softmax_cross_entropy(logits, labels) for o in (FUSED, ops))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(back(0.5)[0], backward(0.5)[0], rtol=1e-5, atol=1e-8)
    assert [name for name, *_ in launched] == ["xpnn_cross_entropy"]
