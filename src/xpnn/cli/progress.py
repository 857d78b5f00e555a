"""Progress: a live bar where there is a terminal and rich, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TextIO

from xpnn.train import Callback
from xpnn.train.fit import Fit

INTERVAL = 0.2  # seconds between two looks at the loss: each waits for the device


def progress(stream: TextIO, held_out: str = "test") -> Callback:
    """The best display that `stream` allows; `held_out` is what the images of validation are called."""
    if stream.isatty():
        try:
            return Live(stream, held_out)
        except ImportError:
            pass
    return Lines(stream, held_out)


class Lines(Callback):
    """One line an epoch."""

    def __init__(self, stream: TextIO, held_out: str) -> None:
        self.stream, self.held_out = stream, held_out

    def on_epoch(self, fit: Fit, record: dict[str, Any]) -> None:
        """Print the line."""
        print(line(fit, record, self.held_out), file=self.stream, flush=True)


class Live(Callback):
    """A bar for the epochs and one for the steps of the epoch, and one line an epoch above them."""

    def __init__(self, stream: TextIO, held_out: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.held_out = held_out
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            console=Console(file=stream),
            transient=True,
        )

    def on_begin(self, fit: Fit) -> None:
        """Show the bars."""
        total = None if fit.steps is None else fit.steps * fit.epochs
        self.epochs = self.bar.add_task("the first step", total=total, now="")  # may have to compile
        self.steps = self.bar.add_task("", total=fit.steps, now="")
        self.looked = -INTERVAL
        self.bar.start()

    def on_step(self, fit: Fit) -> None:
        """Move the bars, at most every `INTERVAL`."""
        now = time.perf_counter()
        if now - self.looked < INTERVAL:
            return
        self.looked = now
        means = fit.means()
        text = f"loss {means['loss']:.4f}"
        if "accuracy" in means:
            text += f"  accuracy {means['accuracy']:.4f}"
        self.bar.update(self.epochs, completed=fit.done, description=f"epoch {fit.epoch}/{fit.epochs}", now=text)
        speed = f"{fit.images / fit.seconds:,.0f} images/s"
        step = f"step {fit.step}" + ("" if fit.steps is None else f"/{fit.steps}")
        self.bar.update(self.steps, completed=fit.step, description=step, now=speed)

    def on_epoch(self, fit: Fit, record: dict[str, Any]) -> None:
        """Print the line of the epoch above the bars."""
        self.bar.reset(self.steps, total=fit.steps)
        self.bar.console.print(line(fit, record, self.held_out), highlight=False)

    def on_end(self, fit: Fit) -> None:
        """Take the bars away."""
        self.bar.stop()


def line(fit: Fit, record: dict[str, Any], held_out: str) -> str:
    """An epoch in one line."""
    parts = [f"epoch {fit.epoch:{len(str(fit.epochs))}}/{fit.epochs}", f"loss {record['loss']:.4f}"]
    if "accuracy" in record:
        parts.append(f"accuracy {record['accuracy']:.4f}")
    if "validation_accuracy" in record:
        parts.append(f"{held_out} {record['validation_accuracy']:.4f}")
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
