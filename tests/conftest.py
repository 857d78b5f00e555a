"""`pytest --backend NAME`, and the fixtures that run one test on many backends.

A test that asks for `variant`, `backend`, `xp` or `device` runs once on each variant of each backend.
`@pytest.mark.cases(CASES)` runs it on these cases as well, with each dtype that a variant has
(`dtype="float32"`: with this one only; `where(variant, case)` selects); it takes `variant`, `dtype` and `case`.
`@pytest.mark.eager` leaves out second variants and those that compile each case.
"""

from collections.abc import Iterator
from typing import Any

import harness
import pytest

from xpnn import backend as backends
from xpnn.backend import Backend
from xpnn.errors import BackendError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help="run the tests of backends on this one (may be given again); default: all that can be used here",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(cases, dtype=None, where=None): run on these cases on each backend")
    config.addinivalue_line("markers", "eager: not on second variants, nor where each case is compiled")
    chosen = config.getoption("--backend")
    config.stash[harness.VARIANTS] = []
    config.stash[harness.NOT_RUN] = dict.fromkeys(backends.names(), "not chosen by --backend")
    for name in chosen or backends.names():
        reason = why_unavailable(name)
        if reason is None:
            config.stash[harness.VARIANTS] += harness.variants(name)
            del config.stash[harness.NOT_RUN][name]
        elif chosen:
            raise pytest.UsageError(f"--backend {name}: {reason}")
        else:
            config.stash[harness.NOT_RUN][name] = reason


def why_unavailable(name: str) -> str | None:
    try:
        return backends.find(name).why_unavailable()
    except BackendError as e:
        return str(e)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("cases")
    eager = metafunc.definition.get_closest_marker("eager") is not None
    variants = [v for v in metafunc.config.stash[harness.VARIANTS] if not eager or (v.full and not v.traced)]
    if marker is None:
        metafunc.parametrize("variant", variants, ids=lambda v: v.name)
        return
    rows = [
        pytest.param(variant, dtype, case, id=f"{variant.name}-{dtype}-{case}")
        for variant in variants
        for dtype in variant.dtypes
        if marker.kwargs.get("dtype", dtype) == dtype
        for case in marker.args[0]
        if variant.takes(case) and marker.kwargs.get("where", lambda variant, case: True)(variant, case)
    ]
    metafunc.parametrize(("variant", "dtype", "case"), rows)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for name, reason in config.stash[harness.NOT_RUN].items():
        terminalreporter.write_line(f"backend {name} was not run: {reason}")


@pytest.fixture
def backend(variant: harness.Variant) -> Iterator[Backend]:
    with variant.active() as active:
        yield active


@pytest.fixture
def xp(backend: Backend) -> Any:
    return backend.xp


@pytest.fixture
def device(backend: Backend) -> Any:
    return backend.device
