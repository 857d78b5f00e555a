"""Layers in a row: forward through all of them, backward through all of them, and the training loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xpnn.naive.layers import Array, Convolution, Gradients, MaxPool, Softmax


class Network:
    """Convolutions and max-pools in any order, one Softmax at the end."""

    def __init__(self, layers: Sequence[Convolution | MaxPool | Softmax]) -> None:
        body = [layer for layer in layers[:-1] if not isinstance(layer, Softmax)]
        if not layers or not isinstance(layers[-1], Softmax) or len(body) < len(layers) - 1:
            names = ", ".join(type(layer).__name__ for layer in layers) or "no layers"
            raise ValueError(
                f"Network: got {names}, expected Convolution and MaxPool layers, then one Softmax. "
                "Put exactly one Softmax, and put it last."
            )
        if len({id(layer) for layer in layers}) < len(layers):
            raise ValueError(
                "Network: one layer object is in the list twice, expected different ones, since a layer "
                "remembers one input only. Build a second layer."
            )
        self.layers = list(layers)
        self.body = body
        self.head = layers[-1]

    def forward(self, image: Array) -> Array:
        """Image (H, W, C) -> probabilities (classes,)."""
        x = image
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def gradients(self, image: Array, label: int) -> tuple[float, bool, list[Gradients]]:
        """Image (H, W, C) and its label -> loss, whether the guess was correct, the gradients of each layer.

        The list has one entry for each layer, in the order of the layers; a max-pool's is empty.
        """
        probabilities = self.forward(image)
        loss = self.head.loss(label)
        correct = int(np.argmax(probabilities)) == int(label)

        dy, gradients = self.head.backward(label)
        found = [gradients]
        for layer in reversed(self.body):
            if isinstance(layer, MaxPool):
                dy, gradients = layer.backward(dy), {}
            else:
                dy, gradients = layer.backward(dy)
            found.append(gradients)
        return loss, correct, found[::-1]

    def update(self, gradients: Sequence[Gradients], lr: float) -> None:
        """Take one step of gradient descent in every layer that has weights."""
        for layer, found in zip(self.layers, gradients, strict=True):
            if not isinstance(layer, MaxPool):
                layer.update(found, lr)

    def train(
        self,
        images: Array,
        labels: NDArray[np.integer],
        epochs: int,
        lr: float,
        rng: np.random.Generator | None = None,
    ) -> list[tuple[float, float]]:
        """Images (N, H, W, C), labels (N,) -> (mean loss, accuracy) of each epoch.

        As the tutorial trains: an update after every single image. Both numbers are taken while the weights
        change, on images that are being learnt: they flatter, and are no test. `rng` shuffles every epoch.
        """
        if len(images) != len(labels) or len(images) == 0:
            raise ValueError(
                f"Network: got {len(images)} images and {len(labels)} labels, expected as many of both, "
                "at least one. Give one label for each image."
            )
        history = []
        for _ in range(epochs):
            total, hits = 0.0, 0
            for i in range(len(images)) if rng is None else rng.permutation(len(images)):
                loss, correct, gradients = self.gradients(images[i], labels[i])
                self.update(gradients, lr)
                total, hits = total + loss, hits + correct
            history.append((total / len(images), hits / len(images)))
        return history


def article(rng: np.random.Generator, image_shape: tuple[int, int, int] = (28, 28, 1)) -> Network:
    """Build the tutorial's network: 16 kernels of 3 x 3, max-pool of 2, softmax over 10 classes."""
    H, W, C = image_shape
    features = ((H - 2) // 2) * ((W - 2) // 2) * 16
    return Network([Convolution.random(16, 3, C, rng), MaxPool(2), Softmax.random(10, features, rng)])
