"""How far a download or a decoding is: a bar on a terminal with rich, a line elsewhere; both on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


def say(line: str) -> None:
    """One line for the user, apart from the output of a command."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def bar(text: str, total: float | None, *, size: bool = False) -> Iterator[Callable[..., Any]]:
    """A function ``show(completed=…, total=…)``; ``size`` is for totals in bytes."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        say(text)
        yield lambda **_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done = DownloadColumn() if size else MofNCompleteColumn()
    columns = TextColumn("{task.description}", markup=False), BarColumn(), done, TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=total)

        def show(**values: Any) -> None:
            progress.update(task, **values)

        yield show
