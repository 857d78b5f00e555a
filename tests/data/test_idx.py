import gzip
import hashlib
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from xpnn.data import Dataset, load, mnist
from xpnn.data.idx import read_idx
from xpnn.errors import FileFormatError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
NAMES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
PACKINGS = pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])


def header(sizes: tuple[int, ...], code: int = 0x08) -> bytes:
    return bytes([0, 0, code, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


def idx(array: np.ndarray) -> bytes:
    code = TYPES[array.dtype.str[1:]]
    return header(array.shape, code) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder: Path, content: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def message(path: Path) -> str:
    """The error that reading ``path`` gives; every one names the file and says what to do."""
    with pytest.raises(FileFormatError) as caught:
        read_idx(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "etch" in text or "Check" in text
    return text


# ---- The reader


@PACKINGS
@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 3)], ids=str)
def test_reads_back_what_was_written(tmp_path, pack, dtype, shape):
    array = (np.arange(6).reshape(shape) * 37 - (0 if dtype == "u1" else 100)).astype(dtype)
    got = read_idx(write(tmp_path, pack(idx(array))))
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype
    assert got.dtype.isnative
    assert got.flags.writeable
    assert got.flags.c_contiguous


def test_reads_bytes_written_by_hand(tmp_path):
    # Independent of the helpers above: int16, 1 x 2, the values 258 and -2.
    content = bytes.fromhex("00000b02 00000001 00000002 0102 fffe")
    np.testing.assert_array_equal(read_idx(write(tmp_path, content)), [[258, -2]])


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    array = np.arange(6, dtype=np.uint8)
    np.testing.assert_array_equal(read_idx(write(tmp_path, gzip.compress(idx(array)), "plain-name")), array)
    np.testing.assert_array_equal(read_idx(write(tmp_path, idx(array), "name.gz")), array)


def test_gzip_of_several_members(tmp_path):
    array = np.arange(6, dtype=np.uint8)
    content = idx(array)
    path = write(tmp_path, gzip.compress(content[:9]) + gzip.compress(content[9:]))
    np.testing.assert_array_equal(read_idx(path), array)


def test_most_compressible_file_is_read(tmp_path):
    # The bound on the announced size must not refuse what deflate really reaches.
    path = write(tmp_path, gzip.compress(idx(np.zeros(8_000_000, np.uint8)), compresslevel=9))
    assert 8_000_000 / path.stat().st_size > 1000
    assert read_idx(path).shape == (8_000_000,)


def test_accepts_a_string(tmp_path):
    assert read_idx(str(write(tmp_path, idx(np.arange(3, dtype=np.uint8))))).shape == (3,)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_idx(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_idx(tmp_path)


DAMAGE = {
    "empty": (b"", "this is not an IDX file: it holds 0 bytes, and the magic number alone takes 4"),
    "short magic": (b"\0\0\x08", "this is not an IDX file: it holds 3 bytes"),
    "web page": (b"<!DOCTYPE html>", "this is not an IDX file: it begins with b'<!DO'"),
    "no dimensions": (b"\0\0\x08\x00", "number 00 00 08 00 says 0 dimensions, and 1 to 64 can be read"),
    "65 dimensions": (b"\0\0\x08\x41" + b"\0\0\0\x01" * 65, "says 65 dimensions"),
    "type byte": (
        b"\0\0\x0a\x01\0\0\0\x01\0",
        "has the type byte 0x0a, and IDX knows 0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x0e",
    ),
    "header cut": (
        b"\0\0\x08\x03" + bytes(7),
        "holds 11 bytes, and its header of 3 dimensions alone takes 16",
    ),
    "no values": (header((0, 28, 28)), "the header announces 0 x 28 x 28 values, that is none"),
    "cut": (
        header((2, 3)) + bytes(5),
        "truncated: its header announces 2 x 3 uint8 values, so 18 bytes were expected, but it h",
    ),
    "cut int32": (
        header((2, 3), 0x0C) + bytes(23),
        "truncated: its header announces 2 x 3 int32 values, so 36 bytes were expected, but it h",
    ),
    "trailing": (
        header((2, 3)) + bytes(7),
        "there are trailing bytes: its header announces 2 x 3 uint8 values, so 18 bytes were expected",
    ),
}


@PACKINGS
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage(tmp_path, pack, damage):
    content, expected = DAMAGE[damage]
    assert expected in message(write(tmp_path, pack(content)))


def test_sizes_in_the_messages(tmp_path):
    assert "but it has 17." in message(write(tmp_path, header((2, 3)) + bytes(5)))
    assert "but it holds 17." in message(write(tmp_path, gzip.compress(header((2, 3)) + bytes(5))))
    assert "goes on after them, to 1,018." in message(write(tmp_path, header((2, 3)) + bytes(1006)))


def test_corrupt_gzip(tmp_path):
    content = gzip.compress(idx(np.arange(200, dtype=np.uint8)))
    flipped_checksum = content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]
    assert "the gzip file is corrupt (CRC check failed" in message(write(tmp_path, flipped_checksum))
    bad_block = content[:10] + b"\x07" + content[11:]
    assert "the gzip file is corrupt (Error -3" in message(write(tmp_path, bad_block))
    assert "the gzip file is corrupt (Not a gzipped file" in message(write(tmp_path, content + b"appended"))


@pytest.mark.parametrize("kept", [2, 9, 12, 40, -9, -8, -1])
def test_truncated_gzip(tmp_path, kept):
    content = gzip.compress(idx(np.random.Philox(key=1).random_raw(100).view(np.uint8)))
    assert "gzip" in message(write(tmp_path, content[:kept]))


def test_every_cut_is_an_error(tmp_path):
    array = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for content in (idx(array), gzip.compress(idx(array))):
        for size in range(len(content)):
            message(write(tmp_path, content[:size]))


def peak_memory(path: Path) -> tuple[str, int]:
    read_error = message(path)  # warm up: imports and caches are not the file's
    tracemalloc.start()
    try:
        message(path)
        return read_error, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@PACKINGS
def test_header_that_announces_too_much_costs_nothing(tmp_path, pack):
    text, peak = peak_memory(write(tmp_path, pack(header((4_000_000_000, 28, 28)) + bytes(100))))
    assert "announces 4000000000 x 28 x 28 uint8 values, so 3,136,000,000,016 bytes were expected" in text
    assert peak < 1_000_000


def test_implausible_gzip_names_the_bound(tmp_path):
    content = gzip.compress(header((50_000_000,)) + bytes(100))
    text = message(write(tmp_path, content))
    assert f"but {len(content)} bytes of gzip cannot hold more than {1032 * len(content):,}." in text


def test_gzip_bomb_is_not_unpacked(tmp_path):
    # 64 MB of zeros behind a header that announces ten values.
    text, peak = peak_memory(write(tmp_path, gzip.compress(header((10,)) + bytes(64_000_000))))
    assert "there are trailing bytes" in text
    assert peak < 1_000_000


def test_plausible_lie_in_gzip_costs_what_came(tmp_path):
    # 200 kB of noise could stand for 200 MB, which the header announces; memory follows the noise.
    noise = np.random.Philox(key=1).random_raw(25_000).tobytes()
    text, peak = peak_memory(write(tmp_path, gzip.compress(header((200_000_000,)) + noise)))
    assert "so 200,000,008 bytes were expected, but it holds 200,008." in text
    assert peak < 5_000_000


# ---- MNIST from four files


def small_files(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Three images to train on and two to test on."""
    images = np.arange(5 * 784, dtype=np.int64).reshape(5, 28, 28).astype(np.uint8)
    files = {
        "train_images": images[:3],
        "train_labels": np.array([7, 0, 9], np.uint8),
        "test_images": images[3:],
        "test_labels": np.array([1, 2], np.uint8),
    }
    return dict(zip(NAMES, (files | changes).values(), strict=True))


def write_files(folder: Path, files: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in files.items():
        write(folder, idx(array), name)
    return folder


def assert_small(data: Dataset) -> None:
    levels = np.arange(5 * 784).reshape(5, 28, 28, 1) % 256
    for images, part in ((data.train_images, levels[:3]), (data.test_images, levels[3:])):
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, (part / 255).astype(np.float32))
    for labels, part in ((data.train_labels, [7, 0, 9]), (data.test_labels, [1, 2])):
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, part)
    assert data.name == "mnist"
    assert data.classes == tuple("0123456789")
    assert "LeCun" in data.source
    assert "CC BY-SA 3.0" in data.source


@pytest.fixture(autouse=True)
def no_xpnn_data(request, monkeypatch):
    if "real_folder" not in request.fixturenames:
        monkeypatch.delenv("XPNN_DATA", raising=False)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-idx", ".idx"])
@pytest.mark.parametrize("subfolder", ["", "mnist"])
def test_mnist_in_every_spelling(tmp_path, suffix, separator, subfolder):
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    for name, array in small_files().items():
        content = gzip.compress(idx(array)) if suffix else idx(array)
        write(folder, content, name.replace("-idx", separator) + suffix)
    assert_small(mnist(tmp_path))
    assert_small(load("mnist", str(tmp_path)))


def test_mnist_by_the_environment(tmp_path, monkeypatch):
    write_files(tmp_path / "here" / "mnist", small_files())
    monkeypatch.setenv("XPNN_DATA", str(tmp_path / "here"))
    assert_small(mnist())
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        mnist(tmp_path / "elsewhere")


def test_mnist_in_the_home_folder(tmp_path, monkeypatch):
    write_files(tmp_path / "sets", small_files())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert_small(mnist("~/sets"))


def missing_message(*arguments) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        mnist(*arguments)
    text = str(caught.value)
    for part in (
        *NAMES,
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "data_dir",
        "XPNN_DATA",
    ):
        assert part in text
    return text


def test_mnist_missing(tmp_path, monkeypatch):
    text = missing_message(tmp_path)
    assert f"Looked in {tmp_path / 'mnist'} (no such folder) and {tmp_path} (missing: all)." in text
    assert "No data_dir given, and XPNN_DATA is not set." in missing_message()
    # An empty variable must not mean the current folder.
    monkeypatch.chdir(write_files(tmp_path / "current", small_files()))
    monkeypatch.setenv("XPNN_DATA", "")
    assert "No data_dir given, and XPNN_DATA is not set." in missing_message()


def test_mnist_missing_in_part(tmp_path):
    write_files(tmp_path, small_files())
    (tmp_path / TEST_LABELS).unlink()
    assert f" and {tmp_path} (missing: {TEST_LABELS})." in missing_message(tmp_path)


def mnist_message(folder: Path) -> str:
    with pytest.raises(FileFormatError) as caught:
        mnist(folder)
    return str(caught.value)


def test_mnist_counts_differ(tmp_path):
    write_files(tmp_path, small_files(test_labels=np.array([1, 2, 3], np.uint8)))
    text = mnist_message(tmp_path)
    assert f"{tmp_path / TEST_IMAGES} holds 2 images but {tmp_path / TEST_LABELS} holds 3 labels" in text
    assert "Fetch both files again" in text


def test_mnist_label_out_of_range(tmp_path):
    write_files(tmp_path, small_files(train_labels=np.array([9, 10, 3], np.uint8)))
    text = mnist_message(tmp_path)
    assert text.startswith(f"{tmp_path / TRAIN_LABELS}: label [1] is 10, and 0 to 9 were expected.")


def test_mnist_files_swapped(tmp_path):
    files = small_files()
    files[TRAIN_IMAGES], files[TRAIN_LABELS] = files[TRAIN_LABELS], files[TRAIN_IMAGES]
    text = mnist_message(write_files(tmp_path, files))
    assert f"{tmp_path / TRAIN_IMAGES}: the file holds uint8 values of shape (3,)" in text
    assert "uint8 of shape (N, 28, 28) was expected" in text
    assert "not swapped" in text


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        (
            {"train_images": np.zeros((3, 32, 32), np.uint8)},
            TRAIN_IMAGES,
            "uint8 values of shape (3, 32, 32)",
        ),
        (
            {"test_images": np.zeros((2, 28, 28), np.float32)},
            TEST_IMAGES,
            "float32 values of shape (2, 28, 28)",
        ),
        ({"train_labels": np.zeros((3, 1), np.uint8)}, TRAIN_LABELS, "uint8 values of shape (3, 1)"),
        ({"test_labels": np.zeros(2, np.int32)}, TEST_LABELS, "int32 values of shape (2,)"),
    ],
)
def test_mnist_of_another_shape_or_type(tmp_path, changes, name, expected):
    text = mnist_message(write_files(tmp_path, small_files(**changes)))
    assert text.startswith(f"{tmp_path / name}: the file holds {expected}, and uint8 of shape (N")


def test_mnist_damaged_file_names_itself(tmp_path):
    folder = write_files(tmp_path, small_files())
    (folder / TEST_IMAGES).write_bytes((folder / TEST_IMAGES).read_bytes()[:-1])
    assert mnist_message(folder).startswith(f"{folder / TEST_IMAGES}: the file is truncated")


# ---- The real files


@pytest.fixture
def real_folder() -> Path:
    named = os.environ.get("XPNN_DATA")
    root = Path(named) if named else Path(__file__).parents[2].parent / "shared" / "data"
    if not any(any(folder.glob("t10k-labels*")) for folder in (root, root / "mnist")):
        pytest.skip(f"the real MNIST files are not in {root}; set XPNN_DATA to their folder")
    return root


def test_real_mnist(real_folder):
    data = mnist(real_folder)
    assert data.train_images.shape == (60_000, 28, 28, 1)
    assert data.test_images.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(
        np.bincount(data.train_labels), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    )
    np.testing.assert_array_equal(
        np.bincount(data.test_labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
    assert data.train_images.max() == 1
    assert data.train_images.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    # The values after the 16 bytes of header, hashed without this reader.
    levels = np.rint(data.test_images * 255).astype(np.uint8)
    assert (
        hashlib.sha256(levels.tobytes()).hexdigest()
        == "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"
    )
