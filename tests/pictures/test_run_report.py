"""The pictures of a run and its page."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import seen
from training import CLASSES, SHAPE, samples

import xpnn
from xpnn.cli import main
from xpnn.data import Dataset
from xpnn.layers import Conv2D, Dense, Flatten, LogSoftmax, Sequential
from xpnn.pictures import report

pytest.importorskip("matplotlib")


def dataset(shape=SHAPE, classes=CLASSES, names=None):
    images, labels = samples(40, shape=shape, classes=classes)
    names = names or tuple(f"class {i}" for i in range(classes))
    return Dataset("some <set>", images, labels, images[:20], labels[:20], names, "nobody & nothing")


def written(folder, trainer, data):
    summary = {
        "model": "a <model>", "test_accuracy": 0.5, "test_loss": 0.7, "train_accuracy": 0.6, "parameters": 3,
        "seconds": 1.5, "images_per_second": 10.0, "backend": trainer.backend.describe(), "versions": {"xpnn": "1"},
    }  # fmt: skip
    records = trainer.fit(data.train_images, data.train_labels, validation_data=(data.test_images, data.test_labels))
    return report.write(folder, trainer, data, records, summary, {"seed": 0, "data_dir": "/<i>" * 99})


class Page(HTMLParser):
    """What a page asks of the world, and its pictures."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.wanted, self.pictures = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                (self.pictures if value.startswith("data:image/png;base64,") else self.wanted).append(value)


def test_the_answers_are_counted_and_the_worst_come_first():
    data = dataset()
    trainer = xpnn.Trainer(Sequential([Flatten(), Dense(CLASSES)]), backend="numpy").build(SHAPE)
    images, labels = samples(600)
    found = report.answers(trainer, images, labels, CLASSES)
    scores = np.asarray(trainer.predict(images), np.float64)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    said = shares.argmax(axis=1)
    assert found.counts.sum() == 600
    for i in range(CLASSES):
        for j in range(CLASSES):
            assert found.counts[i, j] == ((labels == i) & (said == j)).sum()
    right = shares[np.arange(600), labels]
    expected = sorted(np.flatnonzero(said != labels), key=lambda i: right[i])[:16]
    assert found.worst == expected
    assert found.said == [(said[i], pytest.approx(shares[i, said[i]])) for i in expected]
    assert len(data.classes) == CLASSES


@pytest.mark.parametrize("shape", [SHAPE, (8, 8, 3)])
def test_a_run_is_drawn(shape, tmp_path):
    model = Sequential([Conv2D(4, 3), Conv2D(2, 1), Flatten(), Dense(CLASSES)])
    trainer = xpnn.Trainer(model, backend="numpy")
    files = written(tmp_path, trainer, dataset(shape))
    names = ["curves", "confusion", "mistakes", "kernels", "feature_maps"]
    assert files == [*(tmp_path / "pictures" / f"{n}.png" for n in names), tmp_path / "report.html"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files[:-1])
    text = files[-1].read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.pictures) == 5
    assert page.wanted == []
    assert "script" not in page.tags
    assert "<title>a &lt;model&gt; on some &lt;set&gt;</title>" in text
    assert "<h1>a &lt;model&gt; on some &lt;set&gt;</h1>" in text
    assert "nobody &amp; nothing" in text
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)


def test_of_many_layers_the_first_and_the_last_are_shown():
    assert report._some(list(range(3))) == [0, 1, 2]
    chosen = report._some(list(range(30)))
    assert (len(chosen), chosen[0], chosen[-1]) == (report.LAYERS, 0, 29)


def test_names_of_any_kind(tmp_path):
    """Markup and formulas are text, in the pictures and on the page."""
    names = (r"$\foo$", "<b>", "one that is far too long for the room there is", "&amp;")
    trainer = xpnn.Trainer(Sequential([Conv2D(2, 3), Flatten(), Dense(4)]), backend="numpy")
    *_, page = written(tmp_path, trainer, dataset(classes=4, names=names))
    tags = Page(page.read_text(encoding="utf-8")).tags
    assert (tags.count("b"), tags.count("i")) == (1, 0)  # that of the result


def test_pictures_say_what_was_said_and_what_is_true():
    data = dataset()
    trainer = xpnn.Trainer(Sequential([Conv2D(2, 3), Flatten(), Dense(CLASSES)]), backend="numpy")
    history = trainer.fit(data.train_images, data.train_labels)
    drawn = report._figures(trainer, data, history, "test")
    said = trainer.predict(data.test_images).argmax(axis=1)
    found = report.answers(trainer, data.test_images, data.test_labels, CLASSES)
    titles = [axes.get_title() for axes in drawn["mistakes"][2].axes if axes.images]
    assert len(titles) == len(found.worst) > 3
    for i, title in zip(found.worst, titles, strict=True):
        assert title.startswith(f"said {data.classes[said[i]]} (")
        assert title.endswith(f"%)\nis {data.classes[data.test_labels[i]]}")
    seen = drawn["feature_maps"][2].axes[0].get_title("left")
    assert seen == f"a test image: {data.classes[data.test_labels[0]]}"
    assert data.test_labels[0] != data.test_labels[1]


class Stored:
    """Images that are read part by part."""

    def __init__(self, images):
        self.images, self.shape, self.most = images, images.shape, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, part):
        self.most = max(self.most, len(self.images[part]))
        return self.images[part]


def test_images_are_read_part_by_part(tmp_path):
    images, labels = samples(700)
    stored = Stored(images)
    trainer = xpnn.Trainer(Sequential([Flatten(), Dense(CLASSES)]), backend="numpy").build(SHAPE)
    found = report.answers(trainer, stored, labels, CLASSES)
    assert stored.most == report.BATCH
    np.testing.assert_array_equal(found.counts, report.answers(trainer, images, labels, CLASSES).counts)


WIDTHS = """
const widths = [], page = document.documentElement.outerHTML;
for (const width of [390, 1280]) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800;
  const loaded = new Promise(done => { frame.onload = done; });
  frame.srcdoc = page.replaceAll("script", "template");
  document.body.append(frame);
  await loaded;
  const inside = frame.contentDocument;
  const wide = [...inside.images].map(image => [image.clientWidth, image.naturalWidth]);
  widths.push([inside.scrollingElement.scrollWidth, inside.scrollingElement.clientWidth, wide]);
}
return widths;
"""


def test_the_page_fits_a_phone(tmp_path):
    trainer = xpnn.Trainer(xpnn.models.get("tiny-cnn", CLASSES), backend="numpy")
    text = written(tmp_path, trainer, dataset(names=("a rather long name", "b", "c")))[-1].read_text(encoding="utf-8")
    for width, room, pictures in seen(text, WIDTHS, tmp_path):
        assert width <= room
        assert len(pictures) == 5
        assert all(0 < shown <= min(room, natural) for shown, natural in pictures)


def test_what_cannot_be_drawn_is_left_out(tmp_path):
    """No convolution, no picture of kernels; no mistake, none of mistakes."""
    data = dataset(classes=1, names=("one",))
    trainer = xpnn.Trainer(Sequential([Flatten(), Dense(1), LogSoftmax()]), loss="nll", backend="numpy")
    files = written(tmp_path, trainer, data)
    assert [f.name for f in files] == ["curves.png", "confusion.png", "report.html"]


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = ["--model", "article", "--limit", "200", "--epochs", "1", "--backend", "numpy", "--out", str(folder)]
    assert main(["train", *options]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A run that is complete, to be changed by the test."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_train_and_show(run, capsys):
    names = sorted(p.name for p in (run / "pictures").iterdir())
    assert names == ["confusion.png", "curves.png", "feature_maps.png", "kernels.png", "mistakes.png"]
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert main(["show", "run"]) == 0
    assert (run / "report.html").read_text() == before
    assert "run/report.html" in capsys.readouterr().out


def test_the_page_says_of_which_epoch_its_pictures_are(run):
    options = ["--model", "article", "--limit", "200", "--epochs", "2", "--backend", "numpy", "--out", "longer"]
    assert main(["train", *options]) == 0
    (run / "last.safetensors").replace("longer/best.safetensors")
    page, note = (
        Path("longer/report.html"),
        "That is the result of the last epoch; the pictures show the network after ",
    )
    assert note not in page.read_text()
    assert main(["show", "longer", "--checkpoint", "best"]) == 0
    assert f"{note}epoch 1 of 2." in page.read_text()


def test_without_matplotlib(run, capsys, monkeypatch):
    from xpnn.cli import train

    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["show", "run"]) == 2
    assert (
        'pictures are drawn by matplotlib, which is not installed: pip install "xpnn[train]"' in capsys.readouterr().err
    )
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    options = ["--model", "article", "--limit", "50", "--epochs", "1", "--backend", "numpy", "--out", "bare"]
    assert main(["train", *options]) == 0
    assert 'no pictures: pip install "xpnn[train]", then `xpnn show bare`' in capsys.readouterr().out


def test_a_run_that_was_interrupted(run):
    """What has no result yet is tested for the page."""
    found = xpnn.runs.open_run(run)
    before = (run / "report.html").read_text()
    results = ("test_accuracy", "test_loss", "train_accuracy", "seconds", "images_per_second")
    found.write_summary({k: v for k, v in found.summary().items() if k not in results} | {"status": "interrupted"})
    (run / "report.html").unlink()
    assert main(["show", "run"]) == 0
    assert (run / "report.html").read_text() == before


def test_a_run_without_an_epoch(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--model", "article", "--limit", "50", "--time-limit", "1e-9", "--backend", "numpy", "--out", "begun"]
    assert main(["train", *options]) == 1
    capsys.readouterr()
    assert main(["show", "begun"]) == 2
    assert "the run in begun is interrupted, and has no epoch to show; go on with it" in capsys.readouterr().err
