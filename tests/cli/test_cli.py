"""The command `xpnn`: what it prints and writes, its exit status, and what it says of mistakes."""

import io
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from training import IMAGES, LABELS, plain

import xpnn
from xpnn import Callback, Trainer
from xpnn.cli import COMMANDS, main, settings
from xpnn.cli import progress as display

FAST = ["--model", "article", "--limit", "200", "--epochs", "1", "--no-pictures", "--backend", "numpy"]
KEYS = {
    "test_accuracy", "test_loss", "train_accuracy", "seconds", "images_per_second", "parameters", "dataset", "model",
    "epochs", "batch_size", "optimizer", "schedule", "seed", "backend", "versions", "status", "classes", "in_shape",
}  # fmt: skip
SCRIPT = Path(sys.executable).with_name("xpnn")


def train(*arguments):
    return main(["train", *FAST, *map(str, arguments)])


def usage(capsys, *arguments):
    """What is said of a mistake in the arguments themselves."""
    with pytest.raises(SystemExit) as e:
        main([*arguments])
    assert e.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs go into a folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def untrained(monkeypatch):
    """Training would fail the test."""

    def fit(*args, **options):
        raise AssertionError("it was trained")

    monkeypatch.setattr(Trainer, "fit", fit)


# What it prints


def test_train(capsys):
    assert main(["train", "--epochs", "1", "--limit", "200", "--backend", "numpy", "--no-pictures"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    model, dataset, epoch, result, speed, folder = out.splitlines()
    assert model == "tiny-cnn: 14,762 parameters; backend numpy, device cpu"
    assert dataset == "digits: 200 images to train on, 359 to test"
    assert re.fullmatch(r"epoch 1/1  loss \d\.\d{4}  accuracy 0\.\d{4}  test 0\.\d{4}  [\d,]+ images/s", epoch)
    assert re.fullmatch(r"test accuracy 0\.\d{4}, test loss \d\.\d{4}, train accuracy 0\.\d{4}", result)
    assert re.fullmatch(r"\d+\.\d s, [\d,]+ images/s", speed)
    assert re.fullmatch(r"the run is in runs/digits-tiny-cnn-numpy-\d{8}-\d{6}", folder)


def test_json_is_all_there_is_on_stdout(capsys):
    assert train("--json", "--seed", 3, "--epochs", 2) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary.keys() == KEYS
    assert "epoch 2/2" in err
    assert (summary["seed"], summary["epochs"], summary["batch_size"], summary["parameters"]) == (3, 2, 32, 1610)
    assert (summary["dataset"], summary["model"]) == ("digits", "article")
    assert summary["optimizer"].startswith("SGD(lr=0.05")
    assert summary["backend"] == xpnn.backend.get("numpy").describe()
    assert summary["versions"].keys() == {"xpnn", "python", "numpy"}
    assert summary["seconds"] > 0
    assert summary["images_per_second"] == pytest.approx(2 * 200 / summary["seconds"])
    assert 0.2 < summary["test_accuracy"] < summary["train_accuracy"] <= 1


def test_the_same_seed_gives_the_same_numbers(capsys):
    results = []
    for seed in (0, 0, 1):
        train("--json", "--seed", seed)
        summary = json.loads(capsys.readouterr().out)
        results.append([summary[k] for k in ("test_accuracy", "test_loss", "train_accuracy")])
    assert results[0] == results[1] != results[2]


def test_options_of_training(capsys):
    assert train("--json", "--batch-size", 64, "--lr", 0.5, "--optimizer", "adamw", "--model", "tiny-cnn") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["batch_size"], summary["model"], summary["parameters"]) == (64, "tiny-cnn", 14762)
    assert summary["optimizer"].startswith("AdamW(lr=0.5")


@pytest.mark.parametrize(
    "arguments",
    [*(["--optimizer", n] for n in settings.OPTIMIZERS), *(["--schedule", n] for n in settings.SCHEDULES)],
    ids=lambda arguments: arguments[1],
)
def test_every_optimizer_and_schedule_trains(arguments, capsys, tmp_path):
    assert train(*arguments, "--epochs", 3, "--out", "run") == 0
    losses = [json.loads(line)["loss"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert losses[-1] < 0.9 * losses[0]
    assert Trainer.load("run/last.safetensors", backend="numpy").step == 21


def test_threads(monkeypatch, capsys):
    """As many as the option says, else as the environment does; a number that is none is refused."""
    counts = []
    fit = Trainer.fit

    def seen(trainer, *arguments, **options):
        records = fit(trainer, *arguments, **options)
        counts.append(trainer.executor.crew.threads)
        return records

    monkeypatch.setattr(Trainer, "fit", seen)
    monkeypatch.delenv("XPNN_KERNELS", raising=False)
    monkeypatch.setenv("XPNN_THREADS", "3")
    assert train() == 0
    assert train("--threads", "2") == 0
    assert counts == [3, 2]
    assert "'0' is not a positive integer" in usage(capsys, "train", "--threads", "0")


def test_the_backend_may_come_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("XPNN_BACKEND", "strict")
    assert main(["train", *FAST[:-2], "--json", "--limit", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["backend"]["name"] == "strict"
    monkeypatch.setenv("XPNN_BACKEND", "nunpy")
    assert main(["train", *FAST[:-2]]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'numpy'?" in err
    assert "the environment variable XPNN_BACKEND is 'nunpy'" in err


def test_the_target(capsys, tmp_path):
    train("--json")
    accuracy = json.loads(capsys.readouterr().out)["test_accuracy"]
    assert train("--target-accuracy", accuracy) == 0  # reached is met
    assert capsys.readouterr().err == ""
    assert train("--target-accuracy", 1, "--json", "--out", tmp_path / "run") == 1
    out, err = capsys.readouterr()
    summary = json.loads(out)  # the result is given all the same
    assert f"xpnn train: test accuracy {summary['test_accuracy']:.4f} is below the target 1.0" in err
    assert (tmp_path / "run" / "last.safetensors").exists()


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lenet"], r"argument --model: invalid choice: 'lenet' \(choose from .*lenet5"),
        (["--epochs", "0"], "argument --epochs: '0' is not a positive integer"),
        (["--epochs", "two"], "argument --epochs: 'two' is not a positive integer"),
        (["--batch-size", "1.5"], r"argument --batch-size: '1\.5' is not a positive integer"),
        (["--limit", "-1"], "argument --limit: .*"),
        (["--lr", "0"], "argument --lr: '0' is not a positive number"),
        (["--lr", "nan"], "argument --lr: 'nan' is not a positive number"),
        (["--lr", "fast"], "argument --lr: 'fast' is not a positive number"),
        (["--label-smoothing", "1"], "argument --label-smoothing: '1' is not less than 1"),
        (["--target-accuracy", "97"], "argument --target-accuracy: '97' is not a number from 0 to 1"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--optimizer", "adagrad"], r"argument --optimizer: invalid choice: 'adagrad' .*\); see xpnn train --help$"),
        (["--optimizer", "adan"], r"invalid choice: 'adan' \(choose from .*\); did you mean 'adam'\?$"),
        (["--epoch", "1"], r"unrecognized arguments: --epoch 1; did you mean '--epochs'\?$"),
        (["--learning-rate", "9"], "unrecognized arguments: --learning-rate 9; see xpnn train --help$"),
        (["--batchsize=9"], r"unrecognized arguments: --batchsize=9; did you mean '--batch-size'\?$"),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_usage(capsys, arguments, message):
    said = usage(capsys, "train", *arguments)
    assert re.search(f"^xpnn train: .*{message}", said)
    assert len(said.splitlines()) == 1


def test_no_command(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: xpnn [-h]")
    assert re.search(r"^xpnn: .*invalid choice: 'trian'.*; did you mean 'train'\?$", usage(capsys, "trian"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "nunpy"], r"there is no backend 'nunpy'; installed are .*; did you mean 'numpy'\?"),
        (["--device", "cuda"], "numpy has the device 'cpu' only, not 'cuda'; leave --device out"),
        (["--model", "small-cnn"], r"cannot take images of 8×8×1, choose another --model: layer 5 .* of \(1, 1\)"),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_what_cannot_be(capsys, arguments, message):
    assert train(*arguments) == 2
    err = capsys.readouterr().err
    assert re.search("^xpnn train: .*" + message, err)
    assert "Traceback" not in err


@pytest.mark.usefixtures("untrained")
def test_a_wrong_setting_is_not_laid_to_the_model(capsys, monkeypatch):
    monkeypatch.delenv("XPNN_KERNELS", raising=False)
    monkeypatch.setenv("XPNN_THREADS", "two")
    assert train() == 2
    assert capsys.readouterr().err == "xpnn train: XPNN_THREADS='two'; expected a positive integer\n"


@pytest.mark.usefixtures("untrained")
def test_missing_data(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("XPNN_DATA", raising=False)
    for arguments in ([], ["--data-dir", str(tmp_path)]):
        assert main(["train", "--backend", "numpy", "--dataset", "mnist", *arguments]) == 2
        err = capsys.readouterr().err
        for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            assert f"{name}-ubyte" in err
        assert str(tmp_path) in err or not arguments


@pytest.mark.parametrize(("missing", "said"), [("platformdirs", "platformdirs is"), ("PIL", "Pillow, which")])
@pytest.mark.parametrize("command", ["train", "summary"])
def test_pictures_without_the_packages_that_read_them(capsys, tmp_path, monkeypatch, command, missing, said):
    pytest.importorskip("platformdirs")
    monkeypatch.delenv("XPNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "photos" / name / f"{i}.png").touch()
    network = ["tiny-cnn"] if command == "summary" else ["--backend", "numpy"]
    assert main([command, *network, "--dataset", "photos"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"xpnn {command}: {said}")
    assert 'pip install "xpnn[train]"' in err


def test_a_learning_rate_that_is_too_large(capsys, tmp_path):
    assert train("--lr", 1e30, "--schedule", "constant", "--out", "run") == 1
    err = capsys.readouterr().err
    assert "training left the finite numbers at step 2 (epoch 1, batch 2)" in err
    assert err.endswith("\nOn the command line: begin a new run in another --out, with a smaller --lr than 1e+30\n")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"].startswith("training left the finite numbers")


@pytest.mark.parametrize("largest", [1, 255])
@pytest.mark.parametrize("more", [[], ["--normalize"]], ids=["plain", "normalized"])
def test_images_that_are_large_where_training_fails(capsys, largest, more):
    x, y = np.arange(8 * 64, dtype=np.float32).reshape(8, 8, 8) % 2 * largest, np.arange(8) % 2
    np.savez("large.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    options = ["--dataset", "large.npz", "--schedule", "constant", "--lr", "1e30", "--batch-size", "4", *more]
    assert main(["train", *options, "--model", "article", "--backend", "numpy", "--no-pictures"]) == 1
    said = ", or with --normalize: the images have values up to 255, and about 1 is common\n"
    assert capsys.readouterr().err.endswith(said) == (largest == 255 and not more)


def test_images_that_are_not_finite(capsys):
    x, y = np.ones((8, 6, 6), np.float32), np.arange(8) % 2
    x[3, 2, 2] = np.nan
    np.savez("nan.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    assert main(["train", "--dataset", "nan.npz", "--model", "tiny-cnn", "--backend", "numpy", "--out", "run"]) == 1
    err = capsys.readouterr().err
    assert "are NaN or infinite as float32; clean the data first" in err
    assert "--lr" not in err


def test_interruption(capsys, monkeypatch):
    def fit(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", fit)
    assert train() == 130
    assert capsys.readouterr().err == "\nxpnn train: interrupted before it was done\n"


def test_want_of_memory(capsys, monkeypatch):
    def fit(*args, **options):
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr(Trainer, "fit", fit)
    assert train() == 2
    assert "xpnn train: Unable to allocate 3 TiB" in capsys.readouterr().err


# Backends


def test_backends(capsys):
    assert main(["backends", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == xpnn.backend.names()
    assert main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert row["usable"] is (row["reason"] is None)
        assert re.match(rf"{row['name']} +{'yes  device ' if row['usable'] else 'no   '}", line)
        if not row["usable"]:
            assert line.endswith(row["reason"])


def test_backends_on_a_terminal(capsys, monkeypatch):
    rows = [
        {"name": "numpy", "usable": True, "reason": None, "describe": {"name": "numpy", "device": "cpu", "numpy": "2"}},
        {"name": "far", "usable": False, "reason": "it is not here, " * 9 + "install it", "describe": None},
    ]
    monkeypatch.setattr(xpnn.backend, "listing", lambda: rows)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["backends"]) == 0
    lines = terminal.getvalue().splitlines()
    assert lines[0] == "numpy  yes  device cpu; numpy 2"
    assert lines[1].startswith("far    no   it is not here, ")
    assert all(line.startswith(" " * 12 + "it") or line.startswith(" " * 12) for line in lines[2:])
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80


# Terminals


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr(display, "INTERVAL", 0.0)
    return Terminal()


def plain_text(terminal):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def assert_cursor_is_back(terminal):
    text = terminal.getvalue()
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_live_display(terminal):
    pytest.importorskip("rich")
    callback = display.progress(terminal)
    assert type(callback) is display.Live
    left = []

    class Look(Callback):
        def on_epoch(self, fit, record):
            left.append([task.completed for task in callback.bar.tasks])

    options = {"batch_size": 2, "epochs": 3, "validation_data": (IMAGES, LABELS)}
    plain().fit(IMAGES, LABELS, **options, callbacks=[callback, Look()])
    assert_cursor_is_back(terminal)
    assert left == [[10, 0], [20, 0], [30, 0]]  # of all epochs; of the one that begins
    text = plain_text(terminal).replace("\r", "\n")
    for epoch in (1, 2, 3):
        assert re.search(rf"^epoch {epoch}/3  loss .*  accuracy .*  test .* images/s *$", text, re.MULTILINE)
    assert re.search(r"epoch 3/3 .*━.* loss \d\.\d{4}  accuracy \d\.\d{4}", text)
    assert re.search(r"step 10/10 .*━.* [\d,]+ images/s", text)
    assert max(map(len, text.splitlines())) <= 80


def test_a_live_display_of_a_source_without_length(terminal):
    pytest.importorskip("rich")

    class Endless:
        def __iter__(self):
            return iter([(IMAGES, LABELS)] * 3)

    plain().fit(Endless(), epochs=2, callbacks=[display.progress(terminal)])
    assert_cursor_is_back(terminal)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_live_display_goes_away_where_training_raises(terminal, error):
    pytest.importorskip("rich")

    class Broken(Callback):
        def on_step(self, fit):
            if fit.done == 3:
                raise error

    with pytest.raises(error):
        plain().fit(IMAGES, LABELS, batch_size=2, callbacks=[display.progress(terminal), Broken()])
    assert_cursor_is_back(terminal)


def test_train_on_a_terminal(terminal, monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert train() == 0
    assert_cursor_is_back(terminal)
    assert train("--lr", "1e30") == 1
    assert_cursor_is_back(terminal)


def test_lines_where_rich_is_missing(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    callback = display.progress(terminal)
    assert type(callback) is display.Lines
    plain().fit(IMAGES, LABELS, epochs=2, callbacks=[callback])
    assert [line.split("  ")[0] for line in terminal.getvalue().splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert "\x1b" not in terminal.getvalue()


def test_lines_where_there_is_no_terminal():
    assert type(display.progress(io.StringIO())) is display.Lines


def test_a_line_fits_eighty_columns():
    fit = SimpleNamespace(epoch=7, epochs=1000)
    record = {"loss": 123.45678, "accuracy": 1.0, "validation_accuracy": 0.98765, "images_per_second": 1234567.8}
    line = display.line(fit, record, "test")
    assert line == "epoch    7/1000  loss 123.4568  accuracy 1.0000  test 0.9877  1,234,568 images/s"
    assert len(line) <= 80
    assert (
        display.line(fit, {"loss": 0.5, "images_per_second": 10.0}, "test")
        == "epoch    7/1000  loss 0.5000  10 images/s"
    )


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_help_shows_an_example_and_fits_eighty_columns(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as e:
        main([*arguments, "--help"])
    assert e.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"(Try it|[Ee]xamples?):\s.*xpnn " + "".join(arguments), out, re.DOTALL)


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        ("cp1252", ["parity", "--help"]),
        ("latin-1", ["train", "--help"]),
        ("ascii", ["summary", "tiny-cnn", "--dataset", "digits"]),
        ("ascii", ["train", "--data-dir", "…", "--dataset", "mnist"]),
    ],
)
def test_a_terminal_that_lacks_a_sign(encoding, arguments, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors) for errors in ("strict", "backslashreplace")]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    with suppress(SystemExit):
        main(arguments)
    out, err = (stream.flush() or stream.buffer.getvalue() for stream in streams)
    assert b"?" in out or b"\\u" in err


def test_version(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--version"])
    assert e.value.code == 0
    assert capsys.readouterr().out == f"xpnn {xpnn.__version__}\n"


# As a process of its own


def test_as_a_process():
    done = subprocess.run([SCRIPT, "train", *FAST, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == KEYS
    assert "\x1b" not in done.stderr
    done = subprocess.run([SCRIPT, "train", *FAST, "--backend", "nunpy"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("xpnn train: there is no backend 'nunpy'")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_had_enough():
    """`xpnn train | head -1` ends without a word of complaint."""
    process = subprocess.Popen([SCRIPT, "train", *FAST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 1


def test_a_command_brings_no_other():
    code = "import sys; from xpnn.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('xpnn.parity', 'xpnn.bench', 'xpnn.cli.explain') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
