"""`xpnn predict`: what a trained network says of pictures from files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnn import runs
from xpnn.cli.values import add_run, count, sentence
from xpnn.data.picture import open_picture, prepare
from xpnn.losses import probabilities


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "predict",
        help="say what a picture shows",
        description="Let the network of a run say what pictures show. A picture of any size is prepared the way the "
        "run's data set was made (to grey, inverted where the background is light, cropped, scaled and centred), and "
        "what was done to it is said. A picture that cannot be used is reported, the others are answered, and the "
        "exit status is 2.",
        epilog="Example: xpnn predict runs/first seven.png photo.jpg --top 3",
    )
    add_run(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG or what else Pillow opens")
    parser.add_argument("--top", default=5, type=count, metavar="N", help="likeliest classes shown; default: 5")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prepare each picture, and answer."""
    found = runs.open_run(arguments.folder)
    trainer = found.trainer(arguments.backend, arguments.device, arguments.checkpoint)
    classes = found.summary()["classes"]
    answers, failed = [], 0
    for path in arguments.images:
        try:
            pixels, done = prepare(open_picture(path), trainer.in_shape or (), found.config["dataset"])
        except (ValueError, OSError) as e:
            failed += 1
            print(f"xpnn predict: {named(path, e)}", file=sys.stderr)
            continue
        shares = probabilities(trainer.predict(pixels[None])[0])
        top = [(classes[i], float(shares[i])) for i in np.argsort(-shares, kind="stable")[: arguments.top]]
        answers.append({"image": path, "prepared": done, "class": top[0][0], "probabilities": dict(top)})
        if not arguments.json:
            print(f"{path}: {top[0][0]} ({top[0][1]:.1%})\n  {prepared(done)}")
            width = max(len(name) for name, _ in top)
            print("\n".join(f"  {name:{width}}  {p:6.1%}  {'█' * round(30 * p)}".rstrip() for name, p in top))
    if arguments.json:
        print(json.dumps(answers, indent=2))
    return 2 if failed else 0


def prepared(done: Sequence[str]) -> str:
    """What was done to a picture, in words."""
    return "; ".join(done) or "taken as it is"


def named(path: str, error: Exception) -> str:
    """The message, with the picture's name where it lacks it."""
    said = sentence(error)
    return said if path in said else f"{path}: {said}"
