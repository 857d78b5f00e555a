"""erf and the normal distribution function, measured in ulp: spacings of the dtype at the true value."""

import math
from fractions import Fraction

import array_api_strict as strict
import numpy as np
import pytest

from xpnn.ops._erf import erf, normal_cdf

INF, NAN = math.inf, math.nan
ROOT2 = Fraction(math.isqrt(2 << 400), 1 << 200)
# Φ in float32 at -12.9 and in float64 at -37.4 is still a normal number.
CDF_SWEEP = {"float32": np.linspace(-12.9, 8, 200_001), "float64": np.linspace(-37.4, 8.5, 6_001)}


def cdf_reference(x):
    """Φ(x) = erfc(-x/√2)/2, corrected to first order for the rounding of -x/√2."""
    z = -x / math.sqrt(2)
    dz = float(-Fraction(x) / ROOT2 - Fraction(z)) if abs(x) > 1 else 0.0
    return math.erfc(z) / 2 - math.exp(-z * z) / math.sqrt(math.pi) * dz


def cdf_reference32(x):
    return math.erfc(-x / math.sqrt(2)) / 2  # some 100 roundings of float64, nothing to float32


def ulps(got, x, reference):
    true = np.asarray([reference(v) for v in x.tolist()])
    assert got.dtype == x.dtype
    assert got.shape == x.shape
    return np.abs(got.astype(np.float64) - true) / np.spacing(np.abs(true).astype(x.dtype)).astype(np.float64)


def test_erf_float32():
    tiny = 2.0 ** np.linspace(-149, 0, 20_000)
    x = np.concatenate([np.linspace(-6, 6, 300_001), np.linspace(-1.1, 1.1, 50_001), tiny, -tiny]).astype(np.float32)
    error = ulps(erf(np, x), x, math.erf)
    assert error.max() <= 2
    assert error.mean() < 0.35


def test_erf_float64():
    tiny = 2.0 ** np.linspace(-1074, 0, 10_000)
    x = np.concatenate([np.linspace(-6, 6, 50_001), np.linspace(-1.1, 1.1, 20_001), tiny, -tiny])
    error = ulps(erf(np, x), x, math.erf)
    assert error.max() <= 3  # of which up to one is the reference's
    assert error.mean() < 0.4


@pytest.mark.parametrize(
    ("dtype", "reference"), [("float32", cdf_reference32), ("float64", cdf_reference)], ids=["float32", "float64"]
)
def test_normal_cdf(dtype, reference):
    x = CDF_SWEEP[dtype].astype(dtype)
    error = ulps(normal_cdf(np, x), x, reference)
    assert error.max() <= 8
    for part in np.array_split(error, 20):
        assert part.mean() < 1.5


def test_the_reference_where_it_is_hard():
    # Φ(-10) and Φ(-37), mpmath.ncdf with 50 digits
    assert cdf_reference(-10.0) == pytest.approx(7.6198530241605260660e-24, rel=4e-16, abs=0)
    assert cdf_reference(-37.0) == pytest.approx(5.7255712225245768e-300, rel=4e-16, abs=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values(dtype):
    x = np.asarray([-INF, -1e30, -0.0, 0.0, 1e30, INF, NAN], dtype=dtype)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        y, cdf = erf(np, x), normal_cdf(np, x)
    np.testing.assert_array_equal(y, np.asarray([-1, -1, 0, 0, 1, 1, NAN], dtype=dtype), strict=True)
    np.testing.assert_array_equal(np.signbit(y[:6]), [True, True, True, False, False, False])
    np.testing.assert_array_equal(cdf, np.asarray([0, 0, 0.5, 0.5, 1, 1, NAN], dtype=dtype), strict=True)


@pytest.mark.parametrize("function", [erf, normal_cdf])
def test_symmetry_and_order(function):
    x = np.linspace(0, 6, 10_001, dtype=np.float32)
    right, left = function(np, x), function(np, -x)
    np.testing.assert_array_equal(right, -left if function is erf else np.float32(1) - left)
    coarse = right[::20]
    assert (coarse[1:] >= coarse[:-1]).all()


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1", "no_float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [erf, normal_cdf])
def test_strict(function, dtype, device):
    if (device, dtype) == ("no_float64", "float64"):
        pytest.skip("the device has no float64")
    for shape in [(), (0,), (3, 0), (7,), (2, 3, 4)]:
        x = np.random.default_rng(3).normal(scale=3, size=shape).astype(dtype)
        kept = x.copy()
        there = strict.asarray(x, device=strict.Device(device))
        y = function(strict, there)
        assert y.dtype == there.dtype
        assert y.shape == shape
        assert y.device == there.device
        back = np.asarray(y.to_device(strict.Device("CPU_DEVICE")))
        np.testing.assert_array_equal(back, np.asarray(function(np, x)), strict=True)
        np.testing.assert_array_equal(x, kept)


def test_torch():
    torch = pytest.importorskip("torch")
    xp = pytest.importorskip("array_api_compat.torch")
    for dtype, reference in [("float32", cdf_reference32), ("float64", cdf_reference)]:
        x = CDF_SWEEP[dtype][::4].astype(dtype)
        assert ulps(normal_cdf(xp, torch.asarray(x)).numpy(), x, reference).max() <= 8
        assert ulps(erf(xp, torch.asarray(x)).numpy(), x, math.erf).max() <= 3


def test_jax_compiled():
    jax = pytest.importorskip("jax")
    x = CDF_SWEEP["float32"][::4].astype(np.float32)
    assert ulps(np.asarray(jax.jit(lambda v: normal_cdf(jax.numpy, v))(x)), x, cdf_reference32).max() <= 8
    assert ulps(np.asarray(jax.jit(lambda v: erf(jax.numpy, v))(x)), x, math.erf).max() <= 3
