"""What is seen of the layers of a network."""

import numpy as np
import pytest
from training import samples

import xpnn
from xpnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Residual, Sequential
from xpnn.pictures import feature_maps

SHAPE = (8, 8, 3)
PARTS = [
    Conv2D(4, 3), ReLU(), Residual(Sequential([BatchNorm(), Dropout(0.5)])), MaxPool2D(2), Flatten(), Dense(5),
]  # fmt: skip
PATHS = ["0", "1", "2.body.0", "2.body.1", "3", "4", "5"]


def test_each_layer_is_seen(backend):
    """Its output is what the network up to there predicts."""
    trainer = xpnn.Trainer(Sequential(PARTS), backend=backend).build(SHAPE)
    image = samples(1, shape=SHAPE)[0][0]
    found = {path: (layer, y) for path, layer, y in feature_maps(trainer, image)}
    assert list(found) == PATHS
    for i in (0, 1, 3, 4, 5):
        layer, y = found[str(i)]
        head = xpnn.Trainer(Sequential(PARTS[: i + 1]), loss="mse", backend="numpy").build(SHAPE)
        for path in head.weights:
            np.testing.assert_array_equal(head.weights[path], trainer.weights[path])
        assert layer is PARTS[i]
        assert isinstance(y, np.ndarray)
        np.testing.assert_allclose(y, head.predict(image[None])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["2.body.1"][1], found["2.body.0"][1])  # it predicts: nothing is dropped


def test_statistics_are_those_of_prediction():
    trainer = xpnn.Trainer(Sequential([BatchNorm(), Flatten(), Dense(5)]), backend="numpy")
    images, labels = samples(64, shape=SHAPE)
    trainer.fit(3 + images, labels, epochs=3)
    mean, var = (trainer.stats[f"0.running_{name}"] for name in ("mean", "var"))
    (_, _, y), *_ = feature_maps(trainer, images[0])
    expected = (images[0] - mean) / np.sqrt(var + 1e-5) * trainer.weights["0.weight"] + trainer.weights["0.bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [Conv2D(4, 3), Dense(2)])
def test_a_network_of_one_layer(model):
    trainer = xpnn.Trainer(model, loss="mse", backend="numpy").build(SHAPE)
    image = samples(1, shape=SHAPE)[0][0]
    ((path, layer, y),) = feature_maps(trainer, image)
    assert (path, layer) == ("", model)
    np.testing.assert_allclose(y, trainer.predict(image[None])[0], rtol=1e-5, atol=1e-6)
