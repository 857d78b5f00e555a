"""The fixtures of the plug-in, on each variant of each backend: the suite of `xpnn.conformance`, and more of it."""

from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]
pytest.register_assert_rewrite("xpnn.conformance")

import harness  # noqa: E402  # after its asserts are marked to be rewritten

from pytest_xpnn import chosen  # noqa: E402
from xpnn.backend import Backend  # noqa: E402
from xpnn.conformance.harness import add_markers, parametrize  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    add_markers(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        parametrize(metafunc, [v for name in chosen(metafunc.config) for v in harness.variants(name)])


@pytest.fixture
def backend(variant: harness.Variant) -> Iterator[Backend]:
    with variant.active() as active:
        yield active
