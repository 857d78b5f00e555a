"""Columns on CuPy: their view of the image on NumPy, where it is the same one; all of it on a GPU."""

from importlib import import_module
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest

import xpnn.backend
from xpnn import ops
from xpnn.random import Stream


class Memory(np.ndarray):
    """A NumPy array that knows its address, and hands it on, as CuPy's do."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data, of=self)


@pytest.fixture
def kernels(monkeypatch):
    """The module, on NumPy."""
    with fake_cupy.installed(gpus=1):
        module = import_module("xpnn_cupy.kernels")

        def ndarray(shape, dtype, data, strides):
            interface = {
                "shape": shape,
                "typestr": dtype.str,
                "data": (data.ptr, False),
                "strides": strides,
                "version": 3,
            }
            return np.asarray(SimpleNamespace(__array_interface__=interface, of=data.of)).view(Memory)

        stand_in = SimpleNamespace(ndarray=ndarray, ascontiguousarray=lambda x: np.ascontiguousarray(x).view(Memory))
        monkeypatch.setattr(module, "cupy", stand_in)
        yield module


GEOMETRIES = [
    {"kernel": 3}, {"kernel": (1, 2), "stride": (2, 1)}, {"kernel": (2, 3), "dilation": (3, 1)}, {"kernel": 1},
    {"kernel": 1, "stride": 2}, {"kernel": (4, 1), "stride": 3},
]  # fmt: skip


def images(dtype):
    """In all the ways in which pixels may lie, and with channels that words of 16 and 8 bytes divide or not."""
    for c in (1, 2, 3, 4, 8):
        x = Stream(0, "pixels", str(c)).normal((4, 8, 9, 2 * c)).astype(dtype)
        yield x[..., :c].copy()
        yield x[:, :-1, 1:, :c]
        yield x[..., 1 : c + 1]
        yield x[:, ::-1, ::-1, :c]
        yield x[..., ::2]
        yield x[:0, ..., :c]
        yield np.broadcast_to(x[:1, ..., :c], (4, 8, 9, c))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_columns_are_those_of_the_standard_body(kernels, geometry, dtype):
    for x in images(dtype):
        found = kernels.im2col(None, x.view(Memory), **geometry)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, ops.im2col(x, **geometry))


@pytest.mark.parametrize(("c", "offset", "size"), [(4, 0, 16), (2, 0, 8), (3, 0, 4), (4, 1, 4), (4, 2, 8)])
def test_words_lie_where_their_size_divides(kernels, c, offset, size):
    buffer = np.zeros(2 * 8 * 9 * 4 + 8, "float32")
    start = -buffer.ctypes.data % 16 // 4 + offset
    x = buffer[start : start + 2 * 8 * 9 * c].reshape(2, 8, 9, c)
    assert kernels._word(x.view(Memory)).itemsize == size


@pytest.mark.parametrize("index", ["int", "long long"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_sums_of_columns_on_the_gpu(geometry, index, monkeypatch):
    cls = xpnn.backend.find("cupy")
    if reason := cls.why_unavailable():
        pytest.skip(f"cupy: {reason}")
    backend, module = cls(), import_module("xpnn_cupy.kernels")
    gather_sums = module._gather_sums
    monkeypatch.setattr(module, "_gather_sums", lambda axes, _: gather_sums(axes, index))
    columns = ops.im2col(Stream(0, "pixels").normal((4, 8, 9, 3)).astype("float32"), **geometry)
    found = backend.ops.col2im(backend.asarray(columns), spatial=(8, 9), **geometry)
    np.testing.assert_array_equal(backend.to_numpy(found), ops.col2im(columns, spatial=(8, 9), **geometry))
