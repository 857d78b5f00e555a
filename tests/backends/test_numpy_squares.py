"""Convolutions in squares of 2×2 outputs: the plain sum, to every bit of a block, and in predictions alone."""

import numpy as np
import pytest
from xpnn_numpy.kernels import KERNELS, _squares, _tiles
from xpnn_numpy.kernels._squares import Squares, squared

import xpnn
from xpnn.layers.base import Run
from xpnn.ops import Ops
from xpnn.ops._window import window

STANDARD, PREDICTING = Ops({}), Ops(KERNELS, backward=False)
LIMITS = [(_squares, "LEAST_CHANNELS"), (_squares, "LEAST_SQUARES")]
TILES = [(_tiles, "LEAST_CHANNELS"), (_tiles, "LEAST_PLACES"), (_tiles, "LEAST_WORK")]


def clear():
    squared.cache_clear()
    _tiles.tiled.cache_clear()


@pytest.fixture
def many(monkeypatch):
    """Squares however small; notes for which images."""
    for module, limit in LIMITS + TILES:
        monkeypatch.setattr(module, limit, 1)
    clear()
    yield noted(monkeypatch)
    clear()


def noted(monkeypatch):
    made, begin = [], Squares.__init__

    def noting(squares, image, w):
        made.append(image.shape)
        begin(squares, image, w)

    monkeypatch.setattr(Squares, "__init__", noting)
    return made


def numbers(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


GEOMETRIES = [
    ((3, 8, 6), 1), ((2, 6, 8), 0), ((2, 7, 6), ((1, 0), (0, 2))), ((2, 6, 8), (3, 0)), ((1, 4, 4), 0), ((2, 2, 2), 2),
    ((5, 4, 10), 1),
]  # fmt: skip


@pytest.mark.parametrize("column_bytes", [1, 3000, 1 << 21], ids="blocks of {} bytes".format)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["conv", "conv_relu"])
@pytest.mark.parametrize(("shape", "padding"), GEOMETRIES, ids=str)
def test_squares_give_the_plain_sum(many, shape, padding, op, dtype, column_bytes):
    x, weight, bias = numbers(*shape, 5), numbers(6, 3, 3, 5, seed=1), numbers(6, seed=2)
    expected = getattr(STANDARD, op)(x, weight, bias, padding=padding)[0]
    ops = Ops(KERNELS, column_bytes, backward=False)
    y = getattr(ops, op)(*(a.astype(dtype) for a in (x, weight, bias)), padding=padding)[0]
    assert many == [(*shape, 5)]
    assert (y.shape, y.dtype) == (expected.shape, dtype)
    np.testing.assert_allclose(y, expected, rtol=0, atol=16 * np.finfo(dtype).eps * np.abs(expected).max())


def test_no_sample_touches_another(many):
    x, weight = numbers(4, 8, 8, 5), numbers(6, 3, 3, 5, seed=1)
    spoilt = x.copy()
    spoilt[1] = np.nan
    expected, y = (PREDICTING.conv(images, weight, padding=1)[0] for images in (x, spoilt))
    np.testing.assert_array_equal(y[[0, 2, 3]], expected[[0, 2, 3]])
    assert np.isnan(y[1]).all()
    assert len(many) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_they_spread_nothing_beyond_a_kernel(many, value):
    """What is not finite reaches the outputs that see it, and no others."""
    x, weight = numbers(2, 8, 6, 4), numbers(5, 3, 3, 4, seed=1)
    for h, w in np.ndindex(4, 2):
        spoilt = x.copy()
        spoilt[1, 2 + h, 2 + w, 3] = value
        expected, y = (ops.conv(spoilt, weight, padding=1)[0] for ops in (STANDARD, PREDICTING))
        clean = np.isfinite(expected).all(-1)
        assert not clean.all()
        assert not np.isfinite(y[~clean]).all()
        np.testing.assert_allclose(y[clean], expected[clean], rtol=0, atol=1e-12)
    assert many


@pytest.mark.parametrize("scale", [1, 1e-3])
def test_as_exact_as_the_bound_of_parity(many, scale):
    """The error in units of rounding of what each output was summed from, as `xpnn parity` has it."""
    x, weight = np.abs(numbers(8, 16, 16, 64)), numbers(64, 3, 3, 64, seed=1) * scale
    x *= numbers(8, 16, 16, 64, seed=2) > 0  # as ReLU leaves it
    x, weight = x.astype("float32"), weight.astype("float32")
    y = PREDICTING.conv(x, weight, padding=1)[0]
    wide = x.astype("float64"), weight.astype("float64")
    exact, summed = (STANDARD.conv(*map(f, wide), padding=1)[0] for f in (np.positive, np.abs))
    units = np.abs(y - exact) / (np.finfo("float32").eps / 2 * (np.abs(exact) + 2 * summed))
    assert many
    assert units.max() < 4  # the standard body: 1.5; the bound: 32


@pytest.mark.parametrize(
    ("shape", "size", "options", "found"),
    [
        ((3, 8, 8), 3, {}, True), ((3, 8, 9), 3, {}, False), ((3, 9, 8), 3, {}, False), ((3, 8, 8), (3, 2), {}, False),
        ((3, 8, 8), (3, 5), {}, False), ((3, 8, 9), 3, {"stride": (1, 2)}, False), ((3, 6, 6, 6), 3, {}, False),
        ((3, 8, 8), 3, {"dilation": (1, 2)}, False), ((3, 8), 3, {}, False),
    ],
    ids=str,
)  # fmt: skip
def test_which_convolutions_are_in_squares(many, shape, size, options, found):
    x = numbers(*shape, 4)
    size = (size,) * (len(shape) - 1) if isinstance(size, int) else size
    PREDICTING.conv(x, numbers(5, *size, 4), **options)
    assert bool(many) == found
    del many[:]
    Ops(KERNELS).conv(x, numbers(5, *size, 4), **options)
    assert not many  # where there is a backward


@pytest.mark.parametrize(("limit", "most"), [("LEAST_CHANNELS", 4), ("LEAST_SQUARES", 3 * 16)])
def test_they_have_to_pay(many, monkeypatch, limit, most):
    w = window("test", (8, 8), 3, 1, "same", 1)
    assert squared(w, 3, 4, 5)
    for least, found in ((most, True), (most + 1, False)):
        monkeypatch.setattr(_squares, limit, least)
        clear()
        assert squared(w, 3, 4, 5) == squared(w, 3, 5, 4) == found


def test_a_network_predicts_by_them(monkeypatch):
    """With the limits that there are, played and not."""
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    made, x = noted(monkeypatch), numbers(16, 32, 32, 3, dtype="float32")
    trainer = xpnn.Trainer(xpnn.models.get("resnet20"), backend="numpy", seed=1).build(x.shape[1:])
    scores = [trainer.predict(x) for _ in range(10)]
    weights, stats = (
        {path: array.astype("float64") for path, array in arrays.items()} for arrays in (trainer.weights, trainer.stats)
    )
    exact = trainer.model.apply(weights, stats, x.astype("float64"), Run(STANDARD))[0]
    assert made
    for found in scores:
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
