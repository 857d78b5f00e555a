"""The examples that train: on small settings with the digits, and with XPNN_GATES=1 two epochs of MNIST."""

import pytest
from test_examples import ROOT, run

SMALL = {  # arguments, how it begins, what it says as well
    "mnist.py": (
        ("--dataset", "digits", "--limit", 700, "--epochs", 4, "--target-accuracy", 0.6),
        "Augment([Affine(degrees=10, scale=0.1",
        "epoch 4/4: loss ",
    ),
    "cifar10.py": (
        ("--dataset", "digits", "--limit", 48, "--epochs", 2, "--batch-size", 16),
        "Normalize((0.",
        "epoch 2/2: loss ",
    ),
    "custom_layer.py": ((), "gradient of Swish: off by ", "Swish(), MaxPool2D(2)"),
}


def example(name, *arguments, **environment):
    return run(ROOT / "examples" / name, "--backend", "numpy", *arguments, **environment)


@pytest.mark.parametrize("name", SMALL)
def test_on_the_digits(name):
    arguments, starts, says = SMALL[name]
    done = example(name, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(starts)
    assert says in done.stdout
    assert done.stdout.splitlines()[-1].startswith("test accuracy ")


@pytest.mark.parametrize("name", SMALL)
def test_below_the_target(name):
    done = example(name, *SMALL[name][0], "--epochs", 1, "--target-accuracy", 1)
    assert done.returncode == 1
    assert "is below the target 1.0" in done.stderr


def test_mnist(mnist_folder):
    done = example("mnist.py", "--epochs", 1, "--target-accuracy", 0.988, XPNN_DATA=mnist_folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_of_ones_own(tmp_path):
    pytest.importorskip("PIL")
    pytest.importorskip("platformdirs")
    made = ("--made", tmp_path / "shapes", "--target-accuracy", 0.7)
    done = example("own_images.py", *made)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *epochs = done.stdout.splitlines()
    assert first == "299 images to train on, 61 to test: circle, square, triangle"
    assert len(epochs) == 10
    for again in (tmp_path / "shapes",), ("--made", tmp_path / "shapes"):
        done = example("own_images.py", *again, "--epochs", 1, "--target-accuracy", 1)
        assert done.returncode == 1
        assert "is below the target 1.0" in done.stderr
    done = example("own_images.py")
    assert done.returncode == 2
    assert "name a folder of images, or one to be --made" in done.stderr
