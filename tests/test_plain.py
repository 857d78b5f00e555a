"""NumPy's scalars as options: taken as Python's own, which files and `repr` can write."""

import json

import numpy as np
import pytest

from xpnn import layers, losses, models, ops, optim
from xpnn.data import augment
from xpnn.errors import ShapeError

MADE = {
    "Dense": lambda i, f: layers.Dense(i(3), bias=np.bool_(False) if i is not int else False),
    "Conv2D": lambda i, f: layers.Conv2D(i(8), (i(3), 2), padding=((i(1), 0), (1, 1)), groups=i(2)),
    "ConvTranspose2D": lambda i, f: layers.ConvTranspose2D(8, 3, stride=i(2), output_padding=i(1)),
    "MaxPool2D": lambda i, f: layers.MaxPool2D([i(2), i(2)], padding=i(1)),
    "Reshape": lambda i, f: layers.Reshape((i(4), -1)),
    "GroupNorm": lambda i, f: layers.GroupNorm(i(2), f(0.5)),
    "Normalize": lambda i, f: layers.Normalize(f(0.5), (f(0.5), 1)),
    "Dropout": lambda i, f: layers.Dropout(f(0.5)),
    "LeakyReLU": lambda i, f: layers.LeakyReLU(f(0.5)),
    "tiny-cnn": lambda i, f: models.get("tiny-cnn", i(7)),
    "SGD": lambda i, f: optim.SGD(f(0.5), momentum=f(0.25), clip_norm=i(1)),
    "Adam": lambda i, f: optim.Adam(f(0.5), beta1=f(0.25)),
    "Step": lambda i, f: optim.Step(i(3), f(0.5)),
    "WarmUp": lambda i, f: optim.WarmUp(i(3), optim.Cosine(f(0.5))),
    "OneCycle": lambda i, f: optim.OneCycle(f(0.5)),
    "OnPlateau": lambda i, f: optim.OnPlateau(f(0.5), i(3)),
    "CrossEntropy": lambda i, f: losses.CrossEntropy(label_smoothing=f(0.5), ignored_label=i(3)),
    "Huber": lambda i, f: losses.Huber(f(0.5)),
    "Shift": lambda i, f: augment.Shift(i(2)),
    "Cutout": lambda i, f: augment.Cutout(i(2)),
    "Flip": lambda i, f: augment.Flip(f(0.5)),
    "Affine": lambda i, f: augment.Affine(f(0.5), shift=i(2)),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_scalars_of_numpy_are_taken_as_pythons(make):
    made, expected = make(np.int64, np.float32), make(int, float)
    assert made == expected
    assert repr(made) == repr(expected)
    if not isinstance(made, layers.Sequential | optim.WarmUp):  # which hold others
        assert json.loads(json.dumps(vars(made))) == json.loads(json.dumps(vars(expected)))


@pytest.mark.parametrize("units", [np.bool_(True), np.float64(3)], ids=["bool", "float"])
def test_other_scalars_are_no_integers(units):
    with pytest.raises(ShapeError, match=f"Dense: units={units.item()}; expected a positive integer"):
        layers.Dense(units)


def test_ops_take_them_too():
    x, two, one = np.arange(36.0).reshape(1, 6, 6, 1), np.int64(2), np.int64(1)
    for pads in (one, (one, one), ((one, one), (one, one))):
        y, _ = ops.max_pool(x, window=two, padding=pads, dilation=one)
        np.testing.assert_array_equal(y, ops.max_pool(x, window=2, padding=1)[0])
