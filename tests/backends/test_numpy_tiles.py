"""Convolutions in tiles: the plain sum, what is not finite or zero where that has it, and only where it pays."""

import numpy as np
import pytest
from xpnn_numpy.kernels import KERNELS, _in_place, _tiles
from xpnn_numpy.kernels._in_place import interleaved, seen_in_place
from xpnn_numpy.kernels._tiles import Tiles
from xpnn_numpy.kernels.convolution import windows_of

from xpnn.ops import Ops
from xpnn.ops._window import window

OPS, STANDARD = Ops(KERNELS), Ops({})


@pytest.fixture(autouse=True, params=[0, 1 << 30], ids=["copied", "in place"])
def many(request, monkeypatch):
    """Tiles however small, of windows that are copied or, where they can be, seen in place; notes for which images."""
    monkeypatch.setattr(_in_place, "WASTE", request.param)
    for limit in ("LEAST_CHANNELS", "LEAST_PLACES", "LEAST_WORK"):
        monkeypatch.setattr(_tiles, limit, 1)
    _tiles.tiled.cache_clear()
    made, begin = [], Tiles.__init__

    def noting(tiles, image, *rest, **options):
        made.append(image.shape)
        begin(tiles, image, *rest, **options)

    monkeypatch.setattr(Tiles, "__init__", noting)
    yield made
    _tiles.tiled.cache_clear()


def numbers(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


GEOMETRIES = [
    ((3, 8, 7), (3, 3), {"padding": 1}), ((3, 8, 7), (3, 3), {}), ((2, 9, 6), (3, 2), {"padding": ((1, 0), (0, 2))}),
    ((2, 8, 9), (3, 3), {"stride": (1, 2), "dilation": (1, 2), "padding": 1}), ((2, 12), (3,), {"padding": 1}),
    ((2, 4, 5, 6), (3, 2, 3), {}), ((1, 4, 1), (3, 1), {}), ((2, 6, 6), (3, 3), {"padding": (3, 0)}),
    ((2, 6, 6), (3, 3), {"padding": (0, 2)}), ((2, 6, 5), (3, 4), {"padding": (1, 2)}),
]  # fmt: skip


@pytest.mark.parametrize("column_bytes", [1, 3000, 1 << 21], ids="blocks of {} bytes".format)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("pool", [None, 2, (2, 1), (2, 3)])
@pytest.mark.parametrize(("shape", "kernel", "options"), GEOMETRIES, ids=str)
def test_tiles_give_the_plain_sum(many, shape, kernel, options, pool, biased, dtype, column_bytes):
    if isinstance(pool, tuple):
        pool = (*pool, 1)[: len(kernel)] if len(kernel) != 1 else 2
    op = "conv" if pool is None else "conv_pool"
    options = options if pool is None else {**options, "pool": pool, "relu": biased}
    x, weight, bias = numbers(*shape, 5), numbers(6, *kernel, 5, seed=1), numbers(6, seed=2) if biased else None
    try:
        expected, back = getattr(STANDARD, op)(x, weight, bias, **options)
    except ValueError:
        pytest.skip("the pool has no window")
    ops = Ops(KERNELS, column_bytes)
    y, backward = getattr(ops, op)(*(a if a is None else a.astype(dtype) for a in (x, weight, bias)), **options)
    assert len(many) == 1
    dy = numbers(*y.shape, seed=3)
    for one, other in zip((y, *backward(dy.astype(dtype))), (expected, *back(dy)), strict=True):
        if other is None:
            assert one is None
            continue
        assert (one.shape, one.dtype) == (other.shape, dtype)
        np.testing.assert_allclose(one, other, rtol=0, atol=16 * np.finfo(dtype).eps * max(1, np.abs(other).max()))
    assert backward(dy.astype(dtype), input_gradient=False)[0] is None


@pytest.mark.parametrize("column_bytes", [1, 3000, 1 << 21], ids="blocks of {} bytes".format)
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relu_of_tiles(many, dtype, shortcut, column_bytes):
    x, weight, bias, dy = (numbers(*s, dtype=dtype) for s in [(3, 8, 7, 5), (6, 3, 3, 5), (6,), (3, 8, 7, 6)])
    arrays = [x, weight, bias, numbers(3, 8, 7, 6, seed=1, dtype=dtype) if shortcut else None]
    expected, back = STANDARD.conv_relu(*arrays, padding=1)
    y, backward = Ops(KERNELS, column_bytes).conv_relu(*arrays, padding=1)
    assert many
    for one, other in zip((y, *backward(dy)), (expected, *back(dy)), strict=True):
        if other is None:
            assert one is None
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=16 * np.finfo(dtype).eps * np.abs(other).max())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_they_spread_nothing_beyond_a_kernel(value, pooled):
    """What is not finite reaches the outputs that see it, and no others."""
    x, weight = numbers(2, 8, 6, 4), numbers(5, 3, 3, 4, seed=1)
    options = {"pool": 2} if pooled else {}
    for h, w in np.ndindex(4, 2):
        spoilt = x.copy()
        spoilt[1, 2 + h, 2 + w, 3] = value
        op = "conv_pool" if pooled else "conv"
        expected = getattr(STANDARD, op)(spoilt, weight, padding=1, **options)[0]
        y = getattr(OPS, op)(spoilt, weight, padding=1, **options)[0]
        clean = np.isfinite(STANDARD.conv(spoilt, weight, padding=1)[0]).all(-1)
        if pooled:
            clean = clean.reshape(2, 4, 2, 3, 2).all((2, 4))
        assert not clean.all()
        assert not np.isfinite(y[~clean]).all()
        np.testing.assert_allclose(y[clean], expected[clean], rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("pooled", "relu"), [(False, False), (False, True), (True, False)])
def test_a_gradient_of_zeros_alone_is_zero(many, pooled, relu, padding):
    """A line of the kernel that sees none but zeros: behind a pool, or ReLU and a bias, `dy` is sparse."""
    x, weight, bias = numbers(24, 6, 6, 4), numbers(5, 3, 3, 4, seed=1), numbers(5, seed=2)
    x[:, 2 : 4 if pooled else 3] = 0
    op, options = ("conv_pool", {"pool": 2}) if pooled else ("conv_relu" if relu else "conv", {})
    bias = None if relu else bias
    y, backward = getattr(OPS, op)(x, weight, bias, padding=padding, **options)
    _, back = getattr(STANDARD, op)(x, weight, bias, padding=padding, **options)
    for line in range(y.shape[1]):
        dy = np.zeros_like(y)
        dy[:, line] = numbers(*y[:, line].shape, seed=3)
        zeros = back(dy)[1] == 0
        np.testing.assert_array_equal(backward(dy)[1] == 0, zeros)
        many.append(zeros.any())
    assert len(many) > y.shape[1]
    assert True in many


@pytest.mark.parametrize(
    ("shape", "size", "options", "pool", "tiled"),
    [
        ((3, 8, 8), 3, {}, (), True), ((3, 9, 8), 3, {}, (), False), ((3, 9, 8), 3, {}, (2, 2), True),
        ((3, 8, 8), 3, {}, (3, 2), False), ((3, 8, 8), (2, 3), {}, (), False), ((3, 8, 8), 5, {}, (), False),
        ((3, 9, 8), 3, {"stride": (2, 1)}, (), False), ((3, 8, 8), 3, {"dilation": (2, 1)}, (), False),
    ],
    ids=str,
)  # fmt: skip
def test_which_windows_are_tiles(shape, size, options, pool, tiled):
    w = window("test", shape[1:], size, options.get("stride", 1), "valid", options.get("dilation", 1))
    assert isinstance(windows_of(numbers(*shape, 2), w, 2, pool, backward=True), Tiles) == tiled


@pytest.mark.parametrize(
    ("limit", "most"), [("LEAST_CHANNELS", 4), ("LEAST_PLACES", 108), ("LEAST_WORK", 108 * 9 * 20)]
)
def test_they_have_to_pay(monkeypatch, limit, most):
    image, w = numbers(3, 8, 8, 4), window("test", (8, 8), 3, 1, "valid", 1)
    easier = 1 if limit == "LEAST_CHANNELS" else 4  # where there is no backward
    for least, tiled, alone in ((most, True, True), (most + 1, False, easier > 1), (easier * most + 1, False, False)):
        monkeypatch.setattr(_tiles, limit, least)
        _tiles.tiled.cache_clear()
        assert isinstance(windows_of(image, w, 5, backward=True), Tiles) == tiled
        assert isinstance(windows_of(image, w, 5, backward=False), Tiles) == alone


@pytest.mark.parametrize(("k", "gap"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("n", [5, 6, 7, 20])
def test_interleaved_windows_are_all_there_are_and_no_copies(n, k, gap):
    """Those that begin in a stack, and end in it or in the gap behind it, with which the next one begins."""
    pixels, found = numbers(2 * n + gap, 3), np.full((2, n, k * 3), np.nan)
    begun = np.arange(2 * n).reshape(2, n, 1)
    for windows, at in interleaved(pixels, begun, k, gap):
        assert not windows.size or (np.shares_memory(windows, pixels) and np.shares_memory(at, begun))
        found.reshape(2 * n, -1)[at[..., 0]] = windows
    last = min(n, n + gap - k + 1)
    for stack, first in np.ndindex(2, last):
        at = stack * n + first
        np.testing.assert_array_equal(found[stack, first], pixels[at : at + k].reshape(-1))
    assert np.isnan(found[:, last:]).all()


@pytest.mark.parametrize("padding", [0, 1])
def test_what_no_window_gives_is_no_number_of_anybodys(monkeypatch, padding):
    """Memory that nobody wrote to: its sums would be warnings."""
    monkeypatch.setattr(_in_place, "WASTE", 1 << 30)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(_in_place, "empty", lambda shape, like: rng.choice([np.inf, -np.inf], shape).astype(like.dtype))
    x, weight, bias = numbers(2, 8, 6, 4), numbers(5, 3, 3, 4, seed=1), numbers(5, seed=2)
    y, backward = OPS.conv(x, weight, bias, padding=padding)
    expected, back = STANDARD.conv(x, weight, bias, padding=padding)
    for one, other in zip((y, *backward(y)), (expected, *back(y)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * np.abs(other).max())


def test_in_place_are_windows_side_by_side_of_few_kernels(monkeypatch):
    monkeypatch.setattr(_in_place, "WASTE", 2)
    image = [((32, 32), 3, 1, 1), ((32, 32), (3, 1), 1, 1), ((32, 32), 3, (1, 2), 1), ((32, 32), 3, 1, (1, 2))]
    windows = [window("test", n, size, stride, "same", dilation) for n, size, stride, dilation in image]
    assert [seen_in_place(w, 16) for w in windows] == [True, False, False, False]
    assert [seen_in_place(windows[0], c_out) for c_out in (64, 65)] == [True, False]
    pads = [(0, 0), (2, 2), (3, 3), (0, 1), (1, 2)]
    assert [seen_in_place(window("test", (32, 32), 3, 1, ((1, 1), pad), 1), 1) for pad in pads] == [True] * 2 + [
        False
    ] * 3
    assert not seen_in_place(window("test", (32,), 3, 1, "same", 1), 1)
    assert not seen_in_place(window("test", (32, 32, 32), 3, 1, "same", 1), 1)
