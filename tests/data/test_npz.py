"""One's own images in an .npz file: what is read, what is mapped, what is refused."""

import io
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from xpnn.data import Stored, load
from xpnn.errors import FileFormatError

X = (np.arange(6 * 4 * 5) % 256).astype(np.uint8).reshape(6, 4, 5)
Y = np.array([0, 1, 2, 0, 1, 2])
SAVES = {"stored": np.savez, "compressed": np.savez_compressed}


@pytest.fixture(params=SAVES)
def save(request, tmp_path):
    def write(**changes):
        arrays = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]} | changes
        SAVES[request.param](tmp_path / "mine.npz", **{k: v for k, v in arrays.items() if v is not None})
        return tmp_path / "mine.npz"

    write.stored = request.param == "stored"
    return write


def test_bytes(save):
    data = load(save())
    assert isinstance(data.train_images, Stored) == save.stored
    assert isinstance(data.test_images, Stored) == save.stored
    if save.stored:
        assert isinstance(data.train_images.values, np.memmap)
    for images, levels in ((data.train_images, X), (data.test_images, X[:2])):
        assert images.shape == (*levels.shape, 1)
        assert images.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(images), levels[..., None].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.train_labels, Y)
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.classes == ("0", "1", "2")
    assert data.name == "mine"
    assert "mine.npz" in data.source


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_kept(save, dtype):
    x = (X.astype(dtype) * 3 - 7)[..., None]
    data = load(str(save(x_train=x, x_test=x, y_test=Y)))
    assert data.train_images.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(data.train_images), x.astype(np.float32))


def test_order_of_fortran(save):
    x = np.asfortranarray(np.arange(6 * 4 * 5 * 3, dtype=np.float32).reshape(6, 4, 5, 3))
    np.testing.assert_array_equal(np.asarray(load(save(x_train=x, x_test=x, y_test=Y)).train_images), x)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (Y[:, None], ("0", "1", "2"), Y),
        (Y.astype(np.uint8), ("0", "1", "2"), Y),
        (np.array(["dog", "cat", "ant"] * 2), ("ant", "cat", "dog"), [2, 1, 0, 2, 1, 0]),
        (np.array([b"dog", b"cat", b"ant"] * 2), ("ant", "cat", "dog"), [2, 1, 0, 2, 1, 0]),
    ],
    ids=["Keras", "uint8", "strings", "bytes"],
)
def test_labels(save, labels, classes, expected):
    data = load(save(y_train=labels, y_test=labels[:2]))
    assert data.classes == classes
    assert data.train_labels.tolist() == list(expected)
    assert data.test_labels.tolist() == list(expected)[:2]


def test_large_sets_stay_as_they_are_stored(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    monkeypatch.setattr("xpnn.data.stored.WHOLE", 8 * X.size)
    assert isinstance(load(tmp_path / "a.npz").train_images, np.ndarray)
    monkeypatch.setattr("xpnn.data.stored.WHOLE", 8 * X.size - 1)
    assert isinstance(load(tmp_path / "a.npz").train_images, Stored)


# What is refused


def message(path):
    with pytest.raises(FileFormatError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"x_test": None, "y_test": None}, "there is no x_test, y_test; it holds x_train, y_train."),
        ({"x_train": X[0]}, "x_train has shape (4, 5); expected (N, H, W) or (N, H, W, C)"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "x_test has shape (0, 4, 5)"),
        ({"x_train": X.astype(np.int64)}, "x_train has dtype int64; expected uint8, 0 … 255, or floats."),
        ({"x_test": X[:2, 1:]}, "images to train on have shape (4, 5, 1), those to test on (3, 5, 1); expected one"),
        ({"y_train": Y[:5]}, "x_train holds 6 images, but y_train has shape (5,); expected a label for each"),
        ({"y_test": Y[:1]}, "x_test holds 2 images, but y_test has shape (1,); expected a label for each"),
        ({"y_test": np.array(1)}, "x_test holds 2 images, but y_test has shape ()"),
        ({"y_train": np.eye(3)[Y]}, "y_train has shape (6, 3) and dtype float64; expected (N,) integers from 0 on"),
        ({"y_train": np.eye(3)[Y]}, "Of one-hot labels take y_train.argmax(axis=1)"),
        ({"y_train": Y.astype(float)}, "y_train has shape (6,) and dtype float64"),
        ({"y_train": Y + 1}, "y_train goes from 1 to 3, but no label is 0; expected all of 0 … K-1"),
        ({"y_train": Y - 1}, "y_train goes from -1 to 1"),
        ({"y_train": np.array([0, 1, 2, 4, 0, 1])}, "y_train goes from 0 to 4, but no label is 3"),
        ({"y_test": np.array([0, 3])}, "y_test has the label 3, and no image to train on has it"),
        ({"y_test": np.array(["0", "1"])}, "y_train has dtype int64, y_test <U1; expected one kind of both"),
        ({"y_train": 0 * Y, "y_test": 0 * Y[:2]}, "all labels are 0; telling classes apart takes at least two"),
        ({"x_train": np.array([None] * 6)}, "x_train holds Python objects, which are never loaded"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(save, changes, expected):
    assert expected in message(save(**changes))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_values_that_are_not_finite(save, value):
    x = X.astype(np.float64)
    x[4, 1, 1] = value
    if save.stored:  # looked at when a batch is read
        assert isinstance(load(save(x_train=x)).train_images, Stored)
    else:
        assert "x_train has values that are NaN or infinite as float32 in 1 images, the first is [4]" in message(
            save(x_train=x)
        )


def test_a_pickle_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "evil.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", pickle.dumps(Evil()))
    assert "x_train is not an array that can be read" in message(path)


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "mine.npz"
    for content in (b"", b"<html>", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        assert "this is not an .npz file, or it is damaged" in message(path)
    (tmp_path / "mine.csv").write_text("1,2")
    with pytest.raises(FileFormatError, match=r"mine\.csv: a data set is a file FILE\.npz or a folder of images"):
        load(tmp_path / "mine.csv")


def test_every_cut_is_an_error(save):
    path = save()
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        message(path)


def npy(array, **header):
    """The bytes of a .npy file whose header says what it likes."""
    stream = io.BytesIO()
    values = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    np.lib.format.write_array_header_1_0(stream, values)
    return stream.getvalue() + array.tobytes()


NO_ARRAYS = {
    "negative sizes": npy(X, shape=(-6, -4, 5)),
    "too many axes": npy(X, shape=(1,) * 100 + X.shape),
    "strings of no letter": npy(X[:0], descr="<U0", shape=X.shape),
}


def packed(tmp_path, compression, **members):
    path = tmp_path / "mine.npz"
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in ({k: npy(v) for k, v in arrays.items()} | members).items():
            archive.writestr(f"{name}.npy", content)
    return path


BOTH = pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])


def peak_of(path):
    message(path)  # imports and caches are not the file's
    tracemalloc.start()
    try:
        return message(path), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@BOTH
@pytest.mark.parametrize("shape", [(4_000_000_000, 4, 5), (7, 4, 5), (5, 4, 5)], ids=str)
def test_header_that_announces_other_sizes(tmp_path, compression, shape):
    text, peak = peak_of(packed(tmp_path, compression, x_train=npy(X, shape=shape)))
    expected = 128 + 20 * shape[0]
    assert f"it announces uint8 values of shape {shape}, so {expected:,} bytes were expected, but the archive" in text
    assert peak < 1_000_000


@BOTH
def test_bomb_behind_a_small_header(tmp_path, compression):
    text, peak = peak_of(packed(tmp_path, compression, x_train=npy(np.zeros(30_000_000, np.uint8), shape=(6, 4, 5))))
    assert "x_train is damaged: it announces uint8 values of shape (6, 4, 5), so 248 bytes" in text
    assert peak < 1_000_000


@BOTH
@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_headers_that_no_array_has(tmp_path, compression, kind):
    text = message(packed(tmp_path, compression, x_train=NO_ARRAYS[kind]))
    assert "this is not an .npz file, or it is damaged (" in text


def test_bomb_in_a_header(tmp_path):
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 30_000_000) + bytes(30_000_000)
    text, peak = peak_of(packed(tmp_path, zipfile.ZIP_DEFLATED, x_train=header))
    assert "x_train is not an array that can be read (version (2, 0) of the format" in text
    assert peak < 1_000_000


def test_member_that_would_begin_before_the_file(tmp_path):
    path = packed(tmp_path, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x05\x06") + 16  # where the directory begins; too large, so all seems to be moved forward
    content[at : at + 4] = struct.pack("<I", len(content))
    path.write_bytes(content)
    assert "x_train is damaged: it would begin before the file" in message(path)


def with_size(path, member, size, crc=None, packed=None):
    """The archive with other sizes of a member in its directory."""
    content = bytearray(path.read_bytes())
    at = 0
    while not content[at + 46 :].startswith(member.encode()):
        at = content.index(b"PK\x01\x02", at + 1)
    content[at + 24 : at + 28] = struct.pack("<I", size)
    if packed is not None:
        content[at + 20 : at + 24] = struct.pack("<I", packed)
    if crc is not None:
        content[at + 16 : at + 20] = struct.pack("<I", crc)
    path.write_bytes(content)
    return path


def test_archive_that_unpacks_past_what_it_announces(tmp_path):
    # Header, directory and checksum agree on a small array; the compressed data go on.
    announced = npy(X)
    path = packed(tmp_path, zipfile.ZIP_DEFLATED, x_train=announced + bytes(30_000_000))
    with_size(path, "x_train.npy", len(announced), zlib.crc32(announced))
    text, peak = peak_of(path)
    assert "it is damaged (Bad CRC-32 for file 'x_train.npy')" in text
    assert peak < 1_000_000


@pytest.mark.parametrize("compressed", [None, 3_999_999_999], ids=["", "also compressed"])
def test_archive_that_announces_more_than_its_file_can_hold(tmp_path, compressed):
    size = 4_000_000_000
    path = packed(tmp_path, zipfile.ZIP_DEFLATED, x_train=npy(X, shape=((size - 128) // 20, 4, 5)))
    text, peak = peak_of(with_size(path, "x_train.npy", size, packed=compressed))
    assert "x_train is damaged: the archive announces 4,000,000,000 bytes, and the file of" in text
    assert peak < 1_000_000


def test_archive_that_holds_less_than_it_announces(tmp_path):
    path = packed(tmp_path, zipfile.ZIP_DEFLATED, x_train=npy(X, shape=(7, 4, 5)))
    text = message(with_size(path, "x_train.npy", 268))
    assert "x_train is damaged: the archive announces 268 bytes, but it holds 248" in text


def test_stored_array_that_would_end_behind_the_file(tmp_path):
    path = packed(tmp_path, zipfile.ZIP_STORED)
    count = (path.stat().st_size - 128) // 20
    path = packed(tmp_path, zipfile.ZIP_STORED, x_train=npy(X, shape=(count, 4, 5)))
    size = 128 + 20 * count
    text = message(with_size(path, "x_train.npy", size, packed=size))
    late = f"x_train is damaged: it would end after the {path.stat().st_size:,} bytes of the file"
    assert late in text or "it is damaged (Overlapped entries: 'x_train.npy'" in text  # zipfile from 3.12.3 on


def test_flipped_bit(tmp_path):
    path = packed(tmp_path, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    message(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_not_unpacked(tmp_path, compression):
    path = packed(tmp_path, compression)
    assert "x_train is compressed in a way that NumPy does not write" in message(path)


def test_encrypted(tmp_path):
    path = packed(tmp_path, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "x_train is encrypted" in message(path)
