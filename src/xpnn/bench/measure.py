"""How it is timed: the sides take turns, and two that their rounds do not tell apart get no ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from xpnn.bench.work import Work

WARM = 4  # turns before the first one that counts
OTHERS = 0.1  # of the cores: threads that wait for one another lose far more than that


@dataclass
class Side:
    """One way to do the work.

    Attributes:
        name: what tells it from the others.
        peer: what it is a setting of: "xpnn", "torch", "jax", "loops".
        images: in a step.
        steps: does so many steps and waits for the device; returns the last step's mean loss, or the scores.
        times: seconds a step, one for each round.
    """

    name: str
    peer: str
    images: int
    steps: Callable[[int], Any]
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds an image, the median of the rounds."""
        return statistics.median(self.times) / self.images

    @property
    def spread(self) -> float:
        """Seconds an image between the quartiles of the rounds."""
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return (high - low) / self.images


@dataclass(frozen=True)
class Ratio:
    """How many times as fast `ours` is as `theirs`; None, and why, where that cannot be told."""

    ours: str
    theirs: str
    value: float | None
    why: str | None = None
    short: str | None = None
    """The same in three words."""


@dataclass(frozen=True)
class Result:
    """A work that all sides are done with."""

    work: Work
    sides: Sequence[Side]
    others: float | None = None
    """Share of the machine's cores that others used meanwhile, where the system tells."""

    def best(self, peer: str) -> Side:
        """The fastest setting of a peer."""
        return min((side for side in self.sides if side.peer == peer), key=lambda side: side.seconds)

    @property
    def peers(self) -> list[str]:
        """The peers there were, in their order."""
        return list(dict.fromkeys(side.peer for side in self.sides if side.peer != "xpnn"))

    @cached_property
    def ratios(self) -> list[Ratio]:
        """Each of our sides beside the best setting of each peer."""
        ours = [side for side in self.sides if side.peer == "xpnn"]
        return [ratio(side, self.best(peer), self.others) for side in ours for peer in self.peers]


def ratio(ours: Side, theirs: Side, others: float | None = None) -> Ratio:
    """The ratio of the medians, unless rounds of either side spread wider than these differ, or others computed."""
    if others is not None and others > OTHERS:
        return Ratio(
            ours.name, theirs.name, None, f"others used {others:.0%} of the cores meanwhile", "others computed"
        )
    difference, spread = abs(ours.seconds - theirs.seconds), max(ours.spread, theirs.spread)
    if difference > spread:
        return Ratio(ours.name, theirs.name, theirs.seconds / ours.seconds)
    why = f"the medians differ by {difference:.2g} s an image, the quartiles of the rounds by {spread:.2g} s"
    return Ratio(ours.name, theirs.name, None, why, "within the spread")


def take_turns(sides: Sequence[Side], rounds: int, seconds: float) -> Iterator[float]:
    """Fill the `times` of all sides, a turn of some `seconds` for each in each round; yields the share that is done."""
    counts = {}
    for side in sides:
        begun = time.perf_counter()
        side.steps(2)  # the first ones compile and allocate, and then helpers come
        while time.perf_counter() - begun < WARM * seconds:
            side.steps(1)
        counts[side.name] = max(1, round(seconds / _timed(side, 2)))
    for i in range(rounds):
        for side in sides[:: -1 if i % 2 else 1]:  # who comes first changes
            side.steps(1)  # the caches hold what the last side had
            side.times.append(_timed(side, counts[side.name]))
        yield (i + 1) / rounds


def _timed(side: Side, count: int) -> float:
    begun = time.perf_counter()
    side.steps(count)
    return (time.perf_counter() - begun) / count
