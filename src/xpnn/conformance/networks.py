"""A small data set and small networks, which training steps are tried on."""

from __future__ import annotations

import numpy as np

from xpnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Sequential
from xpnn.optim import Adam
from xpnn.random import Stream

SHAPE = (6, 6, 1)
CLASSES = 3
IMAGES = Stream(0, "tests", "images").normal((20, *SHAPE)).astype("float32")
LABELS = np.argmax(IMAGES[:, :CLASSES, 0, 0], axis=1)

NET = Sequential([Conv2D(3, 3), BatchNorm(), ReLU(), MaxPool2D(2), Dropout(0.3), Flatten(), Dense(CLASSES)])
"""Weights, statistics and masks: all that a state can hold."""
PLAIN = Sequential([Flatten(), Dense(CLASSES)])
"""The least that can be trained."""

ADAM = Adam(0.02)


def assert_same_tree(a, b, path=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for name in a:
            assert_same_tree(a[name], b[name], f"{path}.{name}")
    else:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=path)
