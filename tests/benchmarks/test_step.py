"""The harness runs and writes what it says; it is not asked how fast anything is."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import xpnn
from xpnn.random import Stream

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import step


def test_results_and_record(tmp_path, capsys):
    file = tmp_path / "deep" / "step.json"
    arguments = ["--models", "article", "--batches", "8", "--rounds", "2", "--seconds", "0.001", "--loops"]
    step.main([*arguments, "--json", str(file)])
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["backend"]["name"] == "numpy"
    assert record["settings"]["rounds"] == 2
    (result,) = record["results"]
    assert (result["model"], result["batch"]) == ("article", 8)
    assert {"xpnn", "loops"} <= result["sides"].keys()
    for row in result["sides"].values():
        assert row["images_per_second"] > 0
        assert len(row["seconds"]) == 2
    assert "images/s" in capsys.readouterr().out


def test_no_ratio_where_the_spread_is_wider_than_the_difference():
    def rows(ours, spread):
        return {
            "xpnn": {"images_per_second": ours, "spread": spread},
            "torch": {"images_per_second": 50.0, "spread": 0.0},
            "torch channels-last": {"images_per_second": 100.0, "spread": 0.01},
        }

    assert step.ratio(rows(150.0, 0.1)) == 1.5
    assert step.ratio(rows(105.0, 0.1)) is None
    assert step.ratio({"xpnn": {"images_per_second": 1.0, "spread": 0.0}}) is None


@pytest.mark.parametrize("model", step.SHAPES)
def test_peers_are_the_same_networks(model, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    shape = step.SHAPES[model]
    trainer = xpnn.Trainer(xpnn.models.get(model), backend="numpy").build(shape)
    trainer.save_weights(tmp_path / "weights.safetensors")
    net = step.torch_network(trainer.model, shape)
    net.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = Stream(0, "x").uniform((2, *shape)).astype("float32")
    theirs = net.eval()(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).detach().numpy()
    np.testing.assert_allclose(trainer.predict(x), theirs, rtol=1e-4, atol=1e-5)
