"""MNIST, Fashion-MNIST and KMNIST, each from four IDX files."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError
from . import fetch
from .dataset import Dataset
from .idx import read_idx
from .known import KNOWN, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, Known
from .stored import as_float32


def read(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Return one of the three: 60,000 images of 28x28 pixels to train on, 10,000 to test on; see `load`."""
    known = KNOWN[name]
    files = fetch.files(name, data_dir, lambda folder: _find(folder, known))
    train_images, train_labels = _read_part(known, files[TRAIN_IMAGES], files[TRAIN_LABELS])
    test_images, test_labels = _read_part(known, files[TEST_IMAGES], files[TEST_LABELS])
    return Dataset(name, train_images, train_labels, test_images, test_labels, known.classes, known.source)


def _find(folder: Path, known: Known) -> tuple[dict[str, Path], list[str]]:
    """The files in either spelling, ``-idx3`` or ``.idx3``, plain or gzipped, and the names of the missing ones."""
    found, missing = {}, []
    for file in known.files:
        name = file.removesuffix(".gz")
        spellings = (folder / (stem + end) for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz"))
        path = next(filter(Path.is_file, spellings), None)
        if path is None:
            missing.append(name)
        else:
            found[file] = path
    return found, missing


def _read_part(known: Known, images_path: Path, labels_path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read one pair of files and hold them against each other."""
    levels, labels = read_idx(images_path), read_idx(labels_path)
    height, width, _ = known.shape
    _check(images_path, levels, f"(N, {height}, {width})", levels.shape[1:] == (height, width))
    _check(labels_path, labels, "(N,)", labels.ndim == 1)
    if len(levels) != len(labels):
        raise FileFormatError(
            f"{images_path} holds {len(levels):,} images but {labels_path} holds {len(labels):,} labels, and "
            "one label for each image was expected. Fetch both files again, from one place."
        )
    last = len(known.classes) - 1
    if labels.max() > last:
        first = int(np.argmax(labels > last))
        raise FileFormatError(
            f"{labels_path}: label [{first}] is {labels[first]}, and 0 to {last} were expected. "
            f"Check that these are {known.title}'s labels, or fetch the file again."
        )
    return as_float32(levels[..., np.newaxis]), labels.astype(np.int64)


def _check(path: Path, array: NDArray[np.uint8], shape: str, shape_is_right: bool) -> None:
    if array.dtype != np.uint8 or not shape_is_right:
        raise FileFormatError(
            f"{path}: the file holds {array.dtype} values of shape {array.shape}, and uint8 of shape {shape} "
            "was expected. Check that the image and label files are not swapped, or fetch them again."
        )
