"""The IDX format, in which MNIST and its relatives come.

A file is: two zero bytes, one byte for the type, one for the number of dimensions, the size of each dimension
as a big-endian uint32, then the values, big-endian, last dimension fastest. It is often gzipped. Described by
LeCun, Cortes and Burges on http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}
_MAX_DIMENSIONS = 64  # NumPy's own limit
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_MAX_RATIO = 1032  # deflate codes at most 258 bytes in 2 bits
_CHUNK = 1 << 20
_Stream = BinaryIO | gzip.GzipFile


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Return the array that an IDX file holds, plain or gzipped (told apart by content, not by name).

    The array has the file's type in native byte order: uint8, int8, int16, int32, float32 or float64.
    A wrong file costs no memory: the sizes in its header are held against the size of the file first, and
    no more is kept than they announce and one byte (gzip's own small buffer reads ahead of that).

    Raises FileNotFoundError where there is no such file, and FileFormatError, a ValueError, where it is not
    IDX, is truncated or corrupt, or goes on after its values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.")
    file_size = path.stat().st_size
    with path.open("rb") as file:
        gzipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if not gzipped:
            return _read_array(path, file, file_size, gzipped=False)
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                return _read_array(path, stream, file_size, gzipped=True)
        except EOFError:
            raise FileFormatError(
                f"{path}: the gzip file is truncated: its {file_size:,} bytes stop before the end of the "
                "compressed data. Fetch the file again."
            ) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise FileFormatError(f"{path}: the gzip file is corrupt ({error}). Fetch the file again.") from error


def _read_array(path: Path, stream: _Stream, file_size: int, *, gzipped: bool) -> NDArray[Any]:
    """Read header and values from ``stream``; ``file_size`` is the size on the disk, in bytes."""
    dtype, shape = _read_header(path, stream)
    announced = math.prod(shape) * dtype.itemsize
    header_size = 4 + 4 * len(shape)
    expected = (
        f"its header announces {' x '.join(map(str, shape))} {dtype.name} values, "
        f"so {header_size + announced:,} bytes were expected"
    )
    if gzipped and header_size + announced > _DEFLATE_MAX_RATIO * file_size:
        raise FileFormatError(
            f"{path}: {expected}, but {file_size:,} bytes of gzip cannot hold more than "
            f"{_DEFLATE_MAX_RATIO * file_size:,}. The file is truncated or its header wrong; fetch it again."
        )
    if not gzipped and header_size + announced > file_size:
        raise FileFormatError(
            f"{path}: the file is truncated: {expected}, but it has {file_size:,}. Fetch the file again."
        )

    # In chunks, so that memory follows what comes, not what the header says.
    values = bytearray()
    while chunk := stream.read(min(_CHUNK, announced + 1 - len(values))):
        values += chunk
    if len(values) < announced:
        raise FileFormatError(
            f"{path}: the file is truncated: {expected}, but it holds {header_size + len(values):,}. "
            "Fetch the file again."
        )
    if len(values) > announced:
        raise FileFormatError(
            f"{path}: there are trailing bytes: {expected}, but the file goes on after them"
            f"{'' if gzipped else f', to {file_size:,}'}. "
            "Its header is wrong or something was appended; fetch the file again."
        )
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_header(path: Path, stream: _Stream) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read the magic number and the sizes: the dtype, big-endian, and the shape."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise FileFormatError(
            f"{path}: this is not an IDX file: it holds {len(magic)} bytes, and the magic number alone takes "
            "4. Fetch the file again."
        )
    if magic[:2] != b"\0\0":
        raise FileFormatError(
            f"{path}: this is not an IDX file: it begins with {magic!r}, and IDX begins with two zero bytes. "
            "Check that it is the file you meant, not a web page saved in its place."
        )
    code, dimensions = magic[2:]
    if code not in _DTYPES:
        known = ", ".join(f"0x{known:02x}" for known in _DTYPES)
        raise FileFormatError(
            f"{path}: the magic number {magic.hex(' ')} has the type byte 0x{code:02x}, and IDX knows "
            f"{known}. Check that it is the file you meant, or fetch it again."
        )
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise FileFormatError(
            f"{path}: the magic number {magic.hex(' ')} says {dimensions} dimensions, and 1 to "
            f"{_MAX_DIMENSIONS} can be read. Check that it is the file you meant, or fetch it again."
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise FileFormatError(
            f"{path}: the file is truncated: it holds {4 + len(sizes)} bytes, and its header of {dimensions} "
            f"dimensions alone takes {4 + 4 * dimensions}. Fetch the file again."
        )
    shape = struct.unpack(f">{dimensions}I", sizes)
    if 0 in shape:
        raise FileFormatError(
            f"{path}: the header announces {' x '.join(map(str, shape))} values, that is none, and at least "
            "one was expected. Fetch the file again."
        )
    return np.dtype(_DTYPES[code]).newbyteorder(">"), shape
