"""What an op keeps for its backward: a network's memory is made of that."""

import platform
import subprocess
import sys
import tracemalloc
import weakref

import numpy as np
import pytest

from xpnn import backend as backends

KIB = 1 << 10


@pytest.fixture(params=["plain", ""], ids=["plain", "as installed"])
def ops(request, monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", request.param)
    return backends.get("numpy").ops


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("relu", {}),
        ("tanh", {}),
        ("avg_pool", {"window": 2}),
        ("global_avg_pool", {}),
    ],
)
def test_what_only_its_output_is_needed_of_is_not_kept(ops, op, options):
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 16), np.float32)
    y, backward = getattr(ops, op)(x, **options)
    alive = weakref.ref(x)
    del x
    assert alive() is None
    assert backward(np.ones_like(y))[0].shape == (2, 8, 8, 16)


@pytest.mark.parametrize("window", [1, (1, 2), 2])
def test_an_input_is_not_written_to(ops, window):
    """Not even with what it holds: it may be a file that is mapped to be read."""
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3), np.float32)
    x.flags.writeable = False
    y, _ = ops.avg_pool(x, window=window)
    assert not np.shares_memory(x, y)


@pytest.mark.parametrize("n", [1, 2])
def test_gradients_of_weights_are_arrays_of_their_own(ops, n):
    """Both ways of a residual block are handed the same `dy`."""
    x, weight, bias = (np.ones(shape, np.float32) for shape in [(n, 5), (3, 5), 3])
    y, backward = ops.dense(x, weight, bias)
    dy = np.ones_like(y)
    for gradient in backward(dy)[1:]:
        assert not np.shares_memory(gradient, dy)


@pytest.mark.parametrize("kernels", ["standard", "plain", ""])
@pytest.mark.parametrize("relu", [False, True])
def test_an_output_is_kept_for_its_relu_alone(kernels, relu, monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", kernels)
    ops = backends.get("numpy").ops
    x, channel = np.random.default_rng(0).standard_normal((2, 8, 8, 16), np.float32), np.ones(16, np.float32)
    (normal, *_), norm_backward = ops.batch_norm(x, *[channel] * 4, training=True, relu=relu)
    total, add_backward = ops.add(x, x, relu=relu)
    alive = [weakref.ref(normal), weakref.ref(total)]
    del normal, total
    assert [y() is not None for y in alive] == [relu, relu]
    assert add_backward(x)[1].shape == norm_backward(x)[0].shape == x.shape


def test_no_image_with_its_padding_is_kept_beside_each_image(ops):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((8, 16, 16, 16), np.float32), rng.standard_normal((16, 3, 3, 16), np.float32)
    ops.conv(x, weight, padding=1)  # whatever is made but once
    tracemalloc.start()
    try:
        y, backward = ops.conv(x, weight, padding=1)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert y.nbytes <= kept <= y.nbytes + 16 * KIB
    backward(np.ones_like(y))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory of glibc")
@pytest.mark.parametrize("mib", [2, 31])
def test_memory_that_a_step_frees_is_there_for_the_next(mib):
    code = f"""
import resource
import numpy as np
from xpnn_numpy.executor import keep_memory
keep_memory()
def step():
    arrays = [np.ones({mib} << 18, np.float32) for _ in range(4)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20
