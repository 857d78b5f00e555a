"""`xpnn bench`: how fast xpnn is beside other libraries, in one run on one machine."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xpnn import backend as backends
from xpnn import models
from xpnn.bench import machine, measure, report
from xpnn.bench.measure import Result
from xpnn.bench.sides import PEERS, installed, sides
from xpnn.bench.work import Work
from xpnn.cli.progress import steps
from xpnn.cli.values import count, file, positive, writable

MODES = {"train": (True,), "predict": (False,), "both": (True, False)}
QUIET = 0.5  # a load above it disturbs


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="time xpnn beside other libraries",
        description="Time steps of xpnn and of other libraries, in turns, in float32, fed from memory. The ratio is to "
        "the best setting of each; there is none where the rounds spread wider than the two differ.",
        epilog="Example: xpnn bench --models small-cnn --batches 32 128 --json result.json --plot result.png",
    )
    add, default = parser.add_argument, "default: %(default)s"
    add("--backend", default="numpy", metavar="NAME", help=f"whose steps are timed; {default}")
    peers = "torch, jax (and xpnn on jax), loops (article only), none; default: torch where installed"
    add("--against", nargs="+", choices=[*PEERS, "none"], metavar="NAME", help=peers)
    add("--compile", action="store_true", help="torch.compile as well: slow to start")
    named = f"{', '.join(models.MODELS)}; default: article small-cnn"
    add("--models", nargs="+", default=["article", "small-cnn"], metavar="NAME", help=named)
    add("--batches", nargs="+", type=count, default=[32, 128], metavar="N", help="images a step; default: 32 128")
    add("--mode", default="train", choices=MODES, help=f"train, predict or both; {default}")
    add("--rounds", type=count, default=7, metavar="N", help=f"at least 2; {default}")
    add("--seconds", type=positive, default=0.5, metavar="X", help=f"of each side in each round; {default}")
    add("--threads", type=count, metavar="N", help="of every side; default: the cores that the process may use")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    add("--plot", type=file(".png", ".svg"), metavar="FILE", help="draw it, as .png or .svg")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and report what was finished."""
    _check(arguments)
    peers, threads = _peers(arguments.against), arguments.threads or len(machine.cores())
    for path in filter(None, (arguments.json, arguments.plot)):
        writable(path)
    works = [
        Work(name, batch, training)
        for name in dict.fromkeys(arguments.models)
        for batch in dict.fromkeys(arguments.batches)
        for training in MODES[arguments.mode]
    ]
    before, date = machine.load(), datetime.datetime.now(datetime.UTC)
    if before is not None and before > QUIET:
        print(f"xpnn bench: others compute here (load {before:.1f}): the times will tell little", file=sys.stderr)
    results, peak, interrupted = list[Result](), 0.0, False
    with machine.threads(threads):
        backend = backends.get(arguments.backend)
        try:
            peak = machine.peak(backend, threads)
            with steps(sys.stderr, len(works)) as show:
                for i, work in enumerate(works):
                    show(i, str(work))
                    taking = sides(work, backend, peers, threads, arguments.compile)
                    others = None
                    for share in measure.take_turns(taking, arguments.rounds, arguments.seconds):
                        others = others or machine.Others()  # after the first round: compilers are at work before
                        show(i + share, str(work))
                    results.append(Result(work, taking, others.share() if others else None))
        except KeyboardInterrupt:
            interrupted = True
        described = backend.describe()
    if results:
        print(report.table(results, peak))
        print(f"threads {threads}; peak {peak / 1e9:,.0f} Gflop/s, that of float32 matrices multiplied here")
    if arguments.json:
        values = {
            "date": date.isoformat(timespec="seconds"),
            "settings": {k: v for k, v in vars(arguments).items() if k not in ("run", "command", "json", "plot")}
            | {"against": peers, "threads": threads},
            "interrupted": interrupted,
            "machine": described,
            "versions": machine.versions(),
            "load": {"before": before, "after": machine.load()},
            "peak_flops_per_second": peak,
            "results": report.record(results, peak),
        }
        arguments.json.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if arguments.plot and results:
        title = f"images a second, float32; threads {threads}; {described['processor']}, {date:%Y-%m-%d}"
        report.plot(results, arguments.plot, title)
    if interrupted:
        print(f"\nxpnn bench: interrupted; {len(results)} of {len(works)} were finished", file=sys.stderr)
    return 130 if interrupted else 0


def _check(arguments: argparse.Namespace) -> None:
    for name in arguments.models:
        models.get(name)  # raises, with the nearest name
    if arguments.rounds < 2:
        raise ValueError("--rounds 1: the spread between rounds takes at least 2; leave it out for 7")
    if "loops" in (arguments.against or ()) and "article" not in arguments.models:
        raise ValueError("--against loops: the tutorial's loops have the network article alone; add --models article")
    if arguments.plot and find_spec("matplotlib") is None:
        raise ValueError('--plot: matplotlib is not installed; pip install "xpnn[train]", or leave --plot out')


def _peers(against: list[str] | None) -> list[str]:
    if against is None:
        if installed("torch"):
            return ["torch"]
        print('xpnn bench: no peer to compare with; pip install "xpnn[torch]" brings one', file=sys.stderr)
        return []
    if "none" in against and len(set(against)) > 1:
        raise ValueError(f"--against {' '.join(against)}: none goes alone; leave it out, or the others")
    missing = [peer for peer in against if peer != "none" and not installed(peer)]
    if missing:
        raise ValueError(
            f'--against {missing[0]}: {PEERS[missing[0]]} is not installed; pip install "xpnn[{missing[0]}]", or '
            "choose others"
        )
    return [peer for peer in PEERS if peer in against]
