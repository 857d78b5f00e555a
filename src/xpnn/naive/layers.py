"""The three layers: convolution, max-pooling, softmax.

Each layer has `forward` and `backward`. Since only one image is under way at a time, `forward` remembers
its input on the layer, and `backward` goes back through that last input: call them in turn, and leave
the input unchanged in between. Results have the dtype of the input, gradients of weights that of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
Gradients: TypeAlias = dict[str, Array]


class Convolution:
    """Slide every kernel over the image; each output value is one patch times one kernel, summed.

    weight (C_out, KH, KW, C_in), bias (C_out,). Stride 1, no padding: OH = H - KH + 1, OW = W - KW + 1.
    """

    def __init__(self, weight: Array, bias: Array) -> None:
        _check_weights("Convolution", weight, bias, ("C_out", "KH", "KW", "C_in"))
        self.weight = weight
        self.bias = bias
        self.image: Array | None = None

    @classmethod
    def random(cls, kernels: int, size: int, channels: int, rng: np.random.Generator) -> Self:
        """Start as the tutorial does: normal weights divided by the kernel's area; the bias is zero."""
        weight = rng.normal(size=(kernels, size, size, channels)) / size**2
        return cls(weight, np.zeros(kernels))

    def patches_generator(self, image: Array) -> Iterator[tuple[Array, int, int]]:
        """Yield (patch, row, column): image (H, W, C_in), patch (KH, KW, C_in), its top left corner."""
        H, W, _ = image.shape
        _, KH, KW, _ = self.weight.shape
        for row in range(H - KH + 1):
            for column in range(W - KW + 1):
                yield image[row : row + KH, column : column + KW], row, column

    def forward(self, image: Array) -> Array:
        """Image (H, W, C_in) -> y (OH, OW, C_out)."""
        C_out, KH, KW, C_in = self.weight.shape
        _check_image("Convolution", image, KH, KW, C_in)
        H, W, _ = image.shape
        y = np.zeros((H - KH + 1, W - KW + 1, C_out), dtype=image.dtype)
        for patch, row, column in self.patches_generator(image):
            # All kernels at once: (KH, KW, C_in) * (C_out, KH, KW, C_in), then one sum for each kernel.
            y[row, column] = np.sum(patch * self.weight, axis=(1, 2, 3)) + self.bias
        self.image = image
        return y

    def backward(self, dy: Array) -> tuple[Array, Gradients]:
        """Gradient dy (OH, OW, C_out) -> dimage (H, W, C_in), {"weight": like weight, "bias": like bias}.

        In forward every y[row, column] was made from one patch, all kernels and all biases. Each of them
        gets dy[row, column] times what it was multiplied with.
        """
        image = _last_input("Convolution", self.image)
        H, W, _ = image.shape
        C_out, KH, KW, _ = self.weight.shape
        _check_gradient("Convolution", dy, (H - KH + 1, W - KW + 1, C_out))
        dimage = np.zeros_like(image)
        dweight = np.zeros_like(self.weight)
        dbias = np.zeros_like(self.bias)
        for patch, row, column in self.patches_generator(image):
            slope = dy[row, column][:, np.newaxis, np.newaxis, np.newaxis]  # (C_out, 1, 1, 1)
            dweight += slope * patch
            dbias += dy[row, column]
            # MENDED, fault 1: no gradient to the input. The tutorial's backward hands on that of the kernels
            # in its place. Patches overlap: a pixel adds up what it gets from every patch it is part of.
            dpatch = dimage[row : row + KH, column : column + KW]  # a view: adding to it adds to dimage
            dpatch += np.sum(slope * self.weight, axis=0)
        return dimage, {"weight": dweight, "bias": dbias}

    def update(self, gradients: Gradients, lr: float) -> None:
        """Take one step of gradient descent, each weight against its gradient."""
        # MENDED, fault 4: the update was hidden inside backward. Now backward only reports the gradients,
        # so that they can be checked, averaged over images or given to another optimizer.
        self.weight = self.weight - float(lr) * gradients["weight"]
        self.bias = self.bias - float(lr) * gradients["bias"]


class MaxPool:
    """Cut the image into squares of `size` x `size` and keep the largest value of each, channel by channel.

    OH = H // size, OW = W // size: rows and columns left over at the end are dropped. Nothing to learn.
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"MaxPool: size is {size!r}, expected a whole number from 1. Give, say, MaxPool(2).")
        self.size = size
        self.image: Array | None = None

    def patches_generator(self, image: Array) -> Iterator[tuple[Array, int, int]]:
        """Yield (patch, row, column): image (H, W, C), patch (size, size, C), its place in the output."""
        H, W, _ = image.shape
        size = self.size
        for row in range(H // size):
            for column in range(W // size):
                top, left = row * size, column * size
                yield image[top : top + size, left : left + size], row, column

    def forward(self, image: Array) -> Array:
        """Image (H, W, C) -> y (OH, OW, C)."""
        _check_image("MaxPool", image, self.size, self.size)
        H, W, C = image.shape
        y = np.zeros((H // self.size, W // self.size, C), dtype=image.dtype)
        for patch, row, column in self.patches_generator(image):
            y[row, column] = np.max(patch, axis=(0, 1))
        self.image = image
        return y

    def backward(self, dy: Array) -> Array:
        """Gradient dy (OH, OW, C) -> dimage (H, W, C): all to the pixel that was the maximum, else zero."""
        image = _last_input("MaxPool", self.image)
        H, W, C = image.shape
        _check_gradient("MaxPool", dy, (H // self.size, W // self.size, C))
        dimage = np.zeros_like(image)
        for patch, row, column in self.patches_generator(image):
            for c in range(C):
                # MENDED, fault 3: tied maxima all received the gradient, on a flat 2 x 2 patch four times
                # what there was to give. argmax names one pixel: the first, row by row.
                i, j = divmod(int(np.argmax(patch[:, :, c])), self.size)
                dimage[row * self.size + i, column * self.size + j, c] = dy[row, column, c]
        # MENDED, fault 5: this `return` stood inside the loop, so that only the patch at the top left passed
        # its gradient on. That corner is black in each of the tutorial's 5,000 digits: no kernel ever learnt.
        return dimage


class Softmax:
    """A dense layer over all features, then softmax: one probability for each class. The last layer.

    weight (classes, features), bias (classes,), where features = H * W * C of the layer's input.
    """

    def __init__(self, weight: Array, bias: Array) -> None:
        _check_weights("Softmax", weight, bias, ("classes", "features"))
        self.weight = weight
        self.bias = bias
        self.features_map: Array | None = None
        self.logits = np.zeros_like(bias)

    @classmethod
    def random(cls, classes: int, features: int, rng: np.random.Generator) -> Self:
        """Start as the tutorial does: normal weights divided by the number of features; the bias is zero."""
        return cls(rng.normal(size=(classes, features)) / features, np.zeros(classes))

    def forward(self, features_map: Array) -> Array:
        """features_map (H, W, C), or any shape of that size -> probabilities (classes,)."""
        _check_features("Softmax", features_map, self.weight.shape[1])
        logits = self.weight @ features_map.reshape(-1) + self.bias
        self.features_map = features_map
        self.logits = logits.astype(features_map.dtype)
        return self._probabilities()

    def _probabilities(self) -> Array:
        # MENDED, fault 2: softmax that overflows. exp(1000) is infinite, and infinity / infinity is NaN.
        # Taking the largest logit from all of them changes no probability, and no exponent is above 0 now.
        exponentials: Array = np.exp(self.logits - np.max(self.logits))
        exponentials /= np.sum(exponentials)
        return exponentials

    def loss(self, label: int) -> float:
        """Cross-entropy of the last forward: -log(probability of the label), a number from 0 up."""
        _last_input("Softmax", self.features_map)
        label = _check_label("Softmax", label, len(self.bias))
        # Also fault 2: log(0) is minus infinity when the probability is too small for a float. With
        # p = exp(z) / sum, -log(p) = log(sum) - z, and nothing is divided or rounded to 0 on the way.
        shifted = self.logits - np.max(self.logits)
        return float(np.log(np.sum(np.exp(shifted))) - shifted[label])

    def backward(self, label: int) -> tuple[Array, Gradients]:
        """Label -> dfeatures (shape of the input), {"weight": like weight, "bias": like bias}.

        Cross-entropy and softmax together have a simple derivative: dlogits = probabilities - one-hot label.
        """
        features_map = _last_input("Softmax", self.features_map)
        dlogits = self._probabilities()
        dlogits[_check_label("Softmax", label, len(self.bias))] -= 1
        dfeatures = (dlogits @ self.weight).reshape(features_map.shape)
        dweight = np.outer(dlogits, features_map)  # outer flattens both
        return dfeatures.astype(features_map.dtype), {
            "weight": dweight.astype(self.weight.dtype),
            "bias": dlogits.astype(self.bias.dtype),
        }

    def update(self, gradients: Gradients, lr: float) -> None:
        """Take one step of gradient descent, each weight against its gradient (fault 4, as above)."""
        self.weight = self.weight - float(lr) * gradients["weight"]
        self.bias = self.bias - float(lr) * gradients["bias"]


# The maths ends here. What follows only says, in words, what is wrong with an input.


def _check_weights(layer: str, weight: Array, bias: Array, axes: tuple[str, ...]) -> None:
    if weight.ndim != len(axes) or 0 in weight.shape:
        raise ValueError(
            f"{layer}: weight has the shape {weight.shape}, expected ({', '.join(axes)}), none of them 0. "
            "Reshape it, or use random(...)."
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{layer}: bias has the shape {bias.shape}, expected {weight.shape[:1]}. "
            f"Give one bias for each of the {weight.shape[0]} outputs."
        )
    for name, array in (("weight", weight), ("bias", bias)):
        _check_float(layer, name, array, f"{name}.astype(np.float64)")


def _check_float(layer: str, name: str, array: Array, remedy: str) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{layer}: {name} has the dtype {array.dtype}, expected floats. Use {remedy}.")


def _check_image(layer: str, image: Array, height: int, width: int, channels: int | None = None) -> None:
    expected = f"(H, W, {'C' if channels is None else channels})"
    if image.ndim != 3:
        raise ValueError(
            f"{layer}: the image has the shape {image.shape}, expected {expected}. "
            "Give one image at a time; a grey one needs a channel: image[:, :, np.newaxis]."
        )
    if channels is not None and image.shape[2] != channels:
        raise ValueError(
            f"{layer}: the image has the shape {image.shape}, expected {expected}. "
            f"Give it {channels} channels in the last axis, or build the layer for {image.shape[2]}."
        )
    if image.shape[0] < height or image.shape[1] < width:
        raise ValueError(
            f"{layer}: the image has the shape {image.shape}, expected at least {height} rows "
            f"and {width} columns. Give a larger image, or build the layer with a smaller window."
        )
    _check_float(layer, "the image", image, "image.astype(np.float32) / 255")


def _check_features(layer: str, features_map: Array, features: int) -> None:
    if features_map.size != features:
        raise ValueError(
            f"{layer}: the input has the shape {features_map.shape}, {features_map.size} features in all, "
            f"expected {features}. Build the layer for {features_map.size}, or change the layers before it."
        )
    _check_float(layer, "the input", features_map, "features_map.astype(np.float32)")


def _check_gradient(layer: str, dy: Array, expected: tuple[int, ...]) -> None:
    if dy.shape != expected:
        raise ValueError(
            f"{layer}: dy has the shape {dy.shape}, expected {expected}, the shape of the last output. "
            "Call forward on the image that this gradient belongs to."
        )


def _check_label(layer: str, label: int, classes: int) -> int:
    if not isinstance(label, int | np.integer) or not 0 <= label < classes:
        raise ValueError(
            f"{layer}: the label is {label!r}, expected a whole number from 0 to {classes - 1}. "
            f"Number the classes from 0, or build the layer for more than {classes} of them."
        )
    return int(label)


def _last_input(layer: str, remembered: Array | None) -> Array:
    if remembered is None:
        raise RuntimeError(f"{layer}: there is no last input, expected one. Call forward first.")
    return remembered
