"""One's own images in a folder that has one sub-folder a class.

`read` lists the files, draws which are held out, decodes all into one uint8 array in the cache folder where that was
not done before, and maps that into memory: the images need not fit there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError
from ..random import Stream
from . import cache
from .dataset import Dataset
from .progress import bar, say
from .stored import handed_out

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # others may start programs, as EPS does
_HELD_OUT = 0.2
_DEFAULT_SIZE = (64, 64)
_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_VERSION = 1  # of how images are decoded


@dataclass(frozen=True)
class File:
    """One image file.

    Attributes:
        path: below the folder, with slashes.
        label: index of its class.
        test: whether it is held out.
        draw: a number in [0, 1), drawn from its path alone: its place in the order, and whether it is held out.
        size: in bytes.
        changed: when, in ns.
    """

    path: str
    label: int
    test: bool
    draw: float
    size: int
    changed: int


def read(folder: Path, image_size: tuple[int, int] | None, skip_corrupt: bool) -> Dataset:
    """Return the images below ``folder`` as a data set; see `load`."""
    classes, files = _listed(folder)
    _check_parts(folder, classes, files)
    images, skipped = _decoded(folder, files, image_size, skip_corrupt)
    if skipped:
        say(f"{folder}: skipped {len(skipped):,} of {len(files):,} images, which cannot be read:")
        for path, why in skipped.items():
            say(f"  {path}: {why}")
        files = [file for file in files if file.path not in skipped]
        _check_parts(folder, classes, files)
    labels = np.array([file.label for file in files], np.int64)
    tests = sum(file.test for file in files)
    held_out, rest = handed_out(images[:tests], images[tests:])
    source = f"the folder {folder}"
    return Dataset(folder.resolve().name, rest, labels[tests:], held_out, labels[:tests], tuple(classes), source)


# Which files


def _listed(folder: Path) -> tuple[list[str], list[File]]:
    """The classes, and all files: those held out first, each part in a drawn order that mixes the classes."""
    parts = {part: _subfolders(folder / part) if (folder / part).is_dir() else [] for part in ("train", "test")}
    if all(parts.values()):
        classes = parts["train"]
        strange = sorted(set(parts["test"]) - set(classes))
        if strange:
            raise FileFormatError(
                f"{folder}: test has the class {strange[0]}, and train has not; its classes are {', '.join(classes)}"
            )
        roots: list[tuple[str, str, bool | None]] = [
            (f"{part}/{name}", name, part == "test") for part, names in parts.items() for name in names
        ]
    else:
        classes = _subfolders(folder)
        roots = [(name, name, None) for name in classes]
    if len(classes) < 2:
        has = f"only the sub-folder {classes[0]}" if classes else "no sub-folder"
        raise FileFormatError(
            f"{folder}: there is {has}; telling classes apart takes at least two, each a sub-folder with its images, "
            f"e.g. {folder / 'cats'} and {folder / 'dogs'}"
        )
    files = []
    for root, name, test in roots:
        of_class = list(_files(folder, root, classes.index(name), test))
        if not of_class:
            raise FileFormatError(
                f"{folder / root}: there is no image; expected files that end in {', '.join(SUFFIXES)}. Put some "
                "there, or remove the sub-folder"
            )
        files += of_class
    return classes, sorted(files, key=lambda file: (not file.test, file.draw, file.path))


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, root: str, label: int, test: bool | None) -> Iterator[File]:
    """The images below one class; where `test` is None the path alone draws whether one is held out."""
    for place, folders, names in os.walk(folder / root):
        folders[:] = (name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith(".") or not name.lower().endswith(SUFFIXES):
                continue
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            status = path.stat() if path.exists() else path.lstat()  # a link to nowhere is read, and named, later
            draw = float(Stream(0, "held out", ascii(relative)).uniform((1,))[0])
            held_out = draw < _HELD_OUT if test is None else test
            yield File(relative, label, held_out, draw, status.st_size, status.st_mtime_ns)


def _check_parts(folder: Path, classes: list[str], files: list[File]) -> None:
    """Raise where a class cannot be learnt, or nothing can be tested."""
    trained = {file.label for file in files if not file.test}
    empty = [name for i, name in enumerate(classes) if i not in trained]
    if empty or not any(file.test for file in files):
        lacks = f"of the class {empty[0]} there is no image to train on" if empty else "there is no image to test on"
        raise FileFormatError(
            f"{folder}: {lacks}. Each image is held out with a probability of one fifth; add images, or divide them "
            f"yourself: {folder / 'train'} and {folder / 'test'}, with one sub-folder a class in each"
        )


# From files to one array


def _decoded(
    folder: Path, files: list[File], image_size: tuple[int, int] | None, skip: bool
) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """All images that can be read, in order and memory-mapped, and why the others cannot."""
    kind = _digest([_VERSION, str(folder.resolve()), image_size, skip])
    place = cache.folder("images") / f"{kind}-{_digest([asdict(file) for file in files])}"
    if found := _kept(place):
        return found
    cache.made(place.parent)
    try:
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-", ignore_cleanup_errors=True) as new:
            made = Path(new, "made")
            made.mkdir()
            _decode(folder, files, image_size, skip, made)
            for old in place.parent.glob(f"{kind}-*"):
                if old != place or not _kept(old):  # what the same folder held before, or what is damaged
                    shutil.rmtree(old, ignore_errors=True)
            if not _kept(place):
                made.rename(place)  # all at once
    except OSError as e:
        if not _kept(place):  # else somebody was faster
            raise cache.cannot_write(place.parent, e) from e
    found = _kept(place)
    assert found is not None
    return found


def _kept(place: Path) -> tuple[NDArray[np.uint8], dict[str, str]] | None:
    """What was decoded; None where nothing was, or where it is damaged, as after a power cut."""
    try:
        skipped = json.loads((place / "skipped.json").read_text(encoding="utf-8"))
        return np.load(place / "images.npy", mmap_mode="r", allow_pickle=False), skipped
    except (OSError, ValueError, EOFError):
        return None


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _decode(folder: Path, files: list[File], image_size: tuple[int, int] | None, skip: bool, place: Path) -> None:
    """Write ``images.npy`` and ``skipped.json``."""
    skipped: dict[str, str] = {}
    shape = _common_shape(folder, files, image_size, skip, skipped)
    count = 0
    with (
        bar(f"decoding {len(files):,} images of {folder}", len(files)) as show,
        (place / "images.npy").open("wb") as out,
    ):
        _header(out, len(files), shape)
        for done, file in enumerate(files):
            show(completed=done)
            if file.path in skipped:
                continue
            try:
                image = _image(folder / file.path, shape)
            except FileFormatError as e:
                _note(skipped, file, e, skip)
                continue
            out.write(image.tobytes())
            count += 1
        if not count:
            raise FileFormatError(f"{folder}: none of the {len(files):,} images can be read")
        out.seek(0)
        _header(out, count, shape)  # NumPy leaves room, so that it is as long for every count
    (place / "skipped.json").write_text(json.dumps(skipped), encoding="utf-8")


def _header(out: Any, count: int, shape: tuple[int, int, int]) -> None:
    values = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(out, values)


def _note(skipped: dict[str, str], file: File, error: FileFormatError, skip: bool) -> None:
    if not skip:
        raise error
    skipped[file.path] = str(error.__cause__ or error)


def _common_shape(
    folder: Path, files: list[File], image_size: tuple[int, int] | None, skip: bool, skipped: dict[str, str]
) -> tuple[int, int, int]:
    """The ``(H, W, C)`` of all images, from their headers."""
    sizes, modes = set(), set()
    for file in files:
        try:
            size, mode = _look(folder / file.path)
        except FileFormatError as e:
            _note(skipped, file, e, skip)
            continue
        sizes.add(size)
        modes.add(mode)
    if not sizes:
        raise FileFormatError(f"{folder}: none of the {len(files):,} images can be read")
    if image_size is None and len(sizes) > 1:
        image_size = _DEFAULT_SIZE
        say(
            f"{folder}: images have {len(sizes):,} sizes, from {'x'.join(map(str, min(sizes)))} to "
            f"{'x'.join(map(str, max(sizes)))}; all are cropped at the centre and brought to "
            f"{'x'.join(map(str, image_size))} (height x width); image_size (--image-size) chooses another"
        )
    height, width = image_size or sizes.pop()
    return height, width, 1 if modes <= set(_GREY) else 3


# One image


def _look(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width as it is shown, and Pillow's mode, by the header alone."""
    with _opened(path) as image:
        if image.format == "TIFF":
            image.load()  # which turns it upright
        known = image.format != "PNG" or "exif" in image.info  # what comes behind a PNG's pixels is seen later
        turned = known and image.getexif().get(_ORIENTATION, 1) >= 5
        width, height = image.size
        return ((width, height) if turned else (height, width)), image.mode


_ORIENTATION = 0x0112  # the EXIF tag; from 5 on the image lies on its side


def _image(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One image, upright, cropped at the centre and resized to ``(H, W)``, as grey (C = 1) or RGB.

    What is transparent shows white, as it does on paper.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):  # Pillow would clip it at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"its values have 32 bits (mode {image.mode}), and 8 or 16 were expected")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height))
        return np.asarray(image, np.uint8).reshape(shape)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image file, open; whatever is found wrong with it, now or later, becomes an error that names it."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError('Pillow, which reads images, is not installed; pip install "xpnn[train]"') from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that Pillow copes with
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # By a file, not by its name: of that, Pillow 13.0 maps a TIFF that lies on its side in the wrong shape.
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                yield image
    except Exception as e:  # Pillow raises errors of many kinds
        none = f"it is none of {', '.join(FORMATS)}"
        reason = none if isinstance(e, UnidentifiedImageError) else getattr(e, "strerror", None) or str(e)
        raise FileFormatError(
            f"{path}: this image cannot be read ({reason}). Mend or remove it, or leave out all such images by "
            "skip_corrupt=True (--skip-corrupt)"
        ) from ValueError(reason)
