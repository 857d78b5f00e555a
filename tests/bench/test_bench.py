"""`xpnn bench`: all sides do the same work; what it says, writes and refuses. It is not asked how fast anything is."""

import io
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import xpnn
from xpnn import models
from xpnn.bench import machine, measure, report
from xpnn.bench.measure import Ratio, Result, Side
from xpnn.bench.sides import loops, ours
from xpnn.bench.work import Work
from xpnn.cli import bench as command
from xpnn.cli import main, progress
from xpnn.layers import Dropout, Residual, Sequential

FAST = ["--models", "tiny-cnn", "--batches", "2", "--rounds", "2", "--seconds", "0.01", "--threads", "1"]


def bench(*arguments):
    return main(["bench", *FAST, *map(str, arguments)])


@pytest.fixture
def numpy():
    return xpnn.backend.get("numpy")


@pytest.fixture
def unmeasured(monkeypatch):
    """Measuring would fail the test."""

    def take_turns(*args):
        raise AssertionError("it was measured")

    monkeypatch.setattr(measure, "take_turns", take_turns)


def plain(name, batch, training):
    """A work without dropout, which every library draws in its own way, and with one block of each kind."""
    work = Work(name, batch, training)
    layers = [layer for layer in models.get(name).layers if not isinstance(layer, Dropout)]
    if name == "resnet20":  # JAX takes ten seconds to compile all of it
        layers = layers[:5] + layers[9:11] + layers[-2:]
        assert [layer.shortcut is None for layer in layers if isinstance(layer, Residual)] == [True, False]
    work.__dict__["model"] = Sequential(layers)
    return work


def side(name, times, peer="torch", images=1):
    return Side(name, peer, images, lambda count: None, times)


# Both sides do the same work


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_peers_do_the_same_work(library, name, numpy):
    pytest.importorskip(library)
    if library == "torch":
        from xpnn_torch.peer import side as peer
    else:
        from xpnn_jax.peer import side as peer
    predict, train = plain(name, 4, training=False), plain(name, 4, training=True)
    np.testing.assert_allclose(peer(predict).steps(1), ours(predict, numpy).steps(1), rtol=1e-4, atol=1e-4)
    theirs, mine = peer(train), ours(train, numpy)
    for _ in range(3):  # the later losses are those after an update
        assert theirs.steps(1) == pytest.approx(mine.steps(1), rel=1e-4)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_peers_drop_values_in_training_alone(library, numpy):
    pytest.importorskip(library)
    if library == "torch":
        from xpnn_torch.peer import side as peer
    else:
        from xpnn_jax.peer import side as peer
    assert peer(Work("tiny-cnn", 4, True)).steps(1) != pytest.approx(
        peer(plain("tiny-cnn", 4, True)).steps(1), rel=1e-6
    )  # PyTorch draws anew each time: a wider bound is met by chance
    scores = peer(Work("tiny-cnn", 4, False)).steps(1)
    np.testing.assert_allclose(scores, ours(Work("tiny-cnn", 4, False), numpy).steps(1), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # those of torch.compile
def test_settings_of_pytorch():
    pytest.importorskip("torch")
    from xpnn_torch import peer as with_torch

    work = Work("article", 2, False)
    eager = with_torch.sides(work, gpu=False, threads=1, compiled=False)
    assert [s.name for s in eager] == ["torch", "torch channels-last"]
    np.testing.assert_allclose(eager[0].steps(1), eager[1].steps(1), rtol=1e-4, atol=1e-5)
    compiled = with_torch.sides(work, gpu=False, threads=1, compiled=True)
    assert [s.name for s in compiled[2:]] == ["torch compiled", "torch channels-last compiled"]


def test_a_layer_that_a_peer_does_not_have():
    pytest.importorskip("torch")
    from xpnn_torch.peer import network

    with pytest.raises(NotImplementedError, match=r"the peer in torch has no GELU\(\); leave --against torch out"):
        network(xpnn.layers.GELU(), (4,))


@pytest.mark.parametrize("training", [True, False])
def test_loops(training):
    found = loops(Work("article", 32, training))
    assert found.images == 8
    assert np.all(np.isfinite(found.steps(1)))


# The flops


@pytest.mark.parametrize(
    ("name", "forward", "first"),
    [
        ("article", 26 * 26 * 9 * 16 + 13 * 13 * 16 * 10, 26 * 26 * 9 * 16),
        (
            "small-cnn",
            26 * 26 * 9 * 32 + 11 * 11 * 9 * 32 * 64 + 1600 * 128 + 128 * 10,
            26 * 26 * 9 * 32,
        ),
        (
            "lenet5",
            28 * 28 * 25 * 6 + 10 * 10 * 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10,
            28 * 28 * 25 * 6,
        ),
        ("tiny-cnn", 64 * 9 * 32 + 64 * 9 * 32 * 32 + 512 * 10, 64 * 9 * 32),
        (
            "resnet20",
            1024 * 9 * 16 * (3 + 6 * 16)
            + 256 * (9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32)
            + 64 * (9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64)
            + 640,
            1024 * 9 * 3 * 16,
        ),
    ],
)
def test_flops_by_hand(name, forward, first):
    assert Work(name, 7, training=False).flops == 2 * forward
    assert Work(name, 7, training=True).flops == 6 * forward - 2 * first


def test_the_peak_is_positive(numpy):
    assert machine.peak(numpy, 1) > 1e8


# Rounds and ratios


def test_sides_take_turns():
    log = []

    def does(name):
        return lambda count: log.append((name, count))

    sides = [Side(name, "torch", 1, does(name)) for name in "ab"]
    assert list(measure.take_turns(sides, rounds=3, seconds=1e-9)) == [1 / 3, 2 / 3, 1]
    assert [name for name, _ in log[4:]] == ["a", "a", "b", "b"] + ["b", "b", "a", "a"] + ["a", "a", "b", "b"]
    assert log[:4] == [("a", 2), ("a", 2), ("b", 2), ("b", 2)]  # warm before the first turn
    assert [len(s.times) for s in sides] == [3, 3]


def test_medians_and_spreads_are_those_of_an_image():
    found = side("torch", [1.0, 2.0, 3.0, 4.0, 100.0], images=2)
    assert found.seconds == 1.5
    assert found.spread == 1.0


@pytest.mark.parametrize(
    ("mine", "theirs", "value"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], 2.0),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], None),
        ([1.0, 1.1, 1.2], [1.0, 1.3, 1.6], None),  # theirs spread by 0.3, the medians differ by 0.2
        ([0.8, 1.1, 1.4], [1.3, 1.3, 1.3], None),  # and so do ours
        ([1.0, 1.1, 1.2], [1.25, 1.3, 1.35], 1.3 / 1.1),
        ([4.0, 4.0, 4.1], [2.0, 2.0, 2.1], 0.5),
    ],
)
def test_no_ratio_where_the_rounds_spread_wider_than_the_difference(mine, theirs, value):
    found = measure.ratio(side("xpnn numpy", mine, "xpnn"), side("torch", theirs))
    assert found.value == (value if value is None else pytest.approx(value))
    assert (found.why is None) == (value is not None)
    if value is None:
        assert "the medians differ by" in found.why


def test_no_ratio_where_others_compute():
    mine, theirs = side("xpnn numpy", [1.0, 1.0], "xpnn"), side("torch", [3.0, 3.0])
    assert measure.ratio(mine, theirs, 0.02).value == pytest.approx(3.0)
    result = Result(Work("article", 1, True), [mine, theirs], others=0.38)
    assert [(r.value, r.why) for r in result.ratios] == [(None, "others used 38% of the cores meanwhile")]
    assert "≈ torch (others computed)" in report.table([result], 1e9)


@pytest.mark.parametrize(("everyone", "expected"), [(9, 0.2), (4, 0), (30, 1)])
def test_what_others_use(monkeypatch, everyone, expected):
    """Of two cores in ten seconds, five by this process; time that was stolen counts as used, and comes in pieces."""
    now = iter([(100.0, 20.0, 300.0), (110.0, 25.0, 300.0 + everyone)])
    monkeypatch.setattr(machine.Others, "_now", lambda self: next(now))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    assert machine.Others().share() == pytest.approx(expected)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell")
def test_this_process_is_none_of_the_others():
    others = machine.Others()
    begun = time.perf_counter()
    while time.perf_counter() - begun < 0.3:
        sum(range(10_000))
    seconds, own, everyone = (b - a for a, b in zip(others.begun, others._now(), strict=True))
    assert seconds >= 0.3
    assert own > 0.05
    assert everyone >= own - 0.05  # it is told in hundredths of a second


def test_the_ratio_is_to_the_best_setting_and_by_image():
    work = Work("article", 4, True)
    sides = [
        side("xpnn numpy", [4.0, 4.0], "xpnn", images=4),
        side("torch", [12.0, 12.0], images=4),
        side("torch channels-last", [8.0, 8.0], images=4),
        side("loops", [100.0, 100.0], "loops", images=2),
    ]
    result = Result(work, sides)
    assert result.ratios == [Ratio("xpnn numpy", "torch channels-last", 2.0), Ratio("xpnn numpy", "loops", 50.0)]
    text = report.table([result], 1e9)
    assert "2.00 × torch channels-last, 50.00 × loops" in text
    sides[0].times = [4.0, 12.0]
    text = report.table([Result(work, sides)], 1e9)
    assert "≈ torch channels-last (within the spread), 25.00 × loops" in text


# The command


def test_table_and_record(tmp_path, capsys):
    file = tmp_path / "deep" / "bench.json"
    assert bench("--against", "none", "--mode", "both", "--json", file) == 0
    out, err = capsys.readouterr()
    head, train, predict, peak = out.splitlines()
    assert head.split() == ["network", "batch", "mode", "side", "images/s", "spread", "of", "peak", "ratio"]
    assert train.split()[:5] == ["tiny-cnn", "2", "train", "xpnn", "numpy"]
    assert predict.split()[:3] == ["tiny-cnn", "2", "predict"]
    assert peak.startswith("threads 1; peak ")
    assert [line for line in err.splitlines() if "load" not in line] == [
        "1/2  tiny-cnn, batch 2, train",
        "2/2  tiny-cnn, batch 2, predict",
    ]
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["machine"]["name"] == "numpy"
    assert record["settings"] == {
        "backend": "numpy", "against": [], "compile": False, "models": ["tiny-cnn"], "batches": [2], "mode": "both",
        "rounds": 2, "seconds": 0.01, "threads": 1,
    }  # fmt: skip
    assert record["interrupted"] is False
    assert record["load"].keys() == {"before", "after"}
    assert {"xpnn", "python", "numpy"} <= record["versions"].keys()
    assert record["date"].endswith("+00:00")
    first, second = record["results"]
    assert (first["model"], first["image"], first["batch"], first["mode"]) == ("tiny-cnn", [8, 8, 1], 2, "train")
    assert second["mode"] == "predict"
    assert first["others"] is None or isinstance(first["others"], float)
    assert first["flops_per_image"] == Work("tiny-cnn", 2, True).flops
    (one,) = first["sides"]
    assert (one["name"], one["images_per_step"], len(one["seconds"])) == ("xpnn numpy", 2, 2)
    assert one["median"] == pytest.approx(np.median(one["seconds"]))
    assert one["images_per_second"] == pytest.approx(2 / one["median"])
    share = first["flops_per_image"] * one["images_per_second"] / record["peak_flops_per_second"]
    assert one["share_of_peak"] == pytest.approx(share)
    assert first["ratios"] == []


def test_against_torch_and_jax(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    file = tmp_path / "bench.json"
    assert bench("--against", "jax", "torch", "--mode", "predict", "--json", file) == 0
    record = json.loads(file.read_text(encoding="utf-8"))
    (result,) = record["results"]
    names = ["xpnn numpy", "torch", "torch channels-last", "jax", "xpnn jax"]
    assert [s["name"] for s in result["sides"]] == names
    pairs = {(r["ours"], r["theirs"].partition(" ")[0]) for r in result["ratios"]}
    assert pairs == {(o, t) for o in ("xpnn numpy", "xpnn jax") for t in ("torch", "jax")}
    assert all((r["ratio"] is None) == bool(r["why"]) for r in result["ratios"])
    assert {"torch", "jax"} <= record["versions"].keys()


def test_without_a_peer(monkeypatch, capsys):
    monkeypatch.setattr(command, "installed", lambda peer: False)
    assert bench() == 0
    assert 'no peer to compare with; pip install "xpnn[torch]" brings one' in capsys.readouterr().err


def test_threads_hold_for_the_run_alone(monkeypatch):
    monkeypatch.setenv("XPNN_THREADS", "7")
    before = machine.cores()
    with machine.threads(1):
        assert os.environ["XPNN_THREADS"] == "1"
        if hasattr(os, "sched_setaffinity"):
            assert len(machine.cores()) == 1
    assert os.environ["XPNN_THREADS"] == "7"
    assert machine.cores() == before


@pytest.mark.parametrize(("load", "warns"), [(0.4, False), (0.6, True), (None, False)])
def test_load(load, warns, monkeypatch, capsys):
    monkeypatch.setattr(machine, "load", lambda: load)
    assert bench("--against", "none") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "load" in line]
    assert len(said) == warns


@pytest.mark.parametrize("finished", [0, 1])
def test_interrupt(finished, monkeypatch, tmp_path, capsys):
    turns, works = command.measure.take_turns, []

    def take_turns(*args):
        works.append(args)
        if len(works) > finished:
            raise KeyboardInterrupt
        return turns(*args)

    monkeypatch.setattr(command.measure, "take_turns", take_turns)
    file = tmp_path / "bench.json"
    assert bench("--against", "none", "--mode", "both", "--json", file) == 130
    out, err = capsys.readouterr()
    assert f"interrupted; {finished} of 2 were finished" in err
    assert len(out.splitlines()) == finished * 3
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["interrupted"] is True
    assert len(record["results"]) == finished


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot(suffix, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"bench{suffix}"
    assert bench("--against", "none", "--plot", file) == 0
    assert file.stat().st_size > 1000
    if suffix == ".svg":
        assert "tiny-cnn, train" in file.read_text(encoding="utf-8")


def test_a_live_bar_on_a_terminal():
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with progress.steps(Terminal(), 2) as show:
        show(0.5, "tiny-cnn")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "smal-cnn"], "no model 'smal-cnn'; there are article, .*; did you mean 'small-cnn'"),
        (["--rounds", "1"], "--rounds 1: .* at least 2; leave it out for 7"),
        (["--against", "loops"], "the tutorial's loops have the network article alone; add --models article"),
        (["--against", "none", "torch"], "none goes alone"),
        (["--json", f"{__file__}/x.json"], r"cannot write .*/x.json \(.*\); choose a file in a folder"),
        (["--backend", "numpi"], "no backend 'numpi'.*did you mean 'numpy'"),
    ],
)
def test_mistakes(arguments, said, unmeasured, capsys):
    assert bench(*arguments) == 2
    *before, message = capsys.readouterr().err.splitlines()
    assert all("others compute" in line or "no peer" in line for line in before)
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batches", "0"], "argument --batches: '0' is not a positive integer"),
        (["--batches", "32,128"], "integer; several are separated by spaces: --batches 32 128; see xpnn bench --help"),
        (["--against", "torch,jax"], "); several are separated by spaces: --against torch jax; see xpnn bench --help"),
        (["--threads", "x"], "argument --threads: 'x' is not a positive integer; see"),
        (["--threads", "1,2"], "argument --threads: '1,2' is not a positive integer; see"),
        (["--seconds", "0"], "argument --seconds: '0' is not a positive number"),
        (["--against", "tourch"], "invalid choice: 'tourch'"),
        (["--mode", "x"], "invalid choice: 'x'"),
        (
            ["--plot", "x.pdf"],
            "argument --plot: 'x.pdf' is not a name that ends in .png or .svg",
        ),
    ],
)
def test_values_out_of_range(arguments, said, unmeasured, capsys):
    with pytest.raises(SystemExit) as e:
        bench(*arguments)
    assert e.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("peer", "name"), [("torch", "PyTorch"), ("jax", "JAX")])
def test_a_peer_that_is_not_installed(peer, name, unmeasured, monkeypatch, capsys):
    monkeypatch.setattr(command, "installed", lambda peer: False)
    assert bench("--against", peer) == 2
    assert f'--against {peer}: {name} is not installed; pip install "xpnn[{peer}]"' in capsys.readouterr().err


def test_plot_without_matplotlib(unmeasured, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert bench("--plot", "x.png") == 2
    assert 'matplotlib is not installed; pip install "xpnn[train]"' in capsys.readouterr().err


def test_a_mistake_leaves_no_file(tmp_path, unmeasured):
    file = tmp_path / "bench.json"
    assert bench("--json", file, "--backend", "numpi") == 2
    assert not file.exists()


def test_nothing_of_the_peers_is_imported_by_the_command():
    code = "import sys, xpnn.cli; sys.exit(any(n in sys.modules for n in ('torch', 'jax', 'matplotlib', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
