"""CIFAR-10 in its binary version: the archive as it is downloaded, or the six files in it.

A file is up to 10,000 records of 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue values, row by
row. Described by A. Krizhevsky on https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError
from . import fetch
from .dataset import Dataset
from .known import CIFAR10, KNOWN
from .stored import as_float32

_FOLDER = "cifar-10-batches-bin"
_TRAIN_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_BATCHES = (*_TRAIN_BATCHES, "test_batch.bin")
_RECORD = 1 + 32 * 32 * 3
_LARGEST = 10_000 * _RECORD
_UNPACKED = 6 * _LARGEST + (1 << 20)  # the six files, and room for the small ones beside them
_CHUNK = 1 << 20


def read(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Return CIFAR-10: 50,000 images of 32x32 pixels in colour to train on, 10,000 to test on; see `load`."""
    known = KNOWN[name]
    files = fetch.files(name, data_dir, _find)
    contents = dict(_members(files[CIFAR10]) if CIFAR10 in files else _read_files(files))
    parts = {file: _records(path, content) for file, (path, content) in contents.items()}
    train_images, train_labels = (
        np.concatenate(arrays) for arrays in zip(*(parts[f] for f in _TRAIN_BATCHES), strict=True)
    )
    test_images, test_labels = parts[_BATCHES[-1]]
    return Dataset(
        name, as_float32(train_images), train_labels, as_float32(test_images), test_labels, known.classes, known.source
    )


def _find(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The archive, or the six files, in the folder or as the archive unpacks into it."""
    if (folder / CIFAR10).is_file():
        return {CIFAR10: folder / CIFAR10}, []
    for place in (folder, folder / _FOLDER):
        found = {file: place / file for file in _BATCHES if (place / file).is_file()}
        if found:
            return found, [file for file in _BATCHES if file not in found]
    return {}, [CIFAR10]


def _read_files(files: dict[str, Path]) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for file, path in files.items():
        _check_size(str(path), path.stat().st_size)
        yield file, (str(path), path.read_bytes())


def _members(path: Path) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """The six members of the archive, read where they lie: nothing is written to the disk."""
    wanted = set(_BATCHES)
    try:
        with gzip.open(path) as unpacked:
            stream: Any = _Bounded(unpacked)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    folder, _, file = member.name.removeprefix("./").rpartition("/")
                    if folder != _FOLDER or file not in wanted or not member.isreg():
                        continue
                    where = f"{path}, member {member.name}"
                    _check_size(where, member.size)
                    content = archive.extractfile(member)
                    assert content is not None  # it is a regular file
                    yield file, (where, content.read())
                    wanted.remove(file)
            while stream.read(_CHUNK):  # to its end, where the checksum is
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise FileFormatError(
            f"{path}: the archive is cut short or corrupt ({error}). Delete it, and fetch it again."
        ) from error
    if wanted:
        raise FileFormatError(
            f"{path}: the archive lacks {', '.join(sorted(wanted))} in {_FOLDER}. Check that it is CIFAR-10's binary "
            "version, or fetch it again."
        )


class _Bounded:
    """A stream that ends in an error where it goes on past what the archive can hold."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        content = self.file.read(min(size, _UNPACKED))
        if self.file.tell() > _UNPACKED:
            raise tarfile.ReadError(f"it unpacks to more than {_UNPACKED:,} bytes")
        return content


def _check_size(where: str, size: int) -> None:
    if not size or size % _RECORD or size > _LARGEST:
        raise FileFormatError(
            f"{where}: the file has {size:,} bytes, and up to 10,000 records of {_RECORD:,} bytes were expected. "
            "Check that it is of CIFAR-10's binary version, or fetch it again."
        )


def _records(where: str, content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images ``(N, 32, 32, 3)`` and labels."""
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        first = int(np.argmax(labels > 9))
        raise FileFormatError(
            f"{where}: label [{first}] is {labels[first]}, and 0 to 9 were expected. Fetch the file again."
        )
    return np.moveaxis(records[:, 1:].reshape(-1, 3, 32, 32), 1, -1), labels
