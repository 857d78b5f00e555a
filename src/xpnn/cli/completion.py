"""`xpnn completion`: the shell completes commands and options of xpnn."""

from __future__ import annotations

import argparse
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
PATHS = "D", "DIR", "FILE", "IMAGE", "MODEL", "RUN"
"""How arguments that take a path are called in the help."""


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "completion",
        help="print what makes the shell complete xpnn's commands and options",
        description="Print a script by which the shell completes the commands and options of xpnn.",
        epilog="""examples:
  bash:  xpnn completion bash > ~/.local/share/bash-completion/completions/xpnn
  zsh:   xpnn completion zsh > ~/.zfunc/_xpnn
         (with fpath+=~/.zfunc before compinit)
  tcsh:  xpnn completion tcsh >> ~/.tcshrc""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from xpnn.cli import parser  # it knows all commands, this one too

    try:
        import shtab
    except ImportError:
        raise RuntimeError('completion is made by shtab, which is not installed: pip install "xpnn[train]"') from None
    whole = parser()
    _name_paths(whole, shtab.FILE)
    print(shtab.complete(whole, arguments.shell))
    return 0


def _name_paths(parser: argparse.ArgumentParser, files: Any) -> None:
    """Mark what takes a file or a folder; without the mark bash would complete no path at all."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                _name_paths(part, files)
        elif action.metavar in PATHS:
            action.complete = files  # type: ignore[attr-defined]  # shtab's own
