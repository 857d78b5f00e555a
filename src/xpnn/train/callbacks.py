"""Callbacks: small objects that are told of the moments of training.

They keep nothing that counts: what is best and since when is read from `fit.records`, which a resumed `fit` has
too, so that training goes on as if it had never been interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpnn.train.fit import Fit

Record = dict[str, Any]


class Callback:
    """Base of all callbacks: every moment does nothing. `fit` tells how far training is; `fit.stop(why)` ends it."""

    def on_begin(self, fit: Fit) -> None:
        """Before the first step, also of a `fit` that is resumed."""

    def on_step(self, fit: Fit) -> None:
        """After a step; `fit.means()` waits for the device, so ask for it seldom."""

    def on_epoch(self, fit: Fit, record: Record) -> None:
        """After an epoch and its validation."""

    def on_end(self, fit: Fit) -> None:
        """After the last epoch, and also where training stops with an error, unless `on_begin` itself failed."""


MOMENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""The methods that are called of any callback, whatever its class."""


class JSONLines(Callback):
    """A file with one line of JSON for each epoch.

    A `fit` that is resumed writes it anew, so that it holds each epoch once. What is not finite becomes null.

    Args:
        path: of the file; its folder is made where there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_begin(self, fit: Fit) -> None:
        """Begin the file with what is known."""
        make_folder(self.path.parent)
        self.path.write_text("".join(f"{to_json(record)}\n" for record in fit.records), encoding="utf-8")

    def on_epoch(self, fit: Fit, record: Record) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{to_json(record)}\n")


class Checkpoint(Callback):
    """Keeps two files of the whole state in a folder: `last.safetensors` and `best.safetensors`.

    The last one is written before the first step, after each epoch, in between where so much time has passed, and
    at the end; `Trainer.load(path).fit(…, resume=True)` goes on from it. Each takes the place of the one before only
    when it is whole.

    Args:
        folder: where; it is made where there is none.
        seconds: so long is no step's work kept by memory alone; 0 writes after each step.
        monitor: what is best, see `best`.
    """

    def __init__(self, folder: str | Path, seconds: float = 60.0, monitor: str | None = None) -> None:
        self.last, self.best = Path(folder) / "last.safetensors", Path(folder) / "best.safetensors"
        self.seconds, self.monitor = seconds, monitor

    def on_begin(self, fit: Fit) -> None:
        """Write the state before the first step."""
        _monitor(fit.names, self.monitor)  # now, not after an epoch
        make_folder(self.last.parent)
        self._save(fit)

    def on_step(self, fit: Fit) -> None:
        """Write where it is time."""
        if time.monotonic() - self._saved >= self.seconds:
            self._save(fit)

    def on_epoch(self, fit: Fit, record: Record) -> None:
        """Write the best one first: an epoch that is not in the last one is done again, and found to be best again."""
        if best(fit.records, self.monitor) == len(fit.records) - 1:
            fit.trainer.save(self.best)
        self._save(fit)

    def on_end(self, fit: Fit) -> None:
        """Write where steps were done since, also after an error, but not where it was a step that failed."""
        if fit.between_steps and (fit.done, len(fit.records)) != self._state:
            self._save(fit)

    def _save(self, fit: Fit) -> None:
        fit.trainer.save(self.last)
        self._saved, self._state = time.monotonic(), (fit.done, len(fit.records))


class EarlyStopping(Callback):
    """Ends training where some epochs in a row were not better than the best before.

    Args:
        patience: how many.
        monitor: what is better, see `best`.
        least: by how much an epoch must be better to count.
    """

    def __init__(self, patience: int = 3, monitor: str | None = None, least: float = 0.0) -> None:
        self.patience, self.monitor, self.least = patience, monitor, least

    def on_begin(self, fit: Fit) -> None:
        """What had ended for this reason ends again."""
        _monitor(fit.names, self.monitor)
        self._look(fit)

    def on_epoch(self, fit: Fit, record: Record) -> None:
        """Look at the epochs so far."""
        self._look(fit)

    def _look(self, fit: Fit) -> None:
        if fit.records and len(fit.records) - 1 - best(fit.records, self.monitor, self.least) >= self.patience:
            name = _monitor(fit.records[0], self.monitor)
            fit.stop(f"{name} was not better for {self.patience} epoch{'s' * (self.patience > 1)}", for_good=True)


class TimeLimit(Callback):
    """Ends training after so many seconds, with the step that is under way.

    Args:
        seconds: of this `fit`; one that is resumed has as many again.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_begin(self, fit: Fit) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def on_step(self, fit: Fit) -> None:
        """Look at the clock."""
        if time.monotonic() - self._begun >= self.seconds:
            fit.stop(f"the time limit of {self.seconds:g} s is reached")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there yet."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; expected a folder: remove the file, or name another folder")
    path.mkdir(parents=True, exist_ok=True)


def best(records: list[Record], monitor: str | None = None, least: float = 0.0) -> int:
    """Which of the records is the best; of equal ones the first.

    Args:
        records: of epochs.
        monitor: the name of a value in them; a larger one is better where "accuracy" is part of the name. None: the
            first of validation_accuracy, validation_loss, accuracy, loss that there is.
        least: by how much a later one must be better.

    Raises:
        ValueError: there is no such value.
    """
    name = _monitor(records[0], monitor)
    place, top = 0, -inf
    for i, record in enumerate(records):
        value = record[name] if "accuracy" in name else -record[name]
        if value > top + (least if i else 0):  # never true for NaN
            place, top = i, value
    return place


def _monitor(names: Iterable[str], monitor: str | None) -> str:
    known, names = ("validation_accuracy", "validation_loss", "accuracy", "loss"), list(names)
    name = monitor or next(n for n in known if n in names)
    if name not in names:
        raise ValueError(
            f"monitor={name!r}; an epoch is described by {', '.join(names)}: choose one of these "
            "(validation_… are there where fit is given validation_data)"
        )
    return name


def to_json(values: Mapping[str, Any], **options: Any) -> str:
    """JSON, which knows neither NaN nor infinity: a loss that is one of them becomes null."""
    lost = {k: None for k, v in values.items() if isinstance(v, float) and not isfinite(v)}
    return json.dumps({**values, **lost}, allow_nan=False, **options)
