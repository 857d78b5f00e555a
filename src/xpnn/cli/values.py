"""The kinds of values that options take; each says of a wrong one what was expected."""

from __future__ import annotations

import argparse
from pathlib import Path


def count(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def positive(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def writable(path: Path) -> None:
    """Check that a file can be written before the work, so that nothing is lost for want of a place."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as e:
        raise OSError(f"cannot write {path} ({e.strerror}); choose a file in a folder that you may write to") from e
    if new:
        path.unlink()


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that looks at a run: its folder, which checkpoint, where to compute."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run, as `xpnn train` made it")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="default: %(default)s")
    parser.add_argument("--backend", metavar="NAME", help="numpy, cupy, …; default: that of the run")
    parser.add_argument("--device", metavar="NAME", help="which device, in the words of the backend")
