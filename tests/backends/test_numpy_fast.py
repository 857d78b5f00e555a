"""What the compiled kernels of the NumPy backend promise beside their results, which `test_cases` holds."""

import os
import subprocess
import sys

import numpy as np
import pytest
from xpnn_numpy import NumPyBackend
from xpnn_numpy.kernels import KERNELS

import xpnn


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


def test_second_process_compiles_nothing(tmp_path):
    pytest.importorskip("numba")
    code = """
import numpy as np, xpnn
from xpnn_numpy.fast import activation
y, backward = xpnn.backend.get("numpy").ops.relu(np.ones((2, 3), "float32"))
backward(y)
stats = [kernel.stats for kernel in (activation._rectify, activation._through)]
print(sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats))
"""
    assert [run(code, NUMBA_CACHE_DIR=str(tmp_path)).stdout.split() for _ in range(2)] == [["0", "2"], ["2", "0"]]


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


def test_blas_that_cannot_be_called_leaves_numpys_kernels(monkeypatch):
    pytest.importorskip("numba")
    from xpnn_numpy.fast import _product

    monkeypatch.setattr(_product, "threadpool_info", lambda: [])
    with pytest.raises(ImportError, match="not one that compiled code could call"):
        _product.blas.__wrapped__(np.dtype("float32"))
