"""xpnn: convolutional networks whose layers are written once against the Python array API standard.

    import xpnn
    from xpnn.layers import Conv2D, Dense, Flatten, MaxPool2D, ReLU, Sequential

    model = Sequential([Conv2D(16, 3), ReLU(), MaxPool2D(2), Flatten(), Dense(10)])
    trainer = xpnn.Trainer(model, backend="numpy")
    trainer.fit(images, labels, epochs=3)

From the ground up: `backend` (where arrays live), `random`, `ops` (the maths), `layers` (descriptions),
`naive` (the tutorial's layers, to read), `optim`, `losses`, `data`, `train`, `models`, `cli`.
"""

from xpnn import backend, data, layers, losses, models, naive, ops, optim, random
from xpnn.errors import BackendError, FileFormatError, MixedBackendsError, NonFiniteError, ShapeError
from xpnn.train import Callback, Trainer

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Callback",
    "FileFormatError",
    "MixedBackendsError",
    "NonFiniteError",
    "ShapeError",
    "Trainer",
    "backend",
    "data",
    "layers",
    "losses",
    "models",
    "naive",
    "ops",
    "optim",
    "random",
]
