"""What is particular to JAX: 64 bits only on request, immutable arrays, tracers."""

from types import SimpleNamespace

import numpy as np
import pytest

import xpnn.backend
from xpnn.errors import BackendError

jax = pytest.importorskip("jax")


@pytest.fixture
def x64():
    before = jax.config.jax_enable_x64
    yield lambda on: jax.config.update("jax_enable_x64", on)
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def backend(x64):
    x64(False)
    return xpnn.backend.get("jax")


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "complex128"])
def test_64_bits_are_asked_for_in_vain(backend, dtype):
    assert not backend.supports(dtype)
    with pytest.raises(BackendError, match=rf"JAX_ENABLE_X64=1, or ask for dtype='{dtype[:-2].rstrip('1')}"):
        backend.asarray(np.ones(3), dtype)


def test_complex128_names_the_half(backend):
    with pytest.raises(BackendError, match="ask for dtype='complex64'"):
        backend.asarray(np.ones(3, "complex128"))


def test_float64_is_never_rounded_silently(backend):
    for x in (np.ones(3), np.float64(1), [1.0], 1.0):
        with pytest.raises(BackendError, match="dtype='float32'"):
            backend.asarray(x)


def test_switch_is_seen_at_once(backend, x64):
    x64(True)
    assert backend.supports("float64")
    assert str(backend.asarray(np.ones(3)).dtype) == "float64"
    assert backend.describe()["x64"] is True
    x64(False)
    assert not backend.supports("float64")
    assert backend.describe()["x64"] is False


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_whole_numbers_become_narrower_where_they_fit(backend, dtype):
    bounds = np.iinfo(dtype.replace("64", "32"))
    for x in (np.asarray([bounds.min, bounds.max], dtype), np.zeros((0, 2), dtype)):
        y = backend.asarray(x)
        assert str(y.dtype) == dtype.replace("64", "32")
        np.testing.assert_array_equal(backend.to_numpy(y), x)
    beyond = [bounds.max + 1] + ([bounds.min - 1] if bounds.min else [])
    for value in beyond:
        with pytest.raises(BackendError, match="64 bits are off"):
            backend.asarray(np.asarray([value], dtype))


def test_labels_keep_their_bits_where_64_are_on(backend, x64):
    x64(True)
    assert str(backend.asarray(np.arange(3)).dtype) == "int64"


def test_unknown_dtype_lists_the_known(backend):
    with pytest.raises(BackendError, match=r"no dtype 'float23'; ask for one of these with dtype=…: .*float32"):
        backend.asarray(1, "float23")


def test_tracers_are_arrays_of_this_backend(backend):
    seen = []

    def f(x):
        seen.append(backend.owns(x))
        y = backend.asarray(x, "float32", copy=True)
        seen.append(backend.owns(y))
        return y * 2

    y = jax.jit(f)(backend.asarray([1.0, 2.0], "float32"))
    assert seen == [True, True]
    np.testing.assert_array_equal(backend.to_numpy(y), [2, 4])
    assert not xpnn.backend.get("numpy").owns(y)


def test_op_under_jit_stays_on_the_device(backend):
    x = backend.asarray(np.ones((1, 4, 4, 1)), "float32")
    w = backend.asarray(np.ones((2, 3, 3, 1)), "float32")
    y = jax.jit(lambda x, w: backend.ops.conv(x, w, None)[0])(x, w)
    assert y.device == backend.device
    np.testing.assert_array_equal(backend.to_numpy(y), np.full((1, 2, 2, 2), 9))


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_devices(device):
    backend = xpnn.backend.get("jax", device)
    assert backend.device == jax.devices("cpu")[0]
    assert backend.asarray([1], "int32").device == backend.device


def test_several_devices(monkeypatch):
    class Card:
        platform = "gpu"

    cards = [Card(), Card()]
    monkeypatch.setattr(jax, "devices", lambda platform: cards)
    assert xpnn.backend.get("jax", "gpu").device is cards[0]
    assert xpnn.backend.get("jax", "gpu:1").device is cards[1]
    with pytest.raises(BackendError, match="no device 'gpu:2': it sees 2 of 'gpu'"):
        xpnn.backend.get("jax", "gpu:2")


@pytest.mark.parametrize("device", ["cpu:99", "cpu:", "cpu:x", "cpu:-1"])
def test_number_out_of_range(device):
    count = len(jax.devices("cpu"))
    with pytest.raises(BackendError, match=f"no device '{device}': it sees {count} of 'cpu', numbered from 0"):
        xpnn.backend.get("jax", device)


def test_unknown_platform():
    with pytest.raises(BackendError, match=r"no device 'abacus' here \(RuntimeError: .*jax\[cuda13\]"):
        xpnn.backend.get("jax", "abacus")


def test_default_device_is_the_default_of_jax(backend):
    assert backend.device == jax.numpy.zeros(()).device


def test_synchronize_waits(backend):
    x = backend.asarray(np.ones((500, 500)), "float32")
    for _ in range(5):
        x = x @ x / 500
    backend.synchronize()
    assert x.is_ready()


def test_synchronize_after_arrays_were_given_away(backend):
    x = backend.asarray(np.ones(3), "float32", copy=True)
    jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    backend.synchronize()


def test_what_to_numpy_gave_outlives_its_array(backend):
    x = backend.asarray(np.ones(1000), "float32", copy=True)
    back = backend.to_numpy(x)
    y = jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    backend.synchronize()
    assert (back == 1).all()
    assert (backend.to_numpy(y) == 2).all()


@pytest.mark.parametrize("precision", [None, "default", "tensorfloat32", "highest", "float32"])
def test_coarse_products_are_told_off_the_cpu(backend, monkeypatch, precision):
    with jax.default_matmul_precision(precision):
        assert backend.why_coarse() is None
        monkeypatch.setattr(backend, "device", SimpleNamespace(platform="gpu"))
        reason = backend.why_coarse()
    if precision in ("highest", "float32"):
        assert reason is None
    else:
        assert reason.startswith(f"jax_default_matmul_precision is {precision!r}, which computes float32 products with")
        assert reason.endswith("set the environment variable JAX_DEFAULT_MATMUL_PRECISION=highest")


def test_jit_compiles_unless_all_is_standard(backend, monkeypatch):
    def traced(x):
        return isinstance(x, jax.core.Tracer) + 0 * x

    monkeypatch.delenv("XPNN_KERNELS", raising=False)
    assert backend.jit(traced)(1.0) == 1
    monkeypatch.setenv("XPNN_KERNELS", "standard")
    assert backend.jit(traced) is traced
