"""Trainings side by side: rounding passes, a fault does not, whether it begins at once or late."""

import json

import numpy as np
import pytest
from faults import Plain, faulty

from xpnn import backend as backends
from xpnn.data import load
from xpnn.errors import NonFiniteError
from xpnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Sequential
from xpnn.optim import SGD, Adam
from xpnn.parity import drift

NET = Sequential([Conv2D(4, 3), ReLU(), MaxPool2D(2), Flatten(), Dropout(0.2), Dense(10)])
DIGITS = load("digits")
IMAGES, LABELS = DIGITS.train_images[:150], DIGITS.train_labels[:150]


def drifted(*pair, **options):
    return drift(NET, pair, IMAGES, LABELS, batch_size=32, **{"steps": 8} | options)


@pytest.mark.parametrize("name", ["strict", "torch", "jax"])
@pytest.mark.parametrize("optimizer", [None, Adam()], ids=["SGD", "Adam"])
def test_backends_that_differ_by_rounding_pass(name, optimizer):
    if reason := backends.find(name).why_unavailable():
        pytest.skip(reason)
    report = drifted("numpy", name, optimizer=optimizer)
    assert report.passed, "\n".join(report.lines())
    assert 0 < report.steps[0].weights_drift < 1e-6


def test_equal_backends_do_not_drift_apart():
    report = drifted(Plain(), faulty("relu", lambda y, back, x: (y, back)))
    assert [s.ratio for s in report.steps] == [0] * 8
    assert all(s.loss == s.weights == 0 < s.weights_drift for s in report.steps)


def test_the_runs_are_those_of_a_trainer():
    from xpnn.train import Trainer

    losses = []
    trainer = Trainer(NET, backend=Plain())
    for _ in range(2):
        record = trainer.fit(IMAGES, LABELS, batch_size=32)[0]
        losses.append(record["loss"])
    steps = drifted(Plain(), "numpy", steps=10).steps
    sizes = np.asarray([32, 32, 32, 32, 22])
    means = np.asarray([s.losses[0] for s in steps]).reshape(2, 5) @ sizes / 150
    np.testing.assert_allclose(means, losses, rtol=1e-6)


@pytest.mark.parametrize(("size", "ratio"), [(1e-3, 1000), (1e-5, 12)])
def test_a_fault_is_refused(size, ratio):
    bad = faulty("dense", lambda y, back, *a: (y * np.float32(1 + size), back))
    report = drifted(Plain(), bad)
    assert not report.passed
    assert report.median > ratio
    assert "faster than rounding explains" in report.verdict()


def test_a_fault_that_begins_late_is_refused():
    calls = []

    def late(y, back, *a):
        calls.append(1)
        return (y * np.float32(1.001) if len(calls) > 7 else y), back

    report = drifted(Plain(), faulty("dense", late))
    assert report.median <= 8 < report.last
    assert not report.passed


def test_one_choice_that_falls_otherwise_early_does_not_decide():
    from xpnn.parity.drift import DriftReport, Step

    def steps(*ratios):
        return tuple(Step((1.0, 1.0), r * 1e-7, 0.0, 1e-7, 1e-7) for r in ratios)

    assert DriftReport(("a", "b"), "float32", 5, steps(1, 90, 30, 4, 3, 2, 2)).passed
    assert not DriftReport(("a", "b"), "float32", 5, steps(1, 90, 30, 14, 13, 12, 2)).passed
    assert not DriftReport(("a", "b"), "float32", 5, steps(1, 1, 1, 1, 1, 1, 9)).passed


def test_a_side_that_leaves_the_finite_numbers():
    bad = faulty("dense", lambda y, back, *a: (y * np.float32(np.inf), back))
    report = drifted(Plain(), bad)
    assert not report.passed
    assert json.loads(json.dumps(report.record(), allow_nan=False))["median"] is None
    with pytest.raises(NonFiniteError, match="at step 1 on faulty itself"):
        drifted(bad, Plain())


def test_table_and_record():
    report = drifted(Plain(), "numpy", steps=30, runs=2)
    lines = report.lines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[0] == "1"
    assert sum(row.split()[0].isdigit() for row in lines) == 20
    record = json.loads(json.dumps(report.record(), allow_nan=False))
    assert (len(record["steps"]), record["runs"], record["sides"]) == (30, 2, ["plain", "numpy"])


def test_errors():
    for option in ("steps", "batch_size", "runs"):
        with pytest.raises(ValueError, match=f"{option}=0; expected an integer"):
            drift(NET, ["numpy", Plain()], IMAGES, LABELS, **{option: 0})
    with pytest.raises(ValueError, match="no weights"):
        drift(Sequential([Flatten()]), ["numpy", Plain()], IMAGES, LABELS % 10)
    with pytest.raises(ValueError, match="agrees with itself"):
        drifted("numpy", "numpy")
    assert drifted(Plain(), "numpy", optimizer=SGD(lr=0.01), steps=1).passed
