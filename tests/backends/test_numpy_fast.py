"""What the compiled kernels of the NumPy backend promise beside their results, which `test_cases` holds."""

import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import xpnn_numpy
from xpnn_numpy import NumPyBackend
from xpnn_numpy.kernels import KERNELS

import xpnn
from xpnn.errors import ShapeError
from xpnn.ops import Ops
from xpnn.ops._window import window
from xpnn.ops.joined import pooled
from xpnn.random import Stream


@pytest.fixture(autouse=True)
def all_kernels(monkeypatch):
    monkeypatch.delenv("XPNN_KERNELS", raising=False)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_code_is_kept_until_any_source_changes(tmp_path):
    """Also one whose functions are inlined in a kernel of another file."""
    pytest.importorskip("numba")
    package = Path(xpnn_numpy.__file__).parent
    copy = shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import numpy as np, xpnn
from xpnn_numpy.fast import activation
y, backward = xpnn.backend.get("numpy").ops.relu(np.ones((2, 3), "float32"))
backward(y)
stats = [kernel.stats for kernel in (activation._rectify, activation._through)]
print(sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats))
"""
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    found = []
    for change in ("", "", "# another\n"):
        with (copy / "fast" / "_team.py").open("a", encoding="utf-8") as file:
            file.write(change)
        found.append(run(code, PYTHONPATH=path, NUMBA_CACHE_DIR=str(tmp_path / "cache")).stdout.split())
    assert found == [["0", "2"], ["2", "0"], ["0", "2"]]


def test_broken_numba_leaves_numpys_kernels(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('needs another NumPy')")
    code = "import xpnn; print(xpnn.backend.get('numpy').describe()['compiled'])"
    done = run(code, PYTHONPATH=str(tmp_path))
    assert done.stdout == "None\n"
    assert done.stderr.count("numba's kernels cannot be used (ImportError: needs another NumPy)") == 1
    assert run(code, PYTHONPATH=str(tmp_path), XPNN_KERNELS="plain").stderr == ""


def test_plain_leaves_them_out(monkeypatch):
    pytest.importorskip("numba")
    backend = xpnn.backend.get("numpy")
    assert backend.describe()["compiled"].startswith("numba ")
    assert backend.ops.replaced == tuple(sorted({*KERNELS, "max_pool"}))
    assert backend.kernels["conv"] is not KERNELS["conv"]
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    plain = xpnn.backend.get("numpy")
    assert plain.describe()["compiled"] is None
    assert plain.kernels == KERNELS == NumPyBackend.kernels


@pytest.mark.parametrize("features", [{}, {"avx512f": True}], ids=["16 bytes", "64 bytes"])
def test_vectors_of_other_machines(features, tmp_path):
    pytest.importorskip("numba")
    from xpnn_numpy.fast import _product

    size = 64 if features else 16
    if size == _product.BYTES:
        pytest.skip("all other tests are of this machine's")
    code = f"""
from unittest import mock
import numpy as np, xpnn
from llvmlite import binding
from xpnn_numpy import kernels
real = binding.get_host_cpu_features()
class Features(dict):  # numba still compiles for this machine
    flatten = real.flatten
with mock.patch.object(binding, "get_host_cpu_features", lambda: Features({features})):
    from xpnn_numpy.fast import _product, _winograd
_winograd.LEAST_TILES = 1
assert _product.BYTES == {size}
ops, plain = xpnn.backend.get("numpy").ops, kernels.KERNELS["conv"]
rng = np.random.default_rng(0)
def near(one, other):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
a, many, terms = rng.standard_normal(3000, np.float32), 37, 150
rows, cols = np.minimum(np.arange(many + _product.MOST), many - 1) * 7, np.arange(terms) * 3
space = np.zeros(terms * 2 * {size} // 4, np.float32)
for n in (1, 6, 20, 70):
    b, y = rng.standard_normal((terms, n), np.float32), np.zeros(many * n + _product.slack(n), np.float32)
    expected = a[np.add.outer(rows[:many], cols)] @ b
    _product.multiply(a, rows, many, cols, _product.packed(b), n, y)
    near(y[:many * n].reshape(many, n), expected)
    sums, total = np.zeros((many + _product.MOST) * (n + {size}), np.float32), np.zeros((many, n), np.float32)
    _product.add_up(a, rows, cols, b, 0, space, sums)
    _product.unpack(sums, total)
    near(total, expected)
for c, c_out in [(1, 6), (3, 20), (16, 70)]:
    x, weight = (rng.standard_normal(shape, np.float32) for shape in [(3, 9, 9, c), (c_out, 3, 3, c)])
    near(ops.conv(x, weight, stride=2, padding=1)[0], plain(ops, x, weight, stride=2, padding=1)[0])
x, weight = (rng.standard_normal(shape, np.float32) for shape in [(3, 9, 9, 33), (35, 3, 3, 33)])
y, backward = ops.conv(x, weight, padding=1)  # in tiles
expected, back = plain(ops, x, weight, padding=1)
for one, other in zip((y, *backward(y)[:2]), (expected, *back(expected)[:2])):
    near(one, other)
for shortcut in (None, expected[::-1].copy()):
    joined = ops.conv_relu(x, weight, None, shortcut, padding=1)[0]
    near(joined, np.maximum(expected if shortcut is None else expected + shortcut, 0))
"""
    run(code, NUMBA_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"pool": 2}, {"pool": 2, "relu": True}], ids=["conv", "pool", "relu"])
@pytest.mark.parametrize("padding", [0, ((0, 2), (1, 0))])
@pytest.mark.parametrize("biased", [False, True])
def test_tiles_give_the_plain_sum(dtype, options, padding, biased):
    pytest.importorskip("numba")
    ops, rng = xpnn.backend.get("numpy").ops, np.random.default_rng(0)
    op = "conv_pool" if options else "conv"
    x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in [(4, 17, 18, 70), (37, 3, 3, 70), (37,)])
    bias = bias if biased else None
    y, backward = getattr(ops, op)(x, weight, bias, padding=padding, **options)
    expected, plain = KERNELS[op](ops, x, weight, bias, padding=padding, **options)
    dy = rng.standard_normal(y.shape).astype(dtype)
    for one, other in zip((y, *backward(dy)), (expected, *plain(dy)), strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=16 * np.finfo(dtype).eps * np.abs(other).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((4, 17, 18, 70), (37, 3, 3, 70), {"padding": 1}),
        ((9, 16, 16, 16), (16, 3, 3, 16), {"padding": ((0, 2), (1, 1))}),
        ((5, 17, 18, 7), (9, 3, 2, 7), {"stride": (2, 1)}),
        ((2, 7, 8, 70), (64, 3, 3, 70), {"padding": 1}),
        ((1, 300, 4), (33, 2, 4), {"dilation": 3}),
        ((2, 3, 4, 5, 6, 2), (3, 2, 1, 2, 2, 2), {}),
    ],
    ids=["tiles", "whole tiles", "blocks", "more weights than inputs", "1d", "4d"],
)
def test_relu_of_responses(dtype, biased, shortcut, shape, kernel, options):
    pytest.importorskip("numba")
    ops, rng = xpnn.backend.get("numpy").ops, np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in (shape, kernel, kernel[:1]))
    bias = bias if biased else None
    responses = Ops({}).conv(x, weight, bias, **options)[0].shape
    other, dy = (rng.standard_normal(responses).astype(dtype) for _ in range(2))
    arrays = (x, weight, bias, 10 * other if shortcut else None)
    y, backward = ops.conv_relu(*arrays, **options)
    expected, plain = Ops({}).conv_relu(*arrays, **options)
    assert y.min() == 0
    for one, other in zip((y, *backward(dy)), (expected, *plain(dy)), strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=16 * np.finfo(dtype).eps * np.abs(other).max())
    assert backward(dy, input_gradient=False)[0] is None


@pytest.mark.parametrize("shape", [(12, 9, 8, 32), (1, 4, 4, 2)], ids=["tiles", "blocks"])
@pytest.mark.parametrize("shortcut", [False, True])
def test_relu_lets_nan_through(shape, shortcut):
    pytest.importorskip("numba")
    from xpnn_numpy.fast import _winograd

    x, c = np.ones(shape, np.float32), shape[-1]
    assert _winograd.suits(window("test", shape[1:3], 3, 1, 1, 1), (), len(x), c, c) == (c == 32)
    x[0, 1, 1, 0] = np.nan
    weight, other = np.full((c, 3, 3, c), -1, np.float32), np.zeros(shape, np.float32)
    other[0, -1, -1, 1] = np.nan
    y, _ = xpnn.backend.get("numpy").ops.conv_relu(x, weight, None, other if shortcut else None, padding=1)
    expected = np.zeros(shape, np.float32)
    expected[0, :3, :3] = np.nan  # whole tiles, and on the right of the smaller image an edge
    if shortcut:
        expected[0, -1, -1, 1] = np.nan
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"pool": 2}, {"pool": 3, "relu": True}], ids=["conv", "pool", "relu"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("c", "c_out"), [(70, 64), (35, 131)])
def test_more_weights_than_inputs(dtype, options, biased, c, c_out):
    """Then a part of the work is some of the channels, whose panels are its own."""
    pytest.importorskip("numba")
    ops, rng = xpnn.backend.get("numpy").ops, np.random.default_rng(0)
    op = "conv_pool" if options else "conv"
    x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in [(2, 7, 8, c), (c_out, 3, 3, c), (c_out,)])
    bias = bias if biased else None
    y, backward = getattr(ops, op)(x, weight, bias, padding=1, **options)
    expected, plain = KERNELS[op](ops, x, weight, bias, padding=1, **options)
    dy = rng.standard_normal(y.shape).astype(dtype)
    for one, other in zip((y, *backward(dy)), (expected, *plain(dy)), strict=True):
        if other is not None:
            np.testing.assert_allclose(one, other, rtol=0, atol=16 * np.finfo(dtype).eps * np.abs(other).max())


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(
    ("shape", "kernel", "pool", "padding"),
    [
        ((50, 28, 28, 1), (6, 5, 5, 1), 2, 2),
        ((7, 14, 14, 6), (16, 5, 5, 6), 2, 0),
        ((3, 13, 61, 2), (5, 2, 2, 2), (4, 3), 0),
        ((2, 4, 260, 3), (33, 1, 1, 3), (2, 130), 0),
        ((1, 2, 1400, 1), (40, 1, 1, 1), (2, 4), 0),
        ((9, 400, 3), (8, 9, 3), 8, 0),
        ((3, 5, 8, 9, 2), (4, 2, 1, 2, 2), (1, 4, 2), 0),
        ((13, 8, 8, 32), (32, 3, 3, 32), 2, 1),
    ],
    ids=str,
)
def test_means_of_blocks_are_those_of_the_whole(activation, shape, kernel, pool, padding):
    """Blocks end between lines of windows, of which one may be longer than a block."""
    pytest.importorskip("numba")
    ops, rng = xpnn.backend.get("numpy").ops, np.random.default_rng(0)
    x, weight, bias = (
        rng.standard_normal(shape, np.float32),
        *(rng.standard_normal(s, np.float32) / 8 for s in (kernel, kernel[:1])),
    )
    options = {"pool": pool, "activation": activation, "padding": padding}
    y, backward = ops.conv_avg_pool(x, weight, bias, **options)
    expected, plain = Ops(KERNELS).conv_avg_pool(x, weight, bias, **options)
    dy = rng.standard_normal(y.shape, np.float32)
    for one, other in zip((y, *backward(dy)), (expected, *plain(dy)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=16 * np.finfo("float32").eps * np.abs(other).max())
    assert backward(dy, input_gradient=False)[0] is None


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(
    ("shape", "kernel", "pool", "padding", "dilation"),
    [
        ((9, 28, 28, 1), (6, 5, 5, 1), 2, 2, 1),
        ((3, 70, 90, 1), (7, 3, 4, 1), (4, 3), 0, 1),  # strips, of which the last has fewer lines
        ((2, 24, 31, 1), (12, 3, 3, 1), (3, 2), ((2, 0), (0, 3)), (1, 2)),
        ((40, 17, 32, 1), (1, 2, 1, 1), (1, 16), 0, 1),
        ((2, 6, 5000, 1), (4, 3, 3, 1), 2, 1, 1),  # a line of windows is longer than a strip
    ],
    ids=str,
)
def test_means_along_the_pixels(activation, shape, kernel, pool, padding, dilation):
    """One channel and few kernels: vectors go along the pixels, of strips of an image."""
    pytest.importorskip("numba")
    from xpnn_numpy.fast import _planar

    w = window("conv", shape[1:-1], kernel[1:-1], 1, padding, dilation)
    assert _planar.suits(w, pooled("conv_avg_pool", w, pool), 1, kernel[0])
    x, weight, bias = (
        Stream(7, name).uniform(s, -1, 1) for name, s in zip("xwb", (shape, kernel, kernel[:1]), strict=True)
    )
    options = {"pool": pool, "activation": activation, "padding": padding, "dilation": dilation}
    for b in (bias, None):
        expected, plain = Ops({}).conv_avg_pool(x, weight, b, **options)
        arrays = (x, weight) if b is None else (x, weight, b)
        y, backward = xpnn.backend.get("numpy").ops.conv_avg_pool(*(a.astype(np.float32) for a in arrays), **options)
        dy = Stream(7, "dy").uniform(y.shape, -1, 1)
        got, ideal = (y, *backward(dy.astype(np.float32))), (expected, *plain(dy))
        assert backward(dy.astype(np.float32), input_gradient=False)[0] is None
        for one, other in zip(got[: len(arrays) + 1], ideal[: len(arrays) + 1], strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, rtol=0, atol=16 * np.finfo("float32").eps * np.abs(other).max())


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("width", [6, 20])  # the second one along the pixels
def test_a_mean_of_what_is_not_finite(activation, width):
    pytest.importorskip("numba")
    x, weight = np.zeros((1, 4, width, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
    x[0, 0, 0], x[0, 0, 3], x[0, 3, 5], x[0, 2, 0] = np.nan, np.inf, -np.inf, 40
    y, _ = xpnn.backend.get("numpy").ops.conv_avg_pool(x, weight, pool=2, activation=activation)
    expected = [np.nan, np.inf, 0, 10, 0, 0] if activation == "relu" else [np.nan, 0.25, 0, 0.25, 0, -0.25]
    np.testing.assert_array_equal(y[:, :, :3].reshape(-1), np.array(expected, np.float32))
    assert not y[:, :, 3:].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("pooled", [False, True])
def test_tiles_spread_nothing_beyond_a_kernel(value, pooled):
    """What is not finite reaches the outputs that see it, and no others."""
    pytest.importorskip("numba")
    ops, rng = xpnn.backend.get("numpy").ops, np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 20, 18, 32), np.float32), rng.standard_normal((32, 3, 3, 32), np.float32)
    for h, w in np.ndindex(4, 4):
        spoilt = x.copy()
        spoilt[1, 7 + h, 8 + w, 5] = value
        expected = Ops({}).conv(spoilt, weight, padding=1)[0]
        y = ops.conv(spoilt, weight, padding=1)[0]
        if pooled:
            y = ops.conv_pool(spoilt, weight, padding=1, pool=2)[0]
            expected = expected.reshape(3, 10, 2, 9, 2, 32).max(axis=(2, 4))
        clean = np.isfinite(expected).all(axis=-1)
        assert 4 <= np.count_nonzero(~clean) <= 9
        np.testing.assert_array_equal(np.isfinite(y).all(axis=-1), clean)
        np.testing.assert_allclose(y[clean], expected[clean], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((40, 500), 32),
        ((41, 499), 33),
        ((3, 9, 2300), 17),
        ((16, 3000), 90),
        ((29, 4999), 10),
        ((2, 70, 999), 5),
        ((31, 3001), 15),
    ],
)
def test_dense_in_panels(dtype, biased, shape, outputs):
    pytest.importorskip("numba")
    ops, rng = xpnn.backend.get("numpy").ops, np.random.default_rng(0)
    x, weight, bias, dy = (
        rng.standard_normal(s).astype(dtype) for s in (shape, (outputs, shape[-1]), (outputs,), (*shape[:-1], outputs))
    )
    arrays = (x[::-1], weight[:, ::-1], bias[::-1] if biased else None)
    y, backward = ops.dense(*arrays)
    expected, plain = KERNELS["dense"](ops, *arrays)
    assert backward(dy, input_gradient=False)[0] is None
    for one, other in zip((y, *backward(dy)), (expected, *plain(dy)), strict=True):
        if other is None:
            assert one is None
            continue
        assert (one.dtype, one.shape) == (dtype, other.shape)
        np.testing.assert_allclose(one, other, rtol=0, atol=16 * np.finfo(dtype).eps * np.abs(other).max())


def test_tanh_is_that_of_64_bits_rounded():
    pytest.importorskip("numba")
    x = np.concatenate([np.linspace(-12, 12, 1 << 18), [0.0, -0.0, 1e-30, np.inf, -np.inf]]).astype(np.float32)
    y, expected = xpnn.backend.get("numpy").ops.tanh(x)[0], np.tanh(x.astype(np.float64))
    assert y.dtype == np.float32
    assert np.max(np.abs(y - expected) / np.spacing(np.abs(expected).astype(np.float32))) < 1.1
    assert np.isnan(xpnn.backend.get("numpy").ops.tanh(np.float32([np.nan]))[0])


def fast_kernels():
    from xpnn_numpy import fast

    return fast.KERNELS


REFUSING = {  # op: how many arrays it takes, options, whether the output is kept for the gradient
    "conv": (2, {}, False),
    "conv_relu": (2, {}, True),
    "conv_pool": (2, {"pool": 2}, False),
    "conv_avg_pool": (2, {"pool": 2, "activation": "tanh"}, False),
    "max_pool": (1, {"window": 2}, False),
    "avg_pool": (1, {"window": 2}, False),
    "relu": (1, {}, True),
    "tanh": (1, {}, True),
}


@pytest.mark.parametrize("op", REFUSING)
def test_backward_of_another_shape_is_refused_and_responses_are_let_go(op):
    pytest.importorskip("numba")
    arrays, options, needed = REFUSING[op]
    given = [np.ones((4, 8, 8, 32), np.float32), np.ones((5, 3, 3, 32), np.float32)][:arrays]
    y, backward = getattr(Ops(fast_kernels()), op)(*given, **options)
    for n in (1, 5):
        with pytest.raises(ShapeError, match=rf"^{op}: dy has shape .*; expected that of the output, \(4, "):
            backward(np.ones((n, *y.shape[1:]), np.float32))
    assert backward(np.ones(y.shape, np.float64).tolist())[0].dtype == np.float32
    kept = weakref.ref(y)
    del y
    gc.collect()
    assert (kept() is None) != needed


def test_backward_of_another_shape_is_refused_behind_several_arrays():
    pytest.importorskip("numba")
    ops, x, row = Ops(fast_kernels()), np.ones((4, 6, 5), np.float32), np.ones(5, np.float32)
    for op, (_, backward) in {
        "add": ops.add(x, x, relu=True),
        "batch_norm": ops.batch_norm(x, row, row, row, row, training=True),
    }.items():
        with pytest.raises(ShapeError, match=rf"^{op}: dy has shape \(1, 6, 5\); expected .* \(4, 6, 5\)"):
            backward(x[:1])
    _, backward = ops.dense(np.ones((4, 16, 300), np.float32), np.ones((70, 300), np.float32))
    with pytest.raises(ShapeError, match=r"^dense: dy has shape \(70, 64\); expected .* \(4, 16, 70\)"):
        backward(np.ones((70, 64), np.float32))


@pytest.mark.parametrize("kernels", ["plain", ""])
def test_a_shortcut_is_let_go(kernels, monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", kernels)
    shortcut = np.ones((2, 4, 4, 3), np.float32)
    y, backward = xpnn.backend.get("numpy").ops.conv_relu(
        np.ones((2, 4, 4, 3), np.float32), np.ones((3, 1, 1, 3), np.float32), None, shortcut
    )
    kept = weakref.ref(shortcut)
    del shortcut
    gc.collect()
    assert kept() is None
    np.testing.assert_array_equal(backward(y)[3], y)


@pytest.mark.parametrize("weight", [3, np.float32(3), np.array(3, np.float32), [[1.0]]], ids=repr)
def test_dense_with_weights_that_are_no_matrix(weight):
    pytest.importorskip("numba")
    with pytest.raises(ShapeError, match=r"dense: (weight is a|x has shape)"):
        Ops(fast_kernels()).dense(np.ones((32, 300), np.float32), weight)
