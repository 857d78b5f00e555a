"""The two doors between host and device, and what a backend says of itself."""

import json
from typing import Any

import numpy as np
import pytest

from xpnn.errors import BackendError, MixedBackendsError, ShapeError
from xpnn.ops._array import device, namespace


def need(backend, dtype):
    if not backend.supports(dtype):
        pytest.skip(f"{backend} has no {dtype}")


def values(shape, dtype):
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return (x % 2 == 1) if dtype == "bool" else x.astype(dtype)


def same(backend, x, expected):
    """`x` is an array of `backend`, on its device, with the shape, dtype and values of `expected`."""
    assert backend.owns(x)
    assert namespace("test", x=x) is backend.xp
    assert device(x) == backend.device
    assert tuple(x.shape) == expected.shape
    back = backend.to_numpy(x)
    assert type(back) is np.ndarray
    assert back.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "int64", "uint8", "bool", "complex64"])
def test_round_trip(backend, dtype):
    need(backend, dtype)
    for shape in [(), (1,), (0,), (0, 3), (2, 3, 4)]:
        x = values(shape, dtype)
        same(backend, backend.asarray(x), x)
        same(backend, backend.asarray(x, copy=True), x)


LAYOUTS: dict[str, Any] = {
    "strided": lambda x: x[::2, 1::2],
    "reversed": lambda x: x[::-1, ::-1],
    "transposed": lambda x: x.T,
    "Fortran": np.asfortranarray,
    "read-only": lambda x: np.broadcast_to(x[0], x.shape),
    "big-endian": lambda x: x.astype(">f4"),
    "little-endian": lambda x: x.astype("<f4"),
    "NumPy scalar": lambda x: x[1, 2],
    "matrix": np.matrix,
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_host(backend, layout):
    x = LAYOUTS[layout](values((4, 6), "float32"))
    for dtype in (None, "float32", "int32"):
        expected = np.asarray(x).astype(dtype or "float32")
        same(backend, backend.asarray(x, dtype), expected)
        same(backend, backend.asarray(x, dtype, copy=True), expected)


def test_lists_and_numbers(backend):
    for x in ([1, 2, 3], ((1, 2), (3, 4)), [], 2.5, 3, True, [[np.float32(1), np.ones(())]]):
        same(backend, backend.asarray(x, "float32"), np.asarray(x, "float32"))


def test_cast(backend):
    x = np.asarray([0.0, 1.0, 2.9])
    on_device = backend.asarray(x, "float32")
    for dtype in ("float32", "int32", "bool"):
        same(backend, backend.asarray(x, dtype), x.astype(dtype))
        same(backend, backend.asarray(on_device, dtype), x.astype(dtype))


def test_copy_of_a_host_array_is_not_seen_through(backend):
    x = np.zeros(64, dtype="float32")
    y = backend.asarray(x, copy=True)
    x[...] = 1
    assert not backend.to_numpy(y).any()


def test_copy_of_a_read_only_array_may_be_written(backend):
    x = backend.asarray(np.broadcast_to(np.float32(0), (3,)), copy=True)
    write(x)
    assert backend.to_numpy(x)[0] == 1


def test_copy_of_a_device_array_is_another_one(backend):
    x = backend.asarray(np.zeros(3, dtype="float32"), copy=True)
    y = backend.asarray(x, copy=True)
    same(backend, y, np.zeros(3, dtype="float32"))
    write(x)
    assert backend.to_numpy(y)[0] == 0


def write(x):
    try:
        x[0] = 1.0
    except (TypeError, ValueError):
        pytest.skip("its arrays are immutable")


def test_missing_dtype_is_an_error_with_the_remedy(backend):
    if backend.supports("float64"):
        pytest.skip("it has them all")
    for x in (np.ones(3), backend.asarray([1.0], "float32")):
        with pytest.raises(BackendError, match=rf"{backend.name} on .* has no dtype 'float64'.*float32"):
            backend.asarray(x, "float64")
    for x in (np.ones(3), [1.5], 0.5):
        with pytest.raises(BackendError, match="has no dtype 'float64'"):
            backend.asarray(x)
    same(backend, backend.asarray(np.ones(3), "float32"), np.ones(3, "float32"))


def test_dtypes_that_no_device_has(backend):
    for x in (np.asarray(["a"]), np.asarray([None]), np.ones(2, np.longdouble)):
        with pytest.raises(BackendError, match=r"has no dtype '.*'; ask for one of these with dtype=…: .*float32"):
            backend.asarray(x)
    with pytest.raises(MixedBackendsError, match=r"a list with a builtins\.str in it"):
        backend.asarray(["cat"])


def test_unknown_dtype(backend):
    for dtype in ("float23", "asarray", "float128"):
        for x in (np.ones(3, "float32"), backend.asarray([1.0], "float32")):
            with pytest.raises(BackendError, match=f"has no dtype '{dtype}'"):
                backend.asarray(x, dtype)


def test_ragged_lists(backend):
    with pytest.raises(ShapeError, match=r"make no array.*inhomogeneous"):
        backend.asarray([[1, 2], [3]])


def test_no_array_at_all(backend):
    for x in (None, "images", {"a": 1}, {1, 2}, object()):
        assert not backend.owns(x)
        for door in (backend.asarray, backend.to_numpy):
            with pytest.raises(ShapeError, match=r"which is no array.*np\.asarray"):
                door(x)


def test_arrays_of_this_backend_are_not_hidden_in_lists(backend):
    if backend.owns(np.ones(1)):
        pytest.skip("lists may hold NumPy arrays")
    with pytest.raises(MixedBackendsError, match="lists may hold numbers and NumPy arrays"):
        backend.asarray([backend.asarray([1.0], "float32")])


def test_owns(backend):
    assert backend.owns(backend.asarray([1.0], "float32"))
    assert not backend.owns(1.0)
    assert not backend.owns([1.0])
    for x in (np.ones(2), np.float32(1), np.bool_(True)):
        assert backend.owns(x) == isinstance(backend.asarray([1.0], "float32"), np.ndarray)


def test_supports_what_the_namespace_says(backend):
    info = backend.xp.__array_namespace_info__()
    for dtype in ("float32", "float64", "int32", "int64", "uint64", "bool", "complex128"):
        assert backend.supports(dtype) == (dtype in info.dtypes(device=backend.device)), dtype


def test_synchronize(backend):
    x = backend.asarray(np.ones((4, 4)), "float32")
    y = backend.ops.matmul(x, x)
    backend.synchronize()
    assert backend.to_numpy(y).sum() == 64


def test_describe(backend):
    described = backend.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["name"] == backend.name
    assert described["numpy"] == np.__version__
    assert described["kernels"] == list(backend.ops.replaced)


def test_repr(backend):
    assert backend.name in repr(backend)


class Foreign:
    """An array of a library that no backend knows."""

    def __array_namespace__(self, api_version=None):
        return json


def test_foreign_arrays_are_refused(backend):
    assert not backend.owns(Foreign())
    for door in (backend.asarray, backend.to_numpy):
        with pytest.raises(MixedBackendsError, match=r"nothing is moved silently.*to_numpy.* of the backend"):
            door(Foreign())
