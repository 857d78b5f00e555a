"""The plug-in as its users have it: in a folder of their own, with nothing of this suite."""

import os
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from strangers import install

from xpnn.backend import find

ROOT = Path(__file__).parents[1]
TESTS = """
    def test_scale(backend, xp, device):
        x = backend.asarray([1.0, 2.0], "float32")
        assert backend.owns(x * 2)
        assert xp is backend.xp
        assert device == backend.device

    def test_without():
        pass
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Runs pytest there, in a process of its own; `path` goes before what is on the path."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return lambda *options: pytester.runpytest_subprocess("-p", "pytest_xpnn", *options)


def passed(result, **outcomes):
    result.assert_outcomes(**outcomes)
    return result.stdout.str()


def test_chosen_backends(pytester, run):
    pytester.makepyfile(TESTS)
    text = passed(run("-v", "--backend", "strict", "--backend", "numpy", "--backend", "numpy"), passed=3)
    assert "test_scale[strict] PASSED" in text
    assert "test_scale[numpy] PASSED" in text
    assert "backend jax was not run: not chosen by --backend" in text
    assert "backend numpy was not run" not in text


def test_all_that_can_be_used(pytester, run):
    install(pytester.path, "lonely", LONELY, **{"xpnn.backends": {"lonely": "lonely:Lonely"}})
    pytester.makepyfile(TESTS)
    result = run("-v", "-k", "numpy or strict or lonely")
    others = [name for name in ("torch", "jax", "cupy") if not find(name).why_unavailable()]
    text = passed(result, passed=2, deselected=1 + len(others))
    assert "test_scale[lonely]" not in text
    assert "backend lonely was not run: no_such_module is not installed; install it: pip install lonely" in text


LONELY = """
    from xpnn.backend import Backend

    class Lonely(Backend):
        name = "lonely"
        requires = {"no_such_module": "pip install lonely"}
"""


def test_one_that_cannot_be_used_is_refused(pytester, run):
    install(pytester.path, "lonely", LONELY, **{"xpnn.backends": {"lonely": "lonely:Lonely"}})
    pytester.makepyfile(TESTS)
    result = run("--backend", "lonely")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*--backend lonely: no_such_module is not installed; install it: pip install lonely")


def test_one_that_is_unknown_is_refused(pytester, run):
    pytester.makepyfile(TESTS)
    result = run("--backend", "numpi")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*--backend numpi: there is no backend 'numpi'*did you mean 'numpy'?")


def test_whoever_does_not_use_it_sees_nothing(pytester, run, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # some plug-in may import NumPy
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_imported():
            assert not {"numpy", "xpnn", "array_api_compat"} & set(sys.modules)
        """
    )
    text = passed(run(), passed=1)
    assert "was not run" not in text
    assert "backend" not in text


@pytest.mark.skipif(not find_spec("xdist"), reason="pytest-xdist is not installed")
def test_with_xdist(pytester, run):
    pytester.makepyfile(TESTS)
    text = passed(run("-n", "2", "--backend", "numpy"), passed=2)
    assert text.count("backend strict was not run: not chosen by --backend") == 1
    pytester.makepyfile(test_none="def test_without():\n    pass\n")
    assert "was not run" not in passed(run("-n", "2", "--backend", "numpy", "test_none.py"), passed=1)


@pytest.mark.parametrize("add", ["parser.addoption", 'parser.getgroup("mine").addoption'])
@pytest.mark.parametrize("more", ["", ", choices=['theirs']", ", action='store_true'"])
def test_another_option_of_that_name_is_left_alone(pytester, run, add, more):
    pytester.makeconftest(f"def pytest_addoption(parser):\n    {add}('--backend'{more})\n")
    expected = "True" if "store_true" in more else "'theirs'"
    pytester.makepyfile(
        f"""
        def test_theirs(pytestconfig):
            assert pytestconfig.getoption("--backend") == {expected}

        def test_ours(backend):
            assert backend.name == "numpy"
        """
    )
    given = ["--backend"] if "store_true" in more else ["--backend=theirs"]
    text = passed(run(*given, "--xpnn-backend=numpy"), passed=2)
    assert "backend strict was not run: not chosen by --xpnn-backend" in text


def test_another_fixture_of_that_name_is_left_alone(pytester, run):
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def backend():
            return "mine"

        def test_mine(backend):
            assert backend == "mine"
        """
    )
    assert "was not run" not in passed(run("--backend", "numpy"), passed=1)


def test_assert_parity(pytester, run):
    pytester.makepyfile(
        """
        import numpy as np

        def cube(x):
            return x * x * x

        def rounded(x):
            return x if "strict" not in type(x).__module__ else x + 1e-3

        def test_right(assert_parity):
            assert_parity(cube, np.ones((2, 3)))

        def test_wrong(assert_parity):
            assert_parity(rounded, np.ones((2, 3)))
        """
    )
    text = passed(run("--backend", "numpy", "--backend", "strict"), passed=1, failed=1)
    assert "rounded in float32: strict is off, numpy not" in text
    assert "backend jax was not run" in text


def test_the_entry_point(pytester, monkeypatch):
    """As it is declared, without `-p`."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert points == {"pytest_xpnn": "pytest_xpnn"}
    install(pytester.path, "some_distribution", "", pytest11=points)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), os.environ.get("PYTHONPATH", "")]))
    pytester.makepyfile(TESTS)
    passed(pytester.runpytest_subprocess("--backend", "numpy"), passed=2)
