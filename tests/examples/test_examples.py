"""The examples run as a reader runs them; with XPNN_GATES=1 and the MNIST files they reach what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments, **environment):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def article(*arguments, **environment):
    return run(ROOT / "examples" / "article.py", "--backend", "numpy", *arguments, **environment)


def test_article_on_the_digits():
    done = article("--dataset", "digits", "--epochs", 2, "--naive-images", 5, "--target-accuracy", 0.9)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Sequential([Conv2D(16, 3), MaxPool2D(2), Flatten(), Dense(10)]) on numpy")
    assert lines[1].startswith("epoch 1: loss ")
    assert lines[-2].startswith("train accuracy 0.9")
    assert "by the loops" in lines[-1]


def test_the_figures_of_the_article(tmp_path):
    matplotlib = pytest.importorskip("matplotlib.image")
    folder = tmp_path / "figures"
    done = article("--dataset", "digits", "--limit", 50, "--epochs", 1, "--naive-images", 1, "--figures", folder)
    assert done.returncode == 0, done.stderr
    for name in ("feature_map.png", "edges.png"):
        assert matplotlib.imread(folder / name).std() > 0.1


def test_article_below_its_target():
    done = article("--dataset", "digits", "--epochs", 1, "--limit", 50, "--naive-images", 1, "--target-accuracy", 1)
    assert done.returncode == 1
    assert "is below the target 1.0" in done.stderr


@pytest.mark.parametrize(("limit", "target"), [(60_000, 0.975), (5_000, 0.94)])
def test_article_on_mnist(mnist_folder, limit, target):
    done = article("--limit", limit, "--naive-images", 20, "--target-accuracy", target, XPNN_DATA=mnist_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nan" not in done.stdout


def test_small_cnn_on_mnist(mnist_folder):
    command = "import sys; from xpnn.cli import main; sys.exit(main())"
    done = run(
        "-c", command, "train", "--dataset", "mnist", "--backend", "numpy", "--target-accuracy", 0.991,
        XPNN_DATA=mnist_folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_backends_side_by_side():
    script = ROOT / "examples" / "compare_backends.py"
    done = run(script, "--backend", "numpy", "strict", "--limit", 200, "--epochs", 6, "--target-accuracy", 0.5)
    assert done.returncode == 0, done.stderr
    assert "0 Conv2D" in done.stdout
    numpy, strict = done.stdout.splitlines()[-2:]
    assert numpy.startswith("numpy: test accuracy 0.")
    assert strict.startswith("strict: test accuracy 0.")
    done = run(script, "--backend", "numpy", "strict", "--limit", 40, "--epochs", 1, "--target-accuracy", 1)
    assert done.returncode == 1
    assert "is below the target 1.0" in done.stderr
