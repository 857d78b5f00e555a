"""One call of `fit` under way: what it counts and adds up, where it is, and how it is taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn import losses
from xpnn.data.augment import Augment
from xpnn.data.batches import ArrayBatches, Batch, IterableBatches
from xpnn.errors import NonFiniteError
from xpnn.ops._array import Array
from xpnn.optim import Progress
from xpnn.random import Stream

if TYPE_CHECKING:
    from xpnn.train.trainer import Trainer

Record = dict[str, Any]
Source = ArrayBatches | IterableBatches


@dataclass(frozen=True)
class Sums:
    """What is added up over steps; JSON gives back the same bits."""

    loss: float = 0.0
    right: float = 0.0
    divisor: float = 0.0
    counted: int = 0
    images: int = 0
    steps: int = 0

    def means(self, loss: losses.Loss) -> dict[str, float]:
        """Mean loss and, where answers can be right or wrong, accuracy."""
        means = {"loss": self.loss / self.divisor if self.divisor else 0.0}
        if loss.answers:
            means["accuracy"] = self.right / self.counted if self.counted else 0.0
        return means


class Total:
    """Metrics added up: they stay on the device until somebody asks.

    One step is added after the other, so that the sums do not depend on when somebody asked.
    """

    def __init__(self, trainer: Trainer, sums: Sums | None = None) -> None:
        self.trainer, self._sums = trainer, sums or Sums()
        self._waiting: list[tuple[Array, float, int, int]] = []
        self._finite: Sums | None = None

    def add(self, metrics: Array, host: np.ndarray[Any, Any]) -> None:
        """One batch."""
        loss = self.trainer.loss
        self._waiting.append((metrics, loss.divisor(host), loss.counted(host), len(host)))

    def sums(self) -> Sums:
        """All steps so far; waits for the device."""
        if self._waiting:
            backend, sums, finite_sums = self.trainer.backend, self._sums, self._finite
            rows = backend.to_numpy(backend.xp.stack([w[0] for w in self._waiting])).astype(np.float64).tolist()
            for (loss, right, finite), (_, divisor, counted, images) in zip(rows, self._waiting, strict=True):
                if not finite:
                    finite_sums = finite_sums or sums
                    loss = np.nan
                sums = Sums(
                    sums.loss + loss,
                    sums.right + right,
                    sums.divisor + divisor,
                    sums.counted + counted,
                    sums.images + images,
                    sums.steps + 1,
                )
            self._sums, self._finite, self._waiting = sums, finite_sums, []  # at once: none is counted twice
        return self._sums

    def finite(self) -> Sums | None:
        """The sums before the first step that was not finite; None: all were."""
        self.sums()
        return self._finite


class Fit:
    """One call of `fit` under way: what callbacks may look at.

    Attributes:
        trainer: whose it is.
        epochs: epochs that there will be.
        epoch: the one under way, from 1.
        steps: steps an epoch, or None where the source does not tell.
        step: steps done in this epoch.
        done: steps done in all epochs.
        images: trained in this epoch.
        records: of the epochs that are done.
        names: of the values in a record.
        lr: learning rate of the last step.
        seconds: that the epoch took so far.
        between_steps: whether the weights are those after a whole step: False only where a step itself failed.
        stopped: why training stops, as given to `stop`; None where it goes on.
    """

    def __init__(
        self, trainer: Trainer, source: Source, epochs: int, augment: Augment | None, *, validated: bool
    ) -> None:
        self.trainer, self.source, self.epochs, self.augment = trainer, source, epochs, augment
        means = Sums().means(trainer.loss)
        validation = [f"validation_{name}" for name in means if validated]
        self.names = ["epoch", *means, "lr", "seconds", "images_per_second", *validation]
        self.epoch = self.step = self.done = self.images = 0
        self.lr = self._seconds = 0.0
        self.records: list[Record] = []
        self.between_steps = True
        self.stopped: str | None = None
        self._for_good = False
        self._total: Total | None = None
        self._began: float | None = None
        try:
            self.steps: int | None = len(source)
        except TypeError:
            self.steps = None

    @property
    def progress(self) -> Progress:
        """What a schedule sees."""
        total = None if self.steps is None else self.steps * self.epochs
        losses = tuple(float(r["validation_loss" if "validation_loss" in r else "loss"]) for r in self.records)
        return Progress(self.done, total, len(self.records), losses)

    @property
    def seconds(self) -> float:
        """Seconds that the epoch took so far."""
        return self._seconds + (0.0 if self._began is None else time.perf_counter() - self._began)

    def means(self) -> dict[str, float]:
        """Mean loss and accuracy of the epoch so far; waits for the device."""
        assert self._total is not None
        return self._total.sums().means(self.trainer.loss)

    def stop(self, reason: str, *, for_good: bool = False) -> None:
        """End training after this step; unless it is for good, `fit(resume=True)` goes on from there."""
        self.stopped, self._for_good = reason, for_good

    def position(self) -> dict[str, Any] | None:
        """Where training is, in values for JSON; None: at its end. Raises where a step was not finite."""
        if len(self.records) == self.epochs or self._for_good:
            return None
        self.check()
        return {
            "arguments": self._arguments(),
            "done": self.done,
            "records": len(self.records),
            "lr": self.lr,
            "seconds": self.seconds,
            "sums": None if self._total is None else asdict(self._total.sums()),
        }

    def go_on(self, position: Mapping[str, Any] | None) -> None:
        """Take up a fit where `position` says that it was."""
        if position is None:
            raise ValueError(
                "there is nothing to resume: no fit of this trainer was interrupted, neither here nor in the file that "
                "it was loaded from; call fit without resume=True"
            )
        now, then = self._arguments(), position["arguments"]
        if changed := [name for name in then if now[name] != then[name]]:
            listed = "; ".join(f"{name} was {then[name]!r}, now {now[name]!r}" for name in changed)
            raise ValueError(
                f"a fit goes on with what it began with, but {listed}. Give what was given then, or begin a new fit "
                "without resume=True"
            )
        count = position["records"]
        self.done, self.lr, self._seconds = position["done"], position["lr"], position["seconds"]
        self.records = self.trainer.history[-count:] if count else []
        if position["sums"] is not None:
            self._total = Total(self.trainer, Sums(**position["sums"]))
            self.step, self.images = self._total.sums().steps, self._total.sums().images

    def _arguments(self) -> dict[str, Any]:
        batch_size = self.source.batch_size if isinstance(self.source, ArrayBatches) else None
        augment = None if self.augment is None else repr(self.augment)
        return {"epochs": self.epochs, "batch_size": batch_size, "augment": augment, "data": self.source.digest}

    def begin_epoch(self) -> Iterator[Batch]:
        """The batches of an epoch, in a new order, or what is left of one that was interrupted."""
        self.epoch = len(self.records) + 1
        if self._total is None:
            total, self._seconds, self.step, self.images = Total(self.trainer), 0.0, 0, 0
            self._total, self.trainer.epochs = total, self.trainer.epochs + 1
        self._began = time.perf_counter()
        if not isinstance(self.source, ArrayBatches):
            self._order = None
        else:
            stream = Stream(self.trainer.seed, "order", str(self.trainer.epochs - 1))
            self._order = stream.permutation(len(self.source.host))
        return self.source.epoch(self._order, self.step)

    def augmented(self, images: Array) -> Array:
        """The images of the next step as they are trained on."""
        trainer = self.trainer
        if self.augment is None:
            return images
        return self.augment(images, Stream(trainer.seed, "augment"), trainer.samples, trainer.backend)

    def add(self, metrics: Array, host: np.ndarray[Any, Any], lr: float) -> None:
        """One step is done."""
        assert self._total is not None
        self._total.add(metrics, host)
        self.step, self.done, self.images, self.lr = self.step + 1, self.done + 1, self.images + len(host), lr

    def settle(self) -> int:
        """From a step that was not finite on, take the counters back: those steps did nothing. Returns how many."""
        trainer, finite = self.trainer, None if self._total is None else self._total.finite()
        if finite is None or trainer._state is None:
            return 0
        lost, images = self.step - finite.steps, self.images - finite.images
        trainer._state["finite"] = trainer.backend.asarray(np.asarray(True))
        total, step, samples = Total(trainer, finite), trainer.step - lost, trainer.samples - images
        self.step, self.done, self.images = self.step - lost, self.done - lost, self.images - images
        self._total, trainer.step, trainer.samples = total, step, samples
        return lost

    def check(self) -> None:
        """Raise where a step was not finite; waits for the device."""
        if self.settle():
            raise self._not_finite()

    def record(self) -> Record:
        """The record of the epoch, but for its validation; raises where a step was not finite."""
        self.check()
        means = self.means()
        self._seconds, self._began = self.seconds, None
        return {
            "epoch": len(self.trainer.history) + 1,
            **means,
            "lr": self.lr,
            "seconds": self._seconds,
            "images_per_second": self.images / self._seconds,
        }

    def end_epoch(self, record: Record) -> None:
        """Only now is the epoch done: one whose validation failed is taken up again after its last step."""
        records, history = [*self.records, record], [*self.trainer.history, record]
        self._total, self.records, self.trainer.history = None, records, history  # at once, also if interrupted

    def _not_finite(self) -> NonFiniteError:
        """Replay the step that was not finite, and say where."""
        trainer, state = self.trainer, self.trainer._state
        assert state is not None
        images, _, host = self.source.batch(self.step, self._order)
        draws = trainer._draws(trainer.samples, len(host))
        found = trainer.executor.first_not_finite(state, self.augmented(images), draws)
        where = (
            f"the first output that is not finite is that of layer {found[0]} ({found[1]!r})"
            if found
            else "the outputs of all layers are finite, but the loss or the update of the weights is not"
        )
        old = trainer.optimizer
        new = replace(old, lr=float(f"{old.lr / 10:.2g}"), clip_norm=old.clip_norm or 1.0)
        return NonFiniteError(
            f"training left the finite numbers at step {trainer.step + 1} (epoch {len(trainer.history) + 1}, "
            f"batch {self.step + 1}): {where}. The weights are those before that step. Go on with a smaller learning "
            f"rate or a clipped gradient, e.g. trainer.optimizer = {new!r}"
        )
