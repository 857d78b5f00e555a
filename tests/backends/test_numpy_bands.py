"""Convolutions of one channel under an average, in bands: the op part by part, in blocks, and only where it pays."""

import numpy as np
import pytest
from xpnn_numpy.kernels import KERNELS, _planes, joined
from xpnn_numpy.kernels._bands import Bands

from xpnn.ops import Ops
from xpnn.ops._window import window


@pytest.fixture
def made(monkeypatch):
    """Bands however few pixels there are; the windows that they are made for."""
    monkeypatch.setattr(_planes, "LEAST", 1)
    windows = []

    def noting(weight, w, pool):
        windows.append(w)
        return Bands(weight, w, pool)

    monkeypatch.setattr(joined, "Bands", noting)
    for f in (_planes.apart, joined.banded):
        f.cache_clear()
    yield windows
    for f in (_planes.apart, joined.banded):
        f.cache_clear()


@pytest.mark.parametrize("column_bytes", [1, 9000, 1 << 30], ids="blocks of {} bytes".format)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((3, 12, 12), (6, 5, 5), {"pool": 2}),
        ((3, 11, 9), (6, 3, 2), {"pool": 2, "padding": 1}),
        ((2, 12, 14), (8, 3, 3), {"pool": (2, 3), "stride": (1, 2), "padding": ((0, 2), (1, 0))}),
        ((2, 9, 9), (1, 2, 4), {"pool": (1, 3)}),
        ((4, 6, 7, 8), (3, 1, 2, 3), {"pool": 2}),
        ((1, 9, 9), (2, 3, 3), {"pool": 3}),
        ((2, 13, 14), (3, 5, 5), {"pool": 3}),
    ],
    ids=str,
)
def test_bands_are_the_parts_one_after_the_other(made, shape, kernel, options, activation, biased, column_bytes):
    rng = np.random.default_rng(0)
    x, weight, bias = (
        rng.standard_normal((*shape, 1)),
        rng.standard_normal((*kernel, 1)),
        rng.standard_normal(kernel[0]),
    )
    given = x, weight, bias if biased else None
    y, backward = Ops(KERNELS, column_bytes).conv_avg_pool(*given, activation=activation, **options)
    assert len(made) == 1
    expected, parts = Ops({}).conv_avg_pool(*given, activation=activation, **options)
    dy = np.asfortranarray(rng.standard_normal(y.shape))
    backward(dy + 1)  # leaves everything as it was
    for one, other in zip((y, *backward(dy)), (expected, *parts(dy)), strict=True):
        if other is None:
            assert one is None
        else:
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)
    assert backward(dy, input_gradient=False)[0] is None


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((3, 12, 12, 2), (6, 5, 5, 2), {"pool": 2}),
        ((3, 12, 12, 1), (9, 5, 5, 1), {"pool": 2}),
        ((3, 12, 12, 1), (6, 3, 3, 1), {"pool": 2, "dilation": 2}),
        ((3, 12, 12, 1), (6, 5, 5, 1), {"pool": (2, 1)}),
        ((3, 12, 1), (6, 5, 1), {"pool": 2}),
        ((3, 12, 12, 1), (6, 3, 3, 1), {"pool": 5}),
        ((0, 12, 12, 1), (6, 5, 5, 1), {"pool": 2}),
    ],
    ids=str,
)
def test_what_is_not_done_in_bands(made, shape, kernel, options):
    Ops(KERNELS).conv_avg_pool(np.ones(shape), np.ones(kernel), activation="tanh", **options)
    assert made == []


def test_a_single_small_image_is_not_done_in_bands():
    w = window("test", (28, 28), 5, 1, "same", 1)
    assert [joined.banded(w, (2, 2), n, 6) for n in (1, 2)] == [False, True]


def test_what_no_place_of_a_window_sees_does_not_reach_it(made):
    x, weight = np.zeros((1, 27, 27, 1)), np.ones((2, 4, 4, 1))
    x[0, :, 5], x[0, 5] = np.inf, np.nan  # the first window sees five by five pixels
    with np.errstate(invalid="ignore"):
        y, _ = Ops(KERNELS).conv_avg_pool(x, weight, pool=2, activation="tanh")
    assert len(made) == 1
    assert (y[0, 0, 0] == 0).all()
    assert np.isnan(y[0, 1:3, :3]).all()
