"""Who won under a max-pool is kept for backward, the responses are not; in predictions convolutions keep nothing."""

import gc
import tracemalloc
import weakref
from typing import ClassVar

import numpy as np
import pytest
from xpnn_numpy import NumPyBackend
from xpnn_numpy.kernels import KERNELS
from xpnn_numpy.kernels._in_place import InPlace
from xpnn_numpy.kernels.convolution import windows_of
from xpnn_numpy.kernels.joined import _prizes, _rounds, _tournament

import xpnn
from xpnn.ops import Ops
from xpnn.ops._made import Once
from xpnn.ops._window import window

TRAINED, PREDICTED = Ops(KERNELS, 1 << 21), Ops(KERNELS, 1 << 21, backward=False)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


CALLS = {
    "dense": lambda ops: ops.dense(numbers(5, 30), numbers(7, 30, seed=1), numbers(7, seed=2)),
    "conv": lambda ops: ops.conv(numbers(9, 12, 12, 3), numbers(8, 3, 3, 3, seed=1), numbers(8, seed=2)),
    "conv of one channel": lambda ops: ops.conv(numbers(99, 12, 12, 1), numbers(8, 3, 3, 1, seed=1)),
    "conv in tiles": lambda ops: ops.conv(numbers(40, 14, 14, 16), numbers(32, 3, 3, 16, seed=1)),
    "conv_relu": lambda ops: ops.conv_relu(numbers(9, 12, 12, 3), numbers(8, 3, 3, 3, seed=1), numbers(8, seed=2)),
    "conv_pool": lambda ops: ops.conv_pool(
        numbers(29, 28, 28, 1), numbers(16, 3, 3, 1, seed=1), numbers(16, seed=2), pool=2, relu=True
    ),
    "conv_pool of 3": lambda ops: ops.conv_pool(numbers(9, 12, 12, 3), numbers(8, 3, 3, 3, seed=1), pool=3),
    "conv_avg_pool": lambda ops: ops.conv_avg_pool(
        numbers(99, 28, 28, 1), numbers(6, 5, 5, 1, seed=1), pool=2, activation="tanh"
    ),
}


@pytest.mark.parametrize("op", CALLS)
def test_predictions_have_the_bits_of_training_and_no_backward(op):
    (y, backward), (predicted, none) = CALLS[op](TRAINED), CALLS[op](PREDICTED)
    np.testing.assert_array_equal(predicted, y)
    assert all(g is None or np.isfinite(g).all() for g in backward(np.ones_like(y)))
    with pytest.raises(RuntimeError, match=r"Ops\(\.\.\., backward=False\), and keep nothing for backward"):
        none(y)


LAID_OUT = {  # op, shapes of image and weight, options
    "copied": ("conv", (12, 12, 3), (8, 3, 3, 3), {}),
    "in tiles": ("conv", (14, 14, 16), (32, 3, 3, 16), {"padding": 1}),
    "in tiles under a pool": ("conv_pool", (14, 14, 16), (32, 3, 3, 16), {"pool": 2}),
    "in place": ("conv_relu", (9, 32, 32), (40, 3, 3, 32), {"padding": "same"}),
    "by channels": ("conv_pool", (13, 13, 32), (72, 3, 3, 32), {"pool": 2, "relu": True}),
    "of signals": ("conv", (40, 2), (5, 3, 2), {"stride": 2}),
    "of one channel": ("conv_pool", (12, 12, 1), (8, 3, 3, 1), {"pool": 2}),
    "in bands": ("conv_avg_pool", (28, 28, 1), (6, 5, 5, 1), {"pool": 2, "activation": "relu"}),
}


@pytest.mark.parametrize("case", LAID_OUT)
@pytest.mark.parametrize("kernels", ["plain", "compiled"])
def test_what_is_made_of_weights_is_made_once(kernels, case):
    """And serves any number of images; of other weights it is made anew, also where they lie at the same address."""
    if kernels == "compiled":
        pytest.importorskip("numba")
        from xpnn_numpy import fast
    known = KERNELS if kernels == "plain" else {**KERNELS, **fast.KERNELS}
    (op, image, shape, options), once = LAID_OUT[case], Once()
    anew, predicted = (getattr(Ops(known, 1 << 21, backward=False, **how), op) for how in ({}, {"made": once}))
    weight, bias, counts = numbers(*shape, seed=1), numbers(shape[0], seed=2), []
    for n in (1, 40, 1):
        x = numbers(n, *image, seed=n)
        np.testing.assert_array_equal(predicted(x, weight, bias, **options)[0], anew(x, weight, bias, **options)[0])
        counts.append(len(once._made))
    nothing = (kernels, case) == ("compiled", "in bands")  # which go along the pixels there
    assert (not nothing) <= counts[0] <= counts[1] == counts[2] <= 4
    for seed in range(3, 9):
        weight = numbers(*shape, seed=seed)
        np.testing.assert_array_equal(predicted(x, weight, bias, **options)[0], anew(x, weight, bias, **options)[0])


@pytest.mark.parametrize("op", CALLS)
def test_predictions_keep_their_result_alone(op):
    CALLS[op](PREDICTED)  # what is kept once and for all
    tracemalloc.start()
    try:
        y, _none = CALLS[op](PREDICTED)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert y.nbytes <= kept < y.nbytes + 4096


@pytest.mark.parametrize("op", ["conv of one channel", "conv_pool", "conv_avg_pool"])
def test_predictions_keep_nothing_from_block_to_block(op):
    """Columns, planes and responses of one block are the most there are at a time."""
    peaks = []
    for backward in (True, False):
        ops = Ops(KERNELS, 1 << 15, backward=backward)
        CALLS[op](ops)
        tracemalloc.start()
        try:
            result = CALLS[op](ops)
            peaks.append(tracemalloc.get_traced_memory()[1] - result[0].nbytes)
        finally:
            tracemalloc.stop()
    assert peaks[1] < 0.3 * peaks[0]


def test_of_responses_under_a_pool_it_is_kept_who_won():
    """A byte for each game, of which there are three, instead of six numbers of four bytes."""
    x, weight = numbers(50, 28, 28, 1), numbers(16, 3, 3, 1, seed=1)
    TRAINED.conv_pool(x, weight, pool=2)
    tracemalloc.start()
    try:
        y, _backward = TRAINED.conv_pool(x, weight, pool=2)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    columns, won = 9 * 4 * y.nbytes // 16, 3 * y.nbytes // 4
    assert y.nbytes + won < kept < y.nbytes + columns + x.nbytes + won + 8192


@pytest.mark.parametrize("phases", range(1, 12))
def test_a_gradient_goes_to_the_first_of_the_largest(phases):
    a = np.random.default_rng(phases).integers(0, 4, (phases, 5, 6, 6, 3)).astype(np.float32)
    y = np.full(a.shape[1:], np.nan, np.float32)
    rounds = _tournament(a, y)
    np.testing.assert_array_equal(y, a.max(0))
    assert len(rounds) == len(_rounds(phases))
    expected = np.zeros_like(a)
    np.put_along_axis(expected, a.argmax(0)[None], 2.5, 0)
    np.testing.assert_array_equal(_prizes(rounds, np.full_like(y, 2.5), phases), expected)


def test_a_trainer_predicts_without_keeping(monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    seen, dense = [], KERNELS["dense"]

    def watched(ops, x, weight, bias=None):
        seen.append(ops.backward)
        return dense(ops, x, weight, bias)

    class Watched(NumPyBackend):
        kernels: ClassVar = {**KERNELS, "dense": watched}

    trainer = xpnn.Trainer(xpnn.layers.Sequential([xpnn.layers.Dense(3)]), backend=Watched()).build((4,))
    trainer.fit(numbers(6, 4), np.arange(6) % 3, epochs=1, batch_size=6)
    assert all(seen)
    seen.clear()
    trainer.predict(numbers(6, 4))
    assert seen
    assert not any(seen)


def test_what_was_made_is_let_go_with_the_weights(monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    trainer = xpnn.Trainer(
        xpnn.layers.Sequential([xpnn.layers.Conv2D(4, 3), xpnn.layers.Flatten(), xpnn.layers.Dense(3)]), backend="numpy"
    ).build((6, 6, 2))
    images, made = numbers(8, 6, 6, 2), trainer.executor._made._made
    first = trainer.predict(images)
    kept = [weakref.ref(weights) for weights, _ in made.values()]
    assert kept
    trainer.fit(images, np.arange(8) % 3, epochs=1, batch_size=8)
    gc.collect()
    assert not made
    assert not any(weights() is not None for weights in kept)
    assert not np.array_equal(trainer.predict(images), first)
    count = len(made)
    for _ in range(3):  # other weights without a step between
        trainer._state = {**trainer._state, "weights": trainer._state["weights"].copy()}
        trainer.predict(images)
        assert len(made) == count


class Slope(xpnn.layers.Layer):
    """Somebody's own: it predicts a slope."""

    def init(self, in_shape, stream):
        return {"weight": np.ones((in_shape[0], in_shape[0]), np.float32)}, {}

    def apply(self, weights, stats, x, run):
        y, backward = run.ops.dense(x, weights["weight"])
        return y + backward(np.ones_like(y))[0], {}, lambda dy, *, input_gradient=True: (dy, {"weight": dy.T @ x})


@pytest.mark.parametrize("inside", [False, True])
def test_a_layer_of_somebodys_own_may_call_a_backward_where_it_predicts(monkeypatch, inside):
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    layer = xpnn.layers.Sequential([Slope()]) if inside else Slope()
    trainer = xpnn.Trainer(layer, loss="mse", backend="numpy").build((4,))
    np.testing.assert_array_equal(trainer.predict(np.ones((3, 4), np.float32)), np.full((3, 4), 8))


def test_shares_are_added_up_in_blocks_of_columns():
    """Of windows that are seen in place there are none until then."""
    w = window("test", (32, 32), 3, 1, "valid", 1)
    windows = windows_of(numbers(64, 32, 32, 16), w, 16, backward=True)
    assert isinstance(windows, InPlace)
    blocks = [len(list(each.blocks(1 << 20))) for each in (windows, windows.for_shares(w))]
    assert blocks == [8, 22]
