"""The callbacks that come with xpnn: what they write, and when they stop."""

import json
from math import inf, nan

import pytest
from training import IMAGES, LABELS, SHAPE, Moments, assert_same_state, plain

from xpnn import Callback, Trainer
from xpnn.train import Checkpoint, EarlyStopping, JSONLines, TensorBoard, TimeLimit
from xpnn.train.callbacks import best


class Given:
    """A `fit` with these records, as a callback sees it."""

    def __init__(self, *values, name="validation_accuracy"):
        self.records = [{"loss": 1.0, name: v} for v in values]
        self.stopped = None

    def stop(self, reason, for_good=False):
        self.stopped = reason, for_good


@pytest.mark.parametrize(
    ("values", "name", "least", "place"),
    [
        ((0.3, 0.5, 0.4), "validation_accuracy", 0, 1),
        ((0.5, 0.5), "validation_accuracy", 0, 0),
        ((3, 2, 2, 4), "validation_loss", 0, 1),
        ((nan, 2, nan), "validation_loss", 0, 1),
        ((0.5, 0.55, 0.61), "validation_accuracy", 0.1, 2),
        ((0.5, 0.55, 0.59), "validation_accuracy", 0.1, 0),
    ],
)
def test_best(values, name, least, place):
    assert best(Given(*values, name=name).records, least=least) == place


def test_the_name_of_what_is_best():
    records = [{"loss": 2.0, "lr": 1.0}, {"loss": 3.0, "lr": 0.5}]
    assert best(records) == 0
    assert best(records, "lr") == 1
    with pytest.raises(ValueError, match="monitor='accuracy'; an epoch is described by loss, lr"):
        best(records, "accuracy")


@pytest.mark.parametrize("monitored", [Checkpoint, EarlyStopping], ids=lambda cls: cls.__name__)
def test_what_no_epoch_has_is_noticed_before_the_first(tmp_path, monitored):
    trainer, seen = plain(), []
    options = {"folder": tmp_path} if monitored is Checkpoint else {}

    class Names(Callback):
        def on_begin(self, fit):
            seen[:] = fit.names

    message = "monitor='validation_accuracy'; an epoch is described by epoch, loss, accuracy, lr, seconds, images_per_s"
    with pytest.raises(ValueError, match=message):
        trainer.fit(IMAGES, LABELS, callbacks=[monitored(monitor="validation_accuracy", **options)])
    with pytest.raises(ValueError, match=r"choose one of these .* where fit is given validation_data"):
        trainer.fit(IMAGES, LABELS, callbacks=[monitored(monitor="acuracy", **options)])
    assert trainer.step == 0
    assert not list(tmp_path.iterdir())
    for name in ("validation_accuracy", "accuracy", None):
        callbacks = [monitored(monitor=name, **options), Names()]
        (record,) = trainer.fit(IMAGES, LABELS, validation_data=(IMAGES, LABELS), callbacks=callbacks)
        assert list(record) == seen


WRITERS = {
    "Checkpoint": Checkpoint,
    "TensorBoard": TensorBoard,
    "JSONLines": lambda folder: JSONLines(folder / "metrics.jsonl"),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_folders_are_made(tmp_path, writer):
    folder = tmp_path / "runs" / "mine"
    for _ in range(2):
        plain().fit(IMAGES, LABELS, callbacks=[writer(folder)])
    assert list(folder.iterdir())


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_file_in_the_place_of_a_folder(tmp_path, writer):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(NotADirectoryError, match=r"mine is a file; expected a folder: remove the file, or name"):
        plain().fit(IMAGES, LABELS, callbacks=[writer(tmp_path / "mine")])
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [
        ((0.1, 0.2, 0.2), 2, False),
        ((0.1, 0.2, 0.2, 0.1), 2, True),
        ((0.3, 0.2), 1, True),
        ((0.3,), 1, False),
        ((), 1, False),
    ],
)
def test_early_stopping(values, patience, stops):
    fit = Given(*values)
    EarlyStopping(patience).on_epoch(fit, {})
    why = f"validation_accuracy was not better for {patience} epoch{'s' * (patience > 1)}"
    assert fit.stopped == ((why, True) if stops else None)


def test_by_how_much_an_epoch_must_be_better():
    fit = Given(0.5, 0.55)
    EarlyStopping(1, least=0.1).on_epoch(fit, {})
    assert fit.stopped


def test_one_that_fails_at_the_beginning_is_not_ended_and_its_error_is_told(tmp_path):
    """The others that had begun are ended, one after the other, whatever one of them raises."""
    log = []

    class Fails(Moments):
        def on_begin(self, fit):
            super().on_begin(fit)
            raise OSError("full")

    callbacks = [Moments(log, "a "), Moments(log, "b "), Fails(log, "c "), Checkpoint(tmp_path)]
    with pytest.raises(OSError, match="full"):
        plain().fit(IMAGES, LABELS, batch_size=8, callbacks=callbacks)
    assert [e[0] for e in log] == ["a begin", "b begin", "c begin", "a end", "b end"]


def test_an_error_at_the_end_of_one_keeps_no_other_from_its_end():
    log = []

    class Fails(Moments):
        def on_end(self, fit):
            super().on_end(fit)
            raise OSError("full")

    trainer = plain()
    with pytest.raises(OSError, match="full"):
        trainer.fit(IMAGES, LABELS, callbacks=[Fails(log, "a "), Moments(log, "b ")])
    assert [e[0] for e in log][-2:] == ["a end", "b end"]
    assert trainer.position is None


def test_a_time_limit():
    trainer = plain()
    trainer.fit(IMAGES, LABELS, epochs=3, batch_size=8, callbacks=[TimeLimit(1e-9)])
    assert (trainer.step, trainer.position["done"]) == (1, 1)
    trainer.fit(IMAGES, LABELS, epochs=3, batch_size=8, callbacks=[TimeLimit(1e9)], resume=True)
    assert (trainer.step, trainer.position) == (9, None)


def test_a_time_limit_counts_from_the_beginning_of_each_fit(monkeypatch):
    now, limit, fit = [1e6], TimeLimit(10), Given()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for _ in range(2):
        limit.on_begin(fit)
        for seconds, why in ((9.9, None), (0.1, "the time limit of 10 s is reached")):
            now[0] += seconds
            limit.on_step(fit)
            assert fit.stopped == (why and (why, False))
        fit.stopped = None


def test_the_last_and_the_best_checkpoint(tmp_path):
    kept = {}

    class Keep(Callback):
        def on_epoch(self, fit, record):
            kept[len(fit.records)] = fit.trainer.host_state()

    trainer = plain()
    callbacks = [Checkpoint(tmp_path, monitor="accuracy"), Keep()]
    trainer.fit(IMAGES, LABELS, epochs=6, batch_size=8, callbacks=callbacks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "last.safetensors"]
    top = best(trainer.history, "accuracy")
    found = Trainer.load(tmp_path / "best.safetensors", backend="numpy")
    assert len(found.history) == top + 1
    for path, weight in found.weights.items():
        assert (weight == kept[top + 1]["weights"][path]).all()
    assert_same_state(Trainer.load(tmp_path / "last.safetensors", backend="numpy"), trainer)


@pytest.mark.parametrize(("seconds", "times"), [(0, 1 + 9 + 3), (1e9, 1 + 3)])
def test_how_often_a_checkpoint_is_written(tmp_path, monkeypatch, seconds, times):
    names = []
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda trainer, path: (names.append(path.name), save(trainer, path)))
    plain().fit(IMAGES, LABELS, epochs=3, batch_size=8, callbacks=[Checkpoint(tmp_path, seconds)])
    assert names.count("last.safetensors") == times
    first = names.index("best.safetensors")
    assert (names[first + 1], names[: first + 1].count("last.safetensors")) == ("last.safetensors", 1 if seconds else 4)


def test_a_checkpoint_is_written_so_many_seconds_after_the_one_before(tmp_path, monkeypatch):
    now, written, save = [1e6], [], Trainer.save
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(Trainer, "save", lambda trainer, path: (written.append(now[0] - 1e6), save(trainer, path)))

    class Tick(Callback):
        def on_step(self, fit):
            now[0] += 1

    plain().fit(IMAGES, LABELS, batch_size=2, callbacks=[Tick(), Checkpoint(tmp_path, 4)])
    assert written == [0, 4, 8, 10, 10]  # the last two at the end of the epoch: best and last


def test_a_line_an_epoch_and_each_once(tmp_path):
    path = tmp_path / "metrics.jsonl"

    class Stop(Callback):
        def on_epoch(self, fit, record):
            fit.stop("tried")

    trainer = plain().build(SHAPE)
    trainer.fit(IMAGES, LABELS, epochs=3, batch_size=8, callbacks=[JSONLines(path), Stop()])
    assert len(path.read_text().splitlines()) == 1
    path.write_text(path.read_text() + '{"epoch": 2, "lo')  # it was killed while it wrote
    trainer.fit(IMAGES, LABELS, epochs=3, batch_size=8, callbacks=[JSONLines(path)], resume=True)
    assert [json.loads(line) for line in path.read_text().splitlines()] == trainer.history


def test_what_is_not_finite_is_null_in_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    JSONLines(path).on_epoch(None, {"epoch": 1, "loss": -inf, "validation_loss": nan, "lr": 0.5})
    assert path.read_text() == '{"epoch": 1, "loss": null, "validation_loss": null, "lr": 0.5}\n'


def test_tensorboard_reads_the_event_file(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
        pytest.importorskip("tensorboard")
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Stop(Callback):
        def on_epoch(self, fit, record):
            fit.stop("tried")

    trainer, data = plain(), {"epochs": 200, "batch_size": 20, "validation_data": (IMAGES, LABELS)}
    trainer.fit(IMAGES, LABELS, **data, callbacks=[TensorBoard(tmp_path), Stop()])
    (before,) = tmp_path.iterdir()
    before.rename(tmp_path / "events.out.tfevents.1.xpnn")  # of an earlier second
    trainer.fit(IMAGES, LABELS, **data, callbacks=[TensorBoard(tmp_path)], resume=True)
    (file,) = tmp_path.iterdir()
    found = EventAccumulator(str(file))
    found.Reload()
    names = {
        "loss/train": "loss", "loss/validation": "validation_loss", "accuracy/train": "accuracy",
        "accuracy/validation": "validation_accuracy", "training/learning rate": "lr",
        "training/images per second": "images_per_second",
    }  # fmt: skip
    assert set(found.Tags()["scalars"]) == set(names)
    for tag, name in names.items():
        events = found.Scalars(tag)
        assert [e.step for e in events] == list(range(1, 201))  # a step past 127 takes two bytes
        assert [e.value for e in events] == pytest.approx([r[name] for r in trainer.history], rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_loss_too_large_for_an_event(tmp_path):
    """float64 goes further than the float32 of the file: logging is no reason to end training."""
    log = TensorBoard(tmp_path)
    log.path = tmp_path / "events"
    log.on_epoch(None, {"epoch": 1, "loss": -1e300})
    assert b"loss/train\x15\x00\x00\x80\xff" in log.path.read_bytes()  # -infinity


def test_the_check_sum_of_an_event_is_the_published_one():
    """RFC 3720, appendix B.4: 32 bytes of zeros have the CRC 0x8A9136AA."""
    from xpnn.train.tensorboard import _crc

    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _crc(bytes(32)) == masked.to_bytes(4, "little")
