from pathlib import Path
from typing import Any

import pytest

X64 = {"test_float64_is_computed_in_float64", "test_twenty_steps_twice_are_equal_bit_for_bit"}
"""The tests of this folder that run with 64 bits on in JAX, where every step is compiled once more."""

EXECUTORS: dict[Any, Any] = {}


def pytest_collection_modifyitems(config, items):
    def dropped(item):
        variant = getattr(getattr(item, "callspec", None), "params", {}).get("variant")
        here = Path(__file__).parent in item.path.parents
        return here and getattr(variant, "x64", False) and item.originalname not in X64

    config.hook.pytest_deselected(items=[item for item in items if dropped(item)])
    items[:] = [item for item in items if not dropped(item)]


@pytest.fixture
def backend(backend, variant, monkeypatch):
    """The backend; where steps are compiled, trainers of one model, loss and optimizer share them."""
    if variant.traced:
        make = backend.executor

        def shared(*args):
            key = (variant.name, *args)
            if key not in EXECUTORS:
                EXECUTORS[key] = make(*args)
            return EXECUTORS[key]

        monkeypatch.setattr(backend, "executor", shared)
    return backend
