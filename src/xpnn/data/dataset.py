"""The one form in which every data set is handed out."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .stored import Stored


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, cut into a part to train on and a part to test on.

    Attributes:
        name: the name that `load` knows it by, or that of the file or folder.
        train_images: float32 ``(N, H, W, C)``, channels last, in [0, 1] where they came as bytes; where they are
            memory-mapped or large they stay as they are stored, and read as float32 a part at a time.
        train_labels: int64 ``(N,)``, indices into ``classes``.
        test_images: like ``train_images``, of the held-out part.
        test_labels: like ``train_labels``, of the held-out part.
        classes: the name of each class, in the order of the labels.
        source: citation and licence, one line.
    """

    name: str
    train_images: NDArray[np.float32] | Stored = field(repr=False)
    train_labels: NDArray[np.int64] = field(repr=False)
    test_images: NDArray[np.float32] | Stored = field(repr=False)
    test_labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    source: str
