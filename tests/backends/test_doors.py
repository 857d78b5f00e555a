"""The two doors between host and device, on every backend and device that can be used here."""

from contextlib import ExitStack

import fake_cupy
import numpy as np
import pytest

import xpnn.backend
from xpnn.conformance.test_doors import *  # noqa: F403
from xpnn.conformance.test_doors import same, values
from xpnn.errors import MixedBackendsError

WHERE = [
    "numpy", "strict", "strict:device1", "strict:device2", "strict:no_float64", "torch", "jax", "jax-x64", "cupy",
    "fake-cupy:1",
]  # fmt: skip


@pytest.fixture
def make():
    """Makes the backend of an entry of WHERE; what that changes in the process is undone after the test."""
    with ExitStack() as undo:
        made = {}

        def make(where):
            name, _, device = where.partition(":")
            if where in made:
                return made[where]
            if name == "fake-cupy":
                undo.enter_context(fake_cupy.installed())
                name = "cupy"
            name, _, x64 = name.partition("-")
            if reason := xpnn.backend.find(name).why_unavailable():
                pytest.skip(f"{name}: {reason}")
            if name == "jax":
                import jax

                undo.callback(jax.config.update, "jax_enable_x64", jax.config.jax_enable_x64)
                jax.config.update("jax_enable_x64", bool(x64))
            made[where] = xpnn.backend.get(name, device or None)
            return made[where]

        yield make


@pytest.fixture(params=WHERE)
def backend(request, make):
    return make(request.param)


@pytest.fixture(params=WHERE)
def other(request, make):
    return make(request.param)


@pytest.mark.parametrize("order", ["C", "F"])
def test_copies_are_contiguous(order):
    x = np.asarray(values((3, 4), "float32"), order=order)
    assert xpnn.backend.get("numpy").asarray(x.T[::2], copy=True).flags.c_contiguous


def test_numpy_array_passes_through():
    x = np.ones(3)
    assert xpnn.backend.get("numpy").asarray(x) is x
    assert xpnn.backend.get("numpy").to_numpy(x) is x


def test_arrays_of_another_backend(backend, other):
    x = other.asarray(np.ones(3, dtype="float32"))
    of_one_library = backend.xp is other.xp  # the stand-in and the CuPy that it stands for are two
    assert backend.owns(x) == of_one_library
    if of_one_library:  # of another device, or of another setting: brought here
        same(backend, backend.asarray(x), np.ones(3, "float32"))
        return
    with pytest.raises(MixedBackendsError, match=r"was handed a .*to_numpy.* of the backend it belongs to"):
        backend.to_numpy(x)
    if other.name != "numpy":
        with pytest.raises(MixedBackendsError, match="nothing is moved silently"):
            backend.asarray(x)
        for nested in ([x], [1, [x]], (x,)):
            with pytest.raises(MixedBackendsError, match="lists may hold numbers and NumPy arrays"):
                backend.asarray(nested)


def test_describes_its_library(backend):
    described = backend.describe()
    assert described["device"] in str(backend.device) or described["device"].endswith(str(backend.device.id))
    library = {"strict": "array_api_strict"}.get(backend.name, backend.name)
    assert described[library] == __import__(library).__version__


def test_copy_of_an_immutable_array_is_another_one(make):
    backend = make("jax")
    x = backend.asarray(np.zeros(3, dtype="float32"), copy=True)
    y = backend.asarray(x, copy=True)
    same(backend, y, np.zeros(3, dtype="float32"))
    assert y.unsafe_buffer_pointer() != x.unsafe_buffer_pointer()
