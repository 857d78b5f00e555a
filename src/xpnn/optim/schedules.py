"""Schedules: what the learning rate is multiplied by, as a pure function of how far training has come.

Nothing is remembered between steps (even a plateau is found in the history), so a resumed run goes on as if
it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, pi

from xpnn.optim import _check
from xpnn.plain import keep_plain


@dataclass(frozen=True)
class Progress:
    """How far a call of `fit` has come.

    Args:
        step: steps done.
        total: steps there will be, or None where the source of batches does not tell its length.
        epoch: epochs done.
        losses: the validation loss of each epoch done (the training loss where there is none).
    """

    step: int
    total: int | None
    epoch: int = 0
    losses: Sequence[float] = field(default_factory=tuple)

    def share(self, of: object) -> float:
        """The share of the steps that is done."""
        if self.total is None:
            raise ValueError(
                f"{type(of).__name__} needs to know how many steps there will be; "
                "give a source of batches with a length (len), or another schedule"
            )
        return self.step / max(self.total - 1, 1)


@dataclass(frozen=True)
class Schedule:
    """Base of all schedules."""

    def __post_init__(self) -> None:
        keep_plain(self)

    def __call__(self, progress: Progress) -> float:
        """The factor of the learning rate."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """Always 1."""

    def __call__(self, progress: Progress) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Step(Schedule):
    """Multiply by `factor` after every `epochs` epochs."""

    epochs: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.count(self, "epochs")
        _check.number(self, "factor")

    def __call__(self, progress: Progress) -> float:
        """`factor` to the number of falls so far."""
        return float(self.factor ** (progress.epoch // self.epochs))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 down to `final` (Loshchilov, Hutter, 2017)."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.number(self, "final")

    def __call__(self, progress: Progress) -> float:
        """The cosine at the share done."""
        return _cosine(1.0, self.final, progress.share(self))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Rise linearly to 1 over the first `steps` steps; then, and times that, `after` (Goyal et al., 2017)."""

    steps: int
    after: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.count(self, "steps")

    def __call__(self, progress: Progress) -> float:
        """The rise times what comes after."""
        return min(1.0, (progress.step + 1) / self.steps) * self.after(progress)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to 1 and down again along two half cosines (Smith, Topin, 2019).

    Args:
        rise: share of the steps on the way up.
        start: the factor at the beginning.
        final: the factor at the end.
    """

    rise: float = 0.3
    start: float = 0.04
    final: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.number(self, "start", "final")
        _check.number(self, "rise", below=1)

    def __call__(self, progress: Progress) -> float:
        """The cosine of the part that training is in."""
        share = progress.share(self)
        if share < self.rise:
            return _cosine(self.start, 1.0, share / self.rise)
        return _cosine(1.0, self.final, (share - self.rise) / (1 - self.rise))


@dataclass(frozen=True)
class OnPlateau(Schedule):
    """Multiply by `factor` whenever the validation loss has not fallen for `patience` epochs.

    Args:
        factor: of each fall.
        patience: epochs without a new best loss that are borne.
        least: share by which a loss must be below the best one to count.
    """

    factor: float = 0.1
    patience: int = 5
    least: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.count(self, "patience", 0)
        _check.number(self, "factor", "least")

    def __call__(self, progress: Progress) -> float:
        """`factor` to the number of plateaus so far."""
        best, bad, falls = float("inf"), 0, 0
        for loss in progress.losses:
            if loss < best * (1 - self.least):
                best, bad = loss, 0
            else:
                bad += 1
            if bad > self.patience:
                falls, bad = falls + 1, 0
        return float(self.factor**falls)


def _cosine(a: float, b: float, share: float) -> float:
    return b + (a - b) * 0.5 * (1 + cos(pi * share))
