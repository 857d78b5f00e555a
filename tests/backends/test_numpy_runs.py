"""NumPy's calls go along long runs: of pixels, of what is copied to columns, and past its buffers."""

import warnings
from itertools import product

import numpy as np
import pytest
from xpnn_numpy.kernels import _planes, _rows
from xpnn_numpy.kernels._planes import Planes
from xpnn_numpy.kernels._rows import FEW, LONG, MOST, by_channel, rectify
from xpnn_numpy.kernels._windows import Windows
from xpnn_numpy.lanes import Crew, settled

from xpnn.ops._window import window

SHAPES = [
    (0, 4, 4, 3), (3, 5), (64, 10), (1000, 128), (4, 300, 6), (7, 13, 13, 16), (16, 28, 28, 6), (1, 32, 32, 16),
    (127, 5, 5, 32), (2, 8, 8, 8, 8), (3, 17, 31, 37), (2, 100, 100, 20_000),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_runs_and_what_is_repeated_along_them_fit(shape):
    pixels, channels = _rows._pixels(shape), np.arange(shape[-1], dtype=np.float32)
    assert np.prod(shape[:-1]) % max(pixels, 1) == 0
    assert pixels == 1 or pixels * shape[-1] <= MOST
    if np.prod(shape) < 1e7:
        x = np.zeros(shape, np.float32)
        assert by_channel(np.add, x, channels, x) is x
        np.testing.assert_array_equal(x, np.broadcast_to(channels, shape))


@pytest.mark.parametrize(
    "shape", [(7, 13, 13, 16), (16, 28, 28, 6), (1, 32, 32, 16), (64, 5, 5, 32), (512, 10)], ids=str
)
def test_runs_are_long_where_they_can_be(shape):
    assert runs_of(shape)[1] >= LONG


def runs_of(shape):
    """The shape of what a function of pixels and channels is called with."""
    seen = []
    by_channel(lambda x, channels, out: seen.append(x.shape), np.empty(shape), np.empty(shape[-1]), np.empty(shape))
    return seen[0]


def test_an_image_row_that_cannot_be_divided_is_a_run():
    assert _rows._pixels((3, 16411, 4)) == 16411
    assert _rows._pixels((16411, 4)) == 1


def test_few_pixels_are_not_worth_a_row():
    assert runs_of((1, 16, 16, 8)) == (1, 16, 16, 8)
    assert FEW == 16 * 16
    assert runs_of((1, 16, 32, 8)) == (4, 1024)


@pytest.mark.parametrize("shape", [s for s in SHAPES if np.prod(s) < 1e7], ids=str)
def test_what_is_negative_becomes_zero(shape):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected = np.where(x > 0, x, 0)
    assert rectify(x, x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (2, 0, 4)], ids=str)
def test_one_number_and_none(shape):
    x = np.full(shape, -1, np.float32)
    assert rectify(x, x) is x
    np.testing.assert_array_equal(x, 0)


GEOMETRIES = [
    ((2, 9), 3, 1, 1, ()), ((3, 12), 4, 2, 2, ()), ((3, 12), 3, 1, 1, (2,)), ((2, 7, 8), (3, 2), 1, 1, ()),
    ((2, 7, 8), (3, 2), (1, 2), 1, ()), ((2, 7, 8), (2, 3), (2, 1), 1, ()), ((2, 9, 9), 3, 1, (1, 2), ()),
    ((2, 9, 9), 3, 1, (2, 1), ()), ((2, 8, 9), 3, 1, 1, (2, 3)), ((2, 5, 6, 4), (3, 1, 2), 1, 1, ()),
    ((2, 5, 6, 5), 2, (1, 2, 1), (2, 1, 1), (2, 1, 2)), ((1, 4, 4), 4, 1, 1, ()), ((0, 4, 4), 3, 1, 1, ()),
    ((2, 7, 10), (2, 3), (1, 3), 1, ()), ((2, 10, 11), 5, 1, 1, (2, 2)), ((2, 9, 10), 4, 2, 1, (2, 2)),
    ((2, 4, 6, 9), (1, 2, 3), (1, 1, 2), 1, (2, 1, 2)), ((0, 6, 6), 3, 1, 1, (2, 2)),
]  # fmt: skip


@pytest.fixture
def few(monkeypatch):
    """Pixels are sorted however few they are."""
    monkeypatch.setattr(_planes, "LEAST", 0)
    _planes.apart.cache_clear()
    yield
    _planes.apart.cache_clear()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("column_bytes", [1, 600, 1 << 30], ids="blocks of {} bytes".format)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("shape", "size", "stride", "dilation", "pool"), GEOMETRIES, ids=str)
def test_columns_are_what_lies_under_each_window(shape, size, stride, dilation, pool, channels, column_bytes):
    n, *spatial = shape
    w = window("test", tuple(spatial), size, stride, "valid", dilation)
    image = np.random.default_rng(0).standard_normal((*shape, channels), np.float32)
    windows = Windows(image, w, pool)
    for block in windows.blocks(column_bytes):
        samples, lines = (range(*part.indices(stop)) for part, stop in zip(block, (n, windows.out[0]), strict=True))
        expected = [
            [image[(i, *at)] for at in product(*(
                [(o * (p or 1) + phase) * s + t * d for t in range(k)]
                for o, p, phase, s, d, k in zip(
                    outputs, pool or [1] * len(outputs), phases, w.stride, w.dilation, w.size, strict=True
                )
            ))]
            for phases in np.ndindex(*(pool or (1,) * len(spatial)))
            for i in samples
            for outputs in product(lines, *map(range, windows.out[1:]))
        ]  # fmt: skip
        np.testing.assert_array_equal(windows.gather(block), np.reshape(expected, (len(expected), -1)))


def test_runs_are_copied_at_once():
    """An image row's taps, or one channel's outputs along it, are one value to NumPy."""
    w = window("test", (14, 14), 5, 1, "valid", 1)
    runs = [Windows(np.zeros((2, 14, 14, c), np.float32), w).runs[-1].itemsize for c in (6, 1)]
    assert runs == [5 * 6 * 4, 10 * 4]


@pytest.mark.usefixtures("few")
def test_pixels_that_are_apart_are_sorted_first():
    """What a tap of one channel sees along an image row is one value to NumPy then, too."""
    image = np.zeros((2, 14, 14, 1), np.float32)
    apart = [(window("test", (14, 14), 5, 1, "valid", 1), (2, 2)), (window("test", (14, 14), 5, 2, "valid", 1), ())]
    for w, pool in apart:
        assert [pixels.shape for pixels in planes_of(image, w, pool).sorted] == [(2, 14, 7)] * 2


def test_what_no_tap_sees_is_not_sorted():
    w = window("test", (30, 31), 2, 3, "valid", 1)
    assert [pixels.shape[-1] for pixels in Planes(np.zeros((2, 30, 31, 1)), w, ()).sorted] == [11, 10]


def planes_of(image, w, pool):
    """What columns of an image are made from, or None."""
    windows = Windows(image, w, pool)
    windows.gather(next(windows.blocks(1 << 30)))
    return windows.planes


def test_few_pixels_are_not_sorted():
    w = window("test", (28, 28), 3, 1, "valid", 1)
    assert [planes_of(np.zeros((n, 28, 28, 1)), w, (2, 2)) is None for n in (3, 4)] == [True, False]


def test_numpy_is_settled_in_each_thread_and_then_as_before():
    def seen(i):
        return np.getbufsize(), np.geterr()["over"]

    before = seen(0)
    with settled():
        assert seen(0) == (LONG, "ignore") != before
    assert seen(0) == before
    assert Crew(2).each(seen, 8) == [(LONG, "ignore")] * 8
    with warnings.catch_warnings(action="error"), settled():
        np.exp(np.float32(1000))
