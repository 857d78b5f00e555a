"""A run that is killed at any moment, and goes on, ends with the bits of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from xpnn import FileFormatError, Trainer

COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in background
from xpnn.cli import main
sys.exit(main(sys.argv[1:]))
"""
OPTIONS = ["--model", "article", "--limit", "400", "--epochs", "12", "--batch-size", "4", "--patience", "100"]
LINGER = """
import itertools, time
from xpnn.train import files

replace, writes = files._replace, itertools.count()

def linger(target, data):
    replace(target, data)
    if next(writes) > 30:
        time.sleep(0.5)  # so that on a busy machine too the run is not at its end before the last kill

files._replace = linger
"""
OVERWRITE = """
import time
from xpnn.train import files

def overwrite(target, data):
    with open(target, "wb", buffering=0) as file:
        for start in range(0, len(data), 512):
            file.write(data[start : start + 512])
            time.sleep(2e-4)  # as on a slow disk: on a fast one all twenty may miss it

files._replace = overwrite
"""
KILLS = 20
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]


def start(folder, *more, patch="", **options):
    command = [sys.executable, "-c", patch + COMMAND, "train", "--backend", "numpy", "--no-pictures", "--out", folder]
    environment = os.environ | {"XPNN_KERNELS": "plain", "XPNN_THREADS": "1"}  # the start of compiled ones takes long
    return subprocess.Popen(
        [*command, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def ended(started):
    with started as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return True


def said(process, again=None):
    """What it said until its end. Python loses an interrupt in a callback of an import: such a signal is sent again."""
    for _ in range(6 if again else 0):
        try:
            return process.communicate(timeout=10)[1]
        except subprocess.TimeoutExpired:
            process.send_signal(again)
    return process.communicate(timeout=60)[1]


def killed_again_and_again(folder, patch):
    """Begin a run, interrupt it at `KILLS` random moments, let it end; the exit statuses of those that were hit."""
    moments, statuses, last = random.Random(7), [], folder / "last.safetensors"
    begun = False
    while len(statuses) < KILLS:
        before = last.stat().st_mtime_ns if last.exists() else 0
        more = ["--resume"] if begun else [*OPTIONS, "--save-every", "1e-9"]
        number, early = SIGNALS[len(statuses) % len(SIGNALS)], moments.random() < 0.2
        with start(folder, *more, patch=patch) as process:
            if early:  # perhaps before it has begun
                time.sleep(moments.uniform(0.1, 0.8))
            else:
                while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns != before):
                    time.sleep(0.002)
                time.sleep(moments.uniform(0, 0.05))
            process.send_signal(number)
            err = said(process, number if early else None)
        begun = begun or (folder / "config.toml").exists()
        if process.returncode == 0 or "is complete" in err:
            break
        statuses.append(process.returncode)
        if process.returncode == 2:
            raise FileFormatError(err)
    return statuses


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    assert ended(start(tmp_path / "whole", *OPTIONS))
    statuses = killed_again_and_again(tmp_path / "killed", LINGER)
    assert len(statuses) == KILLS, "it ended too soon to be killed so often"
    assert set(statuses) >= {-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT}  # before it listens: others
    assert ended(start(tmp_path / "killed", "--resume"))
    a, b = (Trainer.load(tmp_path / n / "last.safetensors", backend="numpy") for n in ("whole", "killed"))
    assert a.step == b.step == 1200
    for path, weight in a.weights.items():
        assert weight.tobytes() == b.weights[path].tobytes(), path
    lines = [(tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in ("whole", "killed")]
    assert len(lines[0]) == len(lines[1]) == 12
    assert not list((tmp_path / "killed").glob("*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_writer_that_is_not_atomic_is_caught(tmp_path):
    with pytest.raises(FileFormatError, match=r"last\.safetensors is (cut short|empty|damaged)"):
        killed_again_and_again(tmp_path / "killed", OVERWRITE)
