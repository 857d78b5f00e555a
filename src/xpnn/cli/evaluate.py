"""`xpnn evaluate`: how good a trained network is on the images that it has not seen."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from xpnn import runs
from xpnn.cli.values import add_run, share
from xpnn.train.callbacks import to_json


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="test the network of a run, class by class",
        description="Test the network of a run on the test images of its data set: accuracy, loss, and for each class "
        "how many of its images were found and how many of its answers were right.",
        epilog="Example: xpnn evaluate runs/first --backend numpy",
    )
    add_run(parser)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the set's original files (or set XPNN_DATA)")
    parser.add_argument("--target-accuracy", type=share, metavar="X", help="exit with status 1 below it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and report."""
    found = runs.open_run(arguments.folder)
    trainer = found.trainer(arguments.backend, arguments.device, arguments.checkpoint)
    dataset = found.dataset(arguments.data_dir)
    means = trainer.evaluate(dataset.test_images, dataset.test_labels)
    answers = np.argmax(trainer.predict(dataset.test_images), axis=-1)
    classes = [_counted(i, name, answers, dataset.test_labels) for i, name in enumerate(dataset.classes)]
    if arguments.json:
        print(to_json({**means, "images": len(answers), "classes": classes}, indent=2))
    else:
        print(f"{found.path}, {arguments.checkpoint} checkpoint, on {trainer.backend.name}: "
              f"{len(answers):,} test images of {dataset.name}")  # fmt: skip
        width = max(len("class"), *(len(c["class"]) for c in classes))
        print(f"{'class':{width}}  images   found  answers   right")
        for c in classes:
            print(
                f"{c['class']:{width}}  {c['images']:6,}  {_share(c['found'])}  {c['answers']:7,}  {_share(c['right'])}"
            )
        print(f"accuracy {means['accuracy']:.4f}, loss {means['loss']:.4f}")
    target = arguments.target_accuracy
    if target is not None and means["accuracy"] < target:
        print(f"xpnn evaluate: accuracy {means['accuracy']:.4f} is below the target {target}", file=sys.stderr)
        return 1
    return 0


def _counted(label: int, name: str, answers: Any, labels: Any) -> dict[str, Any]:
    """One class: recall (`found`) and precision (`right`), None where there is nothing to divide by."""
    images, answered = int((labels == label).sum()), int((answers == label).sum())
    both = int(((labels == label) & (answers == label)).sum())
    return {
        "class": name,
        "images": images,
        "found": both / images if images else None,
        "answers": answered,
        "right": both / answered if answered else None,
    }


def _share(value: float | None) -> str:
    return f"{'–':>6}" if value is None else f"{value:6.1%}"
