"""`pytest --pyargs xpnn.conformance`: a sound backend passes, and each kind of fault is caught by its own test."""

import os
import textwrap
import tomllib
from pathlib import Path

import pytest
from strangers import install

EXAMPLE = Path(__file__).parents[1] / "examples" / "backend"
HEAD = """
    import array_api_compat.numpy as xp
    import numpy as np

    from xpnn.backend import Backend
    from xpnn.errors import BackendError
    from xpnn.ops._array import floats
    from xpnn.train import Executor

    class Mine(Backend):
        name = "mine"

        def __init__(self, device=None):
            super().__init__(device)
            if device is not None:
                raise BackendError(f"no device {device!r}")
            self.xp, self.device = xp, "cpu"
"""


@pytest.fixture
def conform(pytester, monkeypatch):
    """Runs the suite on a backend of so much source."""
    for name in ("PYTEST_ADDOPTS", "XPNN_KERNELS"):
        monkeypatch.delenv(name, raising=False)

    def conform(name, folder, *options):
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        command = ["-p", "pytest_xpnn", "-q", "--pyargs", "xpnn.conformance", "--backend", name]
        return pytester.runpytest_subprocess(*command, *options)

    return conform


@pytest.fixture
def mine(conform, pytester):
    def mine(source, *options):
        source = textwrap.dedent(HEAD) + textwrap.dedent(source)
        install(pytester.path, "mine", source, **{"xpnn.backends": {"mine": "mine:Mine"}})
        return conform("mine", pytester.path, *options)

    return mine


def test_the_example_passes_it_all(conform, pytester):
    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    source = (EXAMPLE / "xpnn_counted" / "__init__.py").read_text()
    install(pytester.path, "xpnn_counted", source, **points)
    result = conform("counted", pytester.path, "-x")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] > 1000
    assert outcomes.keys() <= {"passed", "skipped"}
    assert outcomes.get("skipped", 0) < 20


FAULTS = {  # what is wrong, the test that says so and those that run with it: the source
    "gradient of a kernel": (
        "test_results[mine-float32-relu-plain]",
        "relu-plain",
        """
        def relu(ops, x):
            return xp.where(x > 0, x, 0 * x), lambda dy, *, input_gradient=True: (dy,)

        Mine.kernels = {"relu": relu}
        """,
    ),
    "products of few bits": (
        "test_results[mine-float32-conv-plain]",
        "conv-plain",
        """
        def matmul(ops, a, b):
            return (a.astype("float16") @ b.astype("float16")).astype(a.dtype)

        Mine.kernels = {"matmul": matmul}
        """,
    ),
    "standard body": (
        "test_standard_body_where_there_is_a_kernel[mine-float32-conv-plain]",
        "conv-plain",
        """
        from functools import wraps
        from xpnn.ops import Ops

        @wraps(Ops.conv)
        def conv(ops, *arrays, **options):
            return Ops().conv(*arrays, **options)

        Mine.kernels, Mine.column_bytes = {"conv": conv}, None
        """,
    ),
    "dtype of a result": (
        "test_results[mine-float32-relu-plain]",
        "relu-plain",
        """
        def relu(ops, x):
            y = xp.where(x > 0, x, 0 * x)
            return y.astype("float64"), lambda dy, *, input_gradient=True: (dy * (y > 0) if input_gradient else None,)

        Mine.kernels = {"relu": relu}
        """,
    ),
    "input written to": (
        "test_contract[mine-float32-relu-plain]",
        "relu-plain and contract",
        """
        def relu(ops, x):
            x *= x > 0
            y = x.copy()
            return y, lambda dy, *, input_gradient=True: (dy * (y > 0) if input_gradient else None,)

        Mine.kernels = {"relu": relu}
        """,
    ),
    "backward once only": (
        "test_contract[mine-float32-relu-plain]",
        "relu-plain and contract",
        """
        def relu(ops, x):
            y = xp.where(x > 0, x, 0 * x)
            masks = [y > 0]
            return y, lambda dy, *, input_gradient=True: (dy * masks.pop() if input_gradient else None,)

        Mine.kernels = {"relu": relu}
        """,
    ),
    "layout in memory": (
        "test_layout_in_memory_does_not_matter[mine-float32-relu-plain]",
        "relu-plain and layout",
        """
        def relu(ops, x):
            flat = np.lib.stride_tricks.as_strided(x, x.shape, np.empty(x.shape, x.dtype).strides)
            y = xp.where(flat > 0, flat, 0 * flat)
            return y, lambda dy, *, input_gradient=True: (dy * (y > 0) if input_gradient else None,)

        Mine.kernels = {"relu": relu}
        """,
    ),
    "empty batch": (
        "test_empty_batch[mine-float32-global_avg_pool-plain]",
        "global_avg_pool-plain and empty",
        """
        def global_avg_pool(ops, x):
            floats("global_avg_pool", x=x)
            return x.reshape(len(x), -1, x.shape[-1]).mean(axis=1), lambda dy, *, input_gradient=True: (0 * x,)

        Mine.kernels = {"global_avg_pool": global_avg_pool}
        """,
    ),
    "samples that know of each other": (
        "test_samples_are_independent[mine-float32-tanh-plain]",
        "tanh-plain and independent",
        """
        def tanh(ops, x):
            y = xp.tanh(x) * len(x) / 2
            return y, lambda dy, *, input_gradient=True: (dy * (1 - y * y) if input_gradient else None,)

        Mine.kernels = {"tanh": tanh}
        """,
    ),
    "what a kernel accepts": (
        "test_arrays_that_do_not_fit[mine-relu integers]",
        "relu and fit",
        """
        def relu(ops, x):
            return np.maximum(x, 0), lambda dy, *, input_gradient=True: (dy * (x > 0),)

        Mine.kernels = {"relu": relu}
        """,
    ),
    "a copy that is a view": (
        "test_copy_of_a_host_array_is_not_seen_through[mine]",
        "seen_through",
        """
        Mine.asarray = lambda self, x, dtype=None, *, copy=None: np.asarray(x, dtype)
        """,
    ),
    "a dtype that is not kept": (
        "test_round_trip[mine-int32]",
        "round_trip and int32",
        """
        Mine._place = lambda self, x: x.view("float32") if x.dtype == "int32" and x.ndim else x
        """,
    ),
    "lists of whatever": (
        "test_ragged_lists[mine]",
        "ragged",
        """
        Mine.asarray = lambda self, x, dtype=None, *, copy=None: np.array(x, dtype=object)
        """,
    ),
    "foreign arrays": (
        "test_foreign_arrays_are_refused[mine]",
        "foreign",
        """
        Mine.to_numpy = lambda self, x: np.asarray(x)
        """,
    ),
    "a step of another size": (
        "test_steps_are_those_of_numpy_in_float64[mine-smooth]",
        "smooth",
        """
        class Off(Executor):
            def gradient(self, *args):
                gradient, *rest = super().gradient(*args)
                return gradient * (1 + 1e-3), *rest

        Mine.executor = lambda self, *args: Off(self, *args)
        """,
    ),
    "learning rate frozen": (
        "test_what_changes_from_step_to_step_is_handed_in[mine]",
        "handed_in",
        """
        class Off(Executor):
            def scalars(self, divisor, lr, step):
                return super().scalars(divisor, 1.0, step)

        Mine.executor = lambda self, *args: Off(self, *args)
        """,
    ),
    "a device that is made up": (
        "test_an_unknown_device[mine]",
        "unknown_device",
        """
        def anywhere(self, device=None):
            self.xp, self.device = xp, "cpu"

        Mine.__init__ = anywhere
        """,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(mine, fault):
    test, chosen, source = FAULTS[fault]
    result = mine(source, "-rf", "-k", chosen)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"::{test}" in result.stdout.str().partition("short test summary info")[2]
    assert "error" not in result.parseoutcomes()


def test_the_same_selections_pass_without_a_fault(mine):
    chosen = " or ".join(f"({k})" for _, k, _ in FAULTS.values())
    outcomes = mine("", "-k", chosen).parseoutcomes()
    assert outcomes["passed"] >= len(FAULTS)
    assert outcomes.keys() <= {"passed", "skipped", "deselected"}
