"""`benchmarks/time_to_accuracy.py` runs both sides and writes what it says; it is not asked how long they take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "time_to_accuracy.py"


def write_idx(path, values):
    head = bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">i4").tobytes()
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def test_both_sides_look_at_the_same_moments(tmp_path):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for name, n in (("train", 130), ("t10k", 20)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", rng.integers(0, 10, n))
    file = tmp_path / "result.json"
    command = [sys.executable, SCRIPT, "--seeds", "0", "--threads", "1", "--target", "1", "--json", file]
    environment = os.environ | {"XPNN_DATA": str(tmp_path), "XPNN_KERNELS": "plain"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not reached") == 2
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["ratio"], record["why"]) == (None, "not all runs reached the target")
    mine, theirs = record["runs"]
    assert (mine["side"], theirs["side"]) == ("xpnn", "torch")
    images = [130, 130 + 128, 130 + 130]  # rounded, some of the shares fall on the same step
    assert [look["images"] for look in mine["looks"]] == [look["images"] for look in theirs["looks"]] == images
    assert all(0 <= look["accuracy"] <= 1 and look["seconds"] > 0 for look in mine["looks"] + theirs["looks"])
