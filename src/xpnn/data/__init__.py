"""Data sets as arrays on the host: ``load("digits")``, ``load("mnist")``, ``load("FILE.npz")``, ``load("FOLDER")``.

What is where:

- ``dataset.py``: `Dataset`, the four arrays with their class names and their source;
- ``stored.py``: `Stored`, images that stay on the disk and read as float32 a part at a time; `part` takes some;
- ``_digits.py`` and ``digits/``: the 1,797 digits of 8x8 pixels that come with the package;
- ``known.py``: the public sets, as data; ``fetch.py`` finds or downloads their files, ``cache.py`` says where to;
- ``_idx_sets.py`` with ``idx.py``: MNIST and its relatives; ``_cifar10.py``: CIFAR-10;
- ``_npz.py`` and ``_folder.py``: one's own images;
- ``progress.py``: how far a download or a decoding is;
- ``augment.py``: what is done to images while a network trains;
- ``batches.py``: what the trainer cuts them into.

Nothing is read before the first call.
"""

import difflib
import os
from operator import index
from pathlib import Path

from ..errors import FileFormatError
from . import _cifar10, _folder, _idx_sets, _npz
from ._digits import digits
from .dataset import Dataset
from .known import KNOWN
from .stored import Stored, part

__all__ = ["NAMES", "Dataset", "Stored", "digits", "load", "mnist", "part"]

NAMES = ("digits", *KNOWN)
"""The data sets that are known by name."""
LARGEST = 4096
"""Pixels of a side of an image of a folder, at most: more is a slip of the hand, and would be decoded for ever."""


def load(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    skip_corrupt: bool = False,
) -> Dataset:
    """Return a data set: one that is known by name, or one's own in a file or folder.

    The digits come with the package. The files of ``"mnist"``, ``"fashion-mnist"``, ``"kmnist"`` and ``"cifar10"`` are
    taken from ``data_dir`` or its subfolder of that name, else from the cache folder, into which they are downloaded
    once (``XPNN_CACHE``, else the user's own; this takes ``xpnn[train]``).

    ``FILE.npz`` holds ``x_train, y_train, x_test, y_test``: images ``(N, H, W)`` or ``(N, H, W, C)``, uint8 (divided by
    255) or floats (kept), and labels, integers 0 … K-1 or strings. What `numpy.savez` wrote is memory-mapped, and is
    then not held against its checksum.

    ``FOLDER`` holds one sub-folder of images a class; about a fifth of each is held out by a draw on each file's path
    alone, unless there are ``FOLDER/train`` and ``FOLDER/test`` with the classes below. Images are grey where all
    files are, else RGB. Of several sizes, all are cropped at the centre and resized.

    Args:
        name: one of `NAMES`, or a path, which a name that is known comes before: write ``./mnist`` for a folder.
        data_dir: folder of the public sets' original files; default: the environment variable ``XPNN_DATA``.
        image_size: ``(H, W)``, or one number for both, of the images of a folder; default: their own where all have
            one size, else 64.
        skip_corrupt: leave out the images of a folder that cannot be read, and name them.

    Returns:
        The data set; images that are memory-mapped, or take more than 1 GiB as float32, are `Stored`.

    Raises:
        ValueError: an unknown name, or arguments that do not go with it.
        FileNotFoundError: files of a public set are neither there nor to be had, or ``data_dir`` is no folder.
        FileFormatError: a file or folder is damaged, or is not what was expected.
        ImportError: a package is missing; the message has the remedy.
        OSError: the cache folder cannot be written to.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text not in NAMES and path.is_dir():
        return _folder.read(path, _size(image_size), skip_corrupt)
    options = {"image_size (--image-size)": image_size is not None, "skip_corrupt (--skip-corrupt)": skip_corrupt}
    if given := [option for option, there in options.items() if there]:
        raise ValueError(f"{' and '.join(given)}: for a folder of images alone, and {text!r} is none; leave it out")
    if text == "digits":
        return digits()
    if text in KNOWN:
        read = _cifar10.read if text == "cifar10" else _idx_sets.read
        return read(text, data_dir)
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise FileFormatError(f"{path}: a data set is a file FILE.npz or a folder of images, and this is neither")
        return _npz.read(path)
    nearest = difflib.get_close_matches(text.lower(), NAMES, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(
        f"There is no data set {text!r}; the known ones are {', '.join(NAMES)}.{hint} Nor is there such a file or "
        "folder: one's own images are a FILE.npz, or a FOLDER with one sub-folder a class."
    )


def mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return MNIST: 60,000 handwritten digits of 28x28 pixels to train on and 10,000 to test on; see `load`."""
    return load("mnist", data_dir)


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    try:
        height, width = map(index, image_size if isinstance(image_size, tuple | list) else (image_size, image_size))
    except (TypeError, ValueError):
        height = width = 0
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        raise ValueError(
            f"image_size={image_size!r} (--image-size); expected one or two, (height, width), from 1 to {LARGEST}"
        )
    return height, width
