"""`xpnn backends`: what is installed here, and why some of it cannot be used."""

from __future__ import annotations

import argparse
import json
from typing import Any

from xpnn import backend


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "backends",
        help="list the backends, with device and versions, or why they cannot be used",
        description="List the installed backends: device and versions of each, or why it cannot be used and what to do.",
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
        name = row["name"].ljust(width)
        if not row["usable"]:
            print(f"{name}  no   {row['reason']}")
            continue
        facts = row["describe"]
        print(f"{name}  yes  device {facts['device']}; {_versions(facts)}")
    return 0


def _versions(facts: dict[str, Any]) -> str:
    skipped = ("name", "device", "kernels", "python", "processor")
    return ", ".join(f"{k} {_brief(v)}" for k, v in facts.items() if k not in skipped and v not in (None, [], ""))


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(_brief, value))
    if isinstance(value, dict):
        return " ".join(str(v) for v in value.values())
    return str(value)
