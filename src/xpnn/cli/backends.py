"""`xpnn backends`: what is installed here, and why some of it cannot be used."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from typing import Any

from xpnn import backend


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "backends",
        help="list the backends, with device and versions, or why they cannot be used",
        description="List the installed backends: device and versions of each, or why it cannot be used.",
        epilog="Example: xpnn backends --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the list."""
    rows = backend.listing()
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        if row["usable"]:
            text = f"yes  device {row['describe']['device']}; {versions(row['describe'])}"
        else:
            text = f"no   {row['reason']}"
        print(_wrapped(f"{row['name'].ljust(width)}  {text}", width + 7))
    return 0


def _wrapped(text: str, indent: int) -> str:
    """One line, or on a terminal as many as fit its width."""
    if not sys.stdout.isatty():
        return text
    return textwrap.fill(text, shutil.get_terminal_size().columns, subsequent_indent=" " * indent)


def versions(facts: dict[str, Any]) -> str:
    """What `Backend.describe` says, on one line."""
    skipped = ("name", "device", "kernels", "python", "processor")
    return ", ".join(f"{k} {_brief(v)}" for k, v in facts.items() if k not in skipped and v not in (None, [], ""))


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(_brief, value))
    if isinstance(value, dict):
        return " ".join(str(v) for v in value.values())
    return str(value)
