"""The pytest plug-in of xpnn: tests that run on the backends, chosen by `pytest --backend NAME`.

    def test_scale(backend, xp, device):
        x = backend.asarray([1.0, 2.0], "float32")
        assert backend.owns(x * 2)

    def test_softplus(assert_parity):
        assert_parity(softplus, x)

Fixtures: `backend` (the test runs once on each that is chosen; default: on each that can be used here), its
namespace `xp` and its `device`; `assert_parity`, which is `xpnn.parity.assert_parity` on all that are chosen. A line at
the end names each backend that was not run, and why. Where a plug-in or a conftest has an option `--backend`
already, this one is called `--xpnn-backend`.

It is no part of the package `xpnn`, whose import brings NumPy: nothing is imported before a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xpnn.backend import Backend

OPTION = pytest.StashKey[str]()
CHOSEN = pytest.StashKey[list[str]]()
NOT_RUN = pytest.StashKey[dict[str, str]]()
"""In the stash of pytest's config once a test has asked for a backend: those that run, and why the others do not."""


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser) -> Generator[None, None, None]:
    """Add the option after all others, so that it takes nobody's name."""
    yield
    option = "--backend" if _is_free(parser, "--backend") else "--xpnn-backend"
    early_config.stash[OPTION] = option
    parser.getgroup("xpnn").addoption(
        option,
        dest="xpnn_backend",
        action="append",
        default=[],
        metavar="NAME",
        help="run the tests of backends of xpnn on this one (may be given again); default: all that can be used here",
    )


def _is_free(parser: pytest.Parser, option: str) -> bool:
    try:
        return f"{option}=x" in parser.parse_known_and_unknown_args([f"{option}=x"])[1]
    except pytest.UsageError:  # it is there, and x is nothing that it takes
        return False


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be run before anything is collected."""
    for name in config.getoption("xpnn_backend", []):
        if reason := _why_unavailable(name):
            raise pytest.UsageError(f"{config.stash[OPTION]} {name}: {reason}")


def chosen(config: pytest.Config) -> list[str]:
    """The names of the backends that tests run on; from now on the summary names the others."""
    if CHOSEN not in config.stash:
        from xpnn import backend

        asked = list(dict.fromkeys(config.getoption("xpnn_backend", [])))
        if asked:
            unused = dict.fromkeys(backend.names(), f"not chosen by {config.stash[OPTION]}")
        else:
            unused = {name: reason for name in backend.names() if (reason := _why_unavailable(name))}
        config.stash[CHOSEN] = asked or [name for name in backend.names() if name not in unused]
        config.stash[NOT_RUN] = {name: why for name, why in unused.items() if name not in asked}
    return config.stash[CHOSEN]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once on each backend."""
    if "xpnn_backend" in metafunc.fixturenames:
        metafunc.parametrize("xpnn_backend", chosen(metafunc.config))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was not run."""
    for name, reason in config.stash.get(NOT_RUN, {}).items():
        terminalreporter.write_line(f"backend {name} was not run: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under pytest-xdist: a worker, which alone has seen the tests, tells the process that writes the summary."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None and NOT_RUN in session.config.stash:
        output["xpnn_not_run"] = session.config.stash[NOT_RUN]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Under pytest-xdist: what a worker told."""
    told = getattr(node, "workeroutput", {}).get("xpnn_not_run")
    if told is not None:
        node.config.stash[NOT_RUN] = told


@pytest.fixture
def backend(xpnn_backend: str) -> Backend:
    """A backend of xpnn: the test runs once on each that is chosen."""
    return _made(xpnn_backend)


@pytest.fixture
def xp(backend: Backend) -> Any:
    """The array API namespace of `backend`."""
    return backend.xp


@pytest.fixture
def device(backend: Backend) -> Any:
    """The device of `backend`."""
    return backend.device


@pytest.fixture
def assert_parity(pytestconfig: pytest.Config) -> Callable[..., None]:
    """`xpnn.parity.assert_parity` on all chosen backends."""
    from xpnn.parity import assert_parity

    return partial(assert_parity, backends=chosen(pytestconfig))


@cache
def _made(name: str) -> Backend:
    from xpnn.backend import get

    return get(name)


def _why_unavailable(name: str) -> str | None:
    from xpnn import backend
    from xpnn.errors import BackendError

    try:
        return backend.find(name).why_unavailable()
    except BackendError as e:
        return str(e)
