"""`pytest --backend NAME`: which tests it chooses, and what it says of the others."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import pytest_xpnn
from xpnn import backend as backends

ROOT = Path(__file__).parents[1]
USABLE = [name for name in backends.names() if backends.find(name).why_unavailable() is None]


def run(*options):
    """Exit status, and what it printed, of collecting one case."""
    command = [sys.executable, "-m", "pytest", "tests/test_cases.py", "--collect-only", "-q", *options]
    command += ["-k", "test_results and silu-plain"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def collected(text):
    return {line.partition("[")[2].rstrip("]") for line in text.splitlines() if "::" in line}


def test_one_backend():
    status, text = run("--backend", "numpy")
    assert status == 0
    plain = ["numpy-plain-float32"] if find_spec("numba") else []
    variants = ("numpy-float32", "numpy-float64", *plain, "numpy-readonly-float32")
    assert collected(text) == {f"{variant}-{case}" for variant in variants for case in ("silu-plain", "SiLU-plain")}
    assert "backend strict was not run: not chosen by --backend" in text


def test_all_usable_backends(pytestconfig):
    if pytestconfig.getoption("--backend"):
        pytest.skip("this run was told its backends")
    assert pytest_xpnn.chosen(pytestconfig) == USABLE
    reasons = {name: backends.find(name).why_unavailable() for name in backends.names()}
    assert pytestconfig.stash[pytest_xpnn.NOT_RUN] == {
        name: reason for name, reason in reasons.items() if reason is not None
    }


def test_unknown_backend():
    status, text = run("--backend", "numpi")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "--backend numpi: there is no backend 'numpi'; installed are cupy, jax," in text
    assert "did you mean 'numpy'?" in text


def test_unusable_backend():
    names = [name for name in backends.names() if name not in USABLE]
    if not names:
        pytest.skip("all installed backends can be used here")
    status, text = run("--backend", "numpy", "--backend", names[0])
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"--backend {names[0]}: {backends.find(names[0]).why_unavailable()}" in text
