"""What cuBLAS is told of a product: on a GPU by cuBLAS itself, everywhere by a stand-in that reads what it is told."""

import ctypes
from importlib import import_module
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest

import xpnn.backend
from xpnn import ops
from xpnn.errors import BackendError
from xpnn.random import Stream

SIZES = [
    ((5, 7), (7, 3)), ((4, 6, 9), (4, 9, 2)), ((4, 6, 9), (1, 9, 2)), ((1, 6, 9), (4, 9, 2)), ((1, 8, 3), (1, 3, 4)),
    ((1, 7), (7, 3)), ((5, 7), (7, 1)), ((6, 1), (1, 5)), ((3, 1, 4), (3, 4, 1)),
]  # fmt: skip


class Memory(np.ndarray):
    """A NumPy array with the address where CuPy has it."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


def on_host(x):
    return np.ascontiguousarray(x).view(Memory)


class Cublas:
    """The functions that are called, on the memory of the host; `told` is what they were called with."""

    def __init__(self, status=0):
        self.status, self.told = status, []

    def __getattr__(self, name):
        return lambda *arguments: self.told.append(name) or 0

    def cublasCreate_v2(self, handle):
        self.told.append("cublasCreate_v2")
        handle._obj.value = 1
        return 0

    def cublasGemmEx(self, handle, ta, tb, m, n, k, one, a, at, lda, b, bt, ldb, zero, c, ct, ldc, compute, algorithm):
        return self.cublasGemmStridedBatchedEx(
            handle, ta, tb, m, n, k, one, a, at, lda, 0, b, bt, ldb, 0, zero, c, ct, ldc, 0, 1, compute, algorithm
        )

    def cublasGemmStridedBatchedEx(
        self, handle, ta, tb, m, n, k, one, a, at, lda, sa, b, bt, ldb, sb, zero, c, ct, ldc, sc, count, *_
    ):
        """By the manual: column-major matrices of leading dimension ld, the next one so many elements on."""
        self.told.append((m, n, k, count))
        (dtype,) = {name for name, code in (("f4", 0), ("f8", 1), ("f2", 2)) if at == bt == ct == code}

        def matrix(address, rows, columns, ld, stride, i):
            assert ld >= rows
            size = np.dtype(dtype).itemsize
            first = address.value + size * i * getattr(stride, "value", stride)
            buffer = (ctypes.c_char * (size * (ld * (columns - 1) + rows))).from_address(first)
            return np.ndarray((rows, columns), dtype, buffer, strides=(size, size * ld))

        for i in range(count):
            x = matrix(a, k, m, lda, sa, i).T if ta else matrix(a, m, k, lda, sa, i)
            y = matrix(b, n, k, ldb, sb, i).T if tb else matrix(b, k, n, ldb, sb, i)
            matrix(c, m, n, ldc, sc, i)[...] = x @ y
        return self.status


@pytest.fixture
def products(monkeypatch):
    """The module, on NumPy."""
    with fake_cupy.installed(gpus=1):
        module = import_module("xpnn_cupy.products")
        stand_in = SimpleNamespace(
            empty=lambda shape, dtype: np.full(shape, np.nan, dtype).view(Memory),
            ascontiguousarray=lambda x: cublas.told.append("copied") or on_host(x),
            cuda=SimpleNamespace(
                get_current_stream=lambda: stream,
                runtime=SimpleNamespace(getDevice=lambda: 0),
                Memory=lambda size: SimpleNamespace(ptr=0),
            ),
        )
        stream, cublas = Streams(), Cublas()
        monkeypatch.setattr(module, "cupy", stand_in)
        monkeypatch.setattr(module, "_library", lambda: cublas)
        module.cublas = cublas
        yield module


class Streams:
    ptr = 7


def layouts(shape):
    """Arrays of a shape as products meet them: rows together, transposed, cut out of others, spread, turned around."""
    x = Stream(0, "product", str(shape)).normal((*shape[:-2], *(2 * n for n in shape[-2:]))).astype("float32")
    rows, columns = shape[-2:]
    return {
        "plain": np.ascontiguousarray(x[..., :rows, :columns]),
        "transposed": np.ascontiguousarray(x[..., :rows, :columns].swapaxes(-1, -2)).swapaxes(-1, -2),
        "cut out": x[..., rows:, columns:],
        "cut out and transposed": x.swapaxes(-1, -2)[..., :columns, :rows].swapaxes(-1, -2),
        "every second": x[..., ::2, ::2],
        "backwards": x[..., rows - 1 :: -1, :columns],
        "one for all": np.broadcast_to(x[..., :1, :columns], shape),
        "the last first": np.ascontiguousarray(x[..., :rows, :columns])[::-1],
    }


@pytest.mark.parametrize(("a", "b"), SIZES)
def test_products_of_all_layouts(products, a, b):
    for left in layouts(a).values():
        for right in layouts(b).values():
            found = products.matmul(None, left.view(Memory), right.view(Memory))
            np.testing.assert_allclose(found, left.astype("f8") @ right, rtol=0, atol=1e-5)
    assert sum(isinstance(told, tuple) for told in products.cublas.told) == len(layouts(a)) * len(layouts(b))


@pytest.mark.parametrize("layout", ["plain", "transposed", "cut out", "cut out and transposed"])
def test_what_cublas_can_read_is_not_copied(products, layout):
    for shape in ((5, 7), (4, 6, 9)):
        x = layouts(shape)[layout].view(Memory)
        products.matmul(None, x, np.ones((*shape[:-2], shape[-1], 2), "f4").view(Memory))
    assert "copied" not in products.cublas.told


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("places", "parts"), [(1 << 16, 128), (3 << 15, 128), ((1 << 15) + 8, 8), ((1 << 15) + 1, 1), (1 << 14, 1)]
)
def test_long_products_of_few_results_are_cut(products, places, parts, ndim):
    """As they come: `dyᵀ @ columns`."""
    dy, columns = (Stream(0, name).normal((places, n)).astype("float32") for name, n in (("dy", 3), ("columns", 5)))
    leading = (None,) * (ndim - 2)
    found = products.matmul(ops.standard, on_host(dy).T[leading], on_host(columns)[leading])
    np.testing.assert_allclose(found, (dy.T.astype("f8") @ columns)[leading], rtol=1e-4, atol=1e-3, strict=False)
    assert found.shape == (1,) * (ndim - 2) + (3, 5)
    assert [told for told in products.cublas.told if isinstance(told, tuple)] == [(5, 3, places // parts, parts)]


def test_long_products_of_many_results_are_whole(products):
    a, b = (on_host(np.ones(shape, "float32")) for shape in ((300, 1 << 16), (1 << 16, 300)))
    np.testing.assert_array_equal(products.matmul(ops.standard, a, b), np.full((300, 300), 1 << 16))
    assert (300, 300, 1 << 16, 1) in products.cublas.told


def test_long_products_of_half_precision_are_whole(products):
    """Parts of the sum may be larger than float16 holds; cuBLAS adds in 32 bits."""
    a = on_host(np.ones((1, 1 << 16), "float16"))
    b = on_host(np.repeat(np.asarray([300, -300], "float16"), 1 << 15)[:, None])
    products.matmul(ops.standard, a, b)
    assert [told for told in products.cublas.told if isinstance(told, tuple)] == [(1, 1, 1 << 16, 1)]


def test_small_weights_are_turned_for_many_rows(products):
    rows, weights = on_host(np.ones((1 << 16, 5), "float32")), on_host(np.ones((3, 5), "float32"))
    np.testing.assert_array_equal(products.matmul(ops.standard, rows, weights.T), np.full((1 << 16, 3), 5))
    assert products.cublas.told.count("copied") == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("a", "b"), SIZES)
def test_products_on_the_gpu(dtype, a, b):
    cls = xpnn.backend.find("cupy")
    if reason := cls.why_unavailable():
        pytest.skip(f"cupy: {reason}")
    backend = cls()
    for left in layouts(a).values():
        for right in layouts(b).values():
            on_device = [backend.xp.asarray(x.astype(dtype)) for x in (left, right)]
            found = backend.to_numpy(backend.ops.matmul(*on_device))
            expected = left.astype(dtype).astype("f8") @ right.astype(dtype).astype("f8")
            atol = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-13}[dtype]
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_integers_and_empty_products_are_left_to_the_library(products):
    x = np.arange(6).reshape(2, 3).view(Memory)
    np.testing.assert_array_equal(products.matmul(None, x, x.T), x @ x.T)
    empty = products.matmul(None, np.ones((2, 0), "f4").view(Memory), np.ones((0, 3), "f4").view(Memory))
    np.testing.assert_array_equal(empty, np.zeros((2, 3)))
    assert products.cublas.told == []


def test_sizes_that_do_not_fit_are_refused(products):
    for a, b in (((2, 3), (4, 2)), ((2, 5, 3), (3, 3, 5))):
        with pytest.raises(ValueError, match=r"matmul|broadcast"):
            products.matmul(None, np.ones(a, "f4").view(Memory), np.ones(b, "f4").view(Memory))


def test_a_status_is_told(products):
    products.cublas.status = 13
    x = np.ones((2, 2), "f4").view(Memory)
    with pytest.raises(BackendError, match=r"cublasGemmEx of cuBLAS ended with status 13 \(cublasStatus_t\)"):
        products.matmul(None, x, x)


def test_one_handle_for_each_stream(products):
    x = np.ones((2, 2), "f4").view(Memory)
    for _ in range(3):
        products.matmul(None, x, x)
    assert products.cublas.told.count("cublasCreate_v2") == 1
    assert "cublasSetWorkspace_v2" in products.cublas.told
    others = [Streams()]
    products.cupy.cuda.get_current_stream = lambda: others[0]
    products.matmul(None, x, x)
    assert products.cublas.told.count("cublasCreate_v2") == 2
    others.clear()  # a handle goes with its stream
    assert products.cublas.told.count("cublasDestroy_v2") == 1
