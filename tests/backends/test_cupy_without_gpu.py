"""All of the CuPy backend that can run without a GPU, on a stand-in for CuPy; see fake_cupy.py."""

import importlib
import json
import sys

import fake_cupy
import numpy as np
import pytest

import xpnn.backend
from xpnn.errors import BackendError, MixedBackendsError
from xpnn.layers import Conv2D, Dense, Flatten, MaxPool2D, ReLU, Run, Sequential
from xpnn.random import Stream

CuPyBackend = xpnn.backend.find("cupy")


def loaded():
    return {n: m for n, m in sys.modules.items() if n.split(".")[0] == "cupy" or n.startswith("array_api_compat.cupy")}


@pytest.fixture(autouse=True)
def _leaves_no_trace():
    before = loaded()
    yield
    assert loaded() == before


@pytest.fixture
def cupy():
    with fake_cupy.installed(gpus=2) as module:
        yield module


@pytest.fixture
def backend(cupy):
    return xpnn.backend.get("cupy")


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"status": 35, "driver": 0}, ["no NVIDIA driver", "nvidia-smi"]),
        ({"status": 35, "driver": 12040}, ["driver is too old", "12.4", "13.2", 'pip install "xpnn[cuda12]"']),
        ({"status": 36, "driver": 13000}, ["driver is too old", "13.0", "13.2"]),
        ({"status": 100}, ["shows no GPU", "nvidia-smi"]),
        ({"gpus": 0}, ["shows no GPU"]),
        ({"status": 999}, ["CUDA does not start", "CUDARuntimeError: cudaError999: unknown"]),
        ({"missing": "nvrtc"}, ["lacks a library", "RuntimeError: Failure finding", "libnvrtc", "xpnn[cuda13]"]),
        ({"missing": "cublas"}, ["lacks a library", "ImportError: Failure finding", "libcublas", "xpnn[cuda13]"]),
    ],
)
def test_says_what_is_missing(machine, words, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with fake_cupy.installed(**machine):
        reason = CuPyBackend.why_unavailable()
        assert reason is not None
        assert "\n" not in reason
        for word in words:
            assert word in reason
        with pytest.raises(BackendError, match="backend 'cupy' cannot be used here"):
            xpnn.backend.get("cupy")
        assert xpnn.backend.get("auto").name == "numpy"


@pytest.mark.parametrize("machine", [{"status": 100}, {"gpus": 0}])
@pytest.mark.parametrize("visible", ["", "7"])
def test_names_the_variable_that_hides_the_gpus(machine, visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with fake_cupy.installed(**machine):
        assert f"CUDA_VISIBLE_DEVICES is {visible!r}" in CuPyBackend.why_unavailable()


def test_says_how_to_install(monkeypatch):
    with fake_cupy.installed(), monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)  # what an import that finds nothing looks like
        reason = CuPyBackend.why_unavailable()
    for word in ("cupy is not installed", 'pip install "xpnn[cuda13]"', "xpnn[cuda12]"):
        assert word in reason


def test_says_that_an_installed_cupy_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.13:\\n cannot open shared object')")
    with fake_cupy.installed(), monkeypatch.context() as patch:
        for name in [n for n in sys.modules if n.split(".")[0] == "cupy"]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(tmp_path)
        reason = CuPyBackend.why_unavailable()
    assert "cupy is installed but cannot be imported (ImportError: libcudart.so.13:)" in reason


def test_usable_and_preferred(cupy, monkeypatch):
    monkeypatch.delenv("XPNN_BACKEND", raising=False)
    assert CuPyBackend.why_unavailable() is None
    assert CuPyBackend.gpu()
    assert xpnn.backend.get().name == "cupy"
    assert xpnn.backend.get("auto", "1").device == cupy.cuda.Device(1)


@pytest.mark.parametrize(
    ("device", "ordinal"), [("0", 0), ("1", 1), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), (None, 0)]
)
def test_device_is_made_current_and_takes_the_arrays(cupy, device, ordinal):
    backend = xpnn.backend.get("cupy", device)
    assert backend.device == cupy.cuda.Device(ordinal)
    assert cupy.cuda.Device() == backend.device
    x = backend.asarray(np.ones(3))
    assert x.device == backend.device
    assert backend.xp.zeros(2).device == backend.device
    assert repr(backend) == f"<CuPyBackend 'cupy' on cuda:{ordinal}>"


def test_default_device_is_the_current_one(cupy):
    cupy.cuda.Device(1).use()
    assert xpnn.backend.get("cupy").device == cupy.cuda.Device(1)


def test_asarray_goes_to_its_device_whatever_is_current(cupy):
    backend = xpnn.backend.get("cupy", "1")
    with cupy.cuda.Device(0):
        x = backend.asarray(np.arange(3.0))
        there = cupy.asarray(np.arange(3.0))
    assert x.device == cupy.cuda.Device(1)
    assert there.device == cupy.cuda.Device(0)
    assert backend.asarray(there).device == cupy.cuda.Device(1)


@pytest.mark.parametrize("device", ["2", "cuda:2", "17"])
def test_ordinal_out_of_range(cupy, device):
    with pytest.raises(BackendError, match=rf"no device '{device}': there are 2 GPU\(s\), numbered from 0"):
        xpnn.backend.get("cupy", device)


@pytest.mark.parametrize("device", ["cpu", "gpu:1", "-1", "cuda:x"])
def test_device_of_other_words(cupy, device):
    with pytest.raises(BackendError, match=f"no device '{device}'; give the number of a GPU"):
        xpnn.backend.get("cupy", device)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_doors(cupy, backend, dtype, shape):
    x = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
    on_device = backend.asarray(x)
    assert isinstance(on_device, cupy.ndarray)
    assert backend.owns(on_device)
    back = backend.to_numpy(on_device)
    assert type(back) is np.ndarray
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)


def test_to_numpy_is_a_copy(backend):
    x = backend.asarray(np.zeros(3))
    back = backend.to_numpy(x)
    x[0] = 1
    assert back[0] == 0


def test_copy(backend):
    x = backend.asarray(np.zeros(3))
    assert backend.asarray(x) is x
    y = backend.asarray(x, copy=True)
    x[0] = 1
    assert backend.to_numpy(y)[0] == 0
    assert str(backend.asarray(x, "float32").dtype) == "float32"


def test_arrays_of_others(backend):
    with pytest.raises(MixedBackendsError, match=r"handed a numpy\.ndarray"):
        backend.to_numpy(np.ones(3))
    with pytest.raises(MixedBackendsError, match="handed a fake_cupy"):
        xpnn.backend.get("numpy").asarray(backend.asarray(np.ones(3)))


def test_synchronize(cupy):
    xpnn.backend.get("cupy", "1").synchronize()
    assert cupy.cuda.waited == [1]


def test_describe(cupy, monkeypatch):
    for name in ("CUPY_TF32", "CUPY_ACCELERATORS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    with fake_cupy.installed(gpus=2, driver=13000):
        described = xpnn.backend.get("cupy", "1").describe()
    assert json.loads(json.dumps(described)) == described
    for key, value in {
        "name": "cupy",
        "device": "cuda:1",
        "cupy": "14.2.0",
        "cuda": "13.2",
        "driver": "13.0",
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "memory": 150_000_000_001,
        "tf32": False,
        "accelerators": "cub",
        "cublas_workspace": None,
    }.items():
        assert described[key] == value, key


def test_products_are_fine_by_default(backend):
    assert backend.why_coarse() is None


def test_describe_shows_the_switches(backend, monkeypatch):
    monkeypatch.setenv("CUPY_TF32", "1")
    monkeypatch.setenv("CUPY_ACCELERATORS", "cub,cutensor")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    described = backend.describe()
    assert described["tf32"] is True
    assert backend.why_coarse() == "CUPY_TF32=1 lets CuPy compute float32 products in TF32; unset it"
    assert described["accelerators"] == "cub,cutensor"
    assert described["cublas_workspace"] == ":4096:8"


def test_size_of_columns(backend):
    assert backend.column_bytes == backend.ops.column_bytes == 1 << 30


def test_supports(backend):
    assert all(map(backend.supports, ("float32", "float64", "float16", "int64", "bool")))
    assert not backend.supports("float128")


def test_network_computes_what_numpy_computes(backend):
    model = Sequential([Conv2D(4, 3), ReLU(), MaxPool2D(2), Flatten(), Dense(3)])
    weights, _ = model.init((8, 8, 2), Stream(0, "weights"))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 2))
    results = []
    for b in (backend, xpnn.backend.get("numpy")):
        on_device = {k: b.asarray(v, "float64") for k, v in weights.items()}
        y, _, backward = model.apply(on_device, {}, b.asarray(x), Run(b.ops, training=True))
        dx, gradients = backward(y)
        assert all(map(b.owns, (y, dx, *gradients.values())))
        results.append({k: b.to_numpy(v) for k, v in {"y": y, "dx": dx, **gradients}.items()})
    for name, value in results[0].items():
        np.testing.assert_allclose(value, results[1][name], rtol=1e-12, atol=1e-12)


def test_listed(cupy):
    entry = next(e for e in xpnn.backend.listing() if e["name"] == "cupy")
    assert entry["usable"]
    assert entry["reason"] is None
    assert entry["describe"]["gpu"] == "NVIDIA H200"


def test_modules_of_the_backend_are_those_of_the_cupy_that_is_there():
    import xpnn_cupy

    before = sys.modules.get("xpnn_cupy.products"), vars(xpnn_cupy).get("products")
    with fake_cupy.installed() as first:
        assert importlib.import_module("xpnn_cupy.products").cupy is first
        with fake_cupy.installed() as second:
            assert importlib.import_module("xpnn_cupy.executor").products.cupy is second
        assert xpnn_cupy.products.cupy is importlib.import_module("xpnn_cupy.executor").cupy is first
    assert (sys.modules.get("xpnn_cupy.products"), vars(xpnn_cupy).get("products")) == before
