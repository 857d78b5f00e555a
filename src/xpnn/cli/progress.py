"""Progress: a live bar where there is a terminal and rich, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TextIO

from xpnn.train import Callback
from xpnn.train.trainer import Fit

INTERVAL = 0.2  # seconds between two looks at the loss: each waits for the device


def progress(stream: TextIO) -> Callback:
    """The best display that `stream` allows."""
    if stream.isatty():
        try:
            return Live(stream)
        except ImportError:
            pass
    return Lines(stream)


class Lines(Callback):
    """One line an epoch."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def on_epoch(self, fit: Fit, record: dict[str, Any]) -> None:
        """Print the line."""
        print(line(fit, record), file=self.stream, flush=True)


class Live(Callback):
    """A bar that moves with each step, and one line an epoch above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            console=Console(file=stream),
            transient=True,
        )

    def on_begin(self, fit: Fit) -> None:
        """Show the bar."""
        total = None if fit.steps is None else fit.steps * fit.epochs
        self.task = self.bar.add_task("", total=total, epoch=f"1/{fit.epochs}", now="")
        self.looked = time.perf_counter()
        self.bar.start()

    def on_step(self, fit: Fit) -> None:
        """Move the bar, at most every `INTERVAL`."""
        now = time.perf_counter()
        if now - self.looked < INTERVAL:
            return
        self.looked = now
        means = fit.means()
        text = f"loss {means['loss']:.4f}"
        if "accuracy" in means:
            text += f"  accuracy {means['accuracy']:.4f}"
        text += f"  {fit.images / fit.seconds:,.0f} images/s"
        self.bar.update(self.task, completed=fit.done, epoch=f"{fit.epoch}/{fit.epochs}", now=text)

    def on_epoch(self, fit: Fit, record: dict[str, Any]) -> None:
        """Print the line of the epoch above the bar."""
        self.bar.console.print(line(fit, record), highlight=False)

    def on_end(self, fit: Fit) -> None:
        """Take the bar away."""
        self.bar.stop()


def line(fit: Fit, record: dict[str, Any]) -> str:
    """An epoch in one line."""
    parts = [f"epoch {fit.epoch:{len(str(fit.epochs))}}/{fit.epochs}", f"loss {record['loss']:.4f}"]
    if "accuracy" in record:
        parts.append(f"accuracy {record['accuracy']:.4f}")
    if "validation_accuracy" in record:
        parts.append(f"test {record['validation_accuracy']:.4f}")
    parts.append(f"{record['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


@contextmanager
def steps(stream: TextIO, total: int) -> Iterator[Any]:
    """A function `show(done, text)`: a live bar where there is a terminal and rich, a line for each text elsewhere."""
    if not stream.isatty() or find_spec("rich") is None:
        seen = set[str]()

        def show(done: float, text: str) -> None:
            if text not in seen:
                print(f"{int(done) + 1}/{total}  {text}", file=stream, flush=True)
            seen.add(text)

        yield show
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(bar_width=None), TimeRemainingColumn()
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)
