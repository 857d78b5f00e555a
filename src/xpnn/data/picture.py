"""Pictures from files, brought to what a network was trained on, the way its data set was made.

- `open_picture(path)`: a Pillow image, upright;
- `flat(image)`: it in grey or colour, nothing transparent;
- `prepare(image, in_shape, style)`: float32 `(H, W, C)` in [0, 1], and in words what was done.

The ink of a digit is what stands out from its background: a smooth surface is fitted to the picture, which takes the
light's falling off with it, and what is far enough from it, in parts that are not specks, is ink.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError
from ._folder import FORMATS

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

_LARGEST = 1024  # pixels of a side in which ink is looked for; a digit of a tenth of that is still 100 high
_LEAST_CONTRAST = 0.06  # of black to white: paler ink than pencil
_SPECK = 0.05  # of the largest part: what is smaller is no part of a digit


def open_picture(path: str | os.PathLike[str]) -> Image:
    """The picture in a file, as Pillow has it, turned as its EXIF says.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file, or it is a folder.
        FileFormatError: not a picture in one of `FORMATS`, damaged, or too large.
        RuntimeError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise RuntimeError('pictures are read with Pillow, which is not installed: pip install "xpnn[train]"') from None
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder; name the pictures in it, e.g. {os.path.join(path, '*.png')}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: there is no such file; check the name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # As `_folder` opens them, and for its reasons: by a file, and no format that may start a program.
            with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
                return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise FileFormatError(f"{path}: the picture has too many pixels; make it smaller") from None
    except PermissionError:
        raise
    except Exception as e:  # Pillow's readers raise all kinds on a damaged file
        said = "" if isinstance(e, Image.UnidentifiedImageError) else f" ({e})"
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise FileFormatError(f"{path}: not a picture that can be read{said}; expected a whole {known} file") from None


def prepare(image: Image, in_shape: tuple[int, ...], style: str) -> tuple[Floats, list[str]]:
    """The picture as the network's data set would have it.

    Args:
        image: a Pillow image of any size and mode.
        in_shape: of a sample, `(H, W, C)` with one channel (grey), three (colour) or more alike (grey).
        style: the data set's name. "mnist", "kmnist", "fashion-mnist" and "digits" are made of what stands out from
            the background; of any other name the whole picture is taken.

    Returns:
        float32 `(H, W, C)` in [0, 1], and what was done, a few words each.

    Raises:
        ValueError: `in_shape` is not that of an image, or nothing stands out from the background.

    Sources: MNIST: LeCun et al., 1998, Gradient-based learning applied to document recognition, III.A. KMNIST: Clanuwat
    et al., 2018. Fashion-MNIST: Xiao et al., 2017, section 2. Digits: Alpaydin, Kaynak, 1998, after NIST's Form-Based
    Handprint Recognition System.
    """
    if len(in_shape) != 3:
        raise ValueError(f"the network takes samples of shape {tuple(in_shape)}, not pictures: expected (H, W, C)")
    height, width, channels = in_shape
    image, done = flat(image, None if style in _INKS else "white"), list[str]()  # as sets from folders are read
    wanted = "RGB" if channels == 3 and style not in _INKS else "L"
    if image.mode != wanted:
        image = image.convert(wanted)
        done.append("three equal channels" if wanted == "RGB" else "grey")
    pixels = _INKS.get(style, _fitted)(image, height, width, done).reshape(height, width, -1)
    return np.ascontiguousarray(np.broadcast_to(pixels, (height, width, channels))), done


def flat(image: Image, paper: str | None = None) -> Image:
    """A picture as "L" or "RGB"; 16 bits become 8.

    Args:
        image: a Pillow image of any mode.
        paper: colour of what a clear picture is laid on; None: white or black, what its content stands out from.
    """
    from PIL import Image as pillow

    if image.mode.startswith(("I", "F")):  # Pillow would cut numbers above 255 off
        values = np.asarray(image, np.float32)
        top = values.max(initial=0)
        values = np.divide(values, 65535 if top > 255 else 255 if top > 1 else 1, dtype=np.float32)
        return pillow.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"), np.float32)
        dark = not alpha.any() or np.average(np.asarray(image.convert("L")), weights=alpha) < 128
        ground = pillow.new("RGBA", image.size, paper or ("white" if dark else "black"))
        image = pillow.alpha_composite(ground, image)
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


# The whole picture


def _fitted(image: Image, height: int, width: int, done: list[str]) -> Floats:
    from PIL import ImageOps

    w, h = image.size
    if w * height != h * width:
        scale = min(w / width, h / height)
        done.append(f"middle of {_size(round(height * scale), round(width * scale))} cut out")
    if (w, h) != (width, height):
        done.append(f"scaled to {_size(height, width)}")
        image = ImageOps.fit(image, (width, height))
    return _values(image)


# Ink


@dataclass(frozen=True)
class _Ink:
    """What stands out from a picture's background.

    Attributes:
        values: 0 to 1, cut to the ink's box.
        box: its left, top, right and bottom in the picture.
        light: whether the background is light.
        thickened: whether the strokes were too thin.
    """

    values: Floats
    box: tuple[int, int, int, int]
    light: bool
    thickened: bool

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        inverted = "light background: inverted; " if self.light else ""
        return f"{inverted}ink of {_size(bottom - top, right - left)}{', thickened,' * self.thickened}"


def _mnist(image: Image, height: int, width: int, done: list[str]) -> Floats:
    """Ink in a box of 20×20 of the 28×28, its centre of mass in the middle."""
    ink = _ink(image, stroke=0.08)
    scaled = _resized(ink.values, round(height * 20 / 28), round(width * 20 / 28))
    done.append(f"{ink} scaled to {_size(*scaled.shape)}, centred by its mass in {_size(height, width)}")
    rows, columns = (
        round(middle - float((scaled.sum(1 - axis) * np.arange(n)).sum() / scaled.sum()))
        for axis, (middle, n) in enumerate(zip((height // 2, width // 2), scaled.shape, strict=True))
    )
    return _placed(scaled, height, width, rows, columns)


def _kmnist(image: Image, height: int, width: int, done: list[str]) -> Floats:
    """Ink fills 28×28 in its longer direction."""
    ink = _ink(image, stroke=0.08)
    done.append(f"{ink} fitted into {_size(height, width)}")
    return _middle(_resized(ink.values, height, width), height, width)


def _fashion(image: Image, height: int, width: int, done: list[str]) -> Floats:
    """The article, its longer side 28, sharpened, with its own greys against a background of 0."""
    from PIL import Image as pillow
    from PIL import ImageFilter

    ink, grey = _ink(image), _values(image)
    left, top, right, bottom = ink.box
    paper = _surface(grey)
    article = ((paper - grey) / paper.clip(0.1) if ink.light else (grey - paper) / (1 - paper).clip(0.1)).clip(0, 1)
    scaled = _resized(article[top:bottom, left:right], height, width)
    sharp = pillow.fromarray((scaled * 255).round().astype(np.uint8)).filter(ImageFilter.UnsharpMask(radius=1))
    done.append(f"{str(ink).replace('ink', 'article')} fitted into {_size(height, width)}, sharpened, centred")
    return _middle(_values(sharp), height, width)


def _digits(image: Image, height: int, width: int, done: list[str]) -> Floats:
    """A bitmap of 32×32 that the ink fills in height, at most three quarters of it in width; blocks of 4×4 counted."""
    if image.size == (width, height):  # too coarse to look for ink in
        values = _values(image)
        light = float(values.mean()) > 0.5
        done.append(f"{'light background: inverted; ' if light else ''}of the set's own size: taken as it is")
        return 1 - values if light else values
    ink = _ink(image, stroke=0.16)
    scaled = _resized(ink.values, height * 4, width * 3)
    bitmap = _middle((scaled > 0.5).astype(np.float32), height * 4, width * 4)
    done.append(
        f"{ink} scaled to {_size(*scaled.shape)}, black or white in {_size(*bitmap.shape)}, counted in blocks of 4×4"
    )
    counts: Floats = bitmap.reshape(height, 4, width, 4).mean(axis=(1, 3))
    return counts


_INKS: dict[str, Callable[[Any, int, int, list[str]], Floats]] = {
    "mnist": _mnist, "kmnist": _kmnist, "fashion-mnist": _fashion, "digits": _digits,
}  # fmt: skip


def _ink(image: Image, stroke: float = 0.0) -> _Ink:
    """Find the ink, and thicken strokes that are thinner than `stroke` of its height: a pen's are, the sets' are not.

    Raises:
        ValueError: there is none.
    """
    from PIL import Image as pillow
    from PIL import ImageFilter

    shrunk = image.copy()
    shrunk.thumbnail((_LARGEST, _LARGEST), pillow.Resampling.BOX)
    smooth = shrunk.filter(ImageFilter.MedianFilter(3)) if min(shrunk.size) >= 100 else shrunk  # salt and pepper
    grey = _values(smooth)
    away = grey - _surface(grey)
    noise = 3.1 * float(np.quantile(np.abs(away), 0.25))  # σ of a normal distribution, of which ink changes little
    least = max(6 * noise, _LEAST_CONTRAST)
    light = float((away[np.abs(away) > least] ** 3).sum()) < 0
    if light:
        away = -away
    candidates = away[away > least]
    if not candidates.size:
        raise ValueError(
            "nothing stands out from the background: expected something dark on light ground or light on dark; "
            "take a picture with more contrast, or cut it closer"
        )
    mask = away > max(least, 0.7 * _otsu(candidates))  # a shadow is paler than ink, and ink may be uneven
    level = float(np.median(away[mask]))
    mask = _large_parts(mask)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    near = pillow.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3))  # the edge of a stroke belongs to it
    values = np.where(np.asarray(near) > 0, (away / level).clip(0, 1), 0).astype(np.float32)
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    sx, sy = (full / small for full, small in zip(image.size, shrunk.size, strict=True))
    box = round(left * sx), round(top * sy), round(right * sx), round(bottom * sy)
    values, thickened = _thickened(values[top:bottom, left:right], stroke)
    return _Ink(values, box, light, thickened)


def _surface(grey: Floats) -> Floats:
    """The background: a quadratic surface through what is neither ink nor speck, looked for along the border first.

    Least squares, weighted anew in each round by how far a pixel is from the surface (Holland, Welsch, 1977).
    """
    y, x = (np.linspace(-1, 1, n)[:, None] ** range(3) for n in grey.shape)
    few = tuple(slice(None, None, max(1, n // 64)) for n in grey.shape)
    low = np.add.outer(range(3), range(3)) <= 2
    terms = (y[few[0], None, :, None] * x[None, few[1], None, :])[..., low].reshape(-1, 6)
    values = grey[few].ravel()
    border = (np.maximum.outer(np.abs(y[few[0], 1]), np.abs(x[few[1], 1])) > 0.85).ravel()
    away = np.abs(values - np.median(values[border]))
    surface = np.zeros((3, 3))
    for i in range(8):
        near = border if i < 4 else np.ones_like(border)
        spread = max(4 * float(np.quantile(away[near], 0.25)), 0.02)
        weighted = terms * (near * np.exp(-((away / (2 * spread)) ** 2)) + 1e-4)[:, None]
        surface[low] = np.linalg.solve(weighted.T @ terms + 1e-6 * np.eye(6), weighted.T @ values)
        away = np.abs(values - terms @ surface[low])
    return np.asarray((y @ surface @ x.T).clip(0, 1), np.float32)


def _otsu(values: Floats) -> float:
    """The threshold that parts numbers best in two (Otsu, 1979)."""
    counts, edges = np.histogram(values, 64, (0, float(values.max())))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    apart = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * apart**2)])


def _large_parts(mask: Bools) -> Bools:
    """The parts that hang together, less those that are specks beside the largest."""
    places = np.flatnonzero(mask)
    number = np.full((mask.shape[0] + 1, mask.shape[1] + 2), -1)  # a margin, so that nothing wraps around
    number[:-1, 1:-1][mask] = np.arange(places.size)
    here = number[:-1, 1:-1]
    neighbours = (number[:-1, 2:], number[1:, :-2], number[1:, 1:-1], number[1:, 2:])
    pairs = np.concatenate([np.stack([here, there])[:, (here >= 0) & (there >= 0)] for there in neighbours], axis=1)
    label = np.arange(places.size)
    while True:  # the smaller label wins, and labels of labels are followed: rounds grow as a logarithm
        before = label.copy()
        low = label[pairs].min(axis=0)
        for end in pairs:
            np.minimum.at(label, before[end], low)
        while (label[label] != label).any():
            label = label[label]
        if (label == before).all():
            break
    area = np.bincount(label, minlength=places.size)
    large = np.zeros(mask.size, np.bool_)
    large[places] = area[label] >= max(_SPECK * area.max(initial=0), 2)
    return large.reshape(mask.shape)


def _thickened(ink: Floats, least: float) -> tuple[Floats, bool]:
    """Strokes of at least that share of the ink's height; whether they were thinner, which is told by their outline."""
    from PIL import Image as pillow
    from PIL import ImageFilter

    if max(ink.shape) > 128:
        ink = _resized(ink, 128, 128)
    there = np.pad(ink > 0.5, 1).astype(np.int8)
    outline = float(sum(np.abs(np.diff(there, axis=axis)).sum() for axis in (0, 1))) * np.pi / 4  # Crofton
    by = round((least * ink.shape[0] - 2 * float(there.sum()) / max(outline, 1.0)) / 2)
    if by < 1:
        return ink, False
    wide = pillow.fromarray((np.pad(ink, by) * 255).round().astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * by + 1))
    return _values(wide), True


def _resized(pixels: Floats, height: int, width: int) -> Floats:
    """As large as fits, the aspect kept, antialiased."""
    from PIL import Image as pillow

    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    h, w = (max(1, round(n * scale)) for n in pixels.shape)
    scaled = pillow.fromarray(pixels).resize((w, h), pillow.Resampling.BICUBIC)
    return np.asarray(scaled, np.float32).clip(0, 1)


def _middle(pixels: Floats, height: int, width: int) -> Floats:
    return _placed(pixels, height, width, (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2)


def _placed(pixels: Floats, height: int, width: int, row: int, column: int) -> Floats:
    """On a background of 0; what would lie outside moves in."""
    h, w = pixels.shape
    row, column = min(max(row, 0), height - h), min(max(column, 0), width - w)
    placed = np.zeros((height, width), np.float32)
    placed[row : row + h, column : column + w] = pixels
    return placed


def _values(image: Image) -> Floats:
    return np.asarray(np.asarray(image, np.float32) / 255, np.float32)


def _size(height: int, width: int) -> str:
    """As pictures' sizes are written: width first."""
    return f"{width}×{height}"
