"""A convolutional network in plain loops: one image, one patch, one kernel at a time.

Nothing here is fast. It is meant to be read, and the tests of the fast layers are held against it.
Start with `layers.py` (convolution, max-pooling, softmax), then `network.py` (joining and training them).

The layers are those of the tutorial "Building a Convolutional Neural Network from Scratch using NumPy"
by Riccardo Andreoni, written afresh. Five faults of the published code are mended; each is marked
`MENDED` at the place:

1. the convolution had no gradient for its input, so it could only be the first layer;
2. the softmax overflowed once the logits grew, and the loss turned NaN;
3. where several pixels of a pooling window shared the maximum, each got the whole gradient;
4. the weights were changed inside `backward`, so a gradient could be neither checked nor combined;
5. the backward of max-pooling returned after its first window, so the others taught the kernels nothing.

Sizes in the docstrings: `H W` the input's height and width, `OH OW` the output's, `KH KW` the kernel's,
`C` the channels. A name with a `d` in front is a gradient: `dy` is the derivative of the loss by `y`.

>>> import numpy as np
>>> from xpnn import naive
>>> rng = np.random.default_rng(0)
>>> network = naive.article(rng)
>>> image = rng.random((28, 28, 1))
>>> network.forward(image).shape
(10,)
>>> before, correct, gradients = network.gradients(image, label=3)
>>> network.update(gradients, lr=0.05)
>>> after, correct, gradients = network.gradients(image, label=3)
>>> after < before
True
"""

from xpnn.naive.layers import Convolution, MaxPool, Softmax
from xpnn.naive.network import Network, article

__all__ = ["Convolution", "MaxPool", "Network", "Softmax", "article"]
