"""`xpnn show`: draws the pictures of a run again."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any

from xpnn import runs
from xpnn.cli.train import parts, result
from xpnn.cli.values import add_run, naming
from xpnn.errors import FileFormatError


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "show",
        help="draw the pictures and the report of a run again",
        description="Draw the pictures of a run and its report.html again: training curves, what was taken for what, "
        "the worst mistakes, the first kernels, feature maps.",
        epilog="Example: xpnn show runs/first --checkpoint best",
    )
    add_run(parser)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the set's original files (or set XPNN_DATA)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, and say where."""
    found = runs.open_run(arguments.folder)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RuntimeError(
            'pictures are drawn by matplotlib, which is not installed: pip install "xpnn[train]"'
        ) from None
    from xpnn import pictures

    summary = found.summary()
    trainer = found.trainer(arguments.backend, arguments.device, arguments.checkpoint)
    history = trainer.history
    with suppress(FileNotFoundError, FileFormatError):  # the best one does not know what followed
        history = found.trainer(arguments.backend, arguments.device).history
    if not history:
        raise ValueError(
            f"the run in {found.path} is {summary['status']}, and has no epoch to show; go on with it: {found.again}"
        )
    dataset = found.dataset(arguments.data_dir)
    if "test_accuracy" not in summary:  # it was interrupted
        train, _ = parts(dataset, found.config)
        summary |= result(trainer, train, (dataset.test_images, dataset.test_labels))
    with naming(found.path):
        files = pictures.write(found.path, trainer, dataset, history, summary, found.config)
    print(*files, sep="\n")
    return 0
