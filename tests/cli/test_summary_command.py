"""`xpnn summary`: which network it shows, and for which images."""

import json
import re

import numpy as np
import pytest

from xpnn import Trainer, models, runs
from xpnn.cli import main
from xpnn.layers.summary import summarise
from xpnn.optim import Adam


def summary(*arguments):
    return main(["summary", *map(str, arguments)])


def said(capsys, *arguments):
    """As JSON."""
    assert summary(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folder(tmp_path):
    """A run's folder, whose network was trained with Adam by batches of 16."""
    run = runs.new_run(
        tmp_path / "run", {"dataset": "digits", "model": "article", "backend": "numpy", "batch_size": 16}
    )
    Trainer(models.get("article", 4), optimizer=Adam(), backend="numpy").build((9, 9, 2)).save(
        run.file("last.safetensors")
    )
    return run.path


def test_a_named_network(capsys):
    assert summary("lenet5", "--shape", "28,28,1", "--batch-size", "64") == 0
    out, err = capsys.readouterr()
    expected = summarise(models.get("lenet5"), (28, 28, 1))
    assert out.startswith(f"{expected}\nTraining with batches of 64 takes about 7.5 MiB at its peak, in float32")
    assert "1 moment of" in out
    assert max(map(len, out.splitlines())) <= 80
    assert err == ""


def test_json(capsys):
    record = said(capsys, "article", "--shape", "8, 9,2", "--classes", "3")
    expected = summarise(models.get("article", 3), (8, 9, 2))
    assert record["training"] == {"batch_size": 128, "moments": 1, "bytes": expected.training_bytes(128)}
    assert (record["model"], record["in_shape"], record["unknown"]) == ("article", [8, 9, 2], [])
    assert (record["parameters"], record["multiply_adds"]) == (expected.parameters, expected.multiply_adds)
    assert record["layers"][1] == {
        "path": "1", "layer": "MaxPool2D(2)", "out_shape": [3, 3, 16], "parameters": 0, "multiply_adds": 0,
        "activation_bytes": 576, "receptive_field": [4, 4],
    }  # fmt: skip
    assert record["layers"][3]["receptive_field"] == "all"
    assert record["layers"][3]["out_shape"] == [3]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("digits", [8, 8, 1]), ("mnist", [28, 28, 1]), ("kmnist", [28, 28, 1]), ("cifar10", [32, 32, 3])],
)
def test_known_sets_need_no_files(name, shape, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XPNN_DATA", str(tmp_path))
    monkeypatch.setenv("XPNN_CACHE", str(tmp_path))
    record = said(capsys, "article", "--dataset", name)
    assert record["in_shape"] == shape
    assert record["layers"][-1]["out_shape"] == [10]
    assert list(tmp_path.iterdir()) == []


def test_ones_own_images(capsys, tmp_path):
    file, labels = tmp_path / "own.npz", np.arange(6) % 3
    images = np.zeros((6, 7, 5, 3), np.uint8)
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    record = said(capsys, "article", "--dataset", file)
    assert (record["in_shape"], record["layers"][-1]["out_shape"]) == ([7, 5, 3], [3])


def test_a_run(capsys, folder):
    record = said(capsys, folder)
    assert (record["in_shape"], record["layers"][-1]["out_shape"]) == ([9, 9, 2], [4])
    assert (record["training"]["batch_size"], record["training"]["moments"]) == (16, 2)
    assert said(capsys, folder, "--batch-size", 5)["training"]["batch_size"] == 5


def test_a_file(capsys, folder):
    record = said(capsys, folder / "last.safetensors")
    assert (record["in_shape"], record["training"]["batch_size"]) == ([9, 9, 2], 128)
    assert record["training"]["moments"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet"], "there is no folder or file lenet, and no model 'lenet'; there are .*; did you mean 'lenet5'\\?$"),
        (["lenet5"], "the layers of lenet5 have the sizes that the images give them; say which, by --dataset mnist or"),
        (["lenet5", "--shape", "8,8,1"], r"layer 3 \(Conv2D\(16, 5\)\): .* larger than its input of \(4, 4\)"),
        (["lenet5", "--dataset", "minst"], "no data set 'minst'.* Did you mean 'mnist'"),
        (["lenet5", "--dataset", "mnist", "--classes", "4"], "--classes goes with --shape"),
        (
            ["FOLDER", "--dataset", "mnist"],
            "run tells which images it was trained for; leave --dataset and --shape out",
        ),
        (["FOLDER", "--shape", "8,8,1"], "run tells which images it was trained for; leave --dataset and --shape out"),
        (["FOLDER/..", "--json"], "holds no run: it has no config.toml; there are .*run"),
        (["FOLDER/config.toml"], "config.toml is no safetensors file"),
    ],
)
def test_mistakes(arguments, message, capsys, folder):
    arguments = [a.replace("FOLDER", str(folder)) for a in arguments]
    assert summary(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""

    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "8,x,1"], "'8,x,1' is no shape; expected sizes with commas, e.g. 28,28,1"),
        (["--shape", "8,0,1"], "'8,0,1' is no shape"),
        (["--shape", "8,8,1", "--dataset", "mnist"], "not allowed with argument"),
        (["--batch-size", "0"], "'0' is not a positive integer"),
    ],
)
def test_mistakes_in_the_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as e:
        summary("article", *arguments)
    assert e.value.code == 2
    assert message in capsys.readouterr().err
