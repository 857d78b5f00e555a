"""MNIST, from its four original files."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError
from .dataset import Dataset
from .idx import read_idx

_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_ADDRESSES = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)


def mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return MNIST: 60,000 handwritten digits of 28x28 pixels to train on and 10,000 to test on.

    Images are ``(N, 28, 28, 1)``, the original grey levels 0..255 divided by 255. The four IDX files, gzipped
    or plain, lie in ``data_dir`` or in its subfolder ``mnist``; without ``data_dir`` the environment variable
    ``XPNN_DATA`` names the folder. Nothing is downloaded.

    Raises FileNotFoundError where they are not all in one folder, with the addresses that have them, and
    FileFormatError, a ValueError, where a file is damaged or is not what its name says.

    Source: Y. LeCun, C. Cortes and C. J. C. Burges, 1998, CC BY-SA 3.0.
    """
    files = _find_files(data_dir)
    train_images, train_labels = _read_part(files["train_images"], files["train_labels"])
    test_images, test_labels = _read_part(files["test_images"], files["test_labels"])
    return Dataset(
        name="mnist",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=tuple("0123456789"),
        source="Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, 1998, "
        "http://yann.lecun.com/exdb/mnist/ (CC BY-SA 3.0)",
    )


def _find_files(data_dir: str | os.PathLike[str] | None) -> dict[str, Path]:
    """Return the paths of the four files, from the first folder that holds them all."""
    # An empty variable is an unset one; Path("") would be the current folder.
    root = data_dir if data_dir is not None else os.environ.get("XPNN_DATA") or None
    folders = [] if root is None else [Path(root).expanduser(), Path(root).expanduser() / "mnist"]
    looked = []
    for folder in folders:
        found = {part: path for part, name in _FILES.items() if (path := _find(folder, name))}
        if len(found) == len(_FILES):
            return found
        missing = [name for part, name in _FILES.items() if part not in found]
        absent = "all four" if not found else ", ".join(missing)
        looked.append(f"{folder} (missing: {absent})" if folder.is_dir() else f"{folder} (no such folder)")
    where = f"Looked in {' and '.join(looked)}." if looked else "No data_dir given, and XPNN_DATA is not set."
    raise FileNotFoundError(
        f"MNIST needs the four files {', '.join(_FILES.values())} (plain or .gz) in one folder. {where} "
        f"Fetch them from {' or '.join(_ADDRESSES)} and name their folder by data_dir or the environment "
        "variable XPNN_DATA."
    )


def _find(folder: Path, name: str) -> Path | None:
    """Return the file in either spelling, ``-idx3`` or ``.idx3``, plain or gzipped; None if there is none."""
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    return None


def _read_part(images_path: Path, labels_path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read one pair of files and hold them against each other."""
    levels, labels = read_idx(images_path), read_idx(labels_path)
    _check(images_path, levels, "(N, 28, 28)", levels.shape[1:] == (28, 28))
    _check(labels_path, labels, "(N,)", labels.ndim == 1)
    if len(levels) != len(labels):
        raise FileFormatError(
            f"{images_path} holds {len(levels):,} images but {labels_path} holds {len(labels):,} labels, and "
            "one label for each image was expected. Fetch both files again, from one place."
        )
    if labels.max() > 9:
        first = int(np.argmax(labels > 9))
        raise FileFormatError(
            f"{labels_path}: label [{first}] is {labels[first]}, and 0 to 9 were expected. "
            "Check that these are MNIST's labels, or fetch the file again."
        )
    images = levels[..., np.newaxis].astype(np.float32)
    images /= 255  # in place: the training images take 188 MB
    return images, labels.astype(np.int64)


def _check(path: Path, array: NDArray[np.uint8], shape: str, shape_is_right: bool) -> None:
    if array.dtype != np.uint8 or not shape_is_right:
        raise FileFormatError(
            f"{path}: the file holds {array.dtype} values of shape {array.shape}, and uint8 of shape {shape} "
            "was expected. Check that the image and label files are not swapped, or fetch them again."
        )
