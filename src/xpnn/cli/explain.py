"""`xpnn explain`: a picture's way through a trained network, as a page to click through."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xpnn import runs
from xpnn.cli.predict import named, prepared
from xpnn.cli.values import add_run, file, writable
from xpnn.data.picture import flat, open_picture, prepare
from xpnn.pictures.explain import explain


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "explain",
        help="show a picture's way through the network, sum by sum",
        description="Write one page that needs no network: the feature maps of every layer, and for each of their "
        "pixels that is clicked the window, the kernel and the sum that made it.",
        epilog="Example: xpnn explain runs/first seven.png --out seven.html",
    )
    add_run(parser)
    parser.add_argument("image", metavar="IMAGE", help="PNG, JPEG or what else Pillow opens")
    parser.add_argument("--out", type=file(".html"), metavar="FILE", help="default: IMAGE's name with .html, here")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prepare the picture, and write its page."""
    found = runs.open_run(arguments.folder)
    trainer = found.trainer(arguments.backend, arguments.device, arguments.checkpoint)
    try:
        picture = open_picture(arguments.image)
        pixels, done = prepare(picture, trainer.in_shape or (), found.config["dataset"])
    except ValueError as e:
        raise ValueError(named(arguments.image, e)) from None
    out = arguments.out or Path(Path(arguments.image).stem + ".html")
    writable(out)
    page = explain(trainer, pixels, found.summary()["classes"], Path(arguments.image).name, flat(picture), done)
    out.write_text(page, encoding="utf-8")
    print(f"{prepared(done)}\nwritten to {out} ({len(page.encode()) / 1e6:.1f} MB): open it in a browser")
    return 0
