"""The examples run as a reader runs them; with XPNN_GATES=1 and the MNIST files they reach what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xpnn.data import mnist

ROOT = Path(__file__).parents[2]
BESIDE = ROOT.parent / "shared" / "data"


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


def test_article_below_its_target():
    done = article("--dataset", "digits", "--epochs", 1, "--limit", 50, "--naive-images", 1, "--target-accuracy", 1)
    assert done.returncode == 1
    assert "is below the target 1.0" in done.stderr


@pytest.fixture
def mnist_folder():
    if not os.environ.get("XPNN_GATES"):
        pytest.skip("the accuracy gates on MNIST take minutes: set XPNN_GATES=1")
    folder = os.environ.get("XPNN_DATA") or str(BESIDE)
    try:
        mnist(folder)
    except FileNotFoundError:
        pytest.skip("the MNIST files are neither in XPNN_DATA nor in ../shared/data")
    return folder


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
