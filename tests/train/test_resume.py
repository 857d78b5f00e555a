"""A `fit` that was interrupted anywhere ends with the bits of one that was not."""

import random
import sys
from collections import Counter
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from training import ADAM, IMAGES, LABELS, NET, PLAIN, SHAPE, Moments, assert_same_state, plain, recorded, samples

from xpnn import Callback, NonFiniteError, Trainer
from xpnn.backend import get
from xpnn.data import Stored
from xpnn.data.augment import Affine, Augment, Flip, Shift
from xpnn.optim import SGD, OneCycle, OnPlateau
from xpnn.train import Checkpoint, EarlyStopping, fit

TIMES = {"seconds", "images_per_second"}
ARGUMENTS = {"epochs": 3, "batch_size": 8, "validation_data": (IMAGES[:10], LABELS[:10])}


def made(backend="numpy", **options):
    options = {"optimizer": ADAM, "schedule": OnPlateau(patience=0), "seed": 4} | options
    return Trainer(options.pop("model", NET), backend=backend, **options)


class Stop(Callback):
    """Stops `fit` after some step."""

    def __init__(self, after, end=None):
        self.after, self.end = after, end or (lambda fit: fit.stop("tried"))

    def on_step(self, fit):
        if fit.done == self.after:
            self.end(fit)


def without_times(records):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def assert_same_run(a, b):
    assert_same_state(a, b)
    assert without_times(a.history) == without_times(b.history)
    assert a.epochs == b.epochs


@pytest.mark.parametrize("after", range(1, 10))
def test_stopped_after_any_step(tmp_path, after):
    whole = made()
    records = whole.fit(IMAGES, LABELS, **ARGUMENTS)
    first = made()
    first.fit(IMAGES, LABELS, **ARGUMENTS, callbacks=[Stop(after)])
    first.save(tmp_path / "state")
    second = Trainer.load(tmp_path / "state", backend="numpy")
    assert_same_state(first, second)
    assert second.step == after
    if after == 9:  # that was the last step
        assert second.position is None
    else:
        log = Moments()
        resumed = second.fit(IMAGES, LABELS, **ARGUMENTS, callbacks=[log], resume=True)
        assert [e for e in log.log if e[0] == "step"] == [("step", i // 3 + 1, i % 3 + 1) for i in range(after, 9)]
        assert without_times(resumed) == without_times(records)
        assert second.position is None
    assert_same_run(second, whole)


def test_stopped_on_any_backend(tmp_path, backend):
    """On the backend itself the same bits; what it wrote goes on elsewhere, and the other way round."""
    whole, first = (made(backend, optimizer=SGD(lr=0.01, momentum=0.9)) for _ in range(2))  # Adam enlarges rounding
    whole.fit(IMAGES, LABELS, **ARGUMENTS)
    first.fit(IMAGES, LABELS, **ARGUMENTS, callbacks=[Stop(4)])
    first.save(tmp_path / "state")
    second = Trainer.load(tmp_path / "state", backend=backend)
    second.fit(IMAGES, LABELS, **ARGUMENTS, resume=True)
    assert_same_run(second, whole)
    third = Trainer.load(tmp_path / "state", backend="numpy")
    third.fit(IMAGES, LABELS, **ARGUMENTS, callbacks=[Stop(5)], resume=True)
    third.save(tmp_path / "third")
    back = Trainer.load(tmp_path / "third", backend=backend)
    back.fit(IMAGES, LABELS, **ARGUMENTS, resume=True)
    assert (back.step, back.samples, back.epochs) == (whole.step, whole.samples, whole.epochs)
    for path, weight in whole.weights.items():
        np.testing.assert_allclose(back.weights[path], weight, rtol=1e-4, atol=1e-5)


def test_an_exception_between_steps_loses_nothing(tmp_path):
    whole, trainer = made(), made()
    whole.fit(IMAGES, LABELS, **ARGUMENTS)

    def fail(fit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(IMAGES, LABELS, **ARGUMENTS, callbacks=[Checkpoint(tmp_path), Stop(5, fail)])
    loaded = Trainer.load(tmp_path / "last.safetensors", backend="numpy")
    for each in (trainer, loaded):  # here and from the file
        each.fit(IMAGES, LABELS, **ARGUMENTS, resume=True)
        assert_same_run(each, whole)


@contextmanager
def before_each_line(reached):
    """Call `reached(number)` before each line of `xpnn.train.fit`, where all is counted."""

    def trace(frame, event, arg):
        if frame.f_code.co_filename != fit.__file__:
            return None
        if event == "line":
            reached(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_an_interruption_at_any_line_loses_and_repeats_nothing(tmp_path, monkeypatch, seconds):
    """Ctrl-C does not wait for the end of a step; each line is hit once, at one of the times that it is reached."""
    monkeypatch.setattr("os.fsync", lambda handle: None)  # the power does not fail
    arguments, last, numpy = {"epochs": 2, "batch_size": 10}, tmp_path / "last.safetensors", get("numpy")

    def run(reached):
        trainer = made(numpy, model=PLAIN).build(SHAPE)
        with before_each_line(reached), suppress(KeyboardInterrupt):
            trainer.fit(IMAGES, LABELS, **arguments, callbacks=[Checkpoint(tmp_path, seconds)])
        return trainer

    hits, choices = Counter(), random.Random(2)
    whole = run(lambda number: hits.update([number]))
    assert len(hits) > 60
    for line, times in hits.items():
        left, wanted = [choices.randint(1, times)], line

        def reached(number, left=left, wanted=wanted):
            left[0] -= number == wanted
            if number == wanted and not left[0]:
                raise KeyboardInterrupt

        last.unlink(missing_ok=True)
        trainer = run(reached)
        assert left[0] <= 0, "it was never interrupted"
        loaded = [Trainer.load(last, backend=numpy)] if last.exists() else []  # the first one may be interrupted
        for each in (trainer, *loaded):
            if each.position:
                each.fit(IMAGES, LABELS, **arguments, resume=True)
            elif each is trainer:  # in the middle of a step: only the file goes on
                continue
            assert_same_run(each, whole)


def test_a_step_that_fails_itself_is_not_saved_as_if_it_were_done(tmp_path, monkeypatch):
    trainer = made().build(IMAGES.shape[1:])
    step, calls = trainer.executor.step, []

    def fails(*args):
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError("no room")
        return step(*args)

    monkeypatch.setattr(trainer.executor, "step", fails)
    with pytest.raises(MemoryError):
        trainer.fit(IMAGES, LABELS, **ARGUMENTS, callbacks=[Checkpoint(tmp_path)])
    assert trainer.position is None
    loaded = Trainer.load(tmp_path / "last.safetensors", backend="numpy")
    assert loaded.step == 3  # the end of the first epoch
    whole = made()
    whole.fit(IMAGES, LABELS, **ARGUMENTS)
    loaded.fit(IMAGES, LABELS, **ARGUMENTS, resume=True)
    assert_same_run(loaded, whole)


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_epoch_whose_validation_fails_is_not_trained_twice(tmp_path, epoch):
    class Held:
        """The batches of validation, which are out of reach once."""

        times = 0

        def __iter__(self):
            self.times += 1
            if self.times == epoch:
                raise KeyboardInterrupt
            yield from ((IMAGES[:8], LABELS[:8]), (IMAGES[8:10], LABELS[8:10]))

    whole, trainer, held = made(), made(), Held()
    whole.fit(IMAGES, LABELS, **ARGUMENTS)
    arguments = ARGUMENTS | {"validation_data": held}
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(IMAGES, LABELS, **arguments, callbacks=[Checkpoint(tmp_path)])
    loaded = Trainer.load(tmp_path / "last.safetensors", backend="numpy")
    for each in (trainer, loaded):
        assert (each.step, len(each.history), each.position["records"]) == (3 * epoch, epoch - 1, epoch - 1)
        log = Moments()
        each.fit(IMAGES, LABELS, **arguments, callbacks=[log], resume=True)
        assert sum(e[0] == "step" for e in log.log) == 9 - 3 * epoch
        assert_same_run(each, whole)


def test_the_second_fit_goes_on_with_its_own_records_and_seconds():
    trainer = plain()
    trainer.fit(IMAGES, LABELS, epochs=2, batch_size=8)
    trainer.fit(IMAGES, LABELS, epochs=2, batch_size=8, callbacks=[Stop(1)])
    assert trainer.position["seconds"] > 0
    trainer.position["seconds"] = 1000.0
    records = trainer.fit(IMAGES, LABELS, epochs=2, batch_size=8, resume=True)
    assert [r["epoch"] for r in records] == [3, 4]
    assert [r["seconds"] > 1000 for r in records] == [True, False]
    assert [r["images_per_second"] * r["seconds"] for r in records] == pytest.approx([20, 20])


def test_a_source_of_batches_goes_on_where_it_was(tmp_path):
    source = [(IMAGES[i : i + 4], LABELS[i : i + 4]) for i in range(0, 20, 4)]
    whole, trainer = made(schedule=None), made(schedule=None)
    whole.fit(source, epochs=2)
    trainer.fit(source, epochs=2, callbacks=[Stop(7)])
    assert trainer.step == 7
    trainer.fit(source, epochs=2, resume=True)
    assert_same_run(trainer, whole)


@pytest.mark.parametrize("stored", [False, True])
def test_augmented_and_streamed_images_go_on_where_they_were(stored):
    images = Stored(IMAGES) if stored else IMAGES
    arguments = ARGUMENTS | {"augment": Augment([Shift(1), Flip(), Affine(degrees=20)])}
    whole, trainer, otherwise = made(), made(), made()
    whole.fit(IMAGES, LABELS, **arguments)
    otherwise.fit(IMAGES, LABELS, **ARGUMENTS)
    assert any((w != otherwise.weights[path]).any() for path, w in whole.weights.items())
    trainer.fit(images, LABELS, **arguments, callbacks=[Stop(4)])
    trainer.fit(images, LABELS, **arguments, resume=True)
    assert_same_run(trainer, whole)


def test_the_first_checkpoint_comes_before_the_first_step(tmp_path):
    seen = []

    class Look(Callback):
        def on_begin(self, fit):
            seen.append(Trainer.load(tmp_path / "last.safetensors", backend="numpy"))

    whole = made()
    whole.fit(IMAGES, LABELS, **ARGUMENTS, callbacks=[Checkpoint(tmp_path), Look()])
    (untrained,) = seen
    assert (untrained.step, untrained.history) == (0, [])
    untrained.fit(IMAGES, LABELS, **ARGUMENTS, resume=True)
    assert_same_run(untrained, whole)


def test_a_fit_after_an_interrupted_one_has_an_order_of_its_own():
    trainer = plain().build(IMAGES.shape[1:])
    with recorded(trainer) as seen:
        trainer.fit(IMAGES, LABELS, epochs=2, batch_size=8, callbacks=[Stop(1)])
        trainer.fit(IMAGES, LABELS, epochs=1, batch_size=8)
    assert (trainer.epochs, len(trainer.history), trainer.position) == (2, 1, None)
    assert not np.array_equal(seen[0][0], seen[1][0])


def test_a_schedule_and_early_stopping_go_on(tmp_path):
    """One-cycle counts steps, early stopping epochs: both begin where they were."""
    images, labels = samples(40)
    arguments = {"epochs": 12, "batch_size": 8, "validation_data": samples(20, seed=1)}
    accuracy = "validation_accuracy"

    def run(callbacks):
        trainer = made(model=PLAIN, schedule=OneCycle(), dtype="float64")
        trainer.fit(images, labels, **arguments, callbacks=[*callbacks, EarlyStopping(2, accuracy)])
        return trainer

    whole = run([])
    assert 3 <= len(whole.history) < 12, "it should stop early"
    assert whole.position is None
    trainer = run([Stop(11)])
    trainer.fit(images, labels, **arguments, callbacks=[EarlyStopping(2, accuracy)], resume=True)
    assert_same_run(trainer, whole)


def test_what_had_stopped_early_stops_again(tmp_path):
    """Killed between the checkpoint of the last epoch and the word that it was the last."""
    images, labels = samples(40)
    arguments = {"epochs": 12, "batch_size": 8, "validation_data": samples(20, seed=1)}
    trainer = made(model=PLAIN)
    trainer.fit(images, labels, **arguments, callbacks=[Checkpoint(tmp_path), EarlyStopping(2, "validation_loss")])
    loaded = Trainer.load(tmp_path / "last.safetensors", backend="numpy")
    assert loaded.position
    loaded.fit(images, labels, **arguments, callbacks=[EarlyStopping(2, "validation_loss")], resume=True)
    assert_same_run(loaded, trainer)


def test_weights_that_leave_the_finite_numbers_are_never_in_a_checkpoint(tmp_path):
    trainer, written = Trainer(PLAIN, optimizer=SGD(lr=1e38), backend="numpy"), []

    class Count(Callback):
        def on_step(self, fit):
            written.append(fit.done)

    with pytest.raises(NonFiniteError, match=r"training left the finite numbers at step \d+"):
        trainer.fit(IMAGES, LABELS, epochs=3, batch_size=2, callbacks=[Checkpoint(tmp_path, seconds=0), Count()])
    assert written == [*range(1, trainer.step + 1)]  # none after the step that was not finite
    loaded = Trainer.load(tmp_path / "last.safetensors", backend="numpy")
    assert_same_state(loaded, trainer)
    assert trainer.position["done"] == loaded.position["done"] == trainer.step
    assert all(np.isfinite(w).all() for w in loaded.weights.values())


def test_who_stops_for_good_hears_that_the_step_was_not_finite():
    trainer = Trainer(PLAIN, optimizer=SGD(lr=1e38), backend="numpy")
    with pytest.raises(NonFiniteError):
        trainer.fit(IMAGES, LABELS, batch_size=4, callbacks=[Stop(3, lambda fit: fit.stop("tried", for_good=True))])


# Mistakes


def test_nothing_to_resume(tmp_path):
    trainer = plain()
    with pytest.raises(ValueError, match="there is nothing to resume: no fit of this trainer was interrupted"):
        trainer.fit(IMAGES, LABELS, resume=True)
    trainer.fit(IMAGES, LABELS, batch_size=8, callbacks=[Stop(1)])
    trainer.save_weights(tmp_path / "weights")
    trainer.load_weights(tmp_path / "weights")
    with pytest.raises(ValueError, match="there is nothing to resume"):
        trainer.fit(IMAGES, LABELS, batch_size=8, resume=True)
    trainer.fit(IMAGES, LABELS)
    with pytest.raises(ValueError, match="call fit without resume=True"):
        trainer.fit(IMAGES, LABELS, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 4}, "epochs was 3, now 4"),
        ({"batch_size": 9}, "batch_size was 8, now 9"),
        ({"augment": Augment([Flip()])}, r"augment was None, now 'Augment\(\[Flip\(probability=0.5\)\]\)'"),
        ({"labels": LABELS[::-1]}, "data was '[0-9a-f]{64}', now '[0-9a-f]{64}'"),
        ({"images": np.concatenate([IMAGES[:-1], IMAGES[:1]])}, "data was"),
        ({"images": IMAGES[:16], "labels": LABELS[:16]}, "data was"),
    ],
)
def test_other_arguments_than_then(change, message):
    trainer = made()
    trainer.fit(IMAGES, LABELS, **ARGUMENTS, callbacks=[Stop(4)])
    before = trainer.position
    with pytest.raises(ValueError, match=f"a fit goes on with what it began with, but {message}.*begin a new fit"):
        trainer.fit(**{"images": IMAGES, "labels": LABELS, **ARGUMENTS, **change}, resume=True)
    assert trainer.position == before  # nothing is lost
