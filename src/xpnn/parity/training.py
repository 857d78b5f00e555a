"""The accuracy of two backends over some seeds: two distributions, and a test of their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from statistics import fmean, stdev
from textwrap import wrap
from typing import Any

import numpy as np

from xpnn import losses
from xpnn.backend import Backend
from xpnn.data.batches import Door, whole
from xpnn.data.dataset import Dataset
from xpnn.layers.base import Layer
from xpnn.losses import Loss
from xpnn.optim import Optimizer, Schedule
from xpnn.parity.cases import Host
from xpnn.parity.pair import label, number, two
from xpnn.train.trainer import Trainer

LEVEL = 0.05
"""Of the test, and 1 - that of the interval."""
MOST = 10
"""Seeds: the 184,756 ways to split twice as many results are still counted in a moment."""


@dataclass(frozen=True)
class TrainingReport:
    """What `compare_training` found; accuracies in the order of the seeds."""

    sides: tuple[str, str]
    accuracies: tuple[tuple[float, ...], tuple[float, ...]]
    difference: float
    """Mean of the second minus mean of the first."""
    interval: tuple[float, float]
    """Of the difference, 95 %; infinite where so few seeds exclude nothing."""
    p: float

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many seeds can give."""
        k = len(self.accuracies[0])
        return 2 / comb(2 * k, k)

    @property
    def passed(self) -> bool:
        """Whether no difference was found, which does not say that there is none."""
        return self.p > LEVEL

    def record(self) -> dict[str, Any]:
        """All of it as JSON values; None for what is infinite."""
        return {
            "sides": list(self.sides),
            "accuracies": [list(a) for a in self.accuracies],
            "difference": self.difference,
            "interval": [number(v) for v in self.interval],
            "level": LEVEL,
            "p": self.p,
            "smallest_p": self.smallest_p,
            "passed": self.passed,
            "verdict": self.verdict(),
        }

    def verdict(self) -> str:
        """What can be said after so few seeds, and what cannot."""
        k, (a, b) = len(self.accuracies[0]), self.sides
        if not self.passed:
            return f"the accuracies of {a} and {b} differ: p = {self.p:.3g}"
        if self.smallest_p > LEVEL:
            return (
                f"nothing can be said: {k} seeds give p = {self.smallest_p:.2g} at the least, whatever the difference; "
                "take 4 or more"
            )
        low, high = self.interval
        return (
            f"no difference found (p = {self.p:.2g}); {k} seeds leave room for one from {100 * low:+.2f} to "
            f"{100 * high:+.2f} points of accuracy, and cannot show that there is none"
        )

    def lines(self) -> list[str]:
        """A line for each side, the difference, the verdict."""
        lines = [f"{'':<16}{'seeds':>6}{'mean':>9}{'spread':>9}{'lowest':>9}{'highest':>9}"]
        for side, found in zip(self.sides, self.accuracies, strict=True):
            spread = stdev(found) if len(found) > 1 else 0.0
            cells = (fmean(found), spread, min(found), max(found))
            lines.append(f"{side[:16]:<16}{len(found):>6}" + "".join(f"{v:>9.2%}" for v in cells))
        low, high = (f"{100 * v:+.2f}" for v in self.interval)
        lines.append(f"difference {100 * self.difference:+.2f} points (95 %: {low} … {high}), p = {self.p:.3g}")
        return [*lines, *wrap(self.verdict(), 80)]


def compare_training(
    model: Layer,
    backends: Sequence[str | Backend],
    dataset: Dataset,
    *,
    seeds: int = 5,
    epochs: int = 3,
    batch_size: int = 64,
    loss: str | Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    dtype: str = "float32",
) -> TrainingReport:
    """Train with `seeds` seeds on each of two backends and compare the accuracies on the test images.

    The test is an exact permutation test (Fisher, 1935; Pitman, 1937) on the difference of the means, two-sided. A seed
    gives both backends the same weights and order, which makes their results more alike than the test assumes: it
    errs on the side of finding nothing.

    Args:
        model, backends: as in `compare_network`.
        dataset: as `xpnn.data.load` gives it.
        seeds: 1 … 10; fewer than 4 cannot show any difference at 5 %.
        epochs: each time through the training images, at least 1.
        batch_size, optimizer, schedule, loss, dtype: as a trainer takes them.

    Raises:
        ValueError: seeds or epochs out of range, twice the same backend, or a loss without right and wrong answers.
        BackendError: a backend that cannot be used here.
        ShapeError: data that do not fit the model.
    """
    if whole("seeds", seeds, 1) > MOST:
        raise ValueError(f"seeds={seeds}; expected at most {MOST}: the test goes through all splits of the results")
    epochs, pair, loss = whole("epochs", epochs, 1), two(backends), losses.get(loss)
    if not loss.answers:
        raise ValueError(f"the loss {loss.name!r} knows no right answers, so there is no accuracy to compare")
    door = Door(pair[0], dtype, loss)  # what is wrong with the test images is said before hours of training
    held_out = door.images(dataset.test_images)
    door.targets(dataset.test_labels, held_out, model.shape(tuple(held_out.shape[1:])))

    def accuracy(backend: Backend, seed: int) -> float:
        trainer = Trainer(model, loss, optimizer, schedule, backend=backend, seed=seed, dtype=dtype)
        trainer.build(dataset.train_images.shape[1:])
        trainer.fit(dataset.train_images, dataset.train_labels, epochs=epochs, batch_size=batch_size)
        return trainer.evaluate(dataset.test_images, dataset.test_labels)["accuracy"]

    a, b = (tuple(accuracy(backend, seed) for seed in range(seeds)) for backend in pair)
    names = label(pair[0], pair[1]), label(pair[1], pair[0])
    return TrainingReport(names, (a, b), fmean(b) - fmean(a), interval(a, b), permutation_p(a, b))


def permutation_p(a: Sequence[float], b: Sequence[float]) -> float:
    """The share of all splits of both samples whose means differ by at least as much, in either direction.

    Args:
        a, b: two samples of k numbers each.
    """
    return _p(np.asarray(a, np.float64), np.asarray(b, np.float64), _splits(len(a)), 0.0)


def interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """All shifts of `b` against `a` that the test does not refuse at 5 %; infinite where it refuses none."""
    x, y, splits = np.asarray(a, np.float64), np.asarray(b, np.float64), _splits(len(a))
    middle = float(np.mean(y) - np.mean(x))
    far = 4 * float(np.ptp(np.concatenate([x, y]))) + 1e-6  # beyond all the results p changes no more
    low, high = (_edge(x, y, splits, middle, middle + way * far) for way in (-1, 1))
    return low, high


def _edge(x: Host, y: Host, splits: Host, inside: float, outside: float) -> float:
    if _p(x, y, splits, outside) > LEVEL:
        return float(np.copysign(np.inf, outside - inside))
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if _p(x, y, splits, middle) > LEVEL else (inside, middle)
    return outside


def _splits(k: int) -> Host:
    return np.asarray(list(combinations(range(2 * k), k)))


def _p(x: Host, y: Host, splits: Host, shift: float) -> float:
    every = np.concatenate([x, y - shift])
    apart = np.abs(2 * np.sum(every[splits], axis=1) - np.sum(every))
    seen = abs(2 * float(np.sum(x)) - float(np.sum(every)))
    slack = 1e-9 * (1e-9 + float(np.max(np.abs(every))))  # splits that tie with what was seen count as well
    return float(np.mean(apart >= seen - slack))
