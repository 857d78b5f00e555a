"""What is particular to array_api_strict: the version of the standard, and devices that are not the host."""

import numpy as np
import pytest

import xpnn.backend
from xpnn.errors import BackendError

strict = pytest.importorskip("array_api_strict")


@pytest.fixture
def flags():
    before = strict.get_array_api_strict_flags()
    yield strict.set_array_api_strict_flags
    strict.set_array_api_strict_flags(**before)


@pytest.mark.parametrize("version", ["2022.12", "2024.12", "2025.12"])
def test_pins_the_version_and_nothing_else(flags, version):
    flags(api_version=version, boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=["linalg"])
    backend = xpnn.backend.get("strict")
    assert strict.get_array_api_strict_flags() == {
        "api_version": "2024.12",
        "boolean_indexing": False,
        "data_dependent_shapes": False,
        "enabled_extensions": ("linalg",),
    }
    assert backend.xp.__array_api_version__ == backend.describe()["standard"] == "2024.12"


def test_importing_pins_nothing(flags):
    flags(api_version="2022.12")
    assert xpnn.backend.find("strict").why_unavailable() is None
    assert strict.get_array_api_strict_flags()["api_version"] == "2022.12"


@pytest.mark.parametrize("device", [None, "CPU_DEVICE", "device1", "device2", "no_float64"])
def test_devices(device):
    backend = xpnn.backend.get("strict", device)
    assert backend.device == strict.Device(device or "CPU_DEVICE")
    assert backend.describe()["device"] == (device or "CPU_DEVICE")
    assert backend.asarray([1.0], "float32").device == backend.device


def test_unknown_device():
    with pytest.raises(BackendError, match=r"no device 'cuda'; it has .*device1.*no_float64"):
        xpnn.backend.get("strict", "cuda")


def test_float64_only_where_there_is_one():
    assert xpnn.backend.get("strict", "device1").supports("float64")
    assert not xpnn.backend.get("strict", "no_float64").supports("float64")


def test_brings_its_arrays_from_one_device_to_another():
    here, there = (xpnn.backend.get("strict", d) for d in ("device1", "device2"))
    x = here.asarray([1.0, 2.0], "float32")
    assert there.asarray(x).device == there.device
    np.testing.assert_array_equal(there.to_numpy(x), [1, 2])
