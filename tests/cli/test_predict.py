"""`xpnn predict` and `xpnn explain`: what they answer and write, and what they say of mistakes."""

import json

import numpy as np
import pytest

import xpnn
from xpnn.cli import main

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    options = ["--model", "tiny-cnn", "--epochs", "3", "--backend", "numpy", "--no-pictures", "--out", str(folder)]
    assert main(["train", *options]) == 0
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(name, index=0, side=120):
    """A test digit drawn dark on light; returns its class."""
    digits = xpnn.data.digits()
    small = Image.fromarray(255 - (digits.test_images[index, ..., 0] * 255).round().astype(np.uint8))
    page = Image.new("L", (side + 60, side + 90), 255)
    page.paste(small.resize((side, side), Image.Resampling.BICUBIC), (20, 50))
    page.save(name)
    return digits.classes[digits.test_labels[index]]


def test_what_a_picture_shows(run, capsys):
    shown = picture("one.png", 1)
    assert main(["predict", run, "one.png"]) == 0
    first, done, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith(f"one.png: {shown} (")
    assert done.startswith("  light background: inverted; ink of ")
    assert len(rows) == 5
    assert rows[0].split()[0] == shown


def test_a_picture_that_is_as_the_network_wants_it(capsys, tmp_path):
    pytest.importorskip("platformdirs")
    for name, colour in (("black", 0), ("white", 255)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (colour,) * 3).save(tmp_path / "photos" / name / f"{i}.png")
    options = ["--dataset", "photos", "--model", "article", "--epochs", "1", "--backend", "numpy", "--no-pictures"]
    assert main(["train", *options, "--out", "own"]) == 0
    capsys.readouterr()
    assert main(["predict", "own", "photos/black/1.png"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  taken as it is"
    assert main(["explain", "own", "photos/black/1.png"]) == 0
    assert capsys.readouterr().out.startswith("taken as it is\nwritten to 1.html")


def test_json_and_top(run, capsys):
    shown = [picture(name, i) for i, name in enumerate(("a.png", "é.jpg"))]
    assert main(["predict", run, "a.png", "é.jpg", "--top", "10", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()  # else a terminal that lacks a sign would change it
    answers = json.loads(out)
    assert [a["image"] for a in answers] == ["a.png", "é.jpg"]
    assert [a["class"] for a in answers] == shown
    for answer in answers:
        values = list(answer["probabilities"].values())
        assert len(values) == 10
        assert sum(values) == pytest.approx(1)
        assert values == sorted(values, reverse=True)
        assert answer["prepared"]


def test_one_bad_picture_does_not_hide_the_others(run, capsys, tmp_path):
    shown = picture("good.png", 2)
    (tmp_path / "text.png").write_text("hello")
    Image.new("L", (90, 90), 255).save("blank.png")
    assert main(["predict", run, "none.png", "text.png", ".", "blank.png", "good.png"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"good.png: {shown} (")
    none, text, folder, blank = err.splitlines()
    assert none == "xpnn predict: none.png: there is no such file; check the name"
    assert text.startswith("xpnn predict: text.png: not a picture that can be read")
    assert folder.startswith("xpnn predict: . is a folder; name the pictures in it")
    assert blank.startswith("xpnn predict: blank.png: nothing stands out from the background")


def test_json_of_nothing_but_bad_pictures_is_json(run, capsys):
    assert main(["predict", run, "none.png", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == []


def test_no_run(capsys):
    assert main(["predict", "nowhere", "one.png"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_explain_writes_a_page(run, capsys, tmp_path):
    picture("one.png", 1)
    assert main(["explain", run, "one.png"]) == 0
    assert "written to one.html" in capsys.readouterr().out
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert '"path": "9", "name": "Dense"' in page
    assert main(["explain", run, "one.png", "--out", "deep/down.html"]) == 0
    assert (tmp_path / "deep" / "down.html").read_text(encoding="utf-8") == page


def test_explain_spares_what_it_did_not_write(run, capsys, tmp_path):
    picture("one.png", 1)
    (tmp_path / "one.html").write_text("<!doctype html><p>mine")
    assert main(["explain", run, "one.png"]) == 2
    assert "one.html is there already, and is no page of xpnn; choose another name" in capsys.readouterr().err
    assert (tmp_path / "one.html").read_text() == "<!doctype html><p>mine"
    before = (tmp_path / "one.png").read_bytes()
    with pytest.raises(SystemExit) as e:
        main(["explain", run, "one.png", "--out", "one.png"])
    assert e.value.code == 2
    assert "'one.png' is not a name that ends in .html" in capsys.readouterr().err
    assert (tmp_path / "one.png").read_bytes() == before
    for _ in range(2):  # the second page takes the place of the first
        assert main(["explain", run, "one.png", "--out", "page.html"]) == 0


@pytest.mark.parametrize(
    ("name", "said"), [("none.png", "no such file"), ("blank.png", "blank.png: nothing stands out")]
)
def test_explain_says_what_is_wrong_and_writes_nothing(run, capsys, tmp_path, name, said):
    Image.new("L", (90, 90), 255).save("blank.png")
    assert main(["explain", run, name]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


def test_explain_where_nothing_can_be_written(run, capsys, tmp_path):
    picture("one.png")
    (tmp_path / "file").write_text("")
    assert main(["explain", run, "one.png", "--out", "file/page.html"]) == 2
    assert "choose a file in a folder that you may write to" in capsys.readouterr().err
