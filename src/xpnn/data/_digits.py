"""The UCI digits that come with the package."""

import io

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset

# An arbitrary number; another one is another split, and accuracies are then no longer comparable.
_SPLIT_KEY = 1797


def digits() -> Dataset:
    """Return the 1,797 handwritten digits of 8x8 pixels by Alpaydin and Kaynak (UCI, 1998).

    Images are ``(N, 8, 8, 1)``, the original counts 0..16 divided by 16. One fifth of each class is held out
    for testing, 359 images in all, by a fixed split; both parts keep the original order. The same 13 writers
    are in both parts, so the test tells nothing about a new writer's hand.

    Source: the file ``optdigits.tes`` of https://doi.org/10.24432/C50P49, CC BY 4.0, in scikit-learn's copy.
    """
    from importlib import resources  # a slow import

    file = resources.files(__package__) / "digits" / "digits.npz"
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        counts, labels = arrays["images"], arrays["labels"].astype(np.int64)
    images = counts[..., np.newaxis].astype(np.float32) / 16
    held_out = _held_out(labels)
    return Dataset(
        name="digits",
        train_images=images[~held_out],
        train_labels=labels[~held_out],
        test_images=images[held_out],
        test_labels=labels[held_out],
        classes=tuple("0123456789"),
        source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0)",
    )


def _held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose one fifth of each class, rounded: True where the sample is held out."""
    # Raw bits and a stable sort, because NumPy may change the streams of Generator's methods.
    random_order = np.argsort(np.random.Philox(key=_SPLIT_KEY).random_raw(labels.size), kind="stable")
    held_out = np.zeros(labels.size, dtype=np.bool_)
    for label in np.unique(labels):
        members = random_order[labels[random_order] == label]
        held_out[members[: (members.size + 2) // 5]] = True
    return held_out
