"""The parser of the command line, and the kinds of values that options take; each says what was expected."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from xpnn.page import GENERATOR


class Parser(argparse.ArgumentParser):
    """Says of a mistake in one line what was wrong, what is near, and where to read on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(  # type: ignore[override]  # argparse's overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse here what is left over: the parser of the whole command would not know which options there are."""
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            near = _near(rest[0].partition("=")[0], list(self._option_string_actions))
            self.error(f"unrecognized arguments: {' '.join(rest)}{near}")
        return known, rest

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        said = self._apart(message) or self.explained(message)
        self.exit(2, f"{self.prog}: {said}{'' if said.endswith('?') else f'; see {self.prog} --help'}\n")

    def _apart(self, message: str) -> str:
        """Of values with commas between them, how an option that takes several is given them."""
        found = re.match(r"argument (--[\w-]+): .*?'([^',]+(?:,[^',]+)+)'", message)
        if not found or self._option_string_actions[found[1]].nargs != "+":
            return ""
        return f"{message}; several are separated by spaces: {found[1]} {found[2].replace(',', ' ')}"

    @staticmethod
    def explained(message: str) -> str:
        """The message, with the nearest of the choices where there is one."""
        if not (found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)):
            return message
        return message + _near(found[1], re.findall(r"[\w-]+", found[2]))


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


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


def below_one(text: str) -> float:
    """A number from 0 to less than 1."""
    if (value := share(text)) == 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not less than 1")
    return value


def file(*endings: str) -> Callable[[str], Path]:
    """A file to be written, whose name must have one of these endings."""

    def ended(text: str) -> Path:
        if Path(text).suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"{text!r} is not a name that ends in {' or '.join(endings)}")
        return Path(text)

    return ended


def writable(path: Path) -> None:
    """Check that a file can be written before the work, and that no page is lost that is not ours."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as there:
            there.seek(0)
            start = there.read(1000)
    except OSError as e:
        raise OSError(f"cannot write {path} ({e.strerror}); choose a file in a folder that you may write to") from e
    if new:
        path.unlink()
    elif start and path.suffix.lower() == ".html" and GENERATOR.encode() not in start:
        raise ValueError(f"{path} is there already, and is no page of xpnn; choose another name, or remove it")


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Let an error of the system that names no file, as of a full disk, name this folder."""
    try:
        yield
    except OSError as e:
        if e.errno and e.filename is None and e.strerror == os.strerror(e.errno):  # else it is a sentence of ours
            e.filename = str(folder)
        raise


def sentence(error: Exception) -> str:
    """What an error says; of one that the system raised of a file, which one that is and what to do."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.filename is None:
        return error.strerror
    return (
        f"{error.filename} cannot be read or written ({error.strerror}); see that it is there, that you may "
        "use it, and that there is room"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that looks at a run: its folder, which checkpoint, where to compute."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run, as `xpnn train` made it")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="default: %(default)s")
    parser.add_argument("--backend", metavar="NAME", help="numpy, cupy, …; default: that of the run")
    parser.add_argument("--device", metavar="NAME", help="which device, in the words of the backend")
