"""CIFAR-10 from its archive and from its six files, in small."""

import gzip
import hashlib
import io
import tarfile
import tracemalloc

import numpy as np
import pytest

from xpnn.data import load
from xpnn.data._cifar10 import _BATCHES, _FOLDER
from xpnn.data.known import CIFAR10
from xpnn.errors import FileFormatError

RECORD = 3073


def records(first: int, count: int = 2) -> bytes:
    """Records written by hand: the label, then planes of red, green and blue."""
    content = b""
    for label in range(first, first + count):
        red, green, blue = (np.arange(1024) % (label + plane + 2) for plane in range(3))
        content += bytes([label]) + b"".join(plane.astype(np.uint8).tobytes() for plane in (red, green, blue))
    return content


FILES = {name: records(i) for i, name in enumerate(_BATCHES)}


def archive(folder, files, pack=gzip.compress, prefix=_FOLDER):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{prefix}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path = folder / CIFAR10
    path.write_bytes(pack(stream.getvalue()))
    return path


def plain(folder, files):
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("place", ["archive", "folder", "unpacked", "subfolder"])
def test_reads(tmp_path, place):
    if place == "archive":
        archive(tmp_path, {"../../evil": b"x", "batches.meta.txt": b"airplane\n", "readme.html": b"", **FILES})
    else:
        plain({"folder": tmp_path, "unpacked": tmp_path / _FOLDER, "subfolder": tmp_path / "cifar10"}[place], FILES)
    data = load("cifar10", tmp_path)
    assert data.train_images.shape == (10, 32, 32, 3)
    assert data.train_images.dtype == np.float32
    assert data.train_labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert data.test_labels.tolist() == [5, 6]
    assert data.test_labels.dtype == np.int64
    # Row 3, column 5 is the value 101 of each plane.
    for images, label, n in ((data.train_images, 2, 3), (data.test_images, 6, 1)):
        expected = [np.float32(101 % (label + plane + 2)) / np.float32(255) for plane in range(3)]
        np.testing.assert_array_equal(images[n, 3, 5], expected)
    assert data.classes[0] == "airplane"
    assert "Krizhevsky" in data.source
    assert sorted(path.name for path in tmp_path.parent.iterdir() if path.name == "evil") == []


def message(folder, error=FileFormatError):
    with pytest.raises(error) as caught:
        load("cifar10", folder)
    return str(caught.value)


def without(*names, **changes):
    return {name: content for name, content in (FILES | changes).items() if name not in names}


@pytest.mark.parametrize("name", _BATCHES)
def test_a_file_is_missing(tmp_path, name):
    path = archive(tmp_path, without(name))
    assert message(tmp_path).startswith(f"{path}: the archive lacks {name} in cifar-10-batches-bin.")
    path.unlink()
    plain(tmp_path, without(name))
    assert f"{tmp_path} (missing: {name})" in message(tmp_path, FileNotFoundError)


@pytest.mark.parametrize("size", [0, 1, RECORD - 1, RECORD + 1, 10_001 * RECORD])
def test_a_file_of_another_size(tmp_path, size):
    changed = {**FILES, "data_batch_2.bin": bytes(size)}
    path = archive(tmp_path, changed)
    expected = f"the file has {size:,} bytes, and up to 10,000 records of 3,073 bytes were expected"
    assert message(tmp_path).startswith(f"{path}, member cifar-10-batches-bin/data_batch_2.bin: {expected}")
    path.unlink()
    plain(tmp_path, changed)
    assert message(tmp_path).startswith(f"{tmp_path / 'data_batch_2.bin'}: {expected}")


def test_a_label_out_of_range(tmp_path):
    path = archive(tmp_path, {**FILES, "test_batch.bin": records(9)})
    assert message(tmp_path).startswith(f"{path}, member cifar-10-batches-bin/test_batch.bin: label [1] is 10, and 0")


def test_members_of_another_folder_or_kind_are_not_taken(tmp_path):
    archive(tmp_path, FILES, prefix="../cifar-10-batches-bin")
    assert "the archive lacks" in message(tmp_path)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in _BATCHES:
            info = tarfile.TarInfo(f"{_FOLDER}/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    (tmp_path / CIFAR10).write_bytes(stream.getvalue())
    assert "the archive lacks" in message(tmp_path)


def test_damaged_archives(tmp_path):
    path = archive(tmp_path, FILES)
    whole = path.read_bytes()
    cuts = (whole[:size] for size in range(0, len(whole), 97))
    for content in (b"<html>", whole[:-8] + bytes(8), whole + b"appended", *cuts):
        path.write_bytes(content)
        assert message(tmp_path).startswith(f"{path}: the archive is cut short or corrupt (")


def test_an_archive_that_unpacks_past_all_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("xpnn.data._cifar10._UNPACKED", 1_000_000)
    path = archive(tmp_path, {"batches.meta.txt": bytes(50_000_000), **FILES})
    tracemalloc.start()
    try:
        text = message(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert text.startswith(f"{path}: the archive is cut short or corrupt (it unpacks to more than 1,000,000 bytes)")
    assert peak < 3_000_000


def test_nothing_is_written(tmp_path):
    path = archive(tmp_path, FILES)
    before = hashlib.sha256(path.read_bytes()).digest()
    load("cifar10", tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == [CIFAR10]
    assert hashlib.sha256(path.read_bytes()).digest() == before
