"""Augmentation: what each kind does, and that it does the same everywhere, for any cut of the batch."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from training import recorded

from xpnn import Callback, NonFiniteError, ShapeError, Trainer
from xpnn import backend as backends
from xpnn.data.augment import RECIPES, Affine, Augment, Cutout, Flip, Kind, Shift, recipe, resampled
from xpnn.layers import Dense, Flatten, Sequential
from xpnn.optim import SGD
from xpnn.random import Stream

NUMPY = backends.get("numpy")
STREAM = Stream(3, "augment")
IMAGES = Stream(0, "tests", "pictures").uniform((12, 7, 9, 2)).astype("float32")
EXACT = [Shift(2), Flip(), Flip(1.0), Cutout(3), Cutout(4)]
KINDS = [*EXACT, Affine(degrees=30, scale=0.2, shear=20, shift=1.5)]


def augmented(kinds, images=IMAGES, first=0, backend=NUMPY):
    return np.asarray(backend.to_numpy(Augment(kinds)(backend.asarray(images), STREAM, first, backend)))


def turned(images, degrees=0.0, scale=1.0, shear=0.0, down=0.0, right=0.0):
    each = [np.full(len(images), v, float) for v in (degrees, scale, shear, down, right)]
    return resampled(images, *each, NUMPY)


# The same everywhere


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.eager
def test_every_backend_makes_the_same_pictures(backend, kind):
    ours, theirs = augmented([kind]), augmented([kind], backend=backend)
    assert theirs.dtype == np.float32
    if kind in EXACT:
        np.testing.assert_array_equal(theirs, ours)
    else:
        assert np.abs(theirs - ours).max() <= 4 * 2.0**-24  # four terms of at most 1


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_the_cut_of_a_batch_changes_nothing(kind):
    whole = augmented([kind, Shift(1)])
    for cut in (1, 5, 11):
        parts = [augmented([kind, Shift(1)], IMAGES[:cut]), augmented([kind, Shift(1)], IMAGES[cut:], cut)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(augmented([kind, Shift(1)], first=1), whole)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_dtype_and_range_are_kept_and_the_input_is_not_written_to(kind):
    for dtype in ("float32", "float64"):
        images = IMAGES.astype(dtype)
        images.flags.writeable = False
        y = augmented([kind], images)
        assert (y.shape, y.dtype) == (images.shape, images.dtype)
        assert y.min() >= 0
        assert y.max() <= 1
        assert not np.array_equal(y, images)


def test_kinds_of_one_recipe_draw_apart():
    twice = augmented([Flip(), Flip()], np.repeat(IMAGES[:1], 200, axis=0))
    flipped = (twice != IMAGES[0]).any(axis=(1, 2, 3))
    assert 60 < flipped.sum() < 140  # the same numbers would flip all of them back


@pytest.mark.parametrize(
    "kind", [Shift(0), Flip(0), Flip(0.0), Affine(), Affine(0, 0.0, shear=0, shift=0), Cutout(0)], ids=repr
)
def test_nothing_is_the_identity(kind):
    np.testing.assert_array_equal(augmented([kind]), IMAGES)
    unit = STREAM.uniform((len(IMAGES), kind.draws))
    np.testing.assert_array_equal(kind.apply(IMAGES, unit, NUMPY), IMAGES)  # also where it is computed


# What each kind does


def shifted(image, down, right):
    """By padding and cutting a window out, as one would crop."""
    h, w, _ = image.shape
    return np.pad(image, ((20, 20), (20, 20), (0, 0)))[20 - down : 20 - down + h, 20 - right : 20 - right + w]


@pytest.mark.parametrize("pixels", [1, 2, 10])
def test_a_shift_is_padding_and_a_random_window(pixels):
    n = 2500
    y = augmented([Shift(pixels)], np.repeat(IMAGES[:1], n, axis=0))
    size, seen = 2 * pixels + 1, np.zeros(n, bool)
    for down in range(-pixels, pixels + 1):
        for right in range(-pixels, pixels + 1):
            hits = (y == shifted(IMAGES[0], down, right)).all(axis=(1, 2, 3))
            seen |= hits
            if pixels < 3:
                assert 0.5 * n / size**2 < hits.sum() < 2 * n / size**2
    assert seen.all()


def test_flip_mirrors_left_and_right():
    np.testing.assert_array_equal(augmented([Flip(1.0)]), IMAGES[:, :, ::-1])
    y = augmented([Flip(0.25)], np.repeat(IMAGES[:1], 400, axis=0))
    mirrored = (y == IMAGES[0, :, ::-1]).all(axis=(1, 2, 3))
    assert ((y == IMAGES[0]).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert 60 < mirrored.sum() < 140


@pytest.mark.parametrize("size", [1, 3, 4])
def test_cutout_hides_one_square_around_any_pixel(size):
    images = np.ones((500, 7, 9, 2), "float32")
    hidden = augmented([Cutout(size)], images) == 0
    assert (hidden[..., 0] == hidden[..., 1]).all()
    rows, columns = hidden[..., 0].any(axis=2), hidden[..., 0].any(axis=1)
    np.testing.assert_array_equal(hidden[..., 0], rows[:, :, None] & columns[:, None, :])
    for lines in (rows, columns):
        counts = lines.sum(axis=1)
        assert counts.max() == size
        assert counts.min() >= size // 2 + size % 2 - (size % 2 == 0)  # a centre in a corner
        assert (np.abs(np.diff(lines.astype(int), axis=1)).sum(axis=1) <= 2).all()  # one stretch
        assert lines.any(axis=0).all()  # every line is hidden in some image


def test_turning_by_right_angles_is_rot90():
    square = IMAGES[:, :, 1:8]
    for quarters in range(-2, 5):
        np.testing.assert_array_equal(turned(square, 90 * quarters), np.rot90(square, quarters, axes=(1, 2)))
    np.testing.assert_array_equal(turned(IMAGES, 180), IMAGES[:, ::-1, ::-1])


def test_whole_pixels_scales_and_shears():
    for down, right in ((2, -3), (-1, 0), (9, 9)):
        np.testing.assert_array_equal(turned(IMAGES, down=down, right=right)[4], shifted(IMAGES[4], down, right))
    half = turned(IMAGES, scale=0.5)  # every second pixel, in the middle
    np.testing.assert_array_equal(half[:, 2:5, 3:6], IMAGES[:, 1:6:2, 2:7:2])
    assert not half[:, 1].any()
    leaning = turned(IMAGES, shear=45)
    for row in range(7):
        np.testing.assert_allclose(leaning[4, row], shifted(IMAGES[4], 0, 3 - row)[row], atol=1e-3)


def test_anything_in_between_is_bilinear():
    """Against a plain loop in float64, the matrix worked out another way: forward, then inverted."""
    degrees, scale, shear, down, right = values = 23.0, 1.15, 12.0, 0.7, -1.3
    a, s = np.deg2rad(degrees), np.tan(np.deg2rad(shear))
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    back = np.linalg.inv(scale * turn @ np.array([[1, 0], [-s, 1]]))
    image, expected = IMAGES[0].astype(float), np.zeros((7, 9, 2))
    for i in range(7):
        for j in range(9):
            y, x = back @ [i - 3 - down, j - 4 - right] + [3, 4]
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= row < 7 and 0 <= column < 9:
                        expected[i, j] += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    assert expected.any(axis=2).sum() > 40
    np.testing.assert_allclose(turned(IMAGES[:1], *values)[0], expected, atol=2 / 4096)


def test_affine_draws_each_amount_evenly_and_apart(monkeypatch):
    from xpnn.data import augment

    found = []
    monkeypatch.setattr(augment, "resampled", lambda images, *amounts: found.extend(amounts[:-1]) or images)
    augmented([Affine(degrees=10, scale=0.2, shear=5, shift=3)], np.zeros((2000, 1, 1, 1), "float32"))
    for values, middle, most in zip(found, (0, 1, 0, 0, 0), (10, 0.2, 5, 3, 3), strict=True):
        apart = (values - middle) / most
        assert np.abs(apart).max() <= 1
        np.testing.assert_allclose(
            np.quantile(apart, [0.05, 0.25, 0.5, 0.75, 0.95]), [-0.9, -0.5, 0, 0.5, 0.9], atol=0.1
        )
    assert np.abs(np.corrcoef(found) - np.eye(5)).max() < 0.1


# In training


def images_trained_on(backend, augment, batch_size=5, epochs=(1, 1)):
    trainer = Trainer(Sequential([Flatten(), Dense(2)]), backend=backend, seed=7)
    trainer.build(IMAGES.shape[1:])
    with recorded(trainer) as seen:
        for n in epochs:
            trainer.fit(IMAGES, np.arange(12) % 2, epochs=n, batch_size=batch_size, augment=augment)
    return np.concatenate([images for images, *_ in seen])


@pytest.mark.eager
def test_the_trainer_hands_each_image_its_number(backend):
    both = Augment([Shift(1), Cutout(2)])
    seen, plain = (images_trained_on(backend, a) for a in (both, None))
    np.testing.assert_array_equal(seen, both(plain, Stream(7, "augment"), 0, NUMPY))
    np.testing.assert_array_equal(images_trained_on(backend, both, batch_size=4), seen)
    np.testing.assert_array_equal(images_trained_on(backend, both, epochs=(2,)), seen)


def test_a_resumed_run_sees_the_same_pictures(tmp_path):
    both = Augment([Affine(degrees=10, shift=1), Flip()])
    whole = images_trained_on("numpy", both)
    trainer = Trainer(Sequential([Flatten(), Dense(2)]), backend="numpy", seed=7)
    trainer.fit(IMAGES, np.arange(12) % 2, batch_size=5, augment=both)
    trainer.save(tmp_path / "state.safetensors")
    again = Trainer.load(tmp_path / "state.safetensors", backend="numpy")
    with recorded(again) as seen:
        again.fit(IMAGES, np.arange(12) % 2, batch_size=5, augment=both)
    np.testing.assert_array_equal(np.concatenate([images for images, *_ in seen]), whole[12:])


def test_validation_and_evaluation_are_not_augmented():
    labels = np.arange(12) % 2
    away = Augment([Shift(1), Cutout(7)])
    trainer = Trainer(Sequential([Flatten(), Dense(2)]), backend="numpy")
    (record,) = trainer.fit(IMAGES, labels, validation_data=(IMAGES, labels), augment=away)
    plain = trainer.evaluate(IMAGES, labels)
    assert record["validation_loss"] == plain["loss"]
    trainer.optimizer = SGD(1e-30, momentum=0.9)
    assert trainer.fit(IMAGES, labels, augment=away)[0]["loss"] != pytest.approx(plain["loss"], rel=1e-4)


@dataclass(frozen=True)
class Blast(Kind):
    """Makes some images infinitely bright."""

    draws: ClassVar[int] = 1

    def apply(self, images, unit, backend):
        return images * backend.asarray(np.where(unit > 0.9, np.inf, 1.0)[:, :, None, None], "float32")


def test_the_replay_of_a_step_that_was_not_finite_sees_the_same_images():
    model = Sequential([Flatten(), Dense(2)])
    trainer, steps = Trainer(model, optimizer=SGD(1e-3), backend="numpy", seed=2), []

    class Count(Callback):
        def on_step(self, fit):
            steps.append(fit.step)

    with pytest.raises(NonFiniteError, match=r"that is not finite is that of layer 0 \(Flatten\(\)\)"):
        trainer.fit(IMAGES, np.arange(12) % 2, batch_size=2, augment=Augment([Blast()]), callbacks=[Count()])
    assert (trainer.step, len(steps)) == (4, 6)


# Recipes, code and mistakes


def test_a_recipe_is_code():
    for a in (*RECIPES.values(), Augment([]), Augment([Affine(5, shift=0.5), Cutout(3)])):
        assert eval(repr(a)) == a
        assert hash(eval(repr(a))) == hash(a)
    assert repr(Augment((Shift(2), Flip()))) == "Augment([Shift(pixels=2), Flip(probability=0.5)])"


def test_recipes():
    assert {"digits", "mnist", "fashion-mnist", "kmnist", "cifar10"} == RECIPES.keys()
    assert recipe("cifar10") == Augment([Flip(), Shift(4)])
    assert recipe("my-images.npz") == Augment([Shift(2)])
    for name in ("digits", "mnist", "kmnist", "anything"):
        assert not any(isinstance(kind, Flip) for kind in recipe(name).kinds), "a mirrored character is another"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shift(1.5), "Shift: pixels=1.5; expected an integer ≥ 0"),
        (lambda: Shift(-1), "Shift: pixels=-1; expected an integer ≥ 0"),
        (lambda: Cutout(True), "Cutout: size=True; expected an integer ≥ 0"),
        (lambda: Flip(1.1), "Flip: probability=1.1; expected a number from 0 to 1"),
        (lambda: Affine(degrees="10"), "Affine: degrees='10'; expected a number from 0 to 180"),
        (lambda: Affine(scale=1.0), "Affine: scale=1.0; expected a number from 0 to 0.9"),
        (lambda: Affine(shear=90), "Affine: shear=90; expected a number from 0 to 80"),
        (lambda: Affine(shift=float("nan")), "Affine: shift=nan; expected a number ≥ 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(") + "$"):
        make()


def test_a_recipe_of_nearly_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, near in (("mnsit", "mnist"), ("cifar-10", "cifar10"), ("fashion_mnist", "fashion-mnist")):
        with pytest.raises(ValueError, match=f"no recipe '{name}'; did you mean '{near}'.* write Augment"):
            recipe(name)
        (tmp_path / name).mkdir()
        assert recipe(name) == Augment([Shift(2)])


def test_what_is_no_recipe():
    with pytest.raises(TypeError, match=r"Augment: 'mnist' is no kind of augmentation; .* Augment\(\[Shift\(2\)\]\)"):
        Augment("mnist")
    trainer = Trainer(Sequential([Flatten(), Dense(2)]), backend="numpy")
    with pytest.raises(TypeError, match=r"augment='mnist'; expected an Augment, e\.g\. xpnn\.data\.augment\.recipe"):
        trainer.fit(IMAGES, np.arange(12) % 2, augment="mnist")


def test_data_without_rows_and_columns():
    trainer = Trainer(Dense(2), backend="numpy")
    with pytest.raises(ShapeError, match=r"images have shape \(12, 9\); expected \(N, H, W, C\)"):
        trainer.fit(IMAGES[:, 0, :, 0], np.arange(12) % 2, augment=recipe("other"))
