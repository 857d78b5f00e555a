"""The fixtures of the plug-in, on each variant of each backend: the suite of `xpnn.conformance`, and more of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytest.register_assert_rewrite("xpnn.conformance")

import harness  # noqa: E402  # after its asserts are marked to be rewritten

from pytest_xpnn import chosen  # noqa: E402
from xpnn.backend import Backend  # noqa: E402
from xpnn.conformance.harness import add_markers, parametrize  # noqa: E402
from xpnn.data import mnist  # noqa: E402

BESIDE = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    add_markers(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        parametrize(metafunc, [v for name in chosen(metafunc.config) for v in harness.variants(name)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, the examples that train: other processes take the rest meanwhile."""
    items.sort(key=lambda item: "examples" not in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def apart_from_the_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test downloads anything, nor finds what its user has downloaded; in subprocesses neither."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
            patch.setenv(name.lower(), "http://127.0.0.1:9")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setenv("XPNN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def backend(variant: harness.Variant) -> Iterator[Backend]:
    with variant.active() as active:
        yield active


@pytest.fixture(scope="session")
def mnist_folder() -> str:
    """Where MNIST's files are, for the gates, which take minutes."""
    if not os.environ.get("XPNN_GATES"):
        pytest.skip("the accuracy gates on MNIST take minutes: set XPNN_GATES=1")
    folder = os.environ.get("XPNN_DATA") or str(BESIDE)
    try:
        mnist(folder)
    except FileNotFoundError:
        pytest.skip("the MNIST files are neither in XPNN_DATA nor in ../shared/data")
    return folder
