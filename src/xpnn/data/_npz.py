"""One's own images in one file, as `numpy.savez` or `numpy.savez_compressed` writes it.

A member is held against the sizes that the archive gives before anything is allocated, and nothing is unpickled.
What is stored without compression is memory-mapped; then the images need not fit into memory.
"""

from __future__ import annotations

import copy
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError
from .dataset import Dataset
from .stored import handed_out

_MEMBERS = ("x_train", "y_train", "x_test", "y_test")
_DEFLATE_MAX_RATIO = 1032  # deflate codes at most 258 bytes in 2 bits
_CHUNK = 1 << 20
_VERSION = 1, 0  # later ones are for records of many fields, and their headers may take 4 GiB


def read(path: Path) -> Dataset:
    """Return the arrays ``x_train, y_train, x_test, y_test`` of a file as a data set; see `load`."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in _MEMBERS if name not in found]
            if missing:
                raise FileFormatError(
                    f"{path}: there is no {', '.join(missing)}; it holds {', '.join(found) or 'nothing'}. Save it by "
                    "np.savez(file, x_train=…, y_train=…, x_test=…, y_test=…)"
                )
            arrays = {name: _Member(path, archive, found[name], name).read() for name in _MEMBERS}
    except FileFormatError:
        raise
    except (zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, ValueError) as error:
        raise FileFormatError(
            f"{path}: this is not an .npz file, or it is damaged ({error}). Save it again."
        ) from error
    x_train, x_test = (_images(path, name, arrays[name]) for name in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise FileFormatError(
            f"{path}: images to train on have shape {x_train.shape[1:]}, those to test on {x_test.shape[1:]}; expected "
            "one shape. Bring them to one size"
        )
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.shape[:1] != y.shape[:1]:
            raise FileFormatError(
                f"{path}: x_{part} holds {len(x):,} images, but y_{part} has shape {y.shape}; expected a label for each"
            )
    y_train, y_test, classes = _labels(path, arrays["y_train"], arrays["y_test"])
    train_images, test_images = handed_out(x_train, x_test)
    return Dataset(path.stem, train_images, y_train, test_images, y_test, classes, f"the file {path}")


class _Member:
    """One array in the archive."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> None:
        self.path, self.archive, self.info, self.name = path, archive, info, name

    def read(self) -> NDArray[Any]:
        """The array: mapped where it is stored as it is, read where it is compressed."""
        info = self.info
        if info.flag_bits & 1:
            raise self._error("is encrypted; expected an archive without a password. Save it again by np.savez")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._error("is compressed in a way that NumPy does not write. Save it again by np.savez")
        if info.header_offset < 0:  # seeking would be an OSError, as of a broken disk
            raise self._error("is damaged: it would begin before the file. Save it again")
        size = self.path.stat().st_size
        announced = f"the archive announces {info.file_size:,} bytes"
        most = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else _DEFLATE_MAX_RATIO)
        if info.compress_size > size or info.file_size > most:
            raise self._error(
                f"is damaged: {announced}, and the file of {size:,} bytes cannot hold them. Save it again, or copy it "
                "again whole"
            )
        longer = copy.copy(info)
        longer.file_size += 1  # zipfile stops there: where data go on, the checksum is not theirs, even one forged
        with self.archive.open(longer) as stream:
            dtype, shape, fortran = self._header(stream)
            start, values = stream.tell(), math.prod(shape) * dtype.itemsize
            if start + values != info.file_size:
                raise self._error(
                    f"is damaged: it announces {dtype} values of shape {shape}, so {start + values:,} bytes were "
                    f"expected, but {announced}. Save it again"
                )
            order: Literal["F", "C"] = "F" if fortran else "C"
            if info.compress_type == zipfile.ZIP_STORED and values:
                place = self._offset() + start
                if place + values > size:
                    raise self._error(f"is damaged: it would end after the {size:,} bytes of the file. Save it again")
                return np.memmap(str(self.path), dtype, "r", place, shape, order)
            content = bytearray()
            while chunk := stream.read(min(_CHUNK, values + 1 - len(content))):
                content += chunk
        if len(content) != values:
            raise self._error(f"is damaged: {announced}, but it holds {start + len(content):,}. Save it again")
        return np.frombuffer(content, dtype).reshape(shape, order=order)

    def _header(self, stream: Any) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
        try:
            version = np.lib.format.read_magic(stream)
            if version != _VERSION:
                raise ValueError(f"version {version} of the format is not the one for plain arrays")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        except ValueError as error:
            raise self._error(f"is not an array that can be read ({error}). Save it again by np.savez") from error
        if dtype.hasobject:
            raise self._error("holds Python objects, which are never loaded; expected numbers. Save a plain array")
        return dtype, shape, fortran

    def _offset(self) -> int:
        """Where the member's bytes begin in the file (APPNOTE.TXT, 4.3.7: 30 bytes, the name, the extra field)."""
        with self.path.open("rb") as file:
            file.seek(self.info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        return self.info.header_offset + 30 + int(name) + int(extra)

    def _error(self, message: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {self.name} {message}")


def _images(path: Path, name: str, images: NDArray[Any]) -> NDArray[Any]:
    """The images as ``(N, H, W, C)``."""
    if images.ndim not in (3, 4) or not images.size:
        raise FileFormatError(
            f"{path}: {name} has shape {images.shape}; expected (N, H, W) or (N, H, W, C), at least one image"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise FileFormatError(
            f"{path}: {name} has dtype {images.dtype}; expected uint8, 0 … 255, or floats. Convert it first, e.g. by "
            f"{name}.astype('uint8')"
        )
    # What is mapped is looked at when it is read: that is a batch at a time.
    if images.dtype.kind == "f" and not isinstance(images, np.memmap):
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(images.astype(np.float32, copy=False)).reshape(len(images), -1).all(axis=1)
        if bad.any():
            raise FileFormatError(
                f"{path}: {name} has values that are NaN or infinite as float32 in {bad.sum():,} images, the first is "
                f"[{bad.argmax()}]. Clean the data first, e.g. by np.nan_to_num({name})"
            )
    return images if images.ndim == 4 else images[..., np.newaxis]


def _labels(
    path: Path, train: NDArray[Any], test: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """The labels as indices, and the names of the classes."""
    train, test = (np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y for y in (train, test))
    train, test = (y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y for y in (train, test))
    for name, y in (("y_train", train), ("y_test", test)):
        if y.ndim != 1 or y.dtype.kind not in "iuU":
            one_hot = f". Of one-hot labels take {name}.argmax(axis=1)" if y.ndim == 2 else ""
            raise FileFormatError(
                f"{path}: {name} has shape {y.shape} and dtype {y.dtype}; expected (N,) integers from 0 on, or "
                f"strings{one_hot}"
            )
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise FileFormatError(
            f"{path}: y_train has dtype {train.dtype}, y_test {test.dtype}; expected one kind of both"
        )
    classes = np.unique(train)
    if len(classes) < 2:
        raise FileFormatError(f"{path}: all labels are {classes[0]}; telling classes apart takes at least two")
    if train.dtype.kind in "iu":
        missing = np.flatnonzero(classes != np.arange(classes.size))
        if missing.size:
            raise FileFormatError(
                f"{path}: y_train goes from {classes[0]} to {classes[-1]}, but no label is {missing[0]}; expected all "
                "of 0 … K-1. Number the classes anew: y = np.unique(y, return_inverse=True)[1]"
            )
    strange = np.setdiff1d(test, classes)
    if strange.size:
        raise FileFormatError(
            f"{path}: y_test has the label {strange[0]}, and no image to train on has it. Add some, or leave it out"
        )
    return np.searchsorted(classes, train), np.searchsorted(classes, test), tuple(map(str, classes.tolist()))
