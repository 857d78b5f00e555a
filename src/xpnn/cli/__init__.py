"""The command `xpnn`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from xpnn.cli.values import Parser, sentence
from xpnn.errors import NonFiniteError

COMMANDS = "train", "evaluate", "predict", "explain", "show", "summary", "backends", "parity", "bench", "completion"
"""Each is a module here."""


def parser(names: Sequence[str] = COMMANDS) -> Parser:
    """What reads the command line of some commands, which alone are imported: all of them take a third of a second."""
    from xpnn import __version__

    parser = Parser(
        prog="xpnn",
        description="Train convolutional networks with the same layers on NumPy, CuPy and other array libraries.",
        epilog="Try it: xpnn train",
    )
    parser.add_argument("--version", action="version", version=f"xpnn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        import_module(f"xpnn.cli.{name}").add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 (below the target, or training failed), 2 (bad input), 130."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a "?" for a sign that the terminal lacks
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser().print_help(sys.stderr)
        return 2
    arguments = parser(argv[:1] if argv[:1] and argv[0] in COMMANDS else COMMANDS).parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except NonFiniteError as e:
        print(f"xpnn {arguments.command}: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who reads our output has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError) as e:  # the message says what to do
        print(f"xpnn {arguments.command}: {sentence(e)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nxpnn {arguments.command}: interrupted before it was done", file=sys.stderr)
        return 130
