"""An event file for TensorBoard, written without TensorBoard.

The file is a row of records: the length of the data (8 bytes, little-endian), its CRC, the data, and their CRC
(TFRecord). The CRC is CRC-32C (Castagnoli; RFC 3720, appendix B.4), rotated and shifted by a constant of TFRecord's.
The data are `Event` messages in the wire format of Protocol Buffers: a key (number of the field · 8 + kind), a value.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn.train.callbacks import Callback, make_folder

if TYPE_CHECKING:
    from xpnn.train.fit import Fit

NAMES = {  # the curves of training and validation lie in one chart where their tags differ in the last part alone
    "loss": "loss/train",
    "validation_loss": "loss/validation",
    "accuracy": "accuracy/train",
    "validation_accuracy": "accuracy/validation",
    "lr": "training/learning rate",
    "images_per_second": "training/images per second",
}


class TensorBoard(Callback):
    """Writes the values of each epoch for `tensorboard --logdir FOLDER`.

    A `fit` that is resumed writes the file anew, so that each epoch is in it once.

    Args:
        folder: where; it is made where there is none.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_begin(self, fit: Fit) -> None:
        """Begin the file with what is known."""
        make_folder(self.folder)
        for old in self.folder.glob("events.out.tfevents.*.xpnn"):
            old.unlink()
        now = time.time()
        self.path = self.folder / f"events.out.tfevents.{now:.0f}.xpnn"
        self.path.write_bytes(_record(_double(1, now) + _bytes(3, b"brain.Event:2")))
        for record in fit.records:
            self.on_epoch(fit, record)

    def on_epoch(self, fit: Fit, record: dict[str, Any]) -> None:
        """Add the values of an epoch."""
        values = b"".join(
            _bytes(1, _bytes(1, tag.encode()) + _float(2, record[name]))
            for name, tag in NAMES.items()
            if name in record
        )
        with self.path.open("ab") as file:
            file.write(_record(_double(1, time.time()) + _integer(2, record["epoch"]) + _bytes(5, values)))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _crc(length) + data + _crc(data)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        return _varint(field << 3 | 5) + np.asarray(value, "<f4").tobytes()


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    more = bytearray()
    while value > 0x7F:
        more.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*more, value])


def _castagnoli(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = [_castagnoli(byte) for byte in range(256)]


def _crc(data: bytes) -> bytes:
    """The masked CRC of some data."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF)
