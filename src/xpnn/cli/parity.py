"""`xpnn parity`: whether backends compute the same, and which one is off where they do not."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from xpnn import backend as backends
from xpnn.backend import Backend
from xpnn.cli.backends import versions
from xpnn.cli.progress import steps
from xpnn.cli.values import writable
from xpnn.errors import BackendError
from xpnn.parity import page, probe, report
from xpnn.parity.sides import sides


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "parity",
        help="prove that backends compute the same, or show where they part",
        description="Compute every op and layer forward and backward on each backend, by the standard bodies and by "
        "the backend's own kernels (marked *), and hold each result against float64 on NumPy. The error r is in units "
        "of rounding of what the result was summed from; up to min(4·√n, 32) is accepted for n terms. Results of ops "
        "that round nothing must be equal (=). The exit status is 0 where all are the same, else 1.",
        epilog="Example: xpnn parity --backends numpy,cupy --html parity.html",
    )
    add, default = parser.add_argument, "default: %(default)s"
    add("--backends", default="numpy,cupy", metavar="A,B", help=f"whom to compare; {default}")
    add("--device", metavar="NAME", help="of the last of them, in its own words, e.g. cuda:1")
    add("--dtype", default="float32", choices=("float32", "float64"), help=default)
    add("--cases", metavar="PATTERN", help="an op, a layer or a pattern of them, e.g. 'conv*'; default: all")
    add("--json", type=Path, metavar="FILE", help="write all that was found")
    add("--html", type=Path, metavar="FILE", help="write it as a page that needs nothing else")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, and say whether they are the same."""
    cases = report.chosen(arguments.cases)
    for path in filter(None, (arguments.json, arguments.html)):
        writable(path)
    taking = _backends(arguments.backends, arguments.device, arguments.dtype)
    ways = [side for backend in taking for side in sides(backend)]
    described = {backend.name: backend.describe() for backend in taking}
    print(f"Each side in {arguments.dtype} against float64 on NumPy.")
    for name, facts in described.items():
        print(f"  {name}: device {facts['device']}; {versions(facts)}")
    noticed = probe.notices(cases)
    print(
        "Of products with coarse factors "
        + ", ".join(f"{k}: {a} of {b}" for k, (a, b) in noticed.items())
        + " refused."
    )
    faults = [f"{name} products pass unnoticed: nothing is certified" for name, (a, b) in noticed.items() if a < b]
    if arguments.dtype == "float32":
        faults += [f"{side.name}: {found}: its products are coarse" for side in ways if (found := probe.coarse(side))]
    date = datetime.datetime.now(datetime.UTC)
    with steps(sys.stderr, len(cases)) as show:
        rows = report.compare_all(cases, ways, arguments.dtype, show)
    names = [side.name for side in ways]
    print("\n".join(["", *report.table(rows, names), ""]))
    faults += [f"{row.case}: {fault}" for row in rows for fault in row.faults]
    for fault in faults:
        print(fault)
    verdict = report.verdict(rows, names, faults)
    print(verdict)
    record = {
        "date": date.isoformat(timespec="seconds"),
        "verdict": "differs" if faults else "same",
        "said": verdict,
        "dtype": arguments.dtype,
        "machine": described,
        "noticed": {name: {"refused": a, "of": b} for name, (a, b) in noticed.items()},
        "faults": faults,
        "sides": names,
        "rows": [row.record() for row in rows],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if arguments.html:
        arguments.html.write_text(page.page(record), encoding="utf-8")
    return 1 if faults else 0


def _backends(names: str, device: str | None, dtype: str) -> list[Backend]:
    """The backends by name, ready for use."""
    given = [name.strip() for name in names.split(",")]
    if not all(given):
        raise ValueError(f"--backends {names!r}: expected names with commas between them, as in numpy,cupy")
    twice = [name for name in given if given.count(name) > 1]
    if twice:
        raise ValueError(f"--backends {names}: {twice[0]} is there twice; a backend is always the same as itself")
    try:
        found = [backends.get(name, device if name == given[-1] else None) for name in given]
    except BackendError as e:
        usable = ",".join(name for name in backends.names() if backends.find(name).why_unavailable() is None)
        raise BackendError(f"{e}\nThose that can be used here: --backends {usable}") from None
    for backend in found:
        reason = backend.why_coarse() if dtype == "float32" else None
        if reason:
            raise ValueError(f"{reason}; nothing is certified while that is on")
        if not backend.supports(dtype):
            raise ValueError(f"--dtype {dtype}: {backend.name} has none on {backend.device}; leave it out for float32")
    return found
