"""One's own images in a folder: which are read, which are held out, how they are decoded and kept, what is refused."""

import errno
import os
import re
import struct
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from xpnn.data import Stored, load
from xpnn.errors import FileFormatError

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XPNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def grey(n, height=6, width=5):
    return np.full((height, width), n, np.uint8)


def put(path: Path, array, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 images; image i of cats is of grey i, of dogs of grey 100 + i."""
    for i in range(20):
        put(tmp_path / "pets" / "cats" / f"{i:02}.png", grey(i))
        put(tmp_path / "pets" / "dogs" / f"{i:02}.png", grey(100 + i))
    return tmp_path / "pets"


def levels(images):
    """The grey of the first pixel of each image."""
    return np.rint(np.asarray(images)[:, 0, 0, 0] * 255).astype(int).tolist()


def all_levels(data):
    return sorted(levels(data.train_images) + levels(data.test_images))


def message(folder, error=FileFormatError, **options):
    with pytest.raises(error) as caught:
        load(folder, **options)
    return str(caught.value)


# Which are read


def test_reads(folder, capsys):
    data = load(folder)
    assert data.classes == ("cats", "dogs")
    assert data.name == "pets"
    assert str(folder) in data.source
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert isinstance(images, Stored)
        assert isinstance(images.values, np.memmap)
        assert images.shape == (len(labels), 6, 5, 1)
        assert labels.dtype == np.int64
        assert (np.array(levels(images)) >= 100).tolist() == (labels == 1).tolist()
    assert all_levels(data) == [*range(20), *range(100, 120)]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"decoding 40 images of {folder}\n"


def test_a_fifth_is_held_out_by_the_path_alone(folder):
    data = load(folder)
    assert 0.05 < len(data.test_labels) / 40 < 0.4
    assert set(data.test_labels) == {0, 1}
    for i in range(20, 40):
        put(folder / "cats" / f"{i:02}.png", grey(i))
    more = load(str(folder))
    assert len(more.train_labels) + len(more.test_labels) == 60
    assert set(levels(data.test_images)) <= set(levels(more.test_images))
    assert set(levels(data.train_images)) <= set(levels(more.train_images))
    assert len(more.test_labels) > len(data.test_labels)


def test_classes_are_mixed(folder):
    labels = load(folder).train_labels
    assert np.count_nonzero(np.diff(labels)) > 8  # sorted by class it would be 1


def test_train_and_test_given(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for i in range(count):
            put(tmp_path / part / "a" / f"{i}.png", grey(i))
            put(tmp_path / part / "b" / "deeper" / f"{i}.png", grey(100 + i))
    data = load(tmp_path)
    assert data.classes == ("a", "b")
    assert sorted(levels(data.train_images)) == [0, 1, 2, 100, 101, 102]
    assert sorted(levels(data.test_images)) == [0, 1, 100, 101]


def test_classes_named_train_and_test(tmp_path):
    for i in range(20):
        put(tmp_path / "train" / f"{i}.png", grey(i))
        put(tmp_path / "test" / f"{i}.png", grey(100 + i))
    assert load(tmp_path).classes == ("test", "train")


def test_what_is_passed_over(folder):
    (folder / ".hidden").mkdir()
    (folder / "cats" / ".thumbs").mkdir()
    put(folder / "cats" / ".thumbs" / "a.png", grey(200))
    put(folder / "cats" / ".b.png", grey(200))
    (folder / "cats" / "notes.txt").write_text("not an image")
    (folder / "readme.md").write_text("not a class")
    data = load(folder)
    assert data.classes == ("cats", "dogs")
    assert all_levels(data) == [*range(20), *range(100, 120)]


def test_every_format(folder):
    endings = ("jpg", "jpeg", "JPG", "bmp", "gif", "webp", "tif", "tiff", "pgm")
    for i, ending in enumerate(endings):
        put(folder / "cats" / f"other{i}.{ending}", np.full((6, 5), 250, np.uint8))
    assert len(all_levels(load(folder))) == 40 + len(endings)


def test_names_in_any_letters(folder):
    names = ["katze ü.png", "猫.png"]
    if os.name == "posix" and sys.platform != "darwin":
        names.append(os.fsdecode(b"latin-\xe9.png"))
    for name in names:
        put(folder / "cats" / name, grey(50))
    assert all_levels(load(folder)).count(50) == len(names)


def test_jpeg_of_several_pictures(tmp_path):
    more = [Image.fromarray(grey(9, 16, 16))]
    assert one(tmp_path, grey(200, 16, 16), "x.jpg", format="MPO", append_images=more, save_all=True).min() == 200


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in ("train/a", "train/b", "test/a", "test/b"):
        file = put(tmp_path / "own" / path / "x.png", grey(9, 24, 16), exif=exif)
        content = file.read_bytes()
        at = content.index(b"eXIf") - 4
        length = 12 + int.from_bytes(content[at : at + 4], "big")
        end = content.index(b"IEND") - 4
        file.write_bytes(content[:at] + content[at + length : end] + content[at : at + length] + content[end:])
    assert load(tmp_path / "own").train_images.shape == (2, 24, 16, 1)  # as the header has it; cropped to that


def test_a_path_of_a_users_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert load("~/pets").classes == ("cats", "dogs")


# How they are decoded


def one(tmp_path, array, name="x.png", image_size=None, **options):
    """What becomes of an array that is stored as an image, beside another one of its size."""
    for part in ("train", "test"):
        for label in "ab":
            put(tmp_path / "own" / part / label / name, array, **options)
    data = load(tmp_path / "own", image_size=image_size)
    return np.rint(data.train_images[0] * 255).astype(int)


def test_colour(tmp_path):
    array = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    np.testing.assert_array_equal(one(tmp_path, array), array)


def test_one_image_in_colour_makes_all_rgb(folder):
    put(folder / "cats" / "colour.png", np.zeros((6, 5, 3), np.uint8))
    data = load(folder)
    assert data.train_images.shape[1:] == (6, 5, 3)
    assert (np.ptp(data.train_images[...], axis=-1) == 0).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    array = (np.arange(30, dtype=np.uint16) * 2000).reshape(6, 5)
    np.testing.assert_array_equal(one(tmp_path, array)[..., 0], array >> 8)


def test_black_and_white(tmp_path):
    array = np.arange(30).reshape(6, 5) % 2 == 0
    np.testing.assert_array_equal(one(tmp_path, array)[..., 0], array * 255)


def test_transparent_shows_white(tmp_path):
    array = np.zeros((6, 5, 4), np.uint8)
    array[0, :, 3] = 255
    result = one(tmp_path, array)
    assert result.shape == (6, 5, 3)
    assert (result[0] == 0).all()
    assert (result[1:] == 255).all()


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_orientation(tmp_path, name, orientation, corner):
    array = np.full((24, 16), 255, np.uint8)
    array[:8, :8] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = one(tmp_path, array, name, exif=exif)
    assert result.shape[:2] == ((24, 16) if orientation in (1, 3) else (16, 24))
    rows, columns = (slice(0, 4) if c == 0 else slice(-4, None) for c in corner)
    assert result[rows, columns].max() < 40
    assert (result < 128).sum() == pytest.approx(64 * result.shape[2], abs=20 * result.shape[2])


def test_several_sizes_are_brought_to_one(folder, capsys):
    put(folder / "cats" / "wide.png", np.repeat(np.array([[0, 200, 0]], np.uint8), 100, axis=1).repeat(100, axis=0))
    data = load(folder)
    assert data.train_images.shape[1:] == (64, 64, 1)
    line = f"{folder}: images have 2 sizes, from 6x5 to 100x300; all are cropped at the centre and brought to 64x64 "
    assert line in capsys.readouterr().err
    # What is left of the wide one is its middle third; at the edges the filter sees a little more.
    parts = (np.rint(part[:, :, 8:-8, 0] * 255).astype(int) for part in (data.train_images, data.test_images))
    seen = [np.unique(image).tolist() for part in parts for image in part]
    assert sorted(seen) == [[i] for i in (*range(20), *range(100, 120), 200)]


@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8, 1)), ((4, 10), (4, 10, 1)), (6, (6, 6, 1))])
def test_image_size(folder, size, shape, capsys):
    assert load(folder, image_size=size).test_images.shape[1:] == shape
    assert "sizes" not in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, -1, 2.5, "8", (8,), (8, 8, 3), (0, 8), 100_000])
def test_image_size_that_is_none(folder, size):
    text = message(folder, ValueError, image_size=size)
    assert text == f"image_size={size!r} (--image-size); expected one or two, (height, width), from 1 to 4096"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 8}, "image_size (--image-size)"),
        ({"skip_corrupt": True}, "skip_corrupt (--skip-corrupt)"),
        ({"image_size": 8, "skip_corrupt": True}, "image_size (--image-size) and skip_corrupt (--skip-corrupt)"),
    ],
    ids=["size", "corrupt", "both"],
)
def test_options_of_a_folder_alone(options, said):
    with pytest.raises(ValueError, match="for a folder of images alone, and 'digits' is none; leave it out") as e:
        load("digits", **options)
    assert str(e.value).startswith(f"{said}: ")


# How they are kept


def entries(cache):
    return sorted(cache.iterdir())


def test_decoded_once(folder, cache, monkeypatch, capsys):
    first = load(folder)
    kept = entries(cache)
    assert len(kept) == 1
    capsys.readouterr()
    monkeypatch.setattr("xpnn.data._folder._decode", lambda *_: pytest.fail("decoded again"))
    again = load(folder)
    np.testing.assert_array_equal(first.train_images[...], again.train_images[...])
    assert capsys.readouterr().err == ""
    assert entries(cache) == kept


def test_decoded_again_where_something_changed(folder, cache):
    path = put(folder / "cats" / "as-large-as-before.pgm", grey(50))
    load(folder)
    kept = entries(cache)
    put(path, grey(77))
    os.utime(path, ns=(1, 1))
    assert 77 in all_levels(load(folder))
    assert len(entries(cache)) == 1  # what the folder held before is gone
    assert entries(cache) != kept
    load(folder, image_size=8)
    assert len(entries(cache)) == 2


@pytest.mark.parametrize("fault", ["cut", "empty", "no list"])
def test_what_was_damaged_is_decoded_again(folder, cache, fault):
    load(folder)
    (kept,) = entries(cache)
    cut(kept / ("skipped.json" if fault == "no list" else "images.npy"), -1 if fault == "cut" else 0)
    assert all_levels(load(folder)) == [*range(20), *range(100, 120)]
    assert entries(cache) == [kept]


def test_interrupted_decoding_leaves_nothing(folder, cache, monkeypatch):
    from xpnn.data import _folder

    count, image = [], _folder._image

    def interrupted(*arguments):
        count.append(1)
        if len(count) == 30:
            raise KeyboardInterrupt
        return image(*arguments)

    monkeypatch.setattr(_folder, "_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    assert entries(cache) == []
    monkeypatch.setattr(_folder, "_image", image)
    assert all_levels(load(folder)) == [*range(20), *range(100, 120)]


def test_two_at_once(folder, cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(all_levels(load(folder)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[*range(20), *range(100, 120)]] * 4
    assert len(entries(cache)) == 1


def test_what_somebody_else_decoded_meanwhile_stays(folder, cache, monkeypatch):
    from xpnn.data import _folder

    decode = _folder._decode

    def slow(*arguments):
        monkeypatch.setattr(_folder, "_decode", decode)
        load(folder)
        slow.theirs = entries(cache)[-1].stat().st_ino
        decode(*arguments)

    monkeypatch.setattr(_folder, "_decode", slow)
    assert all_levels(load(folder)) == [*range(20), *range(100, 120)]
    assert [entry.stat().st_ino for entry in entries(cache)] == [slow.theirs]


def test_cache_that_cannot_be_written(folder, cache):
    cache.parent.write_text("a file in its place")
    text = message(folder, OSError)
    assert text.startswith(f"cannot write to the cache folder {cache} (")
    assert "XPNN_CACHE" in text


def test_full_disk(folder, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("xpnn.data._folder._header", full)
    text = message(folder, OSError)
    assert text.startswith(f"cannot write to the cache folder {cache} (No space left on device); make room there")
    assert entries(cache) == []


@pytest.mark.parametrize(("missing", "remedy"), [("PIL", "Pillow"), ("platformdirs", "platformdirs")])
def test_without_the_packages(folder, monkeypatch, missing, remedy):
    monkeypatch.delenv("XPNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "user"))
    monkeypatch.setitem(sys.modules, missing, None)
    text = message(folder, ImportError)
    assert text.startswith(remedy)
    assert 'pip install "xpnn[train]"' in text


# What is refused


def test_one_class(tmp_path):
    put(tmp_path / "cats" / "a.png", grey(0))
    text = message(tmp_path)
    assert text.startswith(f"{tmp_path}: there is only the sub-folder cats; telling classes apart takes at least two")


def test_no_class(tmp_path):
    put(tmp_path / "a.png", grey(0))
    assert message(tmp_path).startswith(f"{tmp_path}: there is no sub-folder; telling classes apart takes at least two")


def test_class_without_images(folder):
    (folder / "mice").mkdir()
    (folder / "mice" / "a.txt").write_text("")
    assert message(folder).startswith(f"{folder / 'mice'}: there is no image; expected files that end in .png, .jpg")


def test_class_that_is_only_tested(tmp_path):
    for place in ("train/a", "train/b", "test/a", "test/c"):
        put(tmp_path / place / "1.png", grey(0))
    assert message(tmp_path) == f"{tmp_path}: test has the class c, and train has not; its classes are a, b"


@pytest.mark.parametrize(
    ("name", "lacks"), [("0", "there is no image to test on"), ("1", "of the class a there is no image to train on")]
)
def test_too_few_images(tmp_path, name, lacks):
    for label in "ab":
        put(tmp_path / label / f"{name}.png", grey(0))
    text = message(tmp_path)
    assert text.startswith(f"{tmp_path}: {lacks}. Each image is held out with a probability of one fifth; add images")
    assert f"divide them yourself: {tmp_path / 'train'} and {tmp_path / 'test'}" in text


def cut(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    return path


def led_nowhere(path):
    path.unlink()
    path.symlink_to(path.parent / "removed")


CORRUPT = {
    "link": led_nowhere,
    "empty": lambda path: cut(path, 0),
    "no image": lambda path: path.write_text("<html>"),
    "header": lambda path: cut(path, 20),
    "cut": lambda path: cut(path, -30),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:45] + b"\xff\xff\xff" + path.read_bytes()[48:]),
}


@pytest.mark.parametrize("fault", CORRUPT)
def test_corrupt_image(folder, fault, cache, capsys):
    path = folder / "cats" / "07.png"
    CORRUPT[fault](path)
    text = message(folder)
    reason = re.match(re.escape(f"{path}: this image cannot be read (") + r"(.+)\)\. Mend or remove it", text)[1]
    assert not re.search(r"Errno|<_io|07\.png", reason)
    assert "skip_corrupt=True (--skip-corrupt)" in text
    assert not cache.is_dir() or entries(cache) == []
    for _ in range(2):  # decoded, and from the cache
        capsys.readouterr()
        data = load(folder, skip_corrupt=True)
        assert all_levels(data) == [*(i for i in range(20) if i != 7), *range(100, 120)]
        assert (np.array(levels(data.train_images)) >= 100).tolist() == data.train_labels.tolist()
        said = capsys.readouterr().err
        assert f"{folder}: skipped 1 of 40 images, which cannot be read:\n  cats/07.png: {reason}\n" in said
    assert message(folder) == text  # one that was skipped once is not skipped unasked


def test_corrupt_jpeg(folder):
    noise = np.random.Philox(key=1).random_raw(600).view(np.uint8).reshape(60, 80)
    path = cut(put(folder / "dogs" / "noise.jpg", noise), 2000)
    assert message(folder).startswith(f"{path}: this image cannot be read (image file is truncated")


@pytest.mark.parametrize("kept", [10, -30], ids=["header", "pixels"])
def test_a_class_of_which_nothing_is_left(folder, kept):
    for path in (folder / "dogs").iterdir():
        cut(path, kept)
    text = message(folder, skip_corrupt=True)
    assert text.startswith(f"{folder}: of the class dogs there is no image to train on")
    for path in (folder / "cats").iterdir():
        cut(path, kept)
    assert message(folder, skip_corrupt=True) == f"{folder}: none of the 40 images can be read"


def png_of(width, height):
    """A PNG whose header announces this size; its data are those of one pixel."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(2))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000)], ids=["warned of", "refused"])
def test_decompression_bomb(folder, size):
    path = folder / "cats" / "bomb.png"
    path.write_bytes(png_of(*size))
    text = message(folder)
    assert text.startswith(f"{path}: this image cannot be read (Image size ({size[0] * size[1]} pixels) exceeds limit")
    assert all_levels(load(folder, skip_corrupt=True)) == [*range(20), *range(100, 120)]


def test_values_of_32_bits(folder):
    path = put(folder / "cats" / "float.tif", np.zeros((6, 5), np.float32))
    assert message(folder).startswith(f"{path}: this image cannot be read (its values have 32 bits (mode F)")


def test_formats_that_start_programs_are_not_opened(folder):
    path = folder / "cats" / "evil.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n%%EndComments\nshowpage\n")
    assert "(it is none of PNG, JPEG, BMP, GIF, WEBP, TIFF, PPM)" in message(folder)
