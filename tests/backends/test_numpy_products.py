"""Products in runs of rows: the same numbers however they are cut, and none that keeps other threads waiting."""

import numpy as np
import pytest
from xpnn_numpy.kernels import _products
from xpnn_numpy.kernels._products import LOCKED, LONG, multiply, multiply_across


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(params=[0, 4000, 1_000_000])
def small(request, monkeypatch):
    """Of a BLAS without kernels for small products, and of two with them."""
    monkeypatch.setattr(_products, "small_product", lambda: request.param)
    return request.param


@pytest.mark.parametrize("columns", ["rows", "taps first"])
@pytest.mark.parametrize("rows", [1, 31, 111, 1024, 5003])
def test_however_the_rows_are_cut_each_is_multiplied(small, rows, columns):
    a = numbers(rows, 9) if columns == "rows" else numbers(9, rows).T
    b = numbers(6, 9, seed=1).T
    out = np.full((rows, 6), np.nan, np.float32)
    assert multiply(a, b, out) is out
    np.testing.assert_allclose(out, a.astype(float) @ b.astype(float), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 111, 5003])
def test_each_of_a_stack_is_multiplied(small, rows):
    a, b = numbers(rows, 5), numbers(4, 5, 7, seed=1)
    out = multiply(a, b, np.full((4, rows, 7), np.nan, np.float32))
    np.testing.assert_allclose(out, a.astype(float) @ b.astype(float), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 111, 4096, 5003])
def test_stacks_of_both(small, rows):
    a, b, dy = numbers(2, 4, rows, 5), numbers(4, 5, 7, seed=1), numbers(2, 4, rows, 7, seed=2)
    out = multiply(a, b, np.full((2, 4, rows, 7), np.nan, np.float32))
    np.testing.assert_allclose(out, a.astype(float) @ b.astype(float), rtol=1e-4, atol=1e-5)
    product = multiply_across(a, dy)
    np.testing.assert_allclose(product, a.astype(float).swapaxes(2, 3) @ dy.astype(float), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(5, 200, 70), (16, 130, 301), (33, 200, 70), (200, 20, 41)])
def test_however_a_wide_matrix_is_cut_all_of_it_is_multiplied_by(small, rows, inner, columns, transposed):
    a, b = numbers(2, rows, inner), numbers(inner, columns, seed=1)
    b = np.ascontiguousarray(b.T).T if transposed else b
    out = multiply(a, b, np.full((2, rows, columns), np.nan, np.float32))
    np.testing.assert_allclose(out, a.astype(float) @ b.astype(float), rtol=1e-4, atol=1e-4)
    product = multiply_across(a, np.copy(out))
    np.testing.assert_allclose(product, a.astype(float).swapaxes(1, 2) @ out.astype(float), rtol=1e-4, atol=1e-2)


def products(monkeypatch):
    """The sizes `(rows, inner, columns)` of all products from here on."""
    sizes, matmul = [], np.matmul

    def watched(a, b, out=None):
        sizes.append((*a.shape[-2:], b.shape[-1]))
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", watched)
    return sizes


@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(16, 1600, 128), (32, 784, 300), (128, 1600, 128), (256, 576, 64)]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_each_product_is_one_that_openblas_takes_for_small(monkeypatch, rows, inner, columns, transposed):
    """Its condition: at most a million multiply-adds, and at most 1200 numbers from a transposed factor."""
    monkeypatch.setattr(_products, "small_product", lambda: 1_000_000)
    b = numbers(columns, inner).T if transposed else numbers(inner, columns)
    sizes = products(monkeypatch)
    multiply(numbers(rows, inner), b, np.empty((rows, columns), np.float32))
    for m, k, n in sizes:
        assert m * k * n <= 1_000_000
        assert not transposed or m * n <= 1200


def test_the_gradient_of_weights_of_few_samples_is_of_small_products(monkeypatch):
    monkeypatch.setattr(_products, "small_product", lambda: 1_000_000)
    sizes = products(monkeypatch)
    multiply_across(numbers(16, 128), numbers(16, 1600))
    assert sizes == [(32, 16, 1600)]


def test_a_sum_over_many_rows_is_of_small_products_too(monkeypatch):
    """In runs of rows so long that adding them up takes no time, each of which makes a part of the columns."""
    monkeypatch.setattr(_products, "small_product", lambda: 1_000_000)
    sizes = products(monkeypatch)
    multiply_across(numbers(800, 288), numbers(800, 64))
    assert sizes == [(36, 400, 64)]


def test_runs_a_little_shorter_leave_no_rows_over():
    assert _products._length(128, 39) == 32
    assert _products._length(1600, 488) == 400
    assert _products._length(127, 39) == 32  # whatever is done, some are left: as many as there are in a run, nearly
    assert _products._length(100, 7) == 4


def test_a_few_more_runs_leave_no_rows_over():
    assert _products._fewest(2700, 520) == 6
    assert _products._fewest(2701, 520) == 6
    assert _products._fewest(1000, 150) == 8  # seven would leave six rows
    assert _products._fewest(0, 100) == _products._fewest(50, 100) == 1


@pytest.mark.parametrize("columns", ["rows", "taps first"])
@pytest.mark.parametrize("rows", [0, 1, 31, 111, 1024, 5003])
def test_a_sum_over_rows_takes_in_each_of_them(small, rows, columns):
    a = numbers(rows, 9) if columns == "rows" else numbers(9, rows).T
    b = numbers(rows, 6, seed=1)
    product = multiply_across(a, b)
    assert (product.shape, product.dtype) == ((9, 6), np.float32)
    np.testing.assert_allclose(product, a.astype(float).T @ b.astype(float), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("columns", "channels"), [(9, 16), (1, 1), (25, 6), (22, 22), (25, 20)])
def test_no_long_product_makes_so_few_numbers_that_the_lock_is_kept(small, monkeypatch, columns, channels):
    """NumPy lets others go on where a product makes more than `LOCKED` numbers, however many it adds up."""
    sizes, matmul = [], np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out=None: sizes.append(y := matmul(a, b, out=out)) or y)
    rows = max(50_000, LONG // (columns * channels))
    multiply_across(numbers(rows, columns), numbers(rows, channels))
    assert sizes[0].size > LOCKED


@pytest.mark.parametrize("small", [0, 1_000_000], indirect=True)
@pytest.mark.parametrize("rows", [2 * _products.LEAST_ADDED, 676])
def test_a_short_product_is_one_call(small, rows):
    """That of one image of 28 × 28 would take twice as long in runs, and nobody waits for it."""
    a, b = numbers(rows, 9), numbers(rows, 16)
    np.testing.assert_array_equal(multiply_across(a, b), a.T @ b)


def test_a_few_rows_are_no_stack(small):
    """With a call of BLAS's for each row or two a product would take far longer."""
    assert _products._runs(numbers(70, 3), 2, 35).shape == (2, 35, 3)
    a, b = numbers(2 * _products.LEAST_ADDED - 1, 3), numbers(2 * _products.LEAST_ADDED - 1, 4)
    np.testing.assert_array_equal(multiply_across(a, b), a.T @ b)
