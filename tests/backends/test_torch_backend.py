"""What is particular to PyTorch. The CUDA branches run on a PyTorch that is told to have GPUs."""

import json
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import xpnn.backend
from xpnn.errors import BackendError

torch = pytest.importorskip("torch")


@pytest.fixture
def backend():
    return xpnn.backend.get("torch")


@pytest.fixture
def gpus(monkeypatch):
    """PyTorch believes in two GPUs, the second of which is current."""
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    card = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=150_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    return waited


def test_is_not_chosen_by_auto(backend):
    assert not backend.gpu()


@pytest.mark.parametrize("x", ["tensor", "parameter", "result", "NumPy"])
@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize("copy", [None, True])
def test_never_tracks_gradients(backend, x, dtype, copy):
    leaf = torch.ones(3, requires_grad=True)
    given = {"tensor": leaf, "parameter": torch.nn.Parameter(torch.ones(3)), "result": leaf * 1, "NumPy": np.ones(3)}[x]
    y = backend.asarray(given, dtype, copy=copy)
    assert type(y) is torch.Tensor
    assert not y.requires_grad
    assert y.grad_fn is None


def test_owns_parameters_and_reads_them(backend):
    for x in (torch.nn.Parameter(torch.ones(3)), torch.ones(3, requires_grad=True) * 1):
        assert backend.owns(x)
        np.testing.assert_array_equal(backend.to_numpy(x), np.ones(3))


def test_reads_views_that_compute_later(backend):
    x = torch.tensor([1 + 2j])
    assert backend.to_numpy(x.conj())[0] == 1 - 2j
    assert backend.to_numpy(x.conj().imag)[0] == -2


def test_read_only_memory_is_never_written_through(backend):
    x = np.zeros(3)
    x.flags.writeable = False
    backend.asarray(x)[0] = 1
    assert x[0] == 0


def test_shares_memory_where_nothing_is_asked(backend):
    x = np.zeros(3)
    y = backend.asarray(x)
    assert y.data_ptr() == x.ctypes.data
    assert np.shares_memory(backend.to_numpy(y), x)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", None])
def test_cpu(device):
    assert xpnn.backend.get("torch", device).device == torch.device("cpu")


@pytest.mark.parametrize(("device", "index"), [("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)])
def test_cuda(gpus, device, index):
    backend = xpnn.backend.get("torch", device)
    assert backend.device == torch.device("cuda", index)
    assert backend.column_bytes == backend.ops.column_bytes == 1 << 30
    backend.synchronize()
    assert gpus == [backend.device]


def test_cpu_is_not_waited_for(gpus, backend):
    backend.synchronize()
    assert gpus == []
    assert backend.column_bytes == 1 << 23


def test_default_is_the_default_of_torch(gpus, monkeypatch):
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda"))
    assert xpnn.backend.get("torch").device == torch.device("cuda:1")


def test_cuda_out_of_range(gpus):
    with pytest.raises(BackendError, match=r"no device 'cuda:2': torch sees 2 GPU\(s\), numbered from 0"):
        xpnn.backend.get("torch", "cuda:2")


@pytest.mark.parametrize("device", ["gpu", "1", "mps", "meta"])
def test_other_devices(device):
    with pytest.raises(BackendError, match=f"takes the device 'cpu', 'cuda' or 'cuda:N', not '{device}'"):
        xpnn.backend.get("torch", device)


def test_built_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(BackendError, match=r"no device 'cuda' here.*built without CUDA.*pytorch\.org"):
        xpnn.backend.get("torch", "cuda")


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(BackendError, match=r"no device 'cuda:1' here.*finds no GPU.*nvidia-smi"):
        xpnn.backend.get("torch", "cuda:1")


def test_old_driver(monkeypatch):
    def is_available():
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(BackendError, match="The NVIDIA driver on your system is too old"):
        xpnn.backend.get("torch", "cuda")


def test_describe_on_cuda(gpus):
    described = xpnn.backend.get("torch", "cuda:1").describe()
    assert json.loads(json.dumps(described)) == described
    assert described["device"] == "cuda:1"
    assert described["gpu"] == "NVIDIA H200"
    assert described["compute_capability"] == "9.0"
    assert described["memory"] == 150_000_000_000
    assert "cuda" in described
    assert "cudnn" in described


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="since PyTorch 2.9")
@pytest.mark.parametrize("setting", ["cuda_matmul", "cudnn_conv", "cpu_matmul"])
def test_describe_tells_tf32(backend, setting):
    place = {
        "cuda_matmul": torch.backends.cuda.matmul,
        "cudnn_conv": torch.backends.cudnn.conv,
        "cpu_matmul": torch.backends.mkldnn.matmul,
    }[setting]
    before = place.fp32_precision
    try:
        for value in ("ieee", "tf32"):
            place.fp32_precision = value
            assert backend.describe()["float32"][setting] == value
    finally:
        place.fp32_precision = before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="since PyTorch 2.9")
@pytest.mark.parametrize(("device", "setting"), [("cpu", "mkldnn"), ("cuda", "cuda")])
def test_coarse_products_are_told_of_the_device_in_use(backend, monkeypatch, device, setting):
    monkeypatch.setattr(backend, "device", torch.device(device))
    place = getattr(torch.backends, setting).matmul
    before = place.fp32_precision
    try:
        for value in ("none", "ieee"):
            place.fp32_precision = value
            assert backend.why_coarse() is None
        place.fp32_precision = "tf32"
        assert backend.why_coarse() == (
            "torch computes float32 products in tf32; call torch.set_float32_matmul_precision('highest')"
        )
    finally:
        place.fp32_precision = before


@pytest.mark.parametrize(("allowed", "word"), [(True, "tf32"), (False, "none")])
def test_describe_tells_tf32_before_2_9(backend, allowed, word):
    old = SimpleNamespace(
        cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=allowed)), cudnn=SimpleNamespace(allow_tf32=not allowed)
    )
    other = {"tf32": "none", "none": "tf32"}[word]
    assert sys.modules[type(backend).__module__]._float32(old) == {"cuda_matmul": word, "cudnn_conv": other}


def test_sets_nothing_globally():
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_device())
    xpnn.backend.get("torch").asarray([1.0])
    assert before == (
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_device()
    )  # fmt: skip
