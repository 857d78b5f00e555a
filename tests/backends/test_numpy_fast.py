"""What the compiled kernels of the NumPy backend promise beside their results, which `test_cases` holds."""

import os
import subprocess
import sys

import numpy as np
import pytest
from xpnn_numpy import NumPyBackend
from xpnn_numpy.kernels import KERNELS

import xpnn
from xpnn import parity
from xpnn.ops import Ops

SOME = [case for case in parity.OPS if case.subject in ("conv", "conv_pool")][::4]


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
    (tmp_path / "scipy.py").write_text("")
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


def test_all_blas_threads_are_taken():
    pytest.importorskip("numba")
    from threadpoolctl import threadpool_info

    trainer = xpnn.Trainer(xpnn.models.get("article"), backend="numpy").build((28, 28, 1))
    with trainer.executor.session():
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}


@pytest.mark.parametrize("case", SOME, ids=str)
def test_products_of_scipy_where_numpys_blas_is_not_found(monkeypatch, case):
    pytest.importorskip("numba")
    from xpnn_numpy.fast import convolution

    monkeypatch.setattr(convolution, "blas", lambda dtype: 0)
    expected = parity.expected(case)
    found = parity.results(case, Ops(xpnn.backend.get("numpy").kernels), case.arrays(), expected.dy)
    for name, a in found.items():
        np.testing.assert_allclose(a, expected.values[name], rtol=1e-9, atol=1e-9, err_msg=name)
