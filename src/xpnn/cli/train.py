"""`xpnn train`: from a data set to a trained network, in one command."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from xpnn import backend as backends
from xpnn import data, models, optim
from xpnn.cli.progress import progress
from xpnn.cli.values import count, positive, share
from xpnn.train import Callback, Trainer

OPTIMIZERS: dict[str, optim.Optimizer] = {
    "sgd": optim.SGD(lr=0.05, momentum=0.9),
    "rmsprop": optim.RMSprop(lr=1e-3),
    "adam": optim.Adam(lr=2e-3),
    "adamw": optim.AdamW(lr=2e-3),
}
SCHEDULES: dict[str, optim.Schedule] = {
    "constant": optim.Constant(),
    "step": optim.Step(epochs=2, factor=0.3),
    "cosine": optim.Cosine(),
    "warm-up": optim.WarmUp(steps=100, after=optim.Cosine()),
    "one-cycle": optim.OneCycle(),
    "on-plateau": optim.OnPlateau(factor=0.3, patience=1),
}
RECIPES: dict[str, dict[str, Any]] = {  # what a data set is trained with unless the command line says otherwise
    "digits": {"model": "tiny-cnn", "epochs": 20, "batch_size": 32},
    "mnist": {"model": "small-cnn", "epochs": 3, "batch_size": 64},
}


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train",
        help="train a network and say how good it is",
        description="Train a network and report its accuracy on images that it has not seen.",
        epilog="""examples:
  xpnn train
  xpnn train --backend cupy --dataset mnist --data-dir ~/mnist --out runs/first""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    quiet = {"default": argparse.SUPPRESS}
    rates = ", ".join(f"{optimizer.lr:g} for {name}" for name, optimizer in OPTIMIZERS.items())
    add = parser.add_argument
    add("--backend", **quiet, metavar="NAME", help="numpy, cupy, … (`xpnn backends` lists them); default: auto")
    add("--device", **quiet, metavar="NAME", help="which device, in the words of the backend, e.g. cuda:1")
    add(
        "--threads",
        **quiet,
        type=count,
        metavar="N",
        help="threads of the numpy backend; default: the cores it may use",
    )
    add("--dataset", default="digits", **_one_of(RECIPES))
    add("--data-dir", **quiet, metavar="DIR", help="folder of the four MNIST files (or set XPNN_DATA)")
    add("--model", **quiet, **_one_of(models.MODELS, _recipes("model")))
    add("--epochs", **quiet, type=count, metavar="N", help=_recipes("epochs"))
    add("--batch-size", **quiet, type=count, metavar="N", help=f"images a step; {_recipes('batch_size')}")
    add("--optimizer", default="sgd", **_one_of(OPTIMIZERS))
    add("--lr", **quiet, type=positive, metavar="X", help=f"largest learning rate; default: {rates}")
    add("--schedule", default="one-cycle", **_one_of(SCHEDULES))
    add("--seed", default=0, type=int, metavar="N", help="of weights, order and dropout; default: %(default)s")
    add("--limit", **quiet, type=count, metavar="N", help="train on the first N images only")
    add("--out", **quiet, type=Path, metavar="DIR", help="write summary, metrics and weights there")
    add("--target-accuracy", **quiet, type=share, metavar="X", help="exit with status 1 below it")
    add("--json", action="store_true", help="print nothing but the summary, as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate, write and report."""
    given = vars(arguments)
    recipe = RECIPES[arguments.dataset] | given
    stream = sys.stderr if arguments.json else sys.stdout
    if "threads" in given:
        os.environ["XPNN_THREADS"] = str(arguments.threads)
    backend = backends.get(given.get("backend"), given.get("device"))
    dataset = data.load(arguments.dataset, given.get("data_dir"))
    limit = given.get("limit", len(dataset.train_labels))
    images, labels = dataset.train_images[:limit], dataset.train_labels[:limit]
    trainer = Trainer(
        models.get(recipe["model"], len(dataset.classes)),
        optimizer=_optimizer(arguments.optimizer, given.get("lr")),
        schedule=SCHEDULES[arguments.schedule],
        backend=backend,
        seed=arguments.seed,
    ).build(images.shape[1:])
    parameters = sum(w.size for w in trainer.weights.values())
    callbacks: list[Callback] = [progress(stream)]
    folder = None
    if "out" in given:
        folder = _new_folder(arguments.out)
        callbacks.append(Metrics(folder / "metrics.jsonl"))
    tests = len(dataset.test_labels)
    print(f"{recipe['model']}: {parameters:,} parameters; backend {backend.name}, device {backend.device}", file=stream)
    print(f"{arguments.dataset}: {len(labels):,} images to train on, {tests:,} to test", file=stream)

    test = dataset.test_images, dataset.test_labels
    begun = time.perf_counter()
    history = trainer.fit(
        images, labels, epochs=recipe["epochs"], batch_size=recipe["batch_size"], validation_data=test,
        callbacks=callbacks,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    tested, trained = trainer.evaluate(*test), trainer.evaluate(images, labels)
    summary = {
        "test_accuracy": tested["accuracy"],
        "test_loss": tested["loss"],
        "train_accuracy": trained["accuracy"],
        "seconds": seconds,
        "images_per_second": len(labels) * len(history) / sum(record["seconds"] for record in history),
        "parameters": parameters,
        "dataset": arguments.dataset,
        "model": recipe["model"],
        "epochs": recipe["epochs"],
        "batch_size": recipe["batch_size"],
        "optimizer": repr(trainer.optimizer),
        "schedule": repr(trainer.schedule),
        "seed": arguments.seed,
        "backend": backend.describe(),
        "versions": _versions(),
    }
    _report(summary, stream)
    if folder:
        trainer.save(folder / "state.safetensors")
        (folder / "summary.json").write_text(_json(summary, indent=2) + "\n", encoding="utf-8")
        print(f"written to {folder}: summary.json, metrics.jsonl, state.safetensors", file=stream)
    if arguments.json:
        print(_json(summary, indent=2))
    target = given.get("target_accuracy")
    if target is not None and tested["accuracy"] < target:
        print(f"xpnn train: test accuracy {tested['accuracy']:.4f} is below the target {target}", file=sys.stderr)
        return 1
    return 0


class Metrics(Callback):
    """One JSON line an epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch(self, fit: Any, record: dict[str, Any]) -> None:
        """Add the line."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(_json(record) + "\n")


def _optimizer(name: str, lr: float | None) -> optim.Optimizer:
    return OPTIMIZERS[name] if lr is None else replace(OPTIMIZERS[name], lr=lr)


def _new_folder(folder: Path) -> Path:
    """Make the folder of a run before training, so that no result is lost for want of one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise OSError(
            f"--out {folder}: cannot write there ({e.strerror}); choose a folder that you may write to"
        ) from e
    if any(folder.iterdir()):
        raise ValueError(
            f"--out {folder}: the folder is not empty, and a run would mix with what it holds; choose another"
        )
    return folder


def _report(summary: dict[str, Any], stream: TextIO) -> None:
    print(
        f"test accuracy {summary['test_accuracy']:.4f}, test loss {summary['test_loss']:.4f}, "
        f"train accuracy {summary['train_accuracy']:.4f}\n"
        f"{summary['seconds']:.1f} s, {summary['images_per_second']:,.0f} images/s",
        file=stream,
    )


def _json(values: dict[str, Any], **options: Any) -> str:
    """JSON, which knows neither NaN nor infinity: a loss that is one of them becomes null."""
    lost = {k: None for k, v in values.items() if isinstance(v, float) and not isfinite(v)}
    return json.dumps(values | lost, allow_nan=False, **options)


def _one_of(known: dict[str, Any], default: str = "default: %(default)s") -> dict[str, Any]:
    """The options of an argument that takes one of some names."""
    return {"choices": list(known), "metavar": "NAME", "help": f"{', '.join(known)}; {default}"}


def _recipes(name: str) -> str:
    """The default of what depends on the data set."""
    return "default: " + ", ".join(f"{recipe[name]} for {dataset}" for dataset, recipe in RECIPES.items())


def _versions() -> dict[str, str]:
    import numpy as np

    from xpnn import __version__

    return {"xpnn": __version__, "python": platform.python_version(), "numpy": np.__version__}
