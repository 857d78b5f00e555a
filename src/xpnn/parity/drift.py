"""Two backends trained side by side: whether they drift apart faster than rounding alone makes one backend do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median
from textwrap import wrap
from typing import Any

import numpy as np

from xpnn.backend import Backend
from xpnn.data.batches import whole
from xpnn.errors import NonFiniteError
from xpnn.layers.base import Layer
from xpnn.losses import Loss
from xpnn.optim import SGD, Optimizer
from xpnn.parity.cases import Host
from xpnn.parity.pair import FACTOR, Start, Weights, label, masks, nudged, number, start, two, unit
from xpnn.random import Stream


@dataclass(frozen=True)
class Step:
    """How far runs lie apart after one step; all of them relative: to the loss, to the norm of the weights."""

    losses: tuple[float, float]
    """Of both backends, before the update."""
    loss: float
    """Between the backends."""
    weights: float
    loss_drift: float
    """The largest so far between the first backend and itself with inputs moved by the last bit."""
    weights_drift: float

    @property
    def ratio(self) -> float:
        """How much faster the backends drift apart, in loss or in weights."""
        return max(self.loss / self.loss_drift, self.weights / self.weights_drift)


@dataclass(frozen=True)
class DriftReport:
    """What `drift` found."""

    sides: tuple[str, str]
    dtype: str
    runs: int
    steps: tuple[Step, ...]

    @property
    def median(self) -> float:
        """The middle one of the ratios of all steps."""
        return median(s.ratio for s in self.steps)

    @property
    def last(self) -> float:
        """The ratio of the last step."""
        return self.steps[-1].ratio

    @property
    def passed(self) -> bool:
        """Whether median and last ratio are at most 8; see `drift`."""
        return self.median <= FACTOR and self.last <= FACTOR

    def record(self) -> dict[str, Any]:
        """All of it as JSON values; None for what is infinite."""
        steps: list[dict[str, Any]] = [
            {
                "losses": [number(v) for v in s.losses],
                "ratio": number(s.ratio),
                **{k: number(v) for k, v in vars(s).items() if k != "losses"},
            }
            for s in self.steps
        ]
        return {
            "sides": list(self.sides),
            "dtype": self.dtype,
            "runs": self.runs,
            "factor": FACTOR,
            "median": number(self.median),
            "last": number(self.last),
            "passed": self.passed,
            "verdict": self.verdict(),
            "steps": steps,
        }

    def verdict(self) -> str:
        """One sentence."""
        a, b = self.sides
        how = f"median {self.median:.2g}, last {self.last:.2g} times as far"
        if self.passed:
            return f"{a} and {b} drift apart no faster than {a} does by the last bit of its inputs: {how}"
        return f"{a} and {b} drift apart faster than rounding explains: {how} as {a} by the last bit of its inputs"

    def lines(self) -> list[str]:
        """A table of at most 20 steps, evenly spread, then the verdict."""
        a, b = (f"loss {side}"[:12] for side in self.sides)
        lines = [f"{'step':>6}{a:>13}{b:>13}{'Δ loss':>9}{'drift':>9}{'Δ weights':>11}{'drift':>9}{'ratio':>9}"]
        shown = np.unique(np.linspace(0, len(self.steps) - 1, min(20, len(self.steps))).round().astype(int))
        for i in shown:
            s = self.steps[i]
            lines.append(
                f"{i + 1:>6}{s.losses[0]:>13.6g}{s.losses[1]:>13.6g}{s.loss:>9.1e}{s.loss_drift:>9.1e}"
                f"{s.weights:>11.1e}{s.weights_drift:>9.1e}{s.ratio:>9.2g}"
            )
        return [*lines, *wrap(self.verdict(), 80)]


def drift(
    model: Layer,
    backends: Sequence[str | Backend],
    images: Any,
    labels: Any,
    *,
    steps: int = 20,
    batch_size: int = 64,
    runs: int = 5,
    weights: Weights = None,
    loss: str | Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> DriftReport:
    """Train on two backends from one state, step by step as `fit` does, and watch how far they come apart.

    Training is chaotic: a rounding error grows from step to step, and by a leap where a ReLU or a max-pool chooses
    otherwise. So no tolerance on the weights is right for all steps. The measure is what rounding alone does: `runs`
    runs of the first backend whose images and initial weights are moved by their last bit. If the backends differ by
    rounding only, the second is one more such run. The ratio of a step is its distance from the first, in loss and
    weights, to the largest one so far of those runs, and that at least one rounding. Parity means that the median of
    the ratios and the last one are at most 8: a backend rounds at every operation, and so drifts somewhat faster than
    moved inputs do. One choice that falls early leads to a large ratio for some steps, which the median passes over; a
    fault that begins late shows in the last. Take few steps: where all runs are far apart, no fault can be seen.

    Args:
        model, backends, weights, loss, seed, dtype: as in `compare_network`.
        images, labels: a data set; drawn in the order of a trainer's epochs.
        steps: how many.
        batch_size: samples a step.
        runs: with moved inputs.
        optimizer: default `SGD(lr=0.05, momentum=0.9)`.

    Raises:
        ValueError: steps, batch_size or runs below 1, a model without weights, or twice the same backend.
        NonFiniteError: training on the first backend leaves the finite numbers.
        BackendError, ShapeError: as in `compare_network`.
    """
    steps, runs, batch_size = whole("steps", steps, 1), whole("runs", runs, 1), whole("batch_size", batch_size, 1)
    pair = two(backends)
    begin = start(model, pair, images, labels, weights=weights, loss=loss, seed=seed, dtype=dtype)
    if not begin.weights:
        raise ValueError(f"{model!r} has no weights: there is nothing to train")
    optimizer = optimizer or SGD(lr=0.05, momentum=0.9)
    first = _Run(begin, pair[0], optimizer)
    second = _Run(begin, pair[1], optimizer)
    moved = [_Run(begin, pair[0], optimizer, Stream(seed, "nudge", str(i))) for i in range(runs)]

    done: list[Step] = []
    least = unit(dtype)
    loss_drift = weights_drift = least
    seen = 0
    for count, chosen in enumerate(_batches(len(begin.images), batch_size, steps, seed)):
        draws = masks(model, begin.in_shape, seed, seen, len(chosen))
        seen += len(chosen)
        for run in (first, second, *moved):
            run.step(chosen, draws, count + 1)
        if not isfinite(first.loss):
            raise NonFiniteError(
                f"training left the finite numbers at step {count + 1} on {pair[0].name} itself: there is nothing to "
                "compare; take a smaller learning rate or fewer steps"
            )
        loss_drift = max(filter(isfinite, [loss_drift, *(first.loss_apart(run) for run in moved)]))
        weights_drift = max([weights_drift, *(first.weights_apart(run) for run in moved)])
        apart = first.loss_apart(second), first.weights_apart(second)
        done.append(Step((first.loss, second.loss), *apart, loss_drift, weights_drift))
    return DriftReport((label(pair[0], pair[1]), label(pair[1], pair[0])), dtype, runs, tuple(done))


def _batches(samples: int, size: int, steps: int, seed: int) -> list[Host]:
    """The places of the samples of each step, epoch after epoch."""
    batches: list[Host] = []
    epoch = 0
    while len(batches) < steps:
        order = Stream(seed, "order", str(epoch)).permutation(samples)
        batches += [order[i : i + size] for i in range(0, samples, size)]
        epoch += 1
    return batches[:steps]


class _Run:
    """One training on one backend, by its own executor; `nudge` moves images and weights by the last bit."""

    def __init__(self, begin: Start, backend: Backend, optimizer: Optimizer, nudge: Stream | None = None) -> None:
        self.begin, self.backend, self.optimizer = begin, backend, optimizer
        self.images, weights = begin.images, begin.weights
        if nudge:
            self.images = nudged(begin.images, begin.dtype, nudge.child("images"))
            weights = {k: nudged(w, begin.dtype, nudge.child(k)) for k, w in weights.items()}
        self.executor = backend.executor(begin.model, begin.loss, optimizer, begin.in_shape, begin.dtype)
        self.state = self.executor.load({"weights": weights, "stats": begin.stats, "moments": {}})
        self.loss, self.weights = 0.0, np.zeros(0)

    def step(self, chosen: Host, draws: dict[str, Host], count: int) -> None:
        """One step on the chosen samples."""
        asarray, dtype, targets = self.backend.asarray, self.begin.dtype, self.begin.targets[chosen]
        divisor = self.begin.loss.divisor(targets)
        with self.executor.session():
            self.state, metrics = self.executor.step(
                self.state,
                asarray(self.images[chosen], dtype),
                asarray(targets, None if self.begin.loss.classifies else dtype),
                {path: asarray(mask) for path, mask in draws.items()},
                self.executor.scalars(divisor, self.optimizer.lr, count),
            )
        sums = self.backend.to_numpy(metrics).astype(np.float64)
        self.loss = float(sums[0]) / (divisor or 1.0) if sums[2] else inf  # a step that is not finite does nothing
        tree = self.executor.save(self.state)["weights"]
        self.weights = np.concatenate([np.asarray(w, np.float64).reshape(-1) for w in tree.values()])

    def loss_apart(self, other: _Run) -> float:
        return _relative(abs(other.loss - self.loss), abs(self.loss))

    def weights_apart(self, other: _Run) -> float:
        return _relative(float(np.linalg.norm(other.weights - self.weights)), float(np.linalg.norm(self.weights)))


def _relative(apart: float, size: float) -> float:
    if not isfinite(apart):
        return inf
    return apart / size if size else float(apart > 0)
