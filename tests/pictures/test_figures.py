"""What the figures of a run show, by what is in them."""

import numpy as np
import pytest

from xpnn.layers import Conv2D, ReLU
from xpnn.pictures import figures

pytest.importorskip("matplotlib")


def drawn(figure, tmp_path):
    """The figure, once it was drawn as it is for a page."""
    figure.savefig(tmp_path / "figure.png")
    return figure.axes


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves(epochs, tmp_path):
    history = [
        {"epoch": e, "loss": 1 / e, "accuracy": 1 - 1 / e, "validation_loss": 2 / e, "validation_accuracy": 0.5}
        for e in range(1, epochs + 1)
    ]
    loss, accuracy = drawn(figures.curves(history), tmp_path)
    train, held_out = loss.lines
    np.testing.assert_array_equal(train.get_xdata(), range(1, epochs + 1))
    np.testing.assert_allclose(train.get_ydata(), [r["loss"] for r in history])
    np.testing.assert_allclose(held_out.get_ydata(), [r["validation_loss"] for r in history])
    assert [t.get_text() for t in accuracy.get_legend().get_texts()] == ["training", "held out"]
    other = figures.curves(history, "test").axes[0]
    assert [t.get_text() for t in other.get_legend().get_texts()] == ["training", "test"]
    low, high = loss.get_xlim()
    assert all(t == round(t) for t in loss.get_xticks() if low <= t <= high)


def test_curves_of_one_epoch_are_told_apart_without_colour(tmp_path):
    """Also where one point lies upon the other: the one below is larger, and hollow."""
    record = {"epoch": 1, "loss": 1.0, "validation_loss": 1.0}
    (axes,) = drawn(figures.curves([record]), tmp_path)
    train, held_out = axes.lines
    assert (train.get_marker(), train.get_markerfacecolor(), held_out.get_marker()) == ("s", "white", "o")
    assert train.get_markersize() > held_out.get_markersize()


def test_curves_without_accuracy_or_with_a_gap(tmp_path):
    (axes,) = drawn(figures.curves([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": None}]), tmp_path)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [2.0, np.nan])


@pytest.mark.parametrize("size", [2, 10, 30, 100])
def test_confusion(size, tmp_path):
    counts = np.diag(np.arange(1, size + 1))
    counts[0, 1] = 3
    names = [f"class {i}" for i in range(size)]
    (axes,) = drawn(figures.confusion(counts, names), tmp_path)
    shares = axes.images[0].get_array()
    assert (shares[0, 0], shares[0, 1], shares[1, 1]) == (0.25, 0.75, 1.0)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("what was said", "what it was")
    assert axes.get_title() == f"{counts.trace():,} of {counts.sum():,} right"
    assert len(axes.texts) == (size + 1 if size <= 20 else 0)
    if size <= 50:
        assert [t.get_text() for t in axes.get_yticklabels()] == names


@pytest.mark.parametrize(
    ("name", "text"),
    [("ship", "ship"), (r"$\foo$", r"$\foo$"), ("$5", "$5"), ("14 letters: 14", "14 letters: 14"),
     ("one that is too long", "one th…oo long")],
)  # fmt: skip
def test_names_are_drawn_as_they_are(name, text, tmp_path):
    """A `$` begins no formula, of which matplotlib would refuse a wrong one."""
    (axes,) = drawn(figures.confusion(np.eye(2, dtype=int), [figures.label(name), "other"]), tmp_path)
    found, is_formula = axes.get_yticklabels()[0]._preprocess_math(axes.get_yticklabels()[0].get_text())
    assert (found, is_formula) == (text, False)


def test_a_class_that_never_was(tmp_path):
    (axes,) = drawn(figures.confusion(np.asarray([[0, 0], [1, 1]]), ["a", "b"]), tmp_path)
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 0], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("shape", "tiles"), [((6, 5, 5, 1), 6), ((4, 3, 3, 2), 8), ((16, 3, 3, 3), 16), ((200, 1, 1, 1), 64)]
)
def test_kernels(shape, tiles, tmp_path):
    weight = np.random.default_rng(0).normal(size=shape)
    figure = figures.kernels(weight, "Conv2D")
    shown = [axes.images[0].get_array() for axes in drawn(figure, tmp_path) if axes.images]
    assert len(shown) == tiles
    if shape[-1] == 3:
        assert shown[0].shape == (3, 3, 3)
        assert min(s.min() for s in shown) >= 0
        assert max(s.max() for s in shown) <= 1
    else:
        np.testing.assert_allclose(shown[1], weight[1, ..., 0] if shape[-1] == 1 else weight[0, ..., 1])
    assert f"{tiles} of {shape[0] * (1 if shape[-1] == 3 else shape[-1])} kernels" in figure.get_suptitle()


def test_kernels_that_are_zero(tmp_path):
    drawn(figures.kernels(np.zeros((2, 3, 3, 3)), "Conv2D"), tmp_path)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_maps(channels, tmp_path):
    image = np.random.default_rng(0).random((9, 7, channels))
    y = np.arange(4 * 3 * 40.0).reshape(4, 3, 40)
    found = [("0", Conv2D(40, 3), y), ("1", ReLU(), y[..., :5])]
    first, second, third = drawn(figures.maps(image, found, "a test image"), tmp_path)
    assert first.images[0].get_array().shape == ((9, 7, 3) if channels == 3 else (9, 7))
    sheet = second.images[0].get_array()
    assert sheet.shape == (2 * 5 - 1, 16 * 4 - 1)  # 32 of 40 channels in two rows, a gap between them
    np.testing.assert_array_equal(sheet[:4, 4:7], y[..., 1])
    np.testing.assert_array_equal(sheet[5:, :3], y[..., 16])
    assert second.get_title("left") == "0 Conv2D: 4 × 3 × 40"
    assert third.get_title("left") == "1 ReLU: 4 × 3 × 5"


@pytest.mark.parametrize("count", [1, 5, 16])
def test_mistakes(count, tmp_path):
    images = np.random.default_rng(0).random((count, 8, 8, 1))
    axes = drawn(figures.mistakes(images, [f"said {i}" for i in range(count)]), tmp_path)
    with_image = [a for a in axes if a.images]
    assert [a.get_title() for a in with_image] == [f"said {i}" for i in range(count)]
    np.testing.assert_array_equal(with_image[-1].images[0].get_array(), images[-1, ..., 0])


LONG = figures.label("an extraordinarily long name")


@pytest.mark.parametrize(
    "figure",
    [
        lambda: figures.mistakes(np.ones((6, 8, 8, 1)), [f"said {LONG}\n(100%)\nis {LONG}"] * 6),
        lambda: figures.kernels(
            np.ones((32, 3, 3, 1)), "Conv2D(128, (3, 3), stride=(2, 1), padding='same', bias=False)"
        ),
        lambda: figures.confusion(np.full((10, 10), 1000), [LONG] * 10),
    ],
    ids=["mistakes", "kernels", "confusion"],
)
def test_words_have_room(figure, tmp_path):
    """None is cut off at the edge, nor runs into another."""
    figure = figure()
    axes = drawn(figure, tmp_path)
    texts = [figure._suptitle, *(t for a in axes for t in (a.title, *a.texts))]
    boxes = [t.get_window_extent() for t in texts if t is not None and t.get_text()]
    assert all(b.x0 >= 0 and b.x1 <= figure.bbox.x1 and b.y0 >= 0 and b.y1 <= figure.bbox.y1 for b in boxes)
    for i, box in enumerate(boxes):
        assert not box.overlaps(boxes[i - 1]) or i == 0
