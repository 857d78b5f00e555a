"""Normalize: the numbers of the training images, carried by the model."""

import numpy as np
import pytest

from xpnn import ShapeError, Trainer
from xpnn.layers import Conv2D, Dense, Flatten, Normalize, ReLU, Run, Sequential, normalize
from xpnn.ops import standard
from xpnn.random import Stream

IMAGES = (Stream(0, "tests", "pixels").uniform((20, 5, 4, 3)) * [1, 0.5, 2] + [0, 3, -7]).astype("float32")


def apply(layer, x):
    return layer.apply({}, {}, x, Run(standard))


def test_values_and_gradient():
    y, _, backward = apply(Normalize((1.0, 3.0, -7), (0.5, 2.0, 4)), IMAGES)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, (IMAGES - [1, 3, -7]) / [0.5, 2, 4], rtol=1e-5, atol=1e-6)
    dx, dweights = backward(np.ones_like(IMAGES))
    np.testing.assert_allclose(dx, np.broadcast_to([2, 0.5, 0.25], IMAGES.shape))
    assert dweights == {}
    assert backward(y, input_gradient=False) == (None, {})
    np.testing.assert_allclose(apply(Normalize(0.5, 2), IMAGES)[0], (IMAGES - 0.5) / 2, rtol=1e-5)


class Slices:
    """Images that are never handed out whole."""

    def __init__(self, images):
        self.images, self.shape, self.most = images, images.shape, 0

    def __getitem__(self, part):
        self.most = max(self.most, len(self.images[part]))
        return self.images[part]


@pytest.mark.parametrize(("n", "chunk", "most"), [(1, 1200, 1), (100, 1200, 100), (277, 1211, 100), (3, 5, 1)])
def test_of_images(n, chunk, most, monkeypatch):
    """Far from zero, where a sum of squares in float32 would have lost all."""
    monkeypatch.setattr(normalize, "CHUNK", chunk)
    images = Slices((Stream(1, "tests").uniform((n, 2, 3, 2)) + [3000, 0.1]).astype("float32"))
    layer, values = Normalize.of(images), images.images.astype(float)
    assert images.most == most
    np.testing.assert_allclose(layer.mean, values.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.std, values.std(axis=(0, 1, 2)), rtol=1e-5)
    y = apply(Normalize.of(IMAGES), IMAGES)[0]
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), 1, atol=1e-4)


def test_of_images_of_one_channel_and_of_one_colour():
    grey = np.full((3, 3, 3, 1), 0.1)  # whose standard deviation comes out as 1e-17
    assert repr(Normalize.of(grey)) == "Normalize(0.1, 1.0)"
    assert repr(Normalize.of(np.arange(8.0).reshape(2, 2, 2, 1) / 7)) == "Normalize(0.5, 0.327327)"
    colour = np.stack([grey, IMAGES[:3, :3, :3, :1]], axis=-1)[..., 0, :]
    assert Normalize.of(colour).std[0] == 1.0


def test_a_model_carries_it_through_files(tmp_path):
    model = Sequential([Normalize.of(IMAGES), Conv2D(4, 2), ReLU(), Flatten(), Dense(2)])
    trainer = Trainer(model, backend="numpy")
    trainer.fit(IMAGES, np.arange(20) % 2, epochs=2)
    trainer.save(tmp_path / "state.safetensors")
    again = Trainer.load(tmp_path / "state.safetensors", backend="numpy")
    assert again.model == model
    np.testing.assert_array_equal(again.predict(IMAGES), trainer.predict(IMAGES))
    assert set(trainer.weights) == {"1.weight", "1.bias", "4.weight", "4.bias"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalize(0.5, 0), "std=0; expected numbers > 0: one, or one for each channel"),
        (lambda: Normalize("0.5", 1), "mean='0.5'; expected finite numbers"),
        (lambda: Normalize((), ()), r"mean=\(\); expected finite numbers"),
        (lambda: Normalize(float("nan"), 1), "mean=nan; expected finite numbers"),
        (lambda: Normalize((0.5, 0.5), (1.0, 1, 1)), "mean and std are for different numbers of channels"),
        (lambda: Normalize.of(IMAGES[:0]), r"the images of shape \(0, 5, 4, 3\) are none"),
        (lambda: Normalize.of(IMAGES * np.inf), "hold values that are not finite: clean them first"),
        (
            lambda: Sequential([Normalize((0.1, 0.2, 0.3), 1.0)]).shape((4, 4, 1)),
            r"layer 0 .*mean has 3 numbers, came samples of shape \(4, 4, 1\)",
        ),
        (lambda: Normalize(0.1, (1.0, 2.0)).shape((4, 4, 1)), "std has 2 numbers"),
        (lambda: apply(Normalize(0.1, (1.0, 2.0)), IMAGES), "normalize: x has 3 channels .* this layer is made for 2"),
        (lambda: apply(Normalize(0.1, 1.0), (IMAGES * 255).astype("uint8")), "normalize: x has dtype uint8"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ShapeError, match=message):
        make()
