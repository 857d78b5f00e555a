"""A run's folder, going on in it, and the commands that look at it."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import xpnn
from xpnn import Callback, Trainer, data, runs
from xpnn.cli import evaluate, main, settings
from xpnn.cli import train as command
from xpnn.train import Checkpoint

FAST = ["--model", "article", "--limit", "200", "--epochs", "2", "--no-pictures", "--backend", "numpy"]
FILES = {"config.toml", "summary.json", "metrics.jsonl", "last.safetensors", "best.safetensors"}


def train(*arguments):
    return main(["train", *map(str, arguments)])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs go into a folder of the test, and Ctrl-C is heard, also where the tests run in background."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that is complete."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(*FAST, "--out", folder) == 0
    return folder


@pytest.fixture
def done(trained, tmp_path):
    """A run that is complete, to be changed by the test."""
    return Path(shutil.copytree(trained, tmp_path / "done"))


@pytest.fixture
def untrained(monkeypatch):
    """Training would fail the test."""

    def fit(*args, **options):
        raise AssertionError("it was trained")

    monkeypatch.setattr(Trainer, "fit", fit)


class Signal(Callback):
    """Sends a signal to this process after some step."""

    def __init__(self, number, after, times=1):
        self.number, self.after, self.times = number, after, times

    def on_step(self, fit):
        if fit.done == self.after:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.fixture
def interrupted(monkeypatch, tmp_path):
    """A run that was asked to stop after its fifth step, of seven an epoch."""
    keepers = command._keepers
    with monkeypatch.context() as patch:
        patch.setattr(command, "_keepers", lambda *a: [*keepers(*a), Signal(signal.SIGINT, 5)])
        assert train(*FAST, "--out", "interrupted") == 130
    return tmp_path / "interrupted"


# The folder


def test_what_is_in_it(trained, capsys):
    names = {p.name for p in trained.iterdir()}
    assert names - FILES == {n for n in names if re.fullmatch(r"events\.out\.tfevents\.\d+\.xpnn", n)}
    assert len(names - FILES) == 1
    run = runs.open_run(trained)
    summary, records = run.summary(), run.history()
    assert summary["status"] == "finished"
    assert summary["classes"] == list("0123456789")
    assert summary["in_shape"] == [8, 8, 1]
    assert [r["epoch"] for r in records] == [1, 2]
    digits = data.load("digits")
    trainer = run.trainer()
    assert trainer.history == records
    found = trainer.evaluate(digits.test_images, digits.test_labels)
    assert found == {"loss": summary["test_loss"], "accuracy": summary["test_accuracy"]}
    assert run.dataset().test_images.shape == digits.test_images.shape
    assert len(run.trainer(which="best").history) in (1, 2)


def test_the_configuration_makes_the_run_again(tmp_path):
    options = ["--seed", 3, "--lr", 0.2, "--optimizer", "adamw", "--schedule", "cosine", "--batch-size", 16]
    options += ["--validation", 0.2, "--label-smoothing", 0.1, "--patience", 5]
    assert train(*FAST, *options, "--out", "first") == 0
    text = Path("first/config.toml").read_text()
    assert text.splitlines()[0] == 'dataset = "digits"'
    assert train("--config", "first/config.toml", "--no-pictures", "--out", "second") == 0
    assert Path("second/config.toml").read_text() == text
    a, b = (Trainer.load(f"{n}/last.safetensors", backend="numpy") for n in ("first", "second"))
    assert a.weights.keys() == b.weights.keys()
    assert all((a.weights[path] == b.weights[path]).all() for path in a.weights)
    assert a.loss == xpnn.losses.CrossEntropy(label_smoothing=0.1)
    # what is said on the command line goes before what the file says
    assert train("--config", "first/config.toml", "--no-pictures", "--optimizer", "sgd", "--out", "third") == 0
    config = runs.open_run("third").config
    assert (config["optimizer"], config["lr"], config["seed"]) == ("sgd", 0.05, 3)


def test_augmentation_and_normalisation_are_part_of_the_run(interrupted, monkeypatch):
    options = ["--augment", "--normalize", "--weight-decay", 0.001]
    assert train(*FAST, *options, "--out", "whole") == 0
    whole = runs.open_run("whole")
    assert whole.config["augment"] is whole.config["normalize"] is True
    trainer = whole.trainer()
    assert repr(trainer.model).startswith("Sequential([Normalize(0.30")
    assert trainer.optimizer.weight_decay == 0.001
    assert train(*FAST, *options, "--time-limit", 1e-9, "--out", "parts") == 1
    text = Path("parts/config.toml").read_text()
    Path("parts/config.toml").write_text(text.replace("time_limit = 1e-09\n", ""))
    assert train("--out", "parts", "--resume", "--no-pictures") == 0
    parts = runs.open_run("parts").trainer().weights
    assert all(weight.tobytes() == parts[path].tobytes() for path, weight in trainer.weights.items())


def test_what_a_model_asks_for():
    config = settings.of_run({"dataset": "mnist", "model": "deep-cnn"})
    assert (config["optimizer"], config["lr"], config["epochs"]) == ("nesterov", 0.1, 20)
    config = settings.of_run({"dataset": "mnist", "model": "deep-cnn", "optimizer": "adam", "epochs": 2})
    assert (config["optimizer"], config["lr"], config["epochs"], config["batch_size"]) == ("adam", 0.002, 2, 128)
    assert "weight_decay" not in config
    config = settings.of_run({"dataset": "shapes.npz"})
    assert (config["model"], config["epochs"]) == ("small-cnn", 10)


@pytest.mark.usefixtures("untrained")
def test_an_optimizer_without_weight_decay(capsys):
    assert train(*FAST, "--optimizer", "adam", "--weight-decay", 0.01) == 2
    assert "--weight-decay: adam has none; it goes with --optimizer sgd, nesterov or adamw" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_images_of_ones_own(tmp_path, capsys):
    """From a file, and where one of them is no image."""
    images, labels = data.digits().train_images[:60], data.digits().train_labels[:60]
    np.savez("set.npz", x_train=images[:50], y_train=labels[:50], x_test=images[50:], y_test=labels[:10])
    options = ["--model", "article", "--epochs", 1, "--no-pictures", "--backend", "numpy"]
    assert train("--dataset", "set.npz", "--limit", 40, "--validation", 0.25, *options) == 0
    out = capsys.readouterr().out
    assert "set: 30 images to train on, 10 to validate, 10 to test" in out
    assert re.search(r"the run is in runs/set-article-numpy-\d{8}-\d{6}", out)
    assert runs.newest_run(Path("runs")).config["dataset"] == str(tmp_path / "set.npz")
    assert train("--dataset", "nothing.npz", *options) == 2
    assert "There is no data set 'nothing.npz'" in capsys.readouterr().err


def test_a_folder_with_a_corrupt_image(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("platformdirs")
    for name, colour in (("black", 0), ("white", 255)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            image.new("L", (8, 8), colour).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "white" / "3.png").write_bytes(b"\x89PNG but not really")
    options = ["--dataset", "photos", "--model", "article", "--epochs", 1, "--no-pictures", "--backend", "numpy"]
    assert train(*options) == 2
    err = capsys.readouterr().err
    assert "3.png" in err
    assert "--skip-corrupt" in err
    assert train(*options, "--skip-corrupt", "--out", "run") == 0
    assert runs.open_run("run").config["skip_corrupt"] is True


def test_validation_is_held_out_of_training(capsys):
    assert train(*FAST, "--validation", 0.25) == 0
    out = capsys.readouterr().out
    assert "digits: 150 images to train on, 50 to validate, 359 to test" in out
    assert re.search(r"epoch 1/2  loss .*  validation 0\.\d{4}", out)
    assert train(*FAST, "--validation", 0.001) == 2
    assert "--validation 0.001 of 200 images leaves none" in capsys.readouterr().err


def test_names_of_folders_that_are_chosen_for_you(monkeypatch):
    config = {"dataset": "/data/photos.npz", "model": "article", "backend": "numpy"}
    made = [runs.new_run(None, config).path for _ in range(2)]
    assert re.fullmatch(r"runs/photos-article-numpy-\d{8}-\d{6}", str(made[0]))
    assert made[1] != made[0]


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(monkeypatch):
    monkeypatch.setattr(runs.time, "strftime", lambda form: "20260101-000000")
    config = {"dataset": "digits", "model": "article", "backend": "numpy"}
    made, failed, start = [], [], threading.Barrier(8)

    def begin():
        start.wait()
        try:
            made.append(runs.new_run(None, config).path)
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    names = [f"digits-article-numpy-20260101-000000{end}" for end in ("", *(f"-{i}" for i in range(2, 9)))]
    assert sorted(p.name for p in made) == names


def test_where_folders_cannot_be_made(capsys):
    Path("runs").write_text("")
    assert train(*FAST) == 2
    assert "cannot write there (runs is a file); choose a folder" in capsys.readouterr().err


def test_strings_of_a_configuration_come_back(tmp_path):
    config = {"dataset": 'a "b" \\ é 𝄞', "model": "m", "backend": "numpy", "lr": 1e-9, "seed": 3, "augment": True}
    assert runs.read_config(runs.new_run(tmp_path / "run", config).file("config.toml")) == config


@pytest.mark.usefixtures("untrained")
def test_a_folder_that_is_not_empty(tmp_path, capsys, trained):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert train(*FAST, "--out", "mine") == 2
    err = capsys.readouterr().err
    assert "--out mine: the folder is not empty (notes.txt), and a run would mix with what it holds; choose" in err
    assert train(*FAST, "--out", trained) == 2
    assert f"go on with its run: xpnn train --out {trained} --resume" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("untrained")
def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/run"):
        assert train(*FAST, "--out", folder) == 2
        err = capsys.readouterr().err
        assert f"xpnn train: --out {folder}: cannot write there (" in err
        assert "choose a folder that you may write to" in err


def test_two_runs_that_begin_in_one_folder_at_once(tmp_path):
    config = {"dataset": "digits", "model": "article", "backend": "numpy"}
    results, start = [], threading.Barrier(8)

    def begin():
        start.wait()
        try:
            runs.new_run(tmp_path / "run", config)
            results.append("made")
        except ValueError as e:
            results.append(str(e))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("made") == 1
    assert all(r == "made" or "another run has just begun" in r or "is not empty" in r for r in results)


def test_a_run_that_has_just_begun_is_not_written_over(tmp_path, monkeypatch):
    config = {"dataset": "digits", "model": "article", "backend": "numpy"}
    runs.new_run(tmp_path / "run", config)
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(()))  # the other one came after this look
    with pytest.raises(ValueError, match="another run has just begun there"):
        runs.new_run(tmp_path / "run", config | {"model": "lenet5"})
    assert runs.open_run(tmp_path / "run").config == config


def test_a_folder_without_a_run_is_not_left_behind(tmp_path, monkeypatch):
    def full(path, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"cannot write there \(No space left on device\)"):
        runs.new_run(tmp_path / "run", {"dataset": "digits", "model": "article", "backend": "numpy"})
    assert not (tmp_path / "run").exists()


def test_the_old_summary_stays_until_the_new_one_is_whole(done, monkeypatch):
    run = runs.open_run(done)
    before = run.summary()

    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_summary({"status": "running"})
    assert run.summary() == before


def test_the_newest_run_is_not_the_last_by_its_name(tmp_path):
    config = {"dataset": "digits", "model": "article", "backend": "numpy"}
    for name, seconds in (("b", 1000), ("a", 2000)):
        os.utime(runs.new_run(tmp_path / name, config).file("config.toml"), (seconds, seconds))
    assert runs.newest_run(tmp_path).path == tmp_path / "a"
    with pytest.raises(FileNotFoundError, match=r"no config\.toml; there are .*/b, .*/a$"):
        runs.open_run(tmp_path)


def test_the_same_images_are_held_out_for_each_seed():
    digits = data.digits()
    held_out = [command.parts(digits, {"validation": 0.1, "seed": seed})[1] for seed in (0, 1)]
    assert np.array_equal(held_out[0][0], held_out[1][0])


def test_a_name_comes_before_a_folder():
    for name in ("digits", "mnist"):
        Path(name).mkdir()
        assert settings.of_run({"dataset": name})["dataset"] == name


def test_two_runs_that_train_in_one_folder(interrupted, capsys):
    with runs.open_run(interrupted).claimed():
        assert train("--out", interrupted, "--resume") == 2
    assert f"another process is training in {interrupted}; wait until it is done" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), PermissionError(13, "denied"), OSError(9, "bad")])
def test_a_file_system_without_locks(interrupted, monkeypatch, error):
    """Such a one is no sign of another process."""
    fcntl = pytest.importorskip("fcntl")

    def flock(file, operation):
        assert file.writable(), "NFS locks nothing else"
        raise error

    monkeypatch.setattr(fcntl, "flock", flock)
    assert train("--out", interrupted, "--resume", "--no-pictures") == 0


def test_a_run_in_a_thread(interrupted):
    """Signals are the main thread's: one that trains elsewhere does without."""
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(train("--out", interrupted, "--resume", "--no-pictures")))
    thread.start()
    thread.join()
    assert statuses == [0]


# Going on


def test_interruption_and_resume(interrupted, trained, capsys):
    assert runs.open_run(interrupted).summary()["status"] == "interrupted"
    assert Trainer.load(interrupted / "last.safetensors", backend="numpy").step == 5
    (interrupted / ".xpnn-left.tmp").touch()  # by a writer that was killed
    assert train("--config", interrupted / "config.toml", "--resume", "--no-pictures") == 0
    assert not list(interrupted.glob(".xpnn-*"))
    assert "goes on in epoch 1, after step 5" in capsys.readouterr().out
    a, b = runs.open_run(interrupted), runs.open_run(trained)
    for path, weight in a.trainer().weights.items():
        assert weight.tobytes() == b.trainer().weights[path].tobytes()
    for name in ("test_accuracy", "test_loss", "train_accuracy", "status"):
        assert a.summary()[name] == b.summary()[name]
    assert len(a.history()) == 2


def test_the_newest_run_goes_on_where_none_is_named(interrupted, tmp_path, capsys):
    assert train("--resume") == 2
    assert f"there is no run in {tmp_path / 'runs'}; name its folder, by --out" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    interrupted.rename("runs/mine")
    assert train("--resume", "--no-pictures") == 0
    assert "the run is in runs/mine" in capsys.readouterr().out


def test_a_request_to_terminate_and_a_second_ctrl_c(monkeypatch, capsys):
    keepers = command._keepers
    for number, times, status in ((signal.SIGTERM, 1, 143), (signal.SIGINT, 2, 130)):
        with monkeypatch.context() as patch:
            patch.setattr(command, "_keepers", lambda *a, n=number, t=times: [*keepers(*a), Signal(n, 5, t)])
            assert train(*FAST, "--out", f"run{number}") == status
        assert runs.open_run(f"run{number}").summary()["status"] == "interrupted"
        again = f"interrupted; the checkpoint is written. To go on: xpnn train --out run{number} --resume"
        assert (again in capsys.readouterr().err) == (times == 1)
        assert Trainer.load(f"run{number}/last.safetensors", backend="numpy").step == 5
        assert train("--out", f"run{number}", "--resume", "--no-pictures") == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_paths_may_be_said_again_where_a_run_goes_on(tmp_path, capsys):
    digits = data.digits()
    images, labels = digits.train_images[:60], digits.train_labels[:60]
    np.savez("set.npz", x_train=images[:50], y_train=labels[:50], x_test=images[50:], y_test=labels[:10])
    Path("mnist").mkdir()
    options = ["--model", "article", "--no-pictures", "--backend", "numpy", "--data-dir", "mnist"]
    assert train("--dataset", "set.npz", "--time-limit", 1e-9, *options, "--out", "run") == 1
    assert runs.open_run("run").config["data_dir"] == str(tmp_path / "mnist")
    assert train("--dataset", "set.npz", "--out", "run", "--resume", "--no-pictures", "--seed", 0) == 0


def test_a_configuration_that_was_cut_short_or_edited(interrupted, capsys):
    config = interrupted / "config.toml"
    text = config.read_text()
    config.write_text(text + "epoch = 3\n")
    assert train("--out", interrupted, "--resume") == 2
    assert "config.toml: unknown key 'epoch'; did you mean 'epochs'?" in capsys.readouterr().err
    config.write_text('dataset = "digits"\n')
    for words in (["train", "--resume", "--out"], ["evaluate"], ["show"]):
        assert main([*words, str(interrupted)]) == 2
        assert "config.toml lacks model, backend: it was cut short or changed" in capsys.readouterr().err


class At(Callback):
    """Does something after the first epoch."""

    def __init__(self, act):
        self.act = act

    def on_epoch(self, fit, record):
        if len(fit.records) == 1:
            self.act(fit)


def test_ctrl_c_after_an_epoch_ends_before_another_step(monkeypatch, capsys):
    keepers = command._keepers
    interrupt = At(lambda fit: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(command, "_keepers", lambda *a: [*keepers(*a), interrupt])
    assert train(*FAST, "--out", "run") == 130
    assert runs.open_run("run").trainer().step == 7
    assert runs.open_run("run").summary()["status"] == "interrupted"


def test_what_stopped_after_an_epoch_has_a_result_and_may_go_on(monkeypatch, capsys):
    keepers = command._keepers
    monkeypatch.setattr(command, "_keepers", lambda *a: [*keepers(*a), At(lambda fit: fit.stop("tried"))])
    assert train(*FAST, "--out", "run") == 0
    assert "to go on: xpnn train --out run --resume" in capsys.readouterr().out
    summary = runs.open_run("run").summary()
    assert (summary["status"], "test_accuracy" in summary) == ("interrupted", True)


def test_a_disk_too_full_for_the_summary_does_not_hide_the_error(monkeypatch, capsys):
    write = runs.Run.write_summary

    def full(run, summary):
        if summary["status"] == "failed":
            raise OSError(28, "No space left on device")
        write(run, summary)

    def fail(fit):
        raise RuntimeError("the first error")

    monkeypatch.setattr(runs.Run, "write_summary", full)
    monkeypatch.setattr(command, "_keepers", lambda *a: [At(fail)])
    assert train(*FAST, "--out", "run") == 2
    assert "xpnn train: the first error" in capsys.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before, watch, fit = signal.getsignal(signal.SIGTERM), command.Watch(), SimpleNamespace(stopped=None)
    watch.on_begin(fit)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == watch._heard
    watch.on_end(fit)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_time_limit_and_early_stopping(capsys):
    assert train(*FAST, "--time-limit", 1e-9, "--out", "short") == 1
    assert (
        "the time limit of 1e-09 s is reached, and no epoch is complete; the checkpoint is written. To go on: xpnn"
        in capsys.readouterr().err
    )
    slow = ["--lr", 1e-30, "--patience", 1, "--epochs", 50, "--limit", 40]
    assert train(*FAST, *slow, "--out", "early") == 0
    assert "stopped: validation_accuracy was not better for 1 epoch\n" in capsys.readouterr().out
    run = runs.open_run("early")
    assert run.summary()["status"] == "finished"
    assert len(run.history()) == 2


def test_commands_that_are_suggested_are_quoted(tmp_path, capsys):
    options = ["--out", "with space", "--no-pictures"]
    again = "xpnn train --out 'with space' --resume"
    assert train(*FAST, *options, "--time-limit", 1e-9) == 1
    assert f"To go on: {again}\n" in capsys.readouterr().err
    assert train(*FAST, *options) == 2
    assert f"go on with its run: {again}\n" in capsys.readouterr().err
    assert train(*options, "--resume", "--time-limit", 1000) == 0
    assert train(*options, "--resume") == 2
    assert "`xpnn evaluate 'with space'` looks at it" in capsys.readouterr().err
    (tmp_path / "with space" / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"the run writes it again: {again}"):
        runs.open_run("with space").summary()
    config = tmp_path / "with space" / "config.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    assert train(*options, "--resume") == 2
    assert "xpnn train --config 'with space'/config.toml\n" in capsys.readouterr().err


def test_what_follows_training_is_made_up_for(done, capsys):
    """It was killed after the last step, before the summary."""
    run = runs.open_run(done)
    before = run.summary()
    run.write_summary(before | {"status": "running"})
    assert train("--out", done, "--resume", "--no-pictures") == 0
    after = run.summary()
    assert {k: v for k, v in after.items() if k != "backend"} == {k: v for k, v in before.items() if k != "backend"}


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(interrupted, trained):
    (interrupted / "last.safetensors").unlink()
    assert train("--out", interrupted, "--resume", "--no-pictures") == 0
    a, b = runs.open_run(interrupted).trainer(), runs.open_run(trained).trainer()
    assert all((a.weights[path] == b.weights[path]).all() for path in a.weights)


def test_another_backend_goes_on(interrupted):
    assert train("--out", interrupted, "--resume", "--no-pictures", "--backend", "strict") == 0
    assert runs.open_run(interrupted).summary()["backend"]["name"] == "strict"


@pytest.mark.usefixtures("untrained")
def test_nothing_to_resume(trained, capsys):
    assert train("--out", trained, "--resume") == 2
    err = capsys.readouterr().err
    assert f"there is nothing to resume: the run in {trained} is complete; `xpnn evaluate {trained}` looks" in err
    assert train("--out", "nowhere", "--resume") == 2
    assert "nowhere is no folder; `xpnn train` makes one" in capsys.readouterr().err
    Path("empty").mkdir()
    assert train("--out", "empty", "--resume") == 2
    assert "empty holds no run: it has no config.toml" in capsys.readouterr().err


def test_another_model_than_the_one_that_was_begun(interrupted, capsys):
    assert train("--out", interrupted, "--resume", "--model", "lenet5") == 2
    err = capsys.readouterr().err
    assert f"--model lenet5: the run in {interrupted} was begun with --model article, and goes on as it began" in err
    assert train("--out", interrupted, "--resume", "--augment") == 2
    assert "--augment: the run" in capsys.readouterr().err
    config = interrupted / "config.toml"
    config.write_text(config.read_text().replace('"article"', '"tiny-cnn"'))
    assert train("--out", interrupted, "--resume") == 2
    err = capsys.readouterr().err
    assert "last.safetensors has the model Sequential([Conv2D(16, 3)" in err
    assert "restore the file, or begin a new run with it" in err


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('"sgd"', '"adam"', "optimizer"),
        ("lr = 0.05", "lr = 0.06", "optimizer"),
        ('"one-cycle"', '"cosine"', "schedule"),
        ("seed = 0", "seed = 1", "seed"),
        ("seed = 0", "seed = 0\nlabel_smoothing = 0.1", "loss"),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_another_training_than_the_one_that_was_begun(done, capsys, old, new, name):
    run = runs.open_run(done)
    run.write_summary({"status": "running"})
    config, text = run.file("config.toml"), run.file("config.toml").read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    assert train("--out", done, "--resume") == 2
    assert f"last.safetensors has the {name} " in capsys.readouterr().err


def test_a_configuration_without_what_has_a_default(interrupted):
    config = interrupted / "config.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith(("seed", "save_every"))]
    config.write_text("\n".join([*lines, 'device = "cuda:7"']))  # which another backend does not ask for
    assert train("--out", interrupted, "--resume", "--no-pictures", "--backend", "strict") == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch = 3", "xpnn train: .*config.toml: unknown key 'epoch'; did you mean 'epochs'?"),
        ("xyz = 3", "unknown key 'xyz'; there are dataset, "),
        ('epochs = "two"', "xpnn train: config.toml: argument --epochs: 'two' is not a positive integer$"),
        ('optimizer = "adan"', "xpnn train: config.toml: .* invalid choice: 'adan' .*; did you mean 'adam'?$"),
        ("epochs = ", "config.toml is not TOML: Invalid value"),
        ("out = 'x'", "unknown key 'out'"),
        ("normalize = 1", "config.toml: normalize = 1; expected true or false"),
        ("epochs = true", "config.toml: epochs = true; expected a number or a string"),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_a_configuration_with_a_mistake(capsys, line, message):
    Path("config.toml").write_text(f'model = "article"\n{line}\n')
    assert train("--config", "config.toml", "--out", "run") == 2
    assert re.search(message.replace("?", r"\?"), capsys.readouterr().err)
    assert not Path("run").exists()


@pytest.mark.usefixtures("untrained")
def test_a_configuration_that_is_not_there(capsys):
    assert train("--config", "config.toml") == 2
    assert "there is no file config.toml; a run's folder has one: RUN/config.toml" in capsys.readouterr().err


def test_a_folder_where_a_configuration_is_expected(trained, capsys):
    assert train("--config", trained) == 2
    assert f"{trained} is a folder; expected a file, e.g. {trained / 'config.toml'}" in capsys.readouterr().err


def test_resume_heeds_the_configuration_that_is_named(interrupted, capsys):
    assert train("--config", interrupted / "no.toml", "--resume") == 2
    assert "there is no file" in capsys.readouterr().err
    other = interrupted / "other.toml"
    other.write_text((interrupted / "config.toml").read_text().replace("epochs = 2", "epochs = 3"))
    assert train("--config", other, "--resume") == 2
    assert "--epochs 3: the run in" in capsys.readouterr().err


def test_another_time_limit_where_a_run_goes_on():
    assert train(*FAST, "--time-limit", 1e-9, "--out", "run") == 1
    assert train("--out", "run", "--resume", "--no-pictures", "--time-limit", 1000) == 0
    assert runs.open_run("run").summary()["status"] == "finished"


def test_a_configuration_of_a_run_with_a_mistake(interrupted, capsys):
    config = interrupted / "config.toml"
    before = config.read_text()
    config.write_text(before.replace('backend = "numpy"', ""))
    assert main(["evaluate", str(interrupted)]) == 2
    assert "config.toml lacks backend: it was cut short or changed; restore it" in capsys.readouterr().err
    config.write_text(before + "normalise = true\n")
    assert train("--out", interrupted, "--resume") == 2
    assert "unknown key 'normalise'; did you mean 'normalize'?" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["", None])
def test_a_summary_that_is_lost(done, capsys, left):
    """As a power cut may leave it: the run writes it again."""
    pytest.importorskip("matplotlib")
    file = done / "summary.json"
    file.unlink()
    if left is not None:
        file.write_text(left)
    assert main(["show", str(done)]) == 2
    err = capsys.readouterr().err
    assert f"{file} is damaged" in err if left is not None else f"there is no file {file}" in err
    assert f"the run writes it again: xpnn train --out {done} --resume" in err
    assert train("--out", done, "--resume", "--no-pictures") == 0
    assert runs.open_run(done).summary()["status"] == "finished"


def test_show_needs_no_metrics(done):
    pytest.importorskip("matplotlib")
    (done / "metrics.jsonl").unlink()
    assert main(["show", str(done), "--checkpoint", "best"]) == 0


def test_a_checkpoint_that_is_damaged(done, capsys):
    file = done / "last.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["evaluate", str(done)]) == 2
    assert "copy or download it again, or take --checkpoint best" in capsys.readouterr().err
    assert main(["evaluate", str(done), "--checkpoint", "best"]) == 0
    runs.open_run(done).write_summary({"status": "running"})
    assert train("--out", done, "--resume") == 2
    err = capsys.readouterr().err
    assert f"or begin a new run in another --out; `xpnn evaluate {done} --checkpoint best` looks at its best" in err
    (done / "best.safetensors").unlink()
    assert train("--out", done, "--resume") == 2
    assert capsys.readouterr().err.endswith("copy or download it again, or begin a new run in another --out\n")
    assert main(["evaluate", str(done)]) == 2
    assert "--checkpoint" not in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there(done, capsys):
    (done / "best.safetensors").unlink()
    assert main(["evaluate", str(done), "--checkpoint", "best"]) == 2
    assert (
        "best.safetensors: no epoch is complete, or it was removed; take --checkpoint last" in capsys.readouterr().err
    )
    (done / "last.safetensors").unlink()
    assert main(["evaluate", str(done)]) == 2
    assert "last.safetensors: none was written, or it was removed; begin a new run in" in capsys.readouterr().err
    (done / "metrics.jsonl").write_text("")
    assert main(["evaluate", str(done)]) == 2
    assert f"or it was removed; go on with the run: xpnn train --out {done} --resume" in capsys.readouterr().err
    assert train("--out", done, "--resume", "--no-pictures") == 0
    assert (done / "last.safetensors").exists()


def test_epochs_whose_last_state_is_gone_are_not_written_over(done, capsys):
    (done / "last.safetensors").unlink()
    before = {file.name: file.read_bytes() for file in done.iterdir()}
    assert main(["evaluate", str(done)]) == 2
    assert "last.safetensors: none was written, or it was removed; take --checkpoint best" in capsys.readouterr().err
    assert train("--out", done, "--resume") == 2
    err = capsys.readouterr().err
    assert f"there is no {done / 'last.safetensors'} to go on from, and to begin anew there would write over" in err
    assert f"begin a new run in another --out; `xpnn evaluate {done} --checkpoint best` looks at its best epoch" in err
    assert {file.name: file.read_bytes() for file in done.iterdir()} == before
    (done / "best.safetensors").unlink()
    assert train("--out", done, "--resume") == 2
    assert capsys.readouterr().err.endswith("begin a new run in another --out\n")


@pytest.mark.parametrize("left", [None, b"damaged"])
def test_show_the_best_epoch_where_the_last_state_is_lost(done, left):
    pytest.importorskip("matplotlib")
    (done / "last.safetensors").unlink()
    if left:
        (done / "last.safetensors").write_bytes(left)
    assert main(["show", str(done), "--checkpoint", "best"]) == 0


def test_images_of_ones_own_that_are_gone(done, capsys):
    config = done / "config.toml"
    config.write_text(config.read_text().replace('"digits"', '"/gone/photos"'))
    assert main(["evaluate", str(done)]) == 2
    err = capsys.readouterr().err
    assert f"/gone/photos, the images of the run in {done}, is no longer there; put it back, or write where" in err


def test_a_full_disk_while_a_checkpoint_is_written(monkeypatch, capsys):
    """Training stops, what was there stays, and there is room again for the rest."""
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(1)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(command, "_keepers", lambda run, config: [Checkpoint(run.path, seconds=0)])
        patch.setattr(os, "fsync", full)
        assert train(*FAST, "--out", "run") == 2
    err = capsys.readouterr().err
    assert "\nxpnn train: cannot write last.safetensors into the folder" in f"\n{err}"
    assert "No space left on device; the last.safetensors that was there is untouched" in err
    assert 0 < Trainer.load("run/last.safetensors", backend="numpy").step < 14
    assert runs.open_run("run").summary()["status"] == "failed"
    assert not list(Path("run").glob(".xpnn-*"))
    assert train("--out", "run", "--resume", "--no-pictures") == 0


REMEDY = "; see that it is there, that you may use it, and that there is room\n"


@pytest.mark.parametrize("words", [["show"], ["train", "--resume", "--out"]], ids=["show", "train"])
def test_a_full_disk_while_pictures_are_drawn(done, monkeypatch, capsys, words):
    pytest.importorskip("matplotlib")

    def full(path, content):
        raise OSError(28, "No space left on device")

    runs.open_run(done).write_summary(runs.open_run(done).summary() | {"status": "running"})
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([*words, str(done)]) == 2
    said = f"xpnn {words[0]}: {done} cannot be read or written (No space left on device){REMEDY}"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "name", "function"),
    [
        (["evaluate"], "config.toml", "read_text"),
        (["evaluate"], "last.safetensors", "read_bytes"),
        (["train", "--resume", "--out"], "config.toml", "read_text"),
        (["show"], "pictures", "mkdir"),
    ],
    ids=["config", "state", "resume", "show"],
)
def test_what_one_may_not_read_or_write(done, monkeypatch, capsys, words, name, function):
    pytest.importorskip("matplotlib")
    usual = getattr(Path, function)

    def refused(path, *args, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, *args, **options)

    monkeypatch.setattr(Path, function, refused)
    assert main([*words, str(done)]) == 2
    said = f"xpnn {words[0]}: {done / name} cannot be read or written (Permission denied){REMEDY}"
    assert capsys.readouterr().err == said


# The commands that look at a run


def test_evaluate(trained, capsys):
    assert main(["evaluate", str(trained), "--json"]) == 0
    found, summary = json.loads(capsys.readouterr().out), runs.open_run(trained).summary()
    assert (found["accuracy"], found["loss"], found["images"]) == (summary["test_accuracy"], summary["test_loss"], 359)
    right = sum(c["found"] * c["images"] for c in found["classes"])
    assert right == pytest.approx(359 * found["accuracy"])
    assert sum(c["answers"] for c in found["classes"]) == 359
    assert main(["evaluate", str(trained), "--checkpoint", "best", "--backend", "strict"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{trained}, best checkpoint, on strict: 359 test images of digits"
    assert len(lines) == 13
    assert max(map(len, lines[1:])) <= 80
    assert main(["evaluate", str(trained), "--target-accuracy", str(found["accuracy"])]) == 0
    assert main(["evaluate", str(trained), "--target-accuracy", "1"]) == 1
    assert "is below the target 1.0" in capsys.readouterr().err


def test_evaluate_counts_by_class():
    answers, labels = np.asarray([0, 0, 1, 1]), np.asarray([0, 1, 1, 1])
    found = evaluate._counted(1, "one", answers, labels)
    assert found == {"class": "one", "images": 3, "found": 2 / 3, "answers": 2, "right": 1.0}
    assert evaluate._counted(2, "two", answers, labels)["right"] is None


def test_evaluate_what_is_no_run(capsys, tmp_path):
    assert main(["evaluate", "nowhere"]) == 2
    assert "xpnn evaluate: nowhere is no folder" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    assert main(["evaluate", "run/last.safetensors"]) == 2
    assert capsys.readouterr().err == "xpnn evaluate: run/last.safetensors is no folder; the run is run\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell, capsys, monkeypatch):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("evaluate", "save-every"))


def test_completion_of_paths(tmp_path, capsys):
    """In bash: a run, a picture, the value of an option."""
    pytest.importorskip("shtab")
    if not shutil.which("bash"):
        pytest.skip("there is no bash")
    assert main(["completion", "bash"]) == 0
    Path("script").write_text(capsys.readouterr().out)
    Path("first").mkdir()
    Path("seven.png").touch()
    for words in ("xpnn predict fir", "xpnn predict first sev", "xpnn train --out fir"):
        count = len(words.split()) - 1
        ask = f"source ./script; COMP_WORDS=({words}); COMP_CWORD={count}; _shtab_xpnn; echo ${{COMPREPLY[@]}}"
        found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
        assert found.rstrip("/") == ("seven.png" if "sev" in words else "first")


def test_completion_without_shtab(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'completion is made by shtab, which is not installed: pip install "xpnn[train]"' in capsys.readouterr().err
