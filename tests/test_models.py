"""The named networks: their sizes are those of the papers, and they train."""

import numpy as np
import pytest
from training import samples

from xpnn import Trainer, models
from xpnn.layers import Dense
from xpnn.random import Stream

SIZES = {  # shape of a sample, number of weights
    "article": ((28, 28, 1), 27_210),
    "tiny-cnn": ((8, 8, 1), 14_762),
    "small-cnn": ((28, 28, 1), 225_034),
    "deep-cnn": ((28, 28, 1), 320_234),
    "lenet5": ((28, 28, 1), 61_706),
    "resnet20": ((32, 32, 3), 272_474),
}


def test_all_are_here():
    assert SIZES.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    shape, count = SIZES[name]
    model = models.get(name)
    assert model.shape(shape) == (10,)
    weights, _ = model.init(shape, Stream(0, "weights"))
    assert sum(a.size for a in weights.values()) == count


@pytest.mark.parametrize("name", SIZES)
def test_they_train(name):
    shape = SIZES[name][0] if name != "resnet20" else (8, 8, 3)  # the pool at its end takes any size
    images, labels = samples(4, shape=shape, classes=3)
    trainer = Trainer(models.get(name, 3), backend="numpy").build(shape)
    before = trainer.weights
    trainer.fit(images, labels)
    for path, a in trainer.weights.items():
        assert not np.array_equal(a, before[path]), path
    assert trainer.predict(images).shape == (4, 3)


def test_number_of_classes():
    for name in SIZES:
        assert models.get(name, 7).layers[-1] == Dense(7)


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"no model 'lenet'; there are article, tiny-cnn, .*; did you mean 'lenet5'\?"):
        models.get("lenet")
    with pytest.raises(ValueError, match=r"no model 'vgg'; there are [^?]*resnet20$"):
        models.get("vgg")
