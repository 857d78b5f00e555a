"""Runs the suite on each backend that `--backend` chooses, as it is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from pytest_xpnn import chosen
from xpnn import backend as backends
from xpnn.backend import Backend
from xpnn.conformance.harness import Variant, add_markers, parametrize


def pytest_configure(config: pytest.Config) -> None:
    add_markers(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        parametrize(metafunc, map(variant_of, chosen(metafunc.config)))


@cache
def variant_of(name: str) -> Variant:
    return Variant(name, name, backends.find(name))


@pytest.fixture
def backend(variant: Variant) -> Iterator[Backend]:
    with variant.active() as active:
        yield active
