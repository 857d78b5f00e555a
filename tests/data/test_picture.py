"""Pictures from files: read, and prepared the way the sets were made."""

import io
import re
from pathlib import Path

import numpy as np
import pytest

import xpnn
from xpnn.data.picture import open_picture, prepare
from xpnn.errors import FileFormatError
from xpnn.optim import OneCycle

Image = pytest.importorskip("PIL.Image")
ImageDraw = pytest.importorskip("PIL.ImageDraw")
ImageFilter = pytest.importorskip("PIL.ImageFilter")

MNIST = (28, 28, 1)


def drawn(text="7", size=(200, 300), at=(60, 60), high=150, ink=0, paper=255, mode="L"):
    """A digit of Pillow's own font."""
    from PIL import ImageFont

    image = Image.new(mode, size, paper)
    ImageDraw.Draw(image).text(at, text, fill=ink, font=ImageFont.load_default(high))
    return image


def on_paper(rng, digit, kind=""):
    """A set's image drawn large, dark on light, somewhere on a page, as JPEG or PNG."""
    side = int(rng.integers(110, 250))
    page = np.zeros((400, 300) if rng.random() < 0.5 else (300, 400))
    row, column = (int(rng.integers(4, n - side - 4)) for n in page.shape)
    large = Image.fromarray((digit * 255).round().astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    page[row : row + side, column : column + side] = np.asarray(large) / 255
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in page.shape), indexing="ij")
    light = 0.7 + 0.2 * x - 0.1 * y * y if "shade" in kind else 0.95
    page = light * (1 - (0.25 if "faint" in kind else 0.9) * page)
    if "noise" in kind:
        page += rng.normal(0, 0.02, page.shape)
        page[rng.random(page.shape) < 0.002] = 0
    file = io.BytesIO()
    image = Image.fromarray((page.clip(0, 1) * 255).round().astype(np.uint8))
    image.save(file, "JPEG" if rng.random() < 0.5 else "PNG")
    return Image.open(file)


def gate(name, trainer, dataset, kind, count, n=100):
    """The accuracies of `n` test images, as they are and drawn large."""
    rng = np.random.default_rng(5)
    picked = rng.choice(count, n, replace=False)
    images, labels = dataset.test_images[picked], dataset.test_labels[picked]
    large = np.stack([prepare(on_paper(rng, x[..., 0], kind), trainer.in_shape, name)[0] for x in images])
    return [float((trainer.predict(x).argmax(axis=1) == labels).mean()) for x in (images, large)]


@pytest.fixture(scope="module")
def digits():
    dataset = xpnn.data.digits()
    trainer = xpnn.Trainer(
        xpnn.models.tiny_cnn(), optimizer=xpnn.optim.SGD(lr=0.05, momentum=0.9), schedule=OneCycle(), backend="numpy"
    )
    trainer.fit(dataset.train_images, dataset.train_labels, epochs=6, batch_size=32)
    return trainer, dataset


@pytest.mark.parametrize("kind", ["", "shade faint noise"])
def test_digits_drawn_large_are_told_about_as_well_as_those_of_the_set(digits, kind):
    trainer, dataset = digits
    own, large = gate("digits", trainer, dataset, kind, 359, 50)
    assert own >= 0.96
    assert large >= own - 0.08  # an 8×8 image drawn large is a blur


@pytest.fixture(scope="module")
def handwritten(mnist_folder):
    dataset = xpnn.data.mnist(mnist_folder)
    trainer = xpnn.Trainer(xpnn.models.lenet5(), schedule=OneCycle(), backend="numpy")
    trainer.fit(dataset.train_images[:20000], dataset.train_labels[:20000], epochs=2, batch_size=64)
    return trainer, dataset


@pytest.mark.parametrize("kind", ["", "shade faint noise"])
def test_mnist_drawn_large_is_told_as_well_as_the_set(handwritten, kind):
    trainer, dataset = handwritten
    own, large = gate("mnist", trainer, dataset, kind, 10_000, 300)
    assert own >= 0.96
    assert large >= own - 0.015


# How the sets were made


def test_mnist_ink_is_20_high_with_its_mass_in_the_middle():
    x, done = prepare(drawn("7"), MNIST, "mnist")
    assert x.shape == MNIST
    assert x.dtype == np.float32
    rows, columns = (np.flatnonzero(x[..., 0].max(axis=axis) > 0.3) for axis in (1, 0))
    assert np.ptp(rows) + 1 in (19, 20)
    assert np.ptp(columns) + 1 < 20
    mass = [float((x.sum(axis=(1 - i, 2)) * np.arange(28)).sum() / x.sum()) for i in (0, 1)]
    assert np.abs(np.asarray(mass) - 14).max() <= 0.5  # as it is of every image of the set, in [13.5, 14.5)
    assert re.fullmatch(
        r"light background: inverted; ink of \d+×1\d\d scaled to 1\d×20, centred by its mass in 28×28", done[0]
    )
    assert x.max() == 1
    assert np.median(x) == 0


def test_mnist_with_a_margin_as_some_networks_take_it():
    x, done = prepare(drawn(), (32, 32, 1), "mnist")
    assert x.shape == (32, 32, 1)
    assert np.ptp(np.flatnonzero(x[..., 0].max(axis=1) > 0.3)) + 1 in (22, 23)
    assert done[-1].endswith("32×32")


@pytest.mark.parametrize(("style", "shape"), [("mnist", MNIST), ("kmnist", MNIST), ("digits", (8, 8, 1))])
def test_light_on_dark_comes_out_as_dark_on_light(style, shape):
    dark, said = prepare(drawn(), shape, style)
    light, done = prepare(drawn(ink=255, paper=0), shape, style)
    np.testing.assert_allclose(dark, light, atol=0.02)
    assert "light background: inverted" in said[0]
    assert "inverted" not in done[0]


def test_kmnist_fills_the_frame():
    x, _ = prepare(drawn("8"), MNIST, "kmnist")
    assert np.flatnonzero(x[..., 0].max(axis=1) > 0.3)[[0, -1]].tolist() == [0, 27]


def test_digits_are_counts_of_a_bitmap():
    x, done = prepare(drawn("3"), (8, 8, 1), "digits")
    np.testing.assert_array_equal(x * 16, (x * 16).round())
    assert (x[0].max(), x[-1].max()) > (0, 0)
    assert (x[:, 0].max(), x[:, -1].max()) == (0, 0)
    assert "blocks of 4×4" in done[-1]


def test_an_image_of_the_digits_own_size_is_taken_as_it_is():
    own = xpnn.data.digits().test_images[5]
    levels = Image.fromarray((own[..., 0] * 255).round().astype(np.uint8))
    x, _ = prepare(levels, (8, 8, 1), "digits")
    np.testing.assert_allclose(x, own, atol=1 / 255)


def test_fashion_keeps_the_greys_of_the_article():
    image = Image.new("L", (300, 400), 255)
    ImageDraw.Draw(image).rectangle((100, 100, 180, 300), fill=155)
    ImageDraw.Draw(image).rectangle((100, 100, 180, 200), fill=55)
    x, done = prepare(image, MNIST, "fashion-mnist")
    assert x[5, 14, 0] == pytest.approx(200 / 255, abs=0.03)
    assert x[22, 14, 0] == pytest.approx(100 / 255, abs=0.03)
    assert np.flatnonzero(x[..., 0].max(axis=1) > 0.3)[[0, -1]].tolist() == [0, 27]
    assert "sharpened" in done[-1]


def test_other_sets_take_the_middle_of_the_whole_picture():
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 100))
    x, done = prepare(image, (32, 32, 3), "cifar10")
    np.testing.assert_allclose(x, np.broadcast_to([0.0, 0.0, 1.0], x.shape), atol=0.08)  # a scaled edge sees beyond it
    assert done == ["middle of 100×100 cut out", "scaled to 32×32"]
    grey, done = prepare(image, (10, 20, 1), "a/folder")
    assert grey.shape == (10, 20, 1)
    assert done == ["grey", "middle of 200×100 cut out", "scaled to 20×10"]


def test_a_picture_of_the_right_size_is_taken_pixel_by_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    x, done = prepare(Image.fromarray(pixels), (32, 32, 3), "cifar10")
    np.testing.assert_array_equal(x, pixels.astype(np.float32) / 255)
    assert done == []


# What comes with pictures


def same_as_drawn(image, **options):
    x, _ = prepare(image, MNIST, "mnist")
    expected, _ = prepare(drawn(**options), MNIST, "mnist")
    assert float(np.sqrt(np.mean((x - expected) ** 2))) < 0.11  # a digit set off by one pixel: 0.2


def test_specks_do_not_stretch_the_box():
    image = drawn()
    pen = ImageDraw.Draw(image)
    for at in ((5, 5), (190, 8), (12, 290), (180, 280)):
        pen.ellipse((*at, at[0] + 5, at[1] + 5), fill=0)
    same_as_drawn(image)


def test_the_dot_apart_from_a_digit_stays():
    image = drawn("i", high=200, at=(80, 20))
    x, _ = prepare(image, MNIST, "mnist")
    filled = x[..., 0].max(axis=1) > 0.3
    assert filled[np.flatnonzero(filled)[0] : np.flatnonzero(filled)[-1]].sum() < np.ptp(np.flatnonzero(filled))


def test_faint_ink_on_a_shaded_page():
    y, x = np.mgrid[-1:1:300j, -1:1:200j]
    ink = 1 - np.asarray(drawn(), np.float32) / 255
    page = (0.7 + 0.2 * x - 0.1 * y) * (1 - 0.2 * ink) + np.random.default_rng(0).normal(0, 0.01, ink.shape)
    same_as_drawn(Image.fromarray((page * 255).astype(np.uint8)))


def test_a_shadow_is_not_ink():
    page = np.asarray(drawn(), np.float32) * np.where(np.arange(200) < 70, 0.75, 1)
    same_as_drawn(Image.fromarray(page.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1)))


@pytest.mark.parametrize("ink", [(0, 0, 0, 255), (255, 255, 255, 255)])
def test_ink_on_nothing(ink, tmp_path):
    drawn(mode="RGBA", paper=(120, 120, 120, 0), ink=ink).save(tmp_path / "clear.png")
    same_as_drawn(open_picture(tmp_path / "clear.png"))


def test_sets_from_folders_lay_what_is_clear_on_white():
    x, _ = prepare(Image.new("RGBA", (32, 32), (255, 255, 255, 128)), (32, 32, 3), "photos")
    np.testing.assert_array_equal(x, 1)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_that_lies_on_its_side_comes_upright(tmp_path, orientation):
    exif, image = Image.Exif(), np.arange(24 * 16, dtype=np.uint8).reshape(24, 16)
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "x.tif", exif=exif)
    turned = np.rot90(image, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "x.tif")), turned)


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    drawn().rotate(90, expand=True).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    same_as_drawn(open_picture(tmp_path / "phone.jpg"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode(mode):
    image = drawn()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    same_as_drawn(image if mode == "I;16" else image.convert(mode))


def test_a_large_picture_with_a_small_digit():
    same_as_drawn(drawn(size=(2400, 3200), at=(1500, 300), high=150))


STROKES = {
    "2": [(15, 40), (25, 12), (55, 5), (80, 25), (80, 55), (50, 100), (10, 150), (90, 150)],
    "5": [(85, 8), (20, 5), (18, 70), (55, 60), (85, 85), (85, 125), (55, 152), (12, 145)],
    "8": [(50, 75), (20, 50), (25, 15), (55, 5), (80, 20), (78, 50), (50, 75), (18, 105), (20, 145), (55, 155),
          (85, 140), (82, 105), (50, 75)],
}  # fmt: skip


@pytest.mark.parametrize("digit", STROKES)
@pytest.mark.parametrize("pen", [3, 14])
def test_digits_by_any_pen(digits, digit, pen):
    image = Image.new("RGB", (400, 300), (240, 235, 220))
    ImageDraw.Draw(image).line([(x + 120, y + 70) for x, y in STROKES[digit]], fill=(30, 40, 120), width=pen)
    x, done = prepare(image, (8, 8, 1), "digits")
    assert str(digits[0].predict(x[None])[0].argmax()) == digit
    assert pen > 3 or "thickened" in done[-1]


# Mistakes


def noise(light, spread):
    levels = np.random.default_rng(0).normal(light, spread, (300, 200)).clip(0, 255)
    return Image.fromarray(levels.astype(np.uint8))


@pytest.mark.parametrize("style", ["mnist", "kmnist", "fashion-mnist", "digits"])
@pytest.mark.parametrize(
    "image",
    [Image.new("L", (50, 80), 255), Image.new("L", (1, 1), 0), noise(150, 25), Image.linear_gradient("L")],
    ids=["white", "one pixel", "noise", "shading"],
)
def test_a_picture_without_a_digit(style, image):
    with pytest.raises(ValueError, match=r"nothing stands out .*; take a picture with more contrast"):
        prepare(image, (8, 8, 1) if style == "digits" else MNIST, style)


def test_a_network_that_takes_no_pictures():
    with pytest.raises(ValueError, match=r"samples of shape \(64,\), not pictures"):
        prepare(drawn(), (64,), "mnist")


def test_files_that_are_no_pictures(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    drawn().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n%%EndComments\nshowpage\n")
    with pytest.raises(FileFormatError, match=r"program\.png: not a picture that can be read; expected"):
        open_picture(tmp_path / "program.png")  # Pillow would start Ghostscript
    for name in ("text.png", "cut.png"):
        with pytest.raises(FileFormatError, match=rf"{name}: not a picture that can be read.*expected a whole PNG"):
            open_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.png: there is no such file; check the name"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError, match=r"is a folder; name the pictures in it, e\.g\. .*\*\.png"):
        open_picture(tmp_path)


def test_a_picture_with_too_many_pixels(tmp_path, monkeypatch):
    drawn().save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(FileFormatError, match=r"huge\.png: the picture has too many pixels; make it smaller"):
        open_picture(tmp_path / "huge.png")


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(RuntimeError, match=r'pip install "xpnn\[train\]"'):
        open_picture(Path("some.png"))
