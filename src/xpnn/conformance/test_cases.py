"""Every case: what holds for all ops and layers on any backend."""

import numpy as np
import pytest

from xpnn import parity
from xpnn.conformance.harness import Variant, check
from xpnn.errors import ShapeError
from xpnn.ops import Ops
from xpnn.parity import CASES, LOSSES, OPS, PARTS, Placed

SMOOTH = [case for case in CASES if case.smooth and case.subject not in PARTS]
BATCHED = [case for case in CASES if case.batched]
MANY = [case for case in BATCHED if case.per_sample and (d := case.data[case.batched[0]]) and d.shape[0] > 1]
CONVOLUTIONS = [case for case in OPS if case.subject in ("conv", "conv_transpose")]
IN_PADDING = [case for case in CONVOLUTIONS if case.options.get("padding") == 3]  # some blocks see nothing else

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.cases(CASES)
def test_results(case, variant, dtype):
    check(case, Placed(case, variant.backend, dtype).results(), dtype)


@pytest.mark.cases(CASES, where=Variant.replaces)
def test_standard_body_where_there_is_a_kernel(case, variant, dtype):
    """`test_results` ran the kernel; here the body that it stands in for."""
    check(case, Placed(case, variant.backend, dtype, ops=Ops({}, variant.backend.column_bytes)).results(), dtype)


@pytest.mark.eager
@pytest.mark.cases(CASES, dtype="float32")
def test_contract(case, variant, dtype):
    """One gradient for each array; nothing is written to; both calls may be repeated."""
    placed = Placed(case, variant.backend, dtype)
    dy, given = placed.dy, list(placed.arrays.values())

    def values(arrays):
        return [None if a is None else placed.backend.to_numpy(a).copy() for a in arrays]

    before = values([*given, dy])
    outputs, backward = case.call(placed.ops, dict(placed.arrays))
    made = values(outputs.values())
    gradients = backward(dy)
    first = values(gradients)
    for a, gradient in zip(given, gradients, strict=True):
        if a is None or a.dtype != dy.dtype:
            assert gradient is None
        elif gradient is not None:
            assert tuple(gradient.shape) == tuple(a.shape)
    assert_same(values(backward(dy)), first)
    if case.subject in LOSSES:
        assert_same(values(backward(float(before[-1]))), first)
    else:
        assert_same(values(backward(dy, input_gradient=False)), [None, *first[1:]])
    assert_same(values(case.call(placed.ops, dict(placed.arrays))[0].values()), made)
    assert_same(values([*given, dy]), before)
    assert_same(values(outputs.values()), made)
    assert_same(values(gradients), first)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.eager
@pytest.mark.cases(OPS, dtype="float32")
def test_layout_in_memory_does_not_matter(case, variant, dtype):
    def every_second(xp, a):
        return xp.stack([a, a], axis=-1)[..., 0]

    def axes_reversed(xp, a):
        axes = tuple(reversed(range(a.ndim)))
        return xp.permute_dims(xp.asarray(xp.permute_dims(a, axes), copy=True), axes)

    for layout in (every_second, axes_reversed):
        check(case, Placed(case, variant.backend, dtype, layout=layout).results(), dtype)


@pytest.mark.eager
@pytest.mark.cases(MANY, dtype="float32")
def test_samples_are_independent(case, variant, dtype):
    """In two pieces: results of samples beside each other, those of all of them added up."""
    first, rest = (Placed(case, variant.backend, dtype, samples=cut).results() for cut in (slice(1), slice(1, None)))
    joined = {}
    for name, a in first.items():
        if name in case.data:  # running statistics
            joined[name] = a
        elif a.ndim and (name == "y" or name[1:] in case.batched):
            joined[name] = np.concatenate([a, rest[name]])
        else:
            joined[name] = a + rest[name]
    check(case, joined, dtype)


@pytest.mark.eager
@pytest.mark.cases(BATCHED, dtype="float32")
def test_empty_batch(case, variant, dtype):
    placed = Placed(case, variant.backend, dtype, samples=slice(0))
    if case.subject in LOSSES or not case.per_sample:
        with pytest.raises(ShapeError, match=r"empty|at least 2"):
            placed.results()
        return
    for name, a in placed.results().items():
        if name == "y" or name[1:] in case.batched:
            assert a.shape == (0, *parity.expected(case).values[name].shape[1:]), name
        elif name not in case.data:
            assert a.shape == case.arrays()[name[1:]].shape, name
            assert not a.any(), name


@pytest.mark.eager
@pytest.mark.parametrize("column_bytes", [1, 500])  # a line of an image at a time; images, one or several
@pytest.mark.cases([*CONVOLUTIONS[::3], *IN_PADDING], dtype="float32")
def test_blocks_of_columns(case, variant, dtype, column_bytes):
    check(case, Placed(case, variant.backend, dtype, ops=Ops(variant.backend.kernels, column_bytes)).results(), dtype)
