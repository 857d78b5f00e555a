"""`xpnn parity`: whether backends compute the same, and which one is off where they do not."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from xpnn import backend as backends
from xpnn import data, models
from xpnn.backend import Backend
from xpnn.cli.backends import versions
from xpnn.cli.progress import steps
from xpnn.cli.values import count, file, writable
from xpnn.errors import BackendError
from xpnn.layers import Layer
from xpnn.parity import compare_network, compare_training, drift, page, probe, report
from xpnn.parity.sides import sides
from xpnn.train import files


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "parity",
        help="prove that backends compute the same, or show where they part",
        description="""Compute every op and layer forward and backward on each backend, by the standard
bodies and by the backend's own kernels (marked *), and hold each result against
float64 on NumPy. The error r is in units of rounding of what the result was
summed from; up to min(4·√n, 32) is accepted for n terms. Results of ops that
round nothing must be equal (=). With a NETWORK it is one training step of that,
layer by layer. The exit status is 0 where all are the same, else 1.""",
        epilog="""examples:
  xpnn parity --backends numpy,cupy --html parity.html
  xpnn parity small-cnn --data mnist --backends numpy,cupy --steps 50""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, "default: %(default)s"
    network = "a model's name, the folder of a run, or a saved file: compare that, not the cases"
    add("network", nargs="?", metavar="NETWORK", help=network)
    add("--backends", default="numpy,cupy", metavar="A,B", help=f"whom to compare; {default}")
    add("--device", metavar="NAME", help="of the last of them, in its own words, e.g. cuda:1")
    add("--dtype", default="float32", choices=("float32", "float64"), help=default)
    add("--cases", metavar="PATTERN", help="an op, a layer or a pattern of them, e.g. 'conv*'; default: all")
    add("--data", default="digits", metavar="NAME", help=f"what the network sees: digits, mnist; {default}")
    add("--data-dir", metavar="DIR", help="folder of the set's original files (or set XPNN_DATA)")
    add("--batch-size", default=64, type=count, metavar="N", help=f"images a step; {default}")
    add("--steps", type=count, metavar="N", help="train on both for N steps, and see how far they drift apart")
    add("--train", action="store_true", help="train with some seeds on both, and compare the accuracies")
    add("--seeds", default=5, type=count, metavar="K", help=f"of --train; {default}")
    add("--epochs", default=3, type=count, metavar="N", help=f"of --train; {default}")
    add("--json", type=Path, metavar="FILE", help="write all that was found")
    add("--html", type=file(".html"), metavar="FILE", help="write it as a page that needs nothing else")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, and say whether they are the same."""
    network = arguments.network or ("tiny-cnn" if arguments.steps or arguments.train else None)
    cases = report.chosen(arguments.cases) if arguments.cases or not network else []
    for path in filter(None, (arguments.json, arguments.html)):
        writable(path)
    taking = _backends(arguments.backends, arguments.device, arguments.dtype)
    if network and len(taking) != 2:
        raise ValueError(f"--backends {arguments.backends}: a network is compared on two backends, not {len(taking)}")
    compared = _network(network, arguments, taking) if network else []
    described = {backend.name: backend.describe() for backend in taking}
    print(f"Each side in {arguments.dtype} against float64 on NumPy.")
    for name, facts in described.items():
        print(f"  {name}: device {facts['device']}; {versions(facts)}")
    ways, noticed = [side for backend in taking for side in sides(backend)], probe.notices(cases)
    print(f"Refused, with coarse factors: {', '.join(f'{k} in {a} of {b}' for k, (a, b) in noticed.items())} cases.")
    faults = [f"{name} products pass unnoticed: nothing is certified" for name, (a, b) in noticed.items() if a < b]
    if arguments.dtype == "float32":
        faults += [
            f"{side.name}: {found}: it rounds its factors, or is wrong"
            for side in ways
            if (found := probe.coarse(side))
        ]
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "dtype": arguments.dtype,
        "machine": described,
        "noticed": {name: {"refused": a, "of": b} for name, (a, b) in noticed.items()},
        "sides": [side.name for side in ways],
    }
    with steps(sys.stderr, len(cases) + len(compared)) as show:
        rows = report.compare_all(cases, ways, arguments.dtype, show)
        for i, (kind, title, compare) in enumerate(compared):
            show(len(cases) + i, title)
            found = compare()
            print("\n".join(["", title, *found.lines()]))
            record[kind] = found.record() | {"title": title}
            if not found.passed:
                faults.append(f"{title}: {found.verdict()}")
    if rows:
        print("\n".join(["", *report.table(rows, record["sides"])]))
    faults += [f"{row.case}: {fault}" for row in rows for fault in row.faults]
    record |= {
        "faults": faults,
        "verdict": "differs" if faults else "same",
        "said": report.verdict(rows, [title for _, title, _ in compared], [*described], faults),
        "rows": [row.record() for row in rows],
    }
    print("\n".join(["", *faults, record["said"]]))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if arguments.html:
        arguments.html.write_text(page.page(record), encoding="utf-8")
    return 1 if faults else 0


Part = tuple[str, str, Callable[[], Any]]
"""Its key in the record, what it is called, and the comparison itself."""


def _network(name: str, arguments: argparse.Namespace, pair: list[Backend]) -> list[Part]:
    """What is compared of a network, in order."""
    if arguments.train and arguments.seeds < 4:
        raise ValueError(f"--seeds {arguments.seeds}: fewer than 4 cannot show any difference; leave it out for 5")
    dataset = data.load(arguments.data, arguments.data_dir)
    model, weights = _model(name, len(dataset.classes))
    images, labels, size = dataset.train_images, dataset.train_labels, arguments.batch_size
    same: dict[str, Any] = {"dtype": arguments.dtype}
    first = partial(compare_network, model, pair, images[:size], labels[:size], weights=weights, **same)
    parts: list[Part] = [("layers", f"{name} on {arguments.data}, layer by layer", first)]
    if arguments.steps:
        some = partial(
            drift, model, pair, images, labels, steps=arguments.steps, batch_size=size, weights=weights, **same
        )
        parts.append(("drift", f"{name} on {arguments.data}, {arguments.steps} steps side by side", some))
    if arguments.train:
        whole = partial(
            compare_training,
            model,
            pair,
            dataset,
            seeds=arguments.seeds,
            epochs=arguments.epochs,
            batch_size=size,
            **same,
        )
        parts.append(("training", f"{name} on {arguments.data}, accuracy over {arguments.seeds} seeds", whole))
    return parts


def _model(name: str, classes: int) -> tuple[Layer, Path | None]:
    """A named model, or that of a saved file or a run's folder, with the file of its weights."""
    path = Path(name)
    if path.is_dir():
        path = path / "last.safetensors"
        if not path.exists():
            raise ValueError(f"{name}: a folder without last.safetensors; give that of a run, as `xpnn train` makes it")
    elif not path.suffix:
        return models.get(name, classes), None
    return files.read(path).model, path


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
            raise ValueError(
                f"--dtype {dtype}: {backend.name} has none on {backend.device_name}; leave it out for float32"
            )
    return found
