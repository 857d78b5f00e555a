"""What the ops of a backend say of arrays that do not fit: kernels refuse what the standard bodies refuse."""

from typing import Any

import numpy as np
import pytest

from xpnn.backend import Backend
from xpnn.errors import BackendError, MixedBackendsError, ShapeError

IMAGES, KERNEL, ROWS = (2, 6, 6, 3), (4, 3, 3, 3), (2, 3)
Row = tuple[str, list[Any], dict[str, Any], str]
BAD: dict[str, Row] = {  # op, arrays by shape or by shape and dtype, options, what is said
    "conv channels": ("conv", [IMAGES, (4, 3, 3, 2)], {}, r"conv: x has 3 channels"),
    "conv bias": ("conv", [IMAGES, KERNEL, (1,)], {}, r"bias has shape \(1,\); expected \(4,\)"),
    "conv too large": ("conv", [IMAGES, (4, 7, 3, 3)], {}, r"is larger than its input"),
    "conv dtypes": ("conv", [IMAGES, (KERNEL, "int32")], {}, r"x has dtype .*float32.*, but weight has .*int32"),
    "conv integers": ("conv", [(IMAGES, "int32"), KERNEL], {}, r"layers compute in floating point"),
    "conv stride": ("conv", [IMAGES, KERNEL], {"stride": 0}, r"stride=0; expected an integer"),
    "conv_relu channels": ("conv_relu", [IMAGES, (4, 3, 3, 2)], {}, r"conv_relu: x has 3 channels"),
    "conv_relu shortcut": (
        "conv_relu",
        [IMAGES, KERNEL, (4,), (2, 4, 3, 4)],
        {},
        r"the shortcut has shape \(2, 4, 3, 4\); expected that of the responses, \(2, 4, 4, 4\)",
    ),
    "conv_pool channels": ("conv_pool", [IMAGES, (4, 3, 3, 2), (4,)], {"pool": 2}, r"x has 3 channels"),
    "conv_avg_pool channels": (
        "conv_avg_pool",
        [IMAGES, (4, 3, 3, 2), (4,)],
        {"pool": 2, "activation": "tanh"},
        r"x has 3 channels",
    ),
    "conv_transpose channels": ("conv_transpose", [IMAGES, (4, 2, 2, 2)], {}, r"x has 3 channels"),
    "dense features": ("dense", [ROWS, (4, 5)], {}, r"dense: x has 3 channels"),
    "max_pool too large": ("max_pool", [IMAGES], {"window": 7}, r"is larger than its input"),
    "avg_pool window": ("avg_pool", [IMAGES], {"window": 0}, r"window=0; expected an integer"),
    "batch_norm": ("batch_norm", [IMAGES, *[(2,)] * 4], {"training": True}, r"batch_norm: x has 3 channels"),
    "add shapes": ("add", [ROWS, (3,)], {}, r"add: a has shape \(2, 3\), but b \(3,\); expected the same"),
    "relu integers": ("relu", [(ROWS, "int32")], {}, r"layers compute in floating point"),
    "cross-entropy labels": ("softmax_cross_entropy", [ROWS, ((3,), "int32")], {}, r"labels"),
    "mse shapes": ("mse", [ROWS, (2, 4)], {}, r"target"),
}


@pytest.mark.eager
@pytest.mark.parametrize("name", BAD)
def test_arrays_that_do_not_fit(variant, backend, name):
    op, arrays, options, message = BAD[name]
    shapes = [a if isinstance(a[0], tuple) else (a, "float32") for a in arrays]
    given = [backend.asarray(np.ones(shape, dtype)) for shape, dtype in shapes]
    with pytest.raises(ShapeError, match=message):
        getattr(backend.ops, op)(*given, **options)


@pytest.mark.eager
def test_arrays_of_two_libraries(variant, backend):
    x, weight = np.ones(ROWS, "float32"), np.ones((4, 3), "float32")
    if backend.owns(x):
        pytest.skip("it computes with NumPy's arrays")
    with pytest.raises(MixedBackendsError, match="nothing is moved silently"):
        backend.ops.dense(backend.asarray(x), weight)


def test_it_is_found_by_its_name(backend):
    assert isinstance(backend, Backend)
    assert type(backend).why_unavailable() is None


def test_an_unknown_device(backend):
    with pytest.raises(BackendError, match="no-such-device"):
        type(backend)("no-such-device")
