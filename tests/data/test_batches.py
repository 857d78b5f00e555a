"""Images that stay on the disk: read as float32, cut into the batches of arrays, a few of them in memory."""

import gc
import threading
import time
import tracemalloc

import numpy as np
import pytest

from xpnn import NonFiniteError, ShapeError, Trainer
from xpnn.backend import get
from xpnn.data import Stored, part
from xpnn.data.batches import ArrayBatches, Door, IterableBatches, StreamedBatches
from xpnn.layers import Conv2D, Dense, Dropout, Flatten, GlobalAvgPool, MaxPool2D, ReLU, Sequential
from xpnn.losses import CrossEntropy

N = 23
LEVELS = (np.random.Philox(key=3).random_raw(N * 8 * 8 // 8).view(np.uint8)).reshape(N, 8, 8, 1)
FLOATS = LEVELS.astype(np.float32) / 255
LABELS = np.arange(N) % 3
NET = Sequential([Conv2D(4, 3), ReLU(), MaxPool2D(2), Dropout(0.25), Flatten(), Dense(3)])


def mapped(folder, array, name="images.npy"):
    np.save(folder / name, array)
    return np.load(folder / name, mmap_mode="r")


@pytest.fixture(params=["uint8", "float32", "float64"])
def stored(request, tmp_path):
    """The same images in each way in which they may be stored."""
    if request.param == "float32":
        return mapped(tmp_path, FLOATS)  # as it is
    return Stored(mapped(tmp_path, LEVELS if request.param == "uint8" else FLOATS.astype(np.float64)))


@pytest.fixture
def door():
    return Door(get("numpy"), "float32", CrossEntropy())


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xpnn-batches")]


# Stored


def test_stored_reads_as_float32(tmp_path):
    images = Stored(mapped(tmp_path, LEVELS))
    assert (images.shape, images.ndim, images.dtype, len(images)) == ((N, 8, 8, 1), 4, np.float32, N)
    for key in (3, slice(2, 7), slice(None), np.array([5, 0, 5]), [1], (slice(2), ..., 0), FLOATS[:, 0, 0, 0] > 0.5):
        part = images[key]
        assert part.dtype == np.float32
        assert type(part) is np.ndarray
        np.testing.assert_array_equal(part, FLOATS[key])
    np.testing.assert_array_equal(np.asarray(images), FLOATS)
    assert np.asarray(images, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy=False cannot be had"):
        np.asarray(images, copy=False)
    assert repr(images) == f"Stored(uint8, shape=({N}, 8, 8, 1))"


@pytest.mark.parametrize("kind", [slice(3, 15, 2), np.array([9, 2, 9, 20]), np.arange(N) % 3 == 1], ids=type)
def test_a_part_stays_stored(tmp_path, kind):
    images = part(Stored(mapped(tmp_path, LEVELS)), kind)
    assert isinstance(images, Stored)
    assert isinstance(images.values, np.memmap)
    expected = part(FLOATS, kind)
    assert (images.shape, len(images)) == (expected.shape, len(expected))
    for key in (..., 1, -1, slice(1, 3), np.array([2, 0]), (slice(2), ...), (..., 0), (slice(None), 3, 5), (1, 2)):
        np.testing.assert_array_equal(images[key], expected[key])
    np.testing.assert_array_equal(part(images, slice(1, 3))[...], expected[1:3])


def test_what_is_read_is_a_copy():
    floats = FLOATS.copy()
    Stored(floats)[:2][...] = 9
    np.testing.assert_array_equal(floats, FLOATS)


def test_stored_takes_bytes_and_floats():
    with pytest.raises(TypeError, match=r"stored images have dtype int64; expected uint8 \(0 … 255\) or floats"):
        Stored(LEVELS.astype(np.int64))


# Batches


@pytest.mark.parametrize("start", [0, 2, 4, 5])
@pytest.mark.parametrize("drawn", [False, True])
def test_batches_are_those_of_arrays(stored, door, start, drawn):
    order = np.random.default_rng(0).permutation(N) if drawn else None
    arrays = ArrayBatches(door, FLOATS, LABELS, (3,), 5)
    streamed = StreamedBatches(door, stored, LABELS, (3,), 5)
    assert len(streamed) == len(arrays) == 5
    assert streamed.digest == arrays.digest
    expected = list(arrays.epoch(order, start))
    got = list(streamed.epoch(order, start))
    assert len(got) == len(expected) == 5 - start
    for a, b in zip(expected, got, strict=True):
        for x, y in zip(a, b, strict=True):
            assert type(y) is np.ndarray
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(streamed.batch(4, order)[0], arrays.batch(4, order)[0])
    np.testing.assert_array_equal(list(arrays.epoch(order))[3][0], arrays.batch(3, order)[0])


def test_a_source_goes_on_from_a_batch(door):
    source = [(FLOATS[i : i + 5], LABELS[i : i + 5]) for i in range(0, N, 5)]
    batches = IterableBatches(door, source, lambda shape: (3,))
    for start in range(6):
        assert [len(host) for _, _, host in batches.epoch(None, start)] == [5, 5, 5, 5, 3][start:]
    with pytest.raises(ShapeError, match="the source gave 5 batches this time, and more before"):
        list(batches.epoch(None, 6))


def test_next_batches_are_prepared_meanwhile(door, stored):
    streamed = StreamedBatches(door, stored, LABELS, (3,), 5)
    cut, prepared = streamed._cut, []
    streamed._cut = lambda index, order: (prepared.append((index, threading.current_thread())), cut(index, order))[1]
    batches = streamed.epoch()
    next(batches)
    deadline = time.monotonic() + 10
    while len(prepared) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert [index for index, _ in prepared] == [0, 1, 2]  # two ahead, and no more
    assert threading.main_thread() not in {thread for _, thread in prepared}
    batches.close()


@pytest.mark.parametrize("end", ["close", "forget", "error", "exhaust"])
def test_the_thread_ends(door, stored, end):
    streamed = StreamedBatches(door, stored, LABELS, (3,), 5)
    batches = streamed.epoch()
    next(batches)
    assert len(threads()) == 1
    if end == "close":
        batches.close()
    elif end == "forget":
        del batches
        gc.collect()
    elif end == "error":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)
    else:
        list(batches)
    assert threads() == []


def test_an_error_comes_to_the_consumer_with_its_traceback(door):
    class Broken(Stored):
        def __getitem__(self, key):
            if key.start == 10:
                raise OSError("the disk is gone")
            return super().__getitem__(key)

    batches = StreamedBatches(door, Broken(LEVELS), LABELS, (3,), 5).epoch()
    next(batches)
    next(batches)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(batches)
    assert "__getitem__" in [entry.name for entry in caught.traceback]
    assert threads() == []


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e39])
def test_values_that_are_not_finite(door, tmp_path, value):
    bad = FLOATS.astype(np.float64)
    bad[12, 3, 3] = value
    batches = StreamedBatches(door, mapped(tmp_path, bad), LABELS, (3,), 5).epoch()
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(NonFiniteError, match="the images of batch 3: 1 of 320 values are NaN or infinite as float32"):
        next(batches)


# Training


def assert_trains_the_same(net, backend, images):
    one, other = (Trainer(net, backend=backend, seed=1) for _ in range(2))
    for trainer, x in ((one, FLOATS), (other, images)):
        trainer.fit(x, LABELS, epochs=2, batch_size=5, validation_data=(x, LABELS))
    for path, weight in one.weights.items():
        np.testing.assert_array_equal(weight, other.weights[path])
    assert [r["validation_loss"] for r in one.history] == [r["validation_loss"] for r in other.history]
    assert one.evaluate(FLOATS, LABELS) == other.evaluate(images, LABELS)
    expected, got = one.predict(FLOATS, batch_size=10), other.predict(images, batch_size=10)
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(expected, got)
    assert threads() == []


def test_training_is_the_same_bit_for_bit(backend, monkeypatch):
    made, init = [], StreamedBatches.__init__
    monkeypatch.setattr(StreamedBatches, "__init__", lambda s, *a: (made.append(s), init(s, *a))[1])
    assert_trains_the_same(Sequential([Flatten(), Dense(3)]), backend, Stored(LEVELS))
    assert len(made) == 3  # training, validation, evaluation


def test_training_is_the_same_however_they_are_stored(stored):
    assert_trains_the_same(NET, "numpy", stored)


def test_stored_images_in_batches_of_ones_own():
    one, other = Trainer(NET, backend="numpy"), Trainer(NET, backend="numpy")
    assert one.fit([(Stored(LEVELS), LABELS)])[0]["loss"] == other.fit([(FLOATS, LABELS)])[0]["loss"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (LEVELS, LABELS, "images have dtype uint8 and shape .23, 8, 8, 1.; layers compute in floating point"),
        (FLOATS[..., 0], LABELS, "expected"),
        (FLOATS[:0], LABELS[:0], "there are no images"),
        (FLOATS, LABELS[:5], "23 images, but 5 labels"),
        (FLOATS, LABELS + 1, "out of range, such as 3"),
        (FLOATS[:, 0, 0, 0], LABELS, r"images have shape \(23,\); expected \(N, H, W, C\)"),
    ],
    ids=["bytes", "no channels", "empty", "lengths", "labels", "vector"],
)
def test_what_does_not_fit(tmp_path, images, labels, message):
    images = np.memmap(tmp_path / "x", images.dtype, "w+", 0, images.shape) if images.size else Stored(images)
    with pytest.raises(ShapeError, match=message):
        Trainer(NET, backend="numpy").fit(images, labels)


def test_memory_stays_small(tmp_path):
    # 100 MB of bytes, 400 MB as float32; the file is sparse.
    shape = (100, 1000, 1000, 1)
    images = Stored(np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint8, shape))
    trainer = Trainer(Sequential([GlobalAvgPool(), Dense(2)]), backend="numpy")
    labels = np.arange(100) % 2
    trainer.fit(images[:2], labels[:2])  # imports
    tracemalloc.start()
    try:
        trainer.fit(images, labels, batch_size=2)
        trainer.evaluate(images, labels, batch_size=2)
        trainer.predict(images, batch_size=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
