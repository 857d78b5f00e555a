"""Accuracy over seeds: the test against known values, and words that say no more than the seeds do."""

import json
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from faults import Plain, faulty

from xpnn.data import load
from xpnn.errors import ShapeError
from xpnn.layers import Conv2D, Dense, Flatten, ReLU, Sequential
from xpnn.parity import TrainingReport, compare_training, permutation_p
from xpnn.parity.training import interval

NET = Sequential([Conv2D(4, 3, stride=2), ReLU(), Flatten(), Dense(10)])
DIGITS = load("digits")
SMALL = replace(
    DIGITS,
    train_images=DIGITS.train_images[:300],
    train_labels=DIGITS.train_labels[:300],
    test_images=DIGITS.test_images[:200],
    test_labels=DIGITS.test_labels[:200],
)


def test_permutation_p_by_hand():
    assert permutation_p([1, 2, 3], [4, 5, 6]) == 2 / 20
    assert permutation_p([4, 5, 6], [1, 2, 3]) == 2 / 20
    assert permutation_p([1, 2, 3, 4], [5, 6, 7, 8]) == 2 / 70
    assert permutation_p([1, 2, 4], [3, 5, 6]) == 4 / 20  # the triples that sum to at most 7: 123, 124
    assert permutation_p([0.5, 0.5], [0.5, 0.5]) == 1
    assert permutation_p([0.1 + 0.2], [0.3]) == 1  # a tie, but for rounding


def test_permutation_p_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for k in (3, 5, 6):
        a, b = rng.normal(0, 1, k), rng.normal(0.8, 1, k)
        known = stats.permutation_test((a, b), lambda x, y: np.mean(x) - np.mean(y), n_resamples=np.inf)
        assert permutation_p(a, b) == pytest.approx(known.pvalue, rel=1e-12)


def test_p_is_as_often_small_as_it_says():
    rng = np.random.default_rng(1)
    small = [permutation_p(rng.normal(size=4), rng.normal(size=4)) <= 0.05 for _ in range(2000)]
    assert abs(np.mean(small) - 2 / 70) < 0.012  # the largest p below 0.05 that 4 and 4 give is 2/70


def test_interval_holds_what_is_not_refused():
    a, b = [0.90, 0.91, 0.93, 0.92], [0.95, 0.96, 0.94, 0.97]
    low, high = interval(a, b)
    assert low < 0.04 < high
    for shift, refused in ((low - 1e-6, True), (low + 1e-6, False), (high - 1e-6, False), (high + 1e-6, True)):
        assert (permutation_p(a, np.asarray(b) - shift) <= 0.05) == refused
    assert interval([1, 2, 3], [4, 5, 6]) == (-inf, inf)
    assert interval([0.5] * 4, [0.5] * 4) == pytest.approx((0, 0), abs=1e-9)


def test_backends_that_agree():
    report = compare_training(NET, ["numpy", Plain()], SMALL, seeds=4, epochs=2)
    assert report.passed
    assert report.p > 0.5
    assert len(set(report.accuracies[0])) > 1
    assert report.verdict().startswith("no difference found")
    assert "4 seeds leave room for one from" in report.verdict()
    assert report.verdict().endswith("cannot show that there is none")


def test_a_backend_that_learns_less():
    bad = faulty("relu", lambda y, back, x: (0 * y, back))
    report = compare_training(NET, [Plain(), bad], SMALL, seeds=4, epochs=6)
    assert report.p == 2 / 70
    assert not report.passed
    assert report.difference < 0
    assert report.interval[1] < 0
    assert report.verdict() == "the accuracies of plain and faulty differ: p = 0.0286"


def test_few_seeds_say_nothing():
    report = TrainingReport(("a", "b"), ((0.9, 0.91, 0.92), (0.1, 0.11, 0.12)), -0.8, (-inf, inf), 0.1)
    assert report.smallest_p == 0.1
    assert "nothing can be said: 3 seeds give p = 0.1 at the least" in report.verdict()
    assert max(map(len, report.lines())) <= 80
    record = json.loads(json.dumps(report.record(), allow_nan=False))
    assert record["interval"] == [None, None]


def test_errors():
    pair = ["numpy", Plain()]
    for seeds in (0, 11):
        with pytest.raises(ValueError, match=f"seeds={seeds}; expected"):
            compare_training(NET, pair, SMALL, seeds=seeds)
    with pytest.raises(ValueError, match="epochs=0"):
        compare_training(NET, pair, SMALL, epochs=0)
    with pytest.raises(ValueError, match="'mse' knows no right answers"):
        compare_training(NET, pair, SMALL, loss="mse")
    with pytest.raises(ShapeError, match="out of range"):
        compare_training(NET, pair, replace(SMALL, test_labels=SMALL.test_labels + 5))
