"""The NumPy executor: pieces on threads give the bits of one thread, and the plain step's numbers."""

import threading

import numpy as np
import pytest
from xpnn_numpy import executor as pieces

import xpnn
from xpnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, Layer, MaxPool2D, ReLU, Sequential
from xpnn.random import Stream

MODEL = Sequential([Conv2D(8, 3), ReLU(), MaxPool2D(2), Dropout(0.3), Flatten(), Dense(5)])
IMAGES = Stream(0, "images").uniform((70, 12, 12, 1)).astype("float32")
LABELS = (Stream(0, "labels").words(0, 70) % np.uint64(5)).astype("int64")


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * 8 * 10 * 10 * 4)  # four samples a piece


def trained(model=MODEL, batch_size=35):
    trainer = xpnn.Trainer(model, backend="numpy", seed=1)
    records = trainer.fit(IMAGES, LABELS, epochs=2, batch_size=batch_size)
    return trainer, records


@pytest.mark.usefixtures("small_pieces")
def test_same_bits_for_any_number_of_threads(monkeypatch):
    results = []
    for threads in ("1", "2", "8"):
        monkeypatch.setenv("XPNN_THREADS", threads)
        trainer, records = trained()
        assert trainer.executor.piece == 4
        results.append((trainer.weights, records[-1]["loss"], trainer.predict(IMAGES)))
    for weights, loss, scores in results[1:]:
        assert loss == results[0][1]
        np.testing.assert_array_equal(scores, results[0][2])
        for path, array in weights.items():
            np.testing.assert_array_equal(array, results[0][0][path])


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("samples", [1, 3, 4, 5, 31, 32, 33, 64, 70])
def test_gradient_is_that_of_the_whole_batch(monkeypatch, samples):
    results = []
    for kernels in ("", "standard"):
        monkeypatch.setenv("XPNN_KERNELS", kernels)
        trainer = xpnn.Trainer(MODEL, backend="numpy", dtype="float64", seed=1).build((12, 12, 1))
        draws = trainer._draws(0, samples)
        x, y = IMAGES[:samples].astype("float64"), LABELS[:samples]
        results.append(trainer.executor.gradient(trainer._state, x, y, draws, 1 / samples))
    (flat, stats, loss, right), (flat2, _, loss2, right2) = results
    assert stats == {}
    np.testing.assert_allclose(flat, flat2, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(loss, loss2, rtol=1e-13)
    assert right == right2


@pytest.mark.usefixtures("small_pieces")
def test_a_model_that_ties_samples_together_is_not_cut():
    trainer, _ = trained(Sequential([Conv2D(4, 3), BatchNorm(), Flatten(), Dense(5)]))
    assert not trainer.executor.pieces
    assert trained()[0].executor.pieces


@pytest.mark.usefixtures("small_pieces")
def test_an_error_in_a_lane_is_the_callers():
    class Broken(Layer):
        per_sample = True

        def apply(self, weights, stats, x, run):
            if x.shape[0] == 4:
                raise OSError("no more memory")
            return x, {}, lambda dy, *, input_gradient=True: (dy, {})

    with pytest.raises(OSError, match="no more memory"):
        trained(Sequential([*MODEL.layers, Broken()]))


def blas_threads():
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_gets_its_threads_back():
    before = blas_threads()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with pieces._one_blas_thread():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with pieces._one_blas_thread():
        thread.start()
        assert inside.wait(10)
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {1}  # the other is still inside
    leave.set()
    thread.join()
    assert blas_threads() == before
    with pytest.raises(KeyError), pieces._one_blas_thread():
        raise KeyError
    assert blas_threads() == before


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_wrong_number_of_threads_is_refused(monkeypatch, value):
    monkeypatch.setenv("XPNN_THREADS", value)
    with pytest.raises(ValueError, match=r"XPNN_THREADS=.*positive integer"):
        trained()


def test_threads_follow_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.delenv("XPNN_THREADS", raising=False)
    monkeypatch.setattr(pieces.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert pieces.threads() == 3
