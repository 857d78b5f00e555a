"""A layer of your own: its maths, its backward, the check of its gradient, and its use.

    python examples/custom_layer.py --backend cupy

Swish with a slope that is learnt for each channel (Ramachandran, Zoph, Le, 2017): y = x·sigmoid(beta·x). Exit status
1 where the gradient is wrong or the test accuracy on the digits is below --target-accuracy.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

import xpnn
from xpnn.layers import Conv2D, Dense, Flatten, Layer, MaxPool2D, Sequential, check_layer


@dataclass(frozen=True, repr=False)
class Swish(Layer):
    """`x·sigmoid(beta·x)`; weights: `beta (C,)`."""

    start: float = 1.0

    per_sample: ClassVar[bool] = True  # a sample's result is its own: a batch may be cut into pieces

    def init(self, in_shape, stream):
        """The same slope for all channels."""
        return {"beta": np.full(in_shape[-1], self.start)}, {}

    def apply(self, weights, stats, x, run):
        """The output, no new statistics, and the backward."""
        xp, beta = array_namespace(x), weights["beta"]
        s = 1 / (1 + xp.exp(-beta * x))

        def backward(dy, *, input_gradient=True):
            slope = x * s * (1 - s)  # dy/d(beta·x)
            dbeta = run.ops.total(dy * x * slope, tuple(range(x.ndim - 1)))
            return (dy * (s + beta * slope) if input_gradient else None), {"beta": dbeta}

        return x * s, {}, backward


parser = argparse.ArgumentParser(description="Write a layer, check its gradient, train a network with it.")
parser.add_argument("--backend", default="auto", help="numpy, cupy, …")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--target-accuracy", type=float, default=0.96)
args = parser.parse_args()

error = check_layer(Swish(), (3, 3, 5))  # raises where the layer breaks its contract or its gradient is wrong
print(f"gradient of Swish: off by {error:.1e} of itself at most")

digits = xpnn.data.digits()
model = Sequential([Conv2D(16, 3), Swish(), MaxPool2D(2), Flatten(), Dense(10)])
trainer = xpnn.Trainer(model, optimizer=xpnn.optim.Adam(lr=5e-3), backend=args.backend)
trainer.fit(digits.train_images, digits.train_labels, epochs=args.epochs, batch_size=32)
print(f"{model!r} on {trainer.backend.name}: beta from 1 to {np.round(np.sort(trainer.weights['1.beta']), 2)}")

accuracy = trainer.evaluate(digits.test_images, digits.test_labels)["accuracy"]
print(f"test accuracy {accuracy:.4f}")
if not accuracy >= args.target_accuracy:
    sys.exit(f"test accuracy {accuracy:.4f} is below the target {args.target_accuracy}")
