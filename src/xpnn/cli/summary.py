"""`xpnn summary`: what a network is, layer by layer, before or after it is trained."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from textwrap import fill
from typing import Any

from xpnn import data, models, runs
from xpnn.cli.values import count
from xpnn.data.known import KNOWN
from xpnn.layers.base import Layer, Shape
from xpnn.layers.summary import WIDTH, Summary, bytes_text, summarise
from xpnn.train import files


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "summary",
        help="show a network layer by layer: sizes, work, memory",
        description="""Show each layer of a network: the shape of its output, its parameters, its
multiply-adds (those of convolutions and dense layers, without biases) and the
bytes of its output for one image, and its receptive field: how many pixels one
value of the output depends on. Then the sums, and about how much memory
training takes.""",
        epilog="""examples:
  xpnn summary small-cnn --dataset mnist
  xpnn summary resnet20 --shape 32,32,3 --classes 100 --batch-size 64
  xpnn summary runs/first""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"{', '.join(models.MODELS)}, the folder of a run, or a .safetensors file")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--dataset", metavar="NAME", help=f"whose images: {', '.join(data.NAMES)}, FILE.npz or FOLDER")
    images.add_argument("--shape", type=sizes, metavar="H,W,C", help="of one image, instead of a data set")
    add("--classes", type=count, metavar="N", help="with --shape: number of classes; default: 10")
    add("--batch-size", type=count, metavar="N", help="of training; default: that of the run, else 128")
    add("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the summary."""
    model, in_shape, moments, batch_size = _network(arguments)
    summary = summarise(model, in_shape)
    peak = summary.training_bytes(batch_size, moments)
    if arguments.json:
        training = {"batch_size": batch_size, "moments": moments, "bytes": peak}
        print(json.dumps({"model": arguments.model, **_record(summary), "training": training}, indent=2))
        return 0
    print(summary)
    print(
        fill(
            f"Training with batches of {batch_size} takes about {bytes_text(peak)} at its peak, in float32 by the "
            f"standard bodies: weights, gradient and {moments} moment{'' if moments == 1 else 's'} of the optimizer, "
            "old and new; the images; what each layer makes, for backward; the largest of that twice more. A backend's "
            "own kernels may take less.",
            WIDTH,
        )
    )
    return 0


def sizes(text: str) -> Shape:
    """Positive integers with commas between them."""
    try:
        return tuple(count(part.strip()) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; expected sizes with commas, e.g. 28,28,1") from None


def _network(arguments: argparse.Namespace) -> tuple[Layer, Shape, int, int]:
    """The model, the shape of a sample, the number of moments and the batch size."""
    name, path, batch_size = arguments.model, Path(arguments.model), arguments.batch_size
    if arguments.classes and not arguments.shape:
        raise ValueError("--classes goes with --shape: a data set and a trained network have their own")
    if name not in models.MODELS and path.exists():
        if arguments.dataset or arguments.shape:
            raise ValueError(f"{path} tells which images it was trained for; leave --dataset and --shape out")
        if path.is_dir():
            found = runs.open_run(path)
            path, batch_size = found.file("last.safetensors"), batch_size or found.config["batch_size"]
        contents = files.read(path)
        return contents.model, contents.in_shape, len(contents.moments or ()), batch_size or 128
    try:
        models.get(name)
    except ValueError as e:
        raise ValueError(f"there is no folder or file {name}, and {e}") from None
    in_shape, classes = _images(arguments)
    return models.get(name, classes), in_shape, 1, batch_size or 128  # SGD with momentum


def _images(arguments: argparse.Namespace) -> tuple[Shape, int]:
    """Shape and number of classes; those of a set that is known, without its files."""
    if arguments.shape:
        return arguments.shape, arguments.classes or 10
    if not arguments.dataset:
        raise ValueError(
            f"the layers of {arguments.model} have the sizes that the images give them; say which, by --dataset mnist "
            "or --shape 28,28,1"
        )
    if known := KNOWN.get(arguments.dataset):
        return known.shape, len(known.classes)
    dataset = data.load(arguments.dataset)
    return tuple(dataset.train_images.shape[1:]), len(dataset.classes)


def _record(summary: Summary) -> dict[str, Any]:
    layers = [{**vars(row), "layer": repr(row.layer)} for row in summary.rows]
    return {
        "in_shape": summary.in_shape,
        "parameters": summary.parameters,
        "multiply_adds": summary.multiply_adds,
        "unknown": summary.unknown,
        "layers": layers,
    }
