"""What the tests of the NumPy executor share: a network whose samples are on their own, and one that joins them."""

import numpy as np

from xpnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, Parallel, ReLU, Residual, Sequential
from xpnn.random import Stream

MODEL = Sequential([Conv2D(8, 3), ReLU(), MaxPool2D(2), Dropout(0.3), Flatten(), Dense(5)])
JOINED = Sequential(
    [
        Conv2D(6, 3, padding=1, bias=False),
        BatchNorm(),
        ReLU(),
        Residual(Sequential([Conv2D(6, 3, padding=1), BatchNorm()])),
        Parallel(Conv2D(2, 1), Sequential([BatchNorm(momentum=0.3)])),
        Dropout(0.3),
        Flatten(),
        Dense(5),
    ]
)
MODELS = {"per-sample": MODEL, "batch-norm": JOINED}
IMAGES = Stream(0, "images").uniform((70, 12, 12, 1)).astype("float32")
LABELS = (Stream(0, "labels").words(0, 70) % np.uint64(5)).astype("int64")


def bits(trainer, records):
    return {**trainer.weights, **trainer.stats, "loss": records[-1]["loss"], "scores": trainer.predict(IMAGES)}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, a in found.items():
        np.testing.assert_array_equal(a, expected[name], err_msg=name)
