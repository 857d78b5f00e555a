"""`xpnn parity`: what it says, writes and returns, and what it says of mistakes."""

import json
import re
from html import escape

import numpy as np
import pytest
from xpnn_numpy import NumPyBackend

import xpnn
from xpnn import backend as backends
from xpnn import models
from xpnn.cli import main
from xpnn.ops import Ops
from xpnn.parity import CASES, probe


@pytest.fixture(autouse=True)
def all_kernels(monkeypatch):
    monkeypatch.delenv("XPNN_KERNELS", raising=False)


def parity(*arguments):
    return main(["parity", "--backends", "numpy,strict", *map(str, arguments)])


def refused(capsys, *arguments):
    """What is said of a mistake."""
    assert parity(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.removeprefix("xpnn parity: ").rstrip()


class Faulty(NumPyBackend):
    """NumPy whose tanh forgets the square in its slope."""

    name = "faulty"

    def _tanh(ops, x):
        y = np.tanh(x)
        return y, lambda dy, *, input_gradient=True: (dy * (1 - y) if input_gradient else None,)

    kernels = {"tanh": _tanh}  # noqa: RUF012


@pytest.fixture
def faulty(monkeypatch):
    find = backends.find
    monkeypatch.setattr(backends, "find", lambda name: Faulty if name == "faulty" else find(name))


def test_the_same(capsys, tmp_path):
    file = tmp_path / "new" / "parity.json"
    assert parity("--cases", "conv", "--json", file) == 0
    out, err = capsys.readouterr()
    first, numpy, strict, noticed, _, head, *rows, _, verdict = out.splitlines()
    assert first == "Each side in float32 against float64 on NumPy."
    assert numpy.startswith(f"  numpy: device cpu; numpy {np.__version__}, ")
    assert strict.startswith("  strict: device ")
    assert re.fullmatch(
        r"Refused, with coarse factors: TF32 in (\d+) of \1, float16 in (\d+) of \2, .* cases\.", noticed
    )
    assert head.split() == ["case", "class", "n", "numpy", "numpy*", "strict", "verdict"]
    assert [row.split()[0] for row in rows] == [case.name for case in CASES if case.subject == "conv"]
    assert {row.split()[-1] for row in rows} == {"same"}
    assert re.fullmatch(r"The same: \d+ cases, \d+ arrays \(numpy, strict\)", verdict)
    assert err == f"1/{len(rows)}  conv\n"
    record = json.loads(file.read_text())
    assert record["verdict"] == "same"
    assert list(record["machine"]) == ["numpy", "strict"]
    assert [row["case"] for row in record["rows"]] == [row.split()[0] for row in rows]
    found = record["rows"][0]["sides"]["strict"]
    assert [f["name"] for f in found] == ["y", "dx", "dweight", "dbias"]
    assert all(0 <= f["ratio"] <= f["bound"] for f in found)


def test_files_that_parity_does_not_write_over(capsys, tmp_path):
    file = tmp_path / "notes.html"
    file.write_text("mine")
    assert "notes.html is there already, and is no page of xpnn; choose" in refused(capsys, "--html", file)
    assert file.read_text() == "mine"
    with pytest.raises(SystemExit) as e:
        parity("--html", tmp_path / "seven.png")
    assert e.value.code == 2
    assert "is not a name that ends in .html" in capsys.readouterr().err
    file.unlink()
    for _ in range(2):
        assert parity("--cases", "relu", "--html", file) == 0


def test_what_rounds_nothing_is_equal(capsys):
    assert parity("--cases", "relu", "--dtype", "float64") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("relu-")]
    assert rows
    assert all(row[1:] == ["exact", "=", "=", "=", "same"] for row in rows)


def test_they_differ(faulty, capsys, tmp_path):
    file = tmp_path / "parity.html"
    assert parity("--backends", "numpy,faulty", "--cases", "[tT]anh", "--html", file) == 1
    out = capsys.readouterr().out
    assert re.search(r"^tanh-plain: faulty\*: dx r = [\d.e+]+; at most 5\.66 for 2 terms$", out, re.M)
    assert re.search(r"^Tanh-plain: faulty\*: dx ", out, re.M)
    assert "numpy:" not in out.partition("Tanh-plain  ")[2]
    assert re.fullmatch(
        r"NOT the same: 3 cases, 24 arrays \(numpy, faulty\): tanh-plain: faulty\*: dx r = .*, and 2 more",
        out.splitlines()[-1],
    )
    page = file.read_text()
    assert page.count('class="differs"') > 4
    assert page.count('class="bar bad"') == 3  # tanh's dx by the kernel, in each case
    assert "tanh-plain: faulty*: dx r = " in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)


def test_coarse_products_are_not_certified(monkeypatch, capsys):
    monkeypatch.setattr(NumPyBackend, "kernels", {"matmul": probe.product(probe.FORMATS["TF32"])})
    monkeypatch.setenv("XPNN_KERNELS", "plain")
    assert parity("--cases", "relu") == 1
    out = capsys.readouterr().out
    assert "numpy*: matmul of size 16 gives 1.0 for 1.000244140625: it rounds its factors, or is wrong" in out
    assert out.splitlines()[-1].startswith("NOT the same: 3 cases, ")


def test_a_comparison_that_notices_nothing_certifies_nothing(monkeypatch, capsys):
    monkeypatch.setattr(probe, "FORMATS", {"TF32": lambda a: a})
    assert parity("--cases", "dense") == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(": TF32 products pass unnoticed: nothing is certified")


def test_mistakes(capsys, monkeypatch, tmp_path):
    assert refused(capsys, "--backends", "numpy,numpi").startswith("there is no backend 'numpi'")
    assert refused(capsys, "--backends", "numpy,strict,numpy") == (
        "--backends numpy,strict,numpy: numpy is there twice; a backend is always the same as itself"
    )
    assert refused(capsys, "--backends", "numpy,") == (
        "--backends 'numpy,': expected names with commas between them, as in numpy,cupy"
    )
    assert refused(capsys, "--cases", "convolve").startswith(
        "no case fits 'convolve'; give an op, a layer, or a pattern"
    )
    assert "no_float64" in refused(capsys, "--device", "no_float64", "--dtype", "float64")
    monkeypatch.setattr(NumPyBackend, "why_coarse", lambda self: "FAST=1 lets it round")
    assert refused(capsys) == "FAST=1 lets it round; nothing is certified while that is on"
    (tmp_path / "file").touch()
    assert refused(capsys, "--json", tmp_path / "file" / "x.json").startswith("cannot write ")


# Of a network


def test_network(capsys, tmp_path):
    json_file, page = tmp_path / "parity.json", tmp_path / "parity.html"
    options = ["--steps", 2, "--train", "--seeds", 4, "--epochs", 1, "--batch-size", 16]
    assert parity("article", *options, "--json", json_file, "--html", page) == 0
    out, err = capsys.readouterr()
    titles = [
        f"article on digits, {part}" for part in ("layer by layer", "2 steps side by side", "accuracy over 4 seeds")
    ]
    assert [line for line in out.splitlines() if line in titles] == titles
    assert out.splitlines()[-1] == f"The same: {'; '.join(titles)} (numpy, strict)"
    assert err.splitlines() == [f"{i}/3  {title}" for i, title in enumerate(titles, 1)]
    record = json.loads(json_file.read_text())
    assert record["rows"] == []
    assert [record[kind]["title"] for kind in ("layers", "drift", "training")] == titles
    assert all(record[kind]["passed"] for kind in ("layers", "drift", "training"))
    text = page.read_text()
    assert text.count("<h2>") == 4
    assert text.count("<polyline") == 4
    assert "new weight" in text


def test_network_and_cases(capsys):
    assert parity("article", "--cases", "relu") == 0
    out = capsys.readouterr().out
    assert "relu-plain  " in out
    assert re.search(
        r"^The same: \d+ cases, \d+ arrays; article on digits, layer by layer \(numpy, strict\)$", out, re.M
    )


def test_a_network_that_differs(faulty, monkeypatch, capsys, tmp_path):
    def dense(ops, x, weight, bias=None):
        return Ops().dense(x, 1.001 * weight, bias)

    monkeypatch.setattr(Faulty, "kernels", {"dense": dense})
    file, page = tmp_path / "state.safetensors", tmp_path / "parity.html"
    xpnn.Trainer(models.get("tiny-cnn"), backend="numpy", seed=1).build((8, 8, 1)).save(file)
    assert parity(file, "--backends", "numpy,faulty", "--html", page) == 1
    out = capsys.readouterr().out
    said = f"{file} on digits, layer by layer: y of layer 9 (Dense) on faulty is wrong by itself: r = "
    assert said in out
    assert out.splitlines()[-1].startswith(f"NOT the same: {file} on digits, layer by layer (numpy, faulty): faulty*: ")
    assert escape(said) in page.read_text()


def test_a_run_is_compared(tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        main(["train", "--limit", "100", "--epochs", "1", "--backend", "numpy", "--no-pictures", "--out", str(run)])
        == 0
    )
    capsys.readouterr()
    assert parity(run, "--batch-size", 8) == 0
    assert parity(run / "last.safetensors", "--batch-size", 8) == 0
    assert f"{run} on digits, layer by layer" in capsys.readouterr().out


def test_mistakes_with_networks(capsys, tmp_path):
    assert refused(capsys, "tiny-cn").startswith("no model 'tiny-cn'")
    assert refused(capsys, tmp_path) == (
        f"{tmp_path}: a folder without last.safetensors; give that of a run, as `xpnn train` makes it"
    )
    assert refused(capsys, tmp_path / "x.safetensors").startswith("there is no file ")
    assert refused(capsys, "tiny-cnn", "--backends", "numpy") == (
        "--backends numpy: a network is compared on two backends, not 1"
    )
    assert refused(capsys, "tiny-cnn", "--train", "--seeds", 3) == (
        "--seeds 3: fewer than 4 cannot show any difference; leave it out for 5"
    )
    assert refused(capsys, "tiny-cnn", "--data", "minst").startswith("There is no data set 'minst'")


@pytest.mark.skipif(backends.find("cupy").why_unavailable() is None, reason="CuPy can be used here")
def test_a_backend_that_cannot_be_used(capsys):
    assert refused(capsys, "--backends", "numpy,cupy").startswith("the backend 'cupy' cannot be used here: ")
