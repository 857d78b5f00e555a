"""Compiled kernels that share their work: the bits do not depend on who does a part, and nobody is waited for."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from faults import Plain
from xpnn_numpy import executor

import xpnn
from xpnn import models
from xpnn.layers import BatchNorm, Conv2D, Dense, GlobalAvgPool, ReLU, Residual, Sequential
from xpnn.ops import Ops
from xpnn.ops._window import window
from xpnn.optim import SGD, Adam, AdamW
from xpnn.parity import compare_network
from xpnn.random import Stream

numba = pytest.importorskip("numba")
fast = pytest.importorskip("xpnn_numpy.fast")

from llvmlite import ir  # noqa: E402
from numba import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402
from xpnn_numpy.fast._team import ALLOWED, FAILED, JOBS, LOOKING, board, share, team  # noqa: E402

OPS = [  # shapes large enough to be cut in every way there is
    ("conv", [(32, 14, 14, 32), (64, 3, 3, 32), (64,)], {"padding": "same"}),
    ("conv", [(9, 15, 13, 24), (20, 3, 3, 24)], {"padding": 1}),
    ("conv", [(9, 16, 16, 16), (16, 3, 3, 16)], {"padding": 1}),
    ("conv", [(1, 28, 28, 16), (7, 3, 3, 16), (7,)], {"padding": 1}),
    ("conv", [(9, 32, 32, 3), (16, 3, 3, 3), (16,)], {"stride": 2, "padding": 1}),
    ("conv", [(9, 14, 14, 6), (16, 5, 5, 6), (16,)], {"dilation": (1, 2)}),
    ("conv", [(3, 6, 9, 9, 4), (5, 3, 3, 3, 4), (5,)], {"padding": ((2, 0), (1, 0), (0, 1))}),
    ("conv_relu", [(9, 16, 16, 16), (16, 3, 3, 16), (16,), (9, 16, 16, 16)], {"padding": 1}),
    ("conv_relu", [(9, 14, 14, 6), (16, 5, 5, 6), (16,), (9, 10, 10, 16)], {}),
    ("conv_relu", [(1, 8, 8, 64), (64, 3, 3, 64), (64,), (1, 8, 8, 64)], {"padding": 1}),
    ("conv_pool", [(32, 28, 28, 1), (32, 3, 3, 1), (32,)], {"pool": 2, "relu": True}),
    ("conv_pool", [(16, 13, 13, 32), (64, 3, 3, 32), (64,)], {"pool": 2}),
    ("conv_pool", [(1, 26, 26, 32), (64, 3, 3, 32), (64,)], {"pool": 2, "relu": True}),
    ("conv_pool", [(2, 26, 26, 32), (64, 3, 3, 32), (64,)], {"pool": 2, "relu": True}),
    ("conv_avg_pool", [(32, 28, 28, 1), (6, 5, 5, 1), (6,)], {"pool": 2, "activation": "tanh", "padding": 2}),
    ("conv_avg_pool", [(9, 16, 40, 6), (16, 5, 5, 6)], {"pool": (3, 4), "activation": "relu"}),
    ("dense", [(41, 300), (70, 300), (70,)], {}),
    ("dense", [(140, 2700), (10, 2700), (10,)], {}),
    ("max_pool", [(9, 32, 32, 16)], {"window": 3, "stride": 2, "padding": 1}),
    ("avg_pool", [(9, 32, 32, 16)], {"window": 2}),
    ("batch_norm", [(9, 32, 32, 16), *[(16,)] * 4], {"training": True}),
    ("batch_norm", [(9, 32, 32, 16), *[(16,)] * 4], {"training": True, "relu": True}),
    ("add", [(9, 32, 32, 16)] * 2, {"relu": True}),
    ("relu", [(9, 32, 32, 16)], {}),
    ("tanh", [(9, 32, 32, 16)], {}),
]
BATCH_NORM = Sequential(
    [
        Conv2D(16, 3, padding="same"), BatchNorm(), ReLU(),
        Residual(Sequential([Conv2D(16, 3, padding="same"), BatchNorm(), ReLU()])),
        Conv2D(70, 3, stride=2, padding=1), BatchNorm(), GlobalAvgPool(), Dense(10),
    ]
)  # fmt: skip


@pytest.fixture(autouse=True)
def all_kernels(monkeypatch):
    monkeypatch.delenv("XPNN_KERNELS", raising=False)


def drawn(name, shape):
    return Stream(7, name).uniform(shape, -1, 1).astype(np.float32)


@numba.njit
def _slowly(part, done):
    """A part that takes a millisecond or more, so that all who can come do."""
    x = 1.0
    for _ in range(500_000 * (1 + part % 2)):
        x = x * 0.9999999 + 1e-9
    done[part] = x


@numba.njit(nogil=True)
def _slow(done):
    share(_slowly, (done,), len(done))


_slow(np.zeros(1))  # compiles


def come(threads):
    """Wait until all helpers are there, and wide awake."""
    until = time.monotonic() + 60
    while board[LOOKING] < threads - 1:
        assert time.monotonic() < until
        time.sleep(0.001)
    _slow(np.zeros(2 * threads))


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.parametrize(("name", "shapes", "options"), OPS)
def test_shared_work_gives_the_same_bits(name, shapes, options):
    op = getattr(xpnn.backend.get("numpy").ops, name)
    arrays = [abs(drawn(f"{i}", shape)) if i == 4 else drawn(f"{i}", shape) for i, shape in enumerate(shapes)]
    found, shared = [], []
    for threads in (1, 2, 4):
        with team.sharing(threads):
            come(threads)
            jobs = board[JOBS]
            y, backward = op(*arrays, **options)
            y = y if isinstance(y, tuple) else (y,)
            found.append([*y, *backward(drawn("dy", y[0].shape))])
            shared.append(board[JOBS] - jobs)
    assert shared[0] == 0
    assert min(shared[1:]) >= 2
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a is b is None or np.array_equal(a, b)
    y, backward = getattr(Ops(), name)(*(a.astype(np.float64) for a in arrays), **options)
    y = y if isinstance(y, tuple) else (y,)
    for a, b in zip(found[0], [*y, *backward(drawn("dy", y[0].shape).astype(np.float64))], strict=True):
        assert a is b is None or np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_who_shares_waits_for_all_parts():
    with team.sharing(2):
        come(2)
        for _ in range(20):
            done = np.zeros(2)
            _slow(done)  # the second part takes longer, and is the helper's
            assert done.all()


@pytest.mark.parametrize("c_out", [1, 2, 3, 7, 17])
@pytest.mark.parametrize("pool", [(), (2, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_written_behind_the_outputs(c_out, pool, dtype):
    from xpnn_numpy.fast import _windows, convolution
    from xpnn_numpy.fast._product import packed
    from xpnn_numpy.fast._responses import NO_GRID

    for size in range(6, 26):
        w = window("conv", (size, 11), (3, 3), 1, "same", 1)
        places, taps = _windows.forward(w, pool or (1, 1), 4)
        image = convolution._padded(np.ones((1, size, 11, 4), dtype), w.pads)
        weight, nothing = np.ones((len(taps), c_out), dtype), (np.zeros(0, dtype), False, np.zeros((0, c_out), dtype))
        rows = places.shape[1]
        unaveraged = NO_GRID, False, np.empty((0, c_out), dtype)
        for panels in (np.zeros(0, dtype), packed(weight)):
            beyond = np.full(rows * c_out + 100, 7, dtype)
            place = np.zeros((rows if pool else 0, c_out), np.uint8)
            y = beyond[: rows * c_out].reshape(rows, c_out)
            convolution._forward(image, places, taps, weight, panels, nothing, y, place, unaveraged)
            assert (beyond[rows * c_out :] == 7).all()
            assert y.max() == 36


def test_no_part_takes_means_of_what_another_makes():
    """Responses are NaN until they are made."""
    from xpnn_numpy.fast import _windows, convolution, pool

    w, means = window("conv", (23, 37), 2, 1, "valid", 1), window("pool", (22, 36), (11, 4), (11, 4), "valid", 1)
    places, taps = _windows.forward(w, (1, 1), 2)
    image, weight = drawn("x", (9, 23 * 37 * 2)), drawn("weight", (len(taps), 16))
    none = np.zeros(0, np.float32)
    nothing = none, False, np.zeros((0, 16), np.float32)
    for _ in range(5):
        with team.sharing(2):
            come(2)
            y, averaged = np.full((9 * 22 * 36, 16), np.nan, np.float32), np.full((9 * 2 * 9, 16), np.nan, np.float32)
            place, on = np.zeros((0, 16), np.uint8), (pool.grid(means), True, averaged)
            convolution._forward(image, places, taps, weight, none, nothing, y, place, on)
        expected = y.reshape(9, 2, 11, 9, 4, 16).mean((2, 4)).reshape(-1, 16)
        np.testing.assert_allclose(averaged, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 5, 6, 9])
def test_runs_of_any_length(dtype, count):
    from xpnn_numpy.fast._product import add_runs

    x, starts, factors = drawn("x", (400,)).astype(dtype), np.arange(9) * 11, drawn("factors", (9,)).astype(dtype)
    shifts, places = np.array([0, 60, 7]), np.array([150, 0, 300])
    for length in range(1, 150):
        y = np.full(460, 7, dtype)
        add_runs(x, starts, factors, count, shifts, y, 5, places, length)
        expected = np.full(460, 7.0)
        for shift, place in zip(shifts, places, strict=True):
            for start, factor in zip(starts[:count], factors, strict=False):
                expected[5 + place :][:length] += factor * x[start + shift :][:length].astype("float64")
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("pooled", "relu", "more"), [(False, False, 0), (True, False, 0), (False, True, 0), (False, True, 2)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles_end_with_the_outputs(pooled, relu, more, dtype):
    from xpnn_numpy.fast import _winograd

    weight, bias = np.ones((33, 9, 35), dtype), np.ones(33, dtype)
    for h, w in [(17, 9), (16, 14), (9, 16)]:
        shape = (3, h // 2, w // 2, 33) if pooled else (3, h, w, 33)
        size = int(np.prod(shape))
        beyond, place = np.full(size + 100, 7, dtype), np.zeros((size // 33 if pooled else 0, 33), np.uint8)
        image, y = np.ones((3, h, w, 35), dtype), beyond[:size].reshape(shape)
        shortcut = np.full(size if more else 0, more, dtype)
        _winograd.convolve(image, (1, 1), _winograd.panels(weight, False), bias, relu, shortcut, y, place)
        assert (beyond[size:] == 7).all()
        assert y.max() == 9 * 35 + 1 + more
        if not pooled:
            assert (y[:, 1:-1, 1:-1] == 9 * 35 + 1 + more).all()
            assert (y[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 4 * 35 + 1 + more).all()


def test_an_empty_batch_has_no_gradient():
    x, weight = np.zeros((0, 8, 8, 32), np.float32), np.ones((8, 3, 3, 32), np.float32)
    y, backward = xpnn.backend.get("numpy").ops.conv_pool(x, weight, np.ones(8, np.float32), pool=2, relu=True)
    dx, dweight, dbias = backward(y)
    assert dx.shape == x.shape
    assert not dweight.any()
    assert not dbias.any()


def test_steps_and_predictions_share_their_work(monkeypatch):
    monkeypatch.setenv("XPNN_THREADS", "2")
    monkeypatch.setattr(executor, "PIECE_BYTES", 1 << 19)  # of 16 images three pieces
    trainer = xpnn.Trainer(models.small_cnn(), backend="numpy")
    images, labels = drawn("images", (64, 28, 28, 1)), np.zeros(64, np.int64)
    trainer.fit(images[:16], labels[:16])
    for work in (
        lambda: trainer.predict(images[:16]),
        lambda: trainer.predict(images[:6]),  # one piece
        lambda: trainer.fit(images[:16], labels[:16]),
        lambda: trainer.fit(images, labels, batch_size=64),
    ):
        jobs, until = board[JOBS], time.monotonic() + 60
        while board[JOBS] == jobs:  # a helper that slept may miss a step
            assert time.monotonic() < until
            work()


@pytest.mark.parametrize("model", [models.lenet5(), models.small_cnn(), BATCH_NORM], ids=["lenet5", "small", "normed"])
def test_layers_of_real_size(model):
    in_shape = (32, 32, 3) if model is BATCH_NORM else (28, 28, 1)
    labels = (Stream(7, "labels").words(0, 18) % np.uint64(10)).astype(np.int64)
    found = compare_network(model, ["numpy", Plain()], drawn("images", (18, *in_shape)), labels)
    assert found.passed, "\n".join(found.lines())


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1),
        SGD(0.1, momentum=0.9),
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        Adam(0.01),
        AdamW(0.01, beta1=0.7, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_updates_are_those_of_the_optimizers(optimizer, dtype):
    n = 150_001
    weights, gradient = drawn("w", (n,)).astype(dtype), drawn("g", (n,)).astype(dtype)
    old = {name: abs(drawn(name, (n,))).astype(dtype) for name in optimizer.moments}
    scalars = np.asarray(optimizer.scalars(0.05, 3), dtype)
    expected = optimizer.update(Ops(), weights, gradient, old, scalars)
    found = []
    for threads in (1, 2):
        new, moments = np.empty_like(weights), {name: np.empty_like(m) for name, m in old.items()}
        with team.sharing(threads):
            come(threads)
            jobs = board[JOBS]
            assert fast.UPDATES[type(optimizer)](optimizer, weights, gradient, old, scalars, new, moments) is True
            assert board[JOBS] - jobs == threads - 1
        found.append([new, *(moments[name] for name in expected[1])])
    for one, two, other in zip(*found, [expected[0], *expected[1].values()], strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, other, rtol=8 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)
    for i, value in ((0, np.nan), (n // 2, -np.inf), (n - 1, np.inf)):
        spoilt = gradient.copy()
        spoilt[i] = value
        assert fast.UPDATES[type(optimizer)](optimizer, weights, spoilt, old, scalars, new, moments) is False


def test_a_part_that_fails_stops_the_kernel():
    for threads in (1, 2):
        with team.sharing(threads):
            come(threads)
            with pytest.raises(MemoryError, match="a part of a compiled kernel failed"):
                _fails_at(5)
            _fails_at(-1)
    assert board[FAILED] == 0


@numba.njit
def _fail(part, number):
    if part == number:
        raise ValueError


@numba.njit(nogil=True)
def _fails_at(number):
    share(_fail, (number,), 8)


def test_parts_count_no_references():
    """Cores would take the count from one another at every view of a row: twice the time of a pass over images."""
    places = np.ones(9, np.int64)
    for threads in (1, 2):
        with team.sharing(threads):
            come(threads)
            _note(np.zeros((4, 4)), places)
        assert places[8]
        assert not places[:8].any()


@intrinsic
def _count(typing, x):
    """Where an array's references are counted."""

    def code(context, builder, signature, values):
        return builder.ptrtoint(context.make_array(x)(context, builder, values[0]).meminfo, ir.IntType(64))

    return types.int64(x), code


@numba.njit
def _note_part(part, x, pair, places):
    places[part] = _count(x[part % 4]) | _count(pair[1])


@numba.njit(nogil=True)
def _note(x, places):
    own = x.copy()
    places[8] = _count(own)
    share(_note_part, (own, (0, own), places), 8)


def test_who_comes_second_works_alone():
    _nested()  # compiles
    with team.sharing(2):
        come(2)
        jobs = board[JOBS]
        _nested()
    assert board[JOBS] == jobs + 1


@numba.njit(nogil=True)
def _inner(part, number):
    pass


@numba.njit(nogil=True)
def _outer(part, number):
    share(_inner, (number,), 8)


@numba.njit(nogil=True)
def _nested():
    share(_outer, (0,), 8)


def test_no_more_helpers_come_than_there_are_parts():
    with team.sharing(100):
        assert board[ALLOWED] == 7
        come(8)
        assert len(team.helpers) == 7


def test_helpers_go_to_sleep_and_come_back():
    for _ in range(2):
        with team.sharing(3):
            come(3)
        until = time.monotonic() + 60
        while board[LOOKING]:
            assert time.monotonic() < until
            time.sleep(0.01)


TRAINED = """
import os, sys, threading
import numpy as np, xpnn
from xpnn_numpy.fast._team import LOOKING, board, team
def train():
    trainer = xpnn.Trainer(xpnn.models.article(), backend="numpy", seed=1)
    trainer.fit(np.ones((64, 28, 28, 1), "float32"), np.zeros(64, int), batch_size=32)
    return trainer.weights["0.weight"].tobytes()
first = train()
"""


def test_a_forked_process_has_helpers_of_its_own():
    code = TRAINED + (
        "pid = os.fork()\n"
        "if not pid:\n"
        "    print(board[LOOKING] == 0, train() == first, len(team.helpers), flush=True)\n"
        "    sys.exit()\n"
        "print(os.waitpid(pid, 0)[1], train() == first)\n"
    )
    done = run(code, XPNN_THREADS="2")
    assert done.stdout.split() == ["True", "True", "1", "0", "True"], done.stderr


def test_nothing_is_left_at_the_end_of_a_process():
    looking = "with team.sharing(2):\n    while not board[LOOKING]: pass\n"
    done = run(TRAINED + looking + "print(len(team.helpers))", XPNN_THREADS="2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
