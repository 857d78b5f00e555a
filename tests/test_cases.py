"""Every case on every backend: what holds for all ops and layers."""

import numpy as np
import pytest
from harness import Placed, judge

from xpnn import parity
from xpnn.errors import ShapeError
from xpnn.ops import Ops
from xpnn.parity import CASES, LOSSES, SUMS

pytestmark = pytest.mark.usefixtures("backend")

BACKWARD = [case for case in CASES if case.subject not in SUMS]
SAMPLES = [case for case in CASES if case.batched]


def test_every_op_and_layer_has_cases():
    assert parity.missing() == []
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.cases(CASES)
def test_results(case, variant, dtype):
    placed = Placed(case, variant, dtype)
    found = placed.results()
    assert found.keys() == parity.expected(case).values.keys()
    judge(case, found, dtype)


@pytest.mark.cases([case for case in BACKWARD if case.smooth], dtype="float64")
def test_gradients_are_those_of_the_results(case, variant, dtype):
    """By central differences, each array along a random direction."""
    placed, step = Placed(case, variant, dtype), 1e-6
    found = placed.results()
    for name, a in placed.host.items():
        if f"d{name}" not in found:
            continue
        direction = np.random.default_rng(7).normal(size=a.shape)
        up, down = (np.sum(placed.results(**{name: a + h * direction})["y"] * placed.host_dy) for h in (step, -step))
        slopes = found[f"d{name}"] * direction
        error = abs((up - down) / (2 * step) - np.sum(slopes)) / max(np.sum(np.abs(slopes)), 1e-3)
        assert error <= 1e-6, f"d{name} is off by {error:.3g}"


@pytest.mark.eager
@pytest.mark.cases(CASES, dtype="float32")
def test_contract(case, variant, dtype):
    """One gradient for each array; nothing written to; backward may be called again, and without input gradient."""
    placed = Placed(case, variant, dtype)
    to_numpy, dy = placed.backend.to_numpy, placed.dy

    def values(arrays):
        return [None if a is None else to_numpy(a).copy() for a in arrays]

    before = values([*placed.arrays.values(), dy])
    outputs, backward = case.call(placed.ops, dict(placed.arrays))
    made = values(outputs.values())
    gradients = backward(dy)
    first = values(gradients)
    again = values(backward(dy))
    assert len(gradients) == len(placed.arrays)
    for name, gradient, a in zip(placed.arrays, gradients, placed.arrays.values(), strict=True):
        if a is None or a.dtype != dy.dtype:
            assert gradient is None, name
        elif gradient is not None:
            assert tuple(gradient.shape) == tuple(a.shape), name
    assert_same(first, again)
    if case.subject in LOSSES:
        assert_same(values(backward(float(before[-1]))), first)
    else:
        assert_same(values(backward(dy, input_gradient=False)), [None, *first[1:]])
    assert_same(values([*placed.arrays.values(), dy]), before)
    assert_same(values(outputs.values()), made)
    assert_same(values(gradients), first)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.eager
@pytest.mark.cases(CASES, dtype="float32")
def test_layout_in_memory_does_not_matter(case, variant, dtype):
    def every_second(xp, a):
        return xp.stack([a, a], axis=-1)[..., 0]

    def reversed_axes(xp, a):
        axes = tuple(reversed(range(a.ndim)))
        return xp.permute_dims(xp.asarray(xp.permute_dims(a, axes), copy=True), axes)

    for layout in (every_second, reversed_axes):
        judge(case, Placed(case, variant, dtype, layout=layout).results(), dtype)


@pytest.mark.eager
@pytest.mark.cases([case for case in SAMPLES if case.per_sample and case.data[case.batched[0]].shape[0] > 1], dtype="float32")
def test_samples_are_independent(case, variant, dtype):
    """In two pieces: samples beside each other, what is shared by all of them added up."""
    parts = [Placed(case, variant, dtype, samples=cut).results() for cut in (slice(1), slice(1, None))]
    joined = {}
    for name, a in parts[0].items():
        beside = a.ndim and (name == "y" or name[1:] in case.batched)
        kept = name in case.data  # running statistics
        joined[name] = a if kept else np.concatenate([p[name] for p in parts]) if beside else a + parts[1][name]
    judge(case, joined, dtype)


@pytest.mark.eager
@pytest.mark.cases(SAMPLES, dtype="float32")
def test_empty_batch(case, variant, dtype):
    placed = Placed(case, variant, dtype, samples=slice(0))
    if case.subject in LOSSES or not case.per_sample:
        with pytest.raises(ShapeError, match=r"empty|at least 2"):
            placed.results()
        return
    for name, a in placed.results().items():
        if name[1:] in case.data and name[1:] not in case.batched:
            assert a.shape == placed.host[name[1:]].shape
            assert not a.any(), name
        else:
            assert a.shape == (0, *parity.expected(case).values[name].shape[1:]), name


@pytest.mark.eager
@pytest.mark.parametrize("column_bytes", [1, 150, 1000])
@pytest.mark.cases([case for case in CASES if case.subject in ("conv", "conv_transpose")], dtype="float32")
def test_blocks_of_columns(case, variant, dtype, column_bytes):
    """Lines of an image, whole images, several images at a time."""
    kernels = variant.backend.kernels if variant.backend.ops.replaced else {}
    judge(case, Placed(case, variant, dtype, ops=Ops(kernels, column_bytes)).results(), dtype)


@pytest.mark.cases(CASES, replaced=True)
def test_standard_body_behind_a_kernel(case, variant, dtype):
    """`test_results` ran the kernel; here the body that it stands in for."""
    judge(case, Placed(case, variant, dtype, ops=Ops({}, variant.backend.column_bytes)).results(), dtype)
