"""Recordings of NumPy's calls: played, they give what the function gives, or they are not played."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from xpnn_numpy import executor, recording
from xpnn_numpy.kernels import KERNELS
from xpnn_numpy.recording import Arena, Diverged, NotRecordable, OfThread, Played, Recording, Weights, unrecorded

import xpnn
from xpnn import models
from xpnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, Layer, MaxPool2D, ReLU, Sequential
from xpnn.losses import CrossEntropy
from xpnn.ops import Ops
from xpnn.parity import CASES, Placed
from xpnn.parity.sides import results
from xpnn.random import Stream

RECORDED = Ops({name: unrecorded(getattr(Ops, name)) for name in executor.UNRECORDED} | dict(KERNELS))


def normal(*shape, key="x"):
    return Stream(0, "recording", key).normal(shape).astype("float32")


A, B, OTHER_A, OTHER_B = (normal(4, 6, key=key) for key in ("a", "b", "c", "d"))


def record(function, weights, arrays, size=1 << 16):
    """What plays the recording of a function."""
    kept = Weights(weights)
    kept.set(weights)
    made = Recording(function, kept, arrays, Arena(size))

    def played(weights, *arrays):
        kept.set(weights)
        return made.play(arrays)

    return made, played


def into(a, b):
    y = np.empty((6, 6), a.dtype, like=a)
    np.matmul(a.T, b, out=y)
    y[1:3] = b[:2]
    y[..., 0] = 7
    y[:, 1:] += y[:, :-1]
    y -= 1
    return [y]


def summed(a, b):
    total = np.zeros(6, a.dtype, like=a)
    for row in a:
        total += row
    first, second = b[0][:2]
    return [total, np.add.reduce(a), np.add.reduce(b, None), np.add.reduceat(a, (0, 2), 0), first - second, a.sum(1)]


def moved(a, b):
    return [
        a.T.copy(),
        a.T.reshape(-1),
        a.reshape(3, 8),
        np.concatenate([a, b.swapaxes(0, 1).reshape(4, 6)]),
        np.stack([a[0], b[1]]),
        np.broadcast_to(a[:, None], (4, 2, 6)) * 2,
        (a > b).astype("float32"),
        a.astype("float32", copy=False)[::-1, ::2] + 1,
    ]


def picked(a, b):
    return [
        np.sort(a[a > -9]),
        a[np.array([2, 0])],
        a[[1, 1]],
        np.where(a > b, a, b),
        np.argmax(a, 1),
        np.dot(a, b.T),
        np.negative(a, where=b > 0, out=np.zeros_like(b)),
    ]


def strided(a, b):
    view = type(a)((3, 2, 6), a.dtype, a, strides=(24, 24, 4))
    return [view * 2, view.view(np.dtype((np.void, 24))).copy().view("float32"), a.view("int32") >> 1]


def decided(a, b):
    return [a + b if (np.count_nonzero(a) == a.size) else a - b]


def unrelated(a, b):
    return [np.arange(3), a * np.float64(0.5), a]


@pytest.mark.parametrize("function", [into, summed, moved, picked, strided, decided, unrelated])
def test_played_it_gives_what_the_function_gives(function):
    made, play = record(function, A, [B])
    assert made.calls
    for a, b in [(OTHER_A, OTHER_B), (A, B), (OTHER_B, A)]:
        played, expected = play(a, b), function(a, b)
        assert len(played) == len(expected)
        for its, due in zip(played, expected, strict=True):
            assert its.dtype == due.dtype
            np.testing.assert_array_equal(its, due)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: [a * float(b[0, 0])],
        lambda a, b: [a * b.item(0)],
        lambda a, b: [a.argmax()],
        lambda a, b: [np.add(a, b, out=np.empty((4, 6), "float32"))],
        lambda a, b: [*np.divmod(a, b)],
        lambda a, b: np.split(a, 2),
        lambda a, b: [np.add.at(a, 0, b)],
        lambda a, b: [a.__setitem__(b > 0, 1)],
        lambda a, b: [0.5 in a],
        lambda a, b: [np.outer(a, b)[:, :, None] * np.ones(1 << 12, "float32")],
    ],
)
def test_what_cannot_be_written_down_is_an_error(function):
    with pytest.raises(NotRecordable):
        record(function, A.copy(), [B])


def test_another_decision_than_the_recorded_one():
    _, play = record(decided, A, [B])
    with pytest.raises(Diverged):
        play(np.zeros_like(A), B)


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arrays):
        self.calls += 1
        return self.function(*arrays)


@pytest.fixture
def room(monkeypatch):
    """Sets how much there is for a recording."""

    def of(size):
        monkeypatch.setattr(recording, "SIZE", size)
        monkeypatch.setattr(recording, "of_thread", OfThread())

    of(1 << 16)
    return of


def after_recording(function):
    """A function, and what plays it, after the call that records it."""
    counted = Counted(function)
    played = Played(counted)
    for _ in range(recording.REPEATED):
        its = played(A, B)
        assert all(np.array_equal(x, y) for x, y in zip(its, function(A, B), strict=True))
    counted.calls = 0
    return counted, played


def test_a_function_is_recorded_when_it_comes_again_and_again():
    counted = Counted(summed)
    played = Played(counted)
    for i in range(1, recording.REPEATED):
        played(A, B)
        assert counted.calls == i
    played(A, B)
    counted.calls = 0
    for a, b in [(OTHER_A, OTHER_B), (A, B)]:
        for x, y in zip(played(a, b), summed(a, b), strict=True):
            np.testing.assert_array_equal(x, y)
    assert counted.calls == 0
    played(A, B[:1])
    assert counted.calls == 1  # other shapes are another recording


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: [a + np.asarray(b) * 2],  # a constant, if it were recorded
        lambda a, b: [np.add(a, b) * float(np.asarray(a)[0, 0])],
        lambda a, b: [a * float(b[0, 0])],
        lambda a, b: [np.outer(a, b)[:, :, None] * np.ones(1 << 12, "float32")],
    ],
)
@pytest.mark.usefixtures("room")
def test_what_would_not_be_right_is_not_played(function):
    counted, played = after_recording(function)
    for a, b in [(OTHER_A, OTHER_B), (A, B)]:
        for x, y in zip(played(a, b), function(a, b), strict=True):
            np.testing.assert_array_equal(x, y)
    assert counted.calls == 2


def test_where_decisions_differ_the_function_is_called():
    counted, played = after_recording(decided)
    played(A, B)
    assert counted.calls == 0
    for _ in range(2):
        np.testing.assert_array_equal(played(np.zeros_like(A), B)[0], -B)
    assert counted.calls == 2


def test_errors_are_those_of_the_function():
    def fails(a, b):
        raise ValueError("of its own")

    played = Played(fails)
    for _ in range(2 * recording.REPEATED):
        with pytest.raises(ValueError, match="of its own"):
            played(A, B)


def test_recordings_of_several_shapes_share_memory_and_harm_each_other_nowhere():
    def function(a, b):
        return [b @ a.T @ a + (b - a[0]) * 2, np.add.reduce(a), np.add.reduce(b * b)]

    kinds, sizes = [Played(function), Played(function)], [3, 1, 4, 2]
    for round_ in range(2 * recording.REPEATED):
        a, b = normal(4, 6, key=f"a{round_ // 3}"), normal(4, 6, key=f"b{round_}")
        for n in sizes:
            for weights, played in zip((a, A), kinds, strict=True):
                for x, y in zip(played(weights, b[:n]), function(weights, b[:n]), strict=True):
                    np.testing.assert_array_equal(x, y)
    found = [its for played in kinds for its in played.kept.found.values()]
    assert len(found) == 8
    assert all(isinstance(f, Recording) for f in found)
    assert len({id(f.arena) for f in found}) == 1
    assert not found[0].arena.taken


def test_the_memory_of_what_is_gone_is_used_again(room):
    def function(a, b):
        for _ in range(100):
            a = a * 2 - b
        return [a]

    room(8 * A.nbytes)
    counted, played = after_recording(function)
    played(OTHER_A, B)
    assert counted.calls == 0


def test_there_are_only_so_many_recordings():
    played, one = Played(lambda a, b: [a + b]), np.ones(1, "float32")
    for most in (recording.MOST_KEPT, 3 * recording.MOST_KEPT):
        for _ in range(recording.REPEATED + 1):
            for n in range(most):
                x = np.ones(n, "float32")
                np.testing.assert_array_equal(played(one, x)[0], 2 * x)
        assert len(recordings(played)) == (most if most == recording.MOST_KEPT else 0)
    assert len(played.kept.found) <= recording.MOST_KEPT


def test_layouts_are_recorded_apart():
    def function(a, b):
        return [np.matmul(b, a.T), b + 1]

    played = Played(function)
    layouts = [B, np.asfortranarray(B), np.repeat(B, 2, 1)[:, ::2], B[::-1]]
    for _ in range(2 * recording.REPEATED):
        for b in layouts:
            for x, y in zip(played(A, b), function(A, b), strict=True):
                assert x.strides == y.strides
                np.testing.assert_array_equal(x, y)
    assert len(recordings(played)) == 2  # what has gaps, or goes backwards, is not recorded


def test_without_memory_nothing_is_recorded(monkeypatch):
    def none(size):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(recording, "Arena", none)
    counted, played = after_recording(summed)
    played(A, B)
    assert counted.calls == 1


def test_each_thread_has_recordings_of_its_own():
    played, wrong = Played(lambda a, b: [a @ b.T + 1]), []

    def work(i):
        a, b = normal(50, 50, key=f"a{i}"), normal(50, 50, key=f"b{i}")
        for _ in range(200):
            if not np.array_equal(played(a, b)[0], a @ b.T + 1):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_ops_can_be_recorded(case, dtype):
    placed = Placed(case, xpnn.backend.get("numpy"), dtype, ops=RECORDED)
    given = {name: a for name, a in placed.arrays.items() if a is not None}

    def function(dy, *arrays):
        return list(results(case, RECORDED, placed.arrays | dict(zip(given, arrays, strict=True)), dy).values())

    dy, *arrays = placed.dy, *given.values()
    other, *others = map(recording._other, (dy, *arrays))
    _, play = record(function, dy, arrays, 1 << 24)
    if case.name.endswith("labels-out-of-range"):
        with pytest.raises(Diverged):
            play(other, *others)
        other, others = dy, arrays
    for its, due in zip(play(other, *others), function(other, *others), strict=True):
        np.testing.assert_array_equal(its, due)


def trained(model, samples, shape, steps, loss="cross_entropy", dtype="float32"):
    """The state after some steps of as many samples, others each time, and the predictions after each."""
    trainer = xpnn.Trainer(model, loss=loss, backend="numpy", dtype=dtype, seed=1).build(shape)
    shown = []
    for step in range(steps):
        x = Stream(step, "images").uniform((samples, *shape)).astype(dtype)
        y = (Stream(step, "labels").words(0, samples) % np.uint64(10)).astype("int64")
        trainer.fit(x, y, epochs=1, batch_size=samples)
        shown.append(trainer.predict(x))
        shown += [trainer.predict(x[: samples // 2 + 1]) for _ in range(3)]
    return trainer, shown


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    monkeypatch.setenv("XPNN_THREADS", "1")
    monkeypatch.setattr(recording, "REPEATED", 2)


def recordings(played):
    return [found for found in played.kept.found.values() if isinstance(found, Recording)]


def assert_same(found, expected):
    (trainer, shown), (other, due) = found, expected
    for name, a in (trainer.weights | trainer.stats).items():
        np.testing.assert_array_equal(a, (other.weights | other.stats)[name], err_msg=name)
    for a, b in zip(shown, due, strict=True):
        np.testing.assert_array_equal(a, b)


def smoothed():
    return models.get("article"), CrossEntropy(label_smoothing=0.1)


def own(*layers):
    return lambda: (Sequential([*layers, Flatten(), Dense(10)]), "cross_entropy")


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        *((lambda name=name: (models.get(name), "cross_entropy"), (32, 32, 3) if name == "resnet20" else (28, 28, 1))
          for name in models.MODELS),
        (smoothed, (28, 28, 1)),
        (own(Conv2D(4, 3, groups=2), ReLU(), Dropout(0.5), MaxPool2D(3, stride=2, padding=1)), (9, 9, 2)),
    ],
    ids=[*models.MODELS, "smoothed", "own"],
)  # fmt: skip
def test_steps_and_predictions_have_the_same_bits(monkeypatch, make, shape, samples, dtype):
    model, loss = make()
    found = trained(model, samples, shape, 5, loss, dtype)
    its = found[0].executor
    assert bool(recordings(its._played)) == (its.per_sample or its._count(samples) == 1)  # lanes do not meet
    assert recordings(its._predicting[1])
    monkeypatch.setattr(recording, "REPEATED", 1 << 20)
    expected = trained(model, samples, shape, 5, loss, dtype)
    assert not recordings(expected[0].executor._played)
    assert_same(found, expected)


class Mine(Layer):
    def apply(self, weights, stats, x, run):
        return x + 0, {}, lambda dy, **_: (dy, {})


@pytest.mark.usefixtures("plain")
def test_layers_of_somebodys_own_are_not_recorded(monkeypatch):
    trainer, _ = trained(Sequential([Mine(), Flatten(), Dense(10)]), 4, (5, 5, 1), 4)
    assert not trainer.executor.recordable
    trainer, _ = trained(Sequential([Flatten(), Dense(10)]), 4, (5, 5, 1), 4)
    assert recordings(trainer.executor._played)
    monkeypatch.setattr(executor, "FEW_WEIGHTS", 250 * 4)  # of 260
    trainer, _ = trained(Sequential([Flatten(), Dense(10)]), 4, (5, 5, 1), 4)
    assert not trainer.executor.recordable


@pytest.mark.usefixtures("plain")
def test_statistics_and_masks_go_by_their_names():
    model = Sequential([BatchNorm(), Dropout(0.5), BatchNorm(), Dropout(0.5), Flatten(), Dense(10)])
    trainer = xpnn.Trainer(model, backend="numpy", seed=1).build((5, 5, 1))
    x, y, draws = normal(4, 5, 5, 1), np.arange(4), trainer._draws(0, 4)
    turned = {**trainer._state, "stats": dict(reversed(trainer._state["stats"].items()))}
    for _ in range(4):
        one = trainer.executor.gradient(trainer._state, x, y, draws, np.float32(1))
        other = trainer.executor.gradient(turned, x, y, dict(reversed(draws.items())), np.float32(1))
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1].keys() == other[1].keys()
        for path, a in one[1].items():
            np.testing.assert_array_equal(a, other[1][path])


@pytest.mark.usefixtures("plain")
def test_no_piece_is_empty(monkeypatch):
    trainer, _ = trained(Sequential([Flatten(), Dense(10)]), 4, (5, 5, 1), 1)
    monkeypatch.setattr(trainer.executor, "_lanes_of", lambda n, least: 4)
    monkeypatch.setattr(trainer.executor, "_most", lambda: 1)
    seen, scores = [], trainer.executor.scores
    monkeypatch.setattr(trainer.executor, "scores", lambda *given: seen.append(given[3]) or scores(*given))
    for n in (1, 2, 3, 5):
        assert trainer.predict(normal(n, 5, 5, 1)).shape == (n, 10)
    assert len(seen) == 3
    assert all(a < b for cuts in seen for a, b in pairwise(cuts))


@pytest.mark.usefixtures("plain")
def test_what_was_written_into_the_same_images_is_seen():
    trainer, _ = trained(Sequential([Flatten(), Dense(10)]), 4, (5, 5, 1), 4)
    x = normal(4, 5, 5, 1)
    for _ in range(4):
        shown = trainer.predict(x)
    assert recordings(trainer.executor._predicting[1])
    x *= 2
    twice = trainer.predict(x)
    np.testing.assert_allclose(twice - shown, shown - trainer.predict(0 * x), rtol=1e-4)


@pytest.mark.usefixtures("plain")
def test_a_gradient_is_its_callers_own():
    trainer, _ = trained(Sequential([Flatten(), Dense(10)]), 4, (5, 5, 1), 4)
    x, y = normal(4, 5, 5, 1), np.arange(4)
    scale = np.float32(0.25)
    gradient, *_ = trainer.executor.gradient(trainer._state, x, y, {}, scale)
    kept = gradient.copy()
    trainer.executor.gradient(trainer._state, 2 * x, y, {}, scale)
    scores = trainer.predict(x)
    shown = scores.copy()
    for _ in range(4):
        trainer.predict(3 * x)
    np.testing.assert_array_equal(gradient, kept)
    np.testing.assert_array_equal(scores, shown)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("work", "expected"), [(1, {20}), (executor.PLAYED_WORK // 7, {5}), (1 << 40, {1})])
def test_pieces_of_much_work_are_small_in_predictions(work, expected):
    """Two lanes each: cut in a multiple of two."""
    trainer = xpnn.Trainer(models.get("article"), backend="numpy", seed=1).build((28, 28, 1))
    x = normal(20, 28, 28, 1)
    due = trainer.predict(x)
    trainer.executor.sample_work = work
    for _ in range(3):
        found = trainer.predict(x)
    np.testing.assert_allclose(found, due, rtol=0, atol=1e-5)
    recorded = recordings(trainer.executor._predicting[1])
    assert {len(recording.inputs[0]) for recording in recorded} == expected
