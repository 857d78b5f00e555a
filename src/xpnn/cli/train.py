"""`xpnn train`: from a data set to a trained network, in one command, and on from where it was interrupted."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import numpy as np

from xpnn import __version__, data, losses, models, runs
from xpnn import backend as backends
from xpnn.cli import settings
from xpnn.cli.progress import progress
from xpnn.cli.values import naming
from xpnn.data import augment
from xpnn.errors import FileFormatError, NonFiniteError, ShapeError
from xpnn.layers import Normalize, Sequential
from xpnn.random import Stream
from xpnn.runs import Config, Run
from xpnn.train import Callback, Checkpoint, EarlyStopping, JSONLines, TensorBoard, TimeLimit, Trainer
from xpnn.train.callbacks import to_json
from xpnn.train.fit import Fit

Part = tuple[Any, Any]
"""Images and labels."""
LARGE = 30
"""Values of images that may be what drives training out of the finite numbers."""


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train",
        usage="xpnn train [OPTION …]",
        help="train a network and say how good it is",
        description="""Train a network and report its accuracy on images that it has not seen. A
folder keeps the run: configuration, metrics, checkpoints, pictures, a report.""",
        epilog="""examples:
  xpnn train
  xpnn train --backend cupy --dataset mnist --data-dir ~/mnist --augment
  xpnn train --dataset photos/ --model small-cnn --out runs/first
  xpnn train --out runs/first --resume""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    settings.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate, write and report."""
    given = {k: v for k, v in vars(arguments).items() if k not in ("run", "command")}
    if "threads" in given:
        os.environ["XPNN_THREADS"] = str(given["threads"])
    with ExitStack() as claims:
        found = _to_resume(given) if "resume" in given else None
        if found:
            claims.enter_context(found.claimed())
        config = found.config if found else settings.of_run(given)
        place = given if "backend" in given else config | given  # another backend has other devices
        backend = backends.get(place.get("backend"), place.get("device"))
        dataset = data.load(
            config["dataset"], given.get("data_dir", config.get("data_dir")), image_size=config.get("image_size"),
            skip_corrupt=config.get("skip_corrupt", False),
        )  # fmt: skip
        train, validation = parts(dataset, config)
        trainer = _trainer(config, dataset, train[0], backend)
        if found and found.file("last.safetensors").exists():
            trainer = _interrupted(found, trainer)
        elif not found:
            found = runs.new_run(given.get("out"), {**config, "backend": backend.name})
            claims.enter_context(found.claimed())
        claims.enter_context(naming(found.path))
        return _train(found, trainer, dataset, train, validation, given)


def _train(run: Run, trainer: Trainer, dataset: data.Dataset, train: Part, validation: Part, given: Config) -> int:
    """Train in a folder that is ours; all that was asked for has been checked."""
    stream, config, backend = sys.stderr if "json" in given else sys.stdout, run.config, trainer.backend
    test = dataset.test_images, dataset.test_labels
    facts = _facts(trainer, dataset, config)
    run.write_summary({"status": "running"} | facts)
    held_out = f", {len(validation[1]):,} to validate" if config.get("validation") else ""
    device = f"backend {backend.name}, device {backend.device_name}"
    print(f"{config['model']}: {facts['parameters']:,} parameters; {device}", file=stream)
    print(f"{dataset.name}: {len(train[1]):,} images to train on{held_out}, {len(test[1]):,} to test", file=stream)
    going_on = trainer.position is not None
    if trainer.position:
        print(f"goes on in epoch {trainer.position['records'] + 1}, after step {trainer.step:,}", file=stream)

    watch = Watch()
    if going_on or not trainer.step:  # else all epochs are done, and only what follows them is not
        callbacks = [*_keepers(run, config | given), watch, progress(stream, "validation" if held_out else "test")]
        try:
            trainer.fit(
                *train, epochs=config["epochs"], batch_size=config["batch_size"], validation_data=validation,
                augment=_augment(config), callbacks=callbacks, resume=going_on,
            )  # fmt: skip
        except BaseException as e:
            status = "interrupted" if isinstance(e, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # of a full disk, for one: that was said already
                run.write_summary({"status": status, "error": str(e) or type(e).__name__} | facts)
            if isinstance(e, NonFiniteError) and "learning rate" in str(e):  # else the data are not finite
                raise NonFiniteError(f"{e}\nOn the command line: {_tamer(config, train[0])}") from None
            raise
    if watch.signal or not trainer.history:
        run.write_summary({"status": "interrupted"} | facts)
        why = "interrupted" if watch.signal else f"{watch.stopped}, and no epoch is complete"
        print(f"\nxpnn train: {why}; the checkpoint is written. To go on: {run.again}", file=sys.stderr)
        return 128 + watch.signal if watch.signal else 1
    if watch.stopped:
        print(f"stopped: {watch.stopped}", file=stream)
    summary = {"status": "interrupted" if trainer.position else "finished"} | result(trainer, train, test) | facts
    run.write_summary(summary)
    _report(summary, stream)
    if "no_pictures" not in given:
        _pictures(run, trainer, dataset, summary, stream)
    print(f"the run is in {run.path}", file=stream)
    if trainer.position:
        print(f"to go on: {run.again}", file=stream)
    if "json" in given:
        print(to_json(summary, indent=2))
    target, accuracy = given.get("target_accuracy"), summary["test_accuracy"]
    if target is not None and accuracy < target:
        print(f"xpnn train: test accuracy {accuracy:.4f} is below the target {target}", file=sys.stderr)
        return 1
    return 0


class Watch(Callback):
    """Ends training on Ctrl-C or a request to terminate, after the step under way; a second Ctrl-C ends it at once."""

    signal = 0
    stopped: str | None = None

    def on_begin(self, fit: Fit) -> None:
        """Listen, but in no thread but the main one, and not to what is ignored, as by a job in the background."""
        here = threading.current_thread() is threading.main_thread()
        both = (
            s for s in (signal.SIGINT, signal.SIGTERM) if here and signal.getsignal(s) not in (None, signal.SIG_IGN)
        )
        self._before = {s: signal.signal(s, self._heard) for s in both}

    def on_step(self, fit: Fit) -> None:
        """Stop where something was heard."""
        if self.signal:
            fit.stop("interrupted")

    def on_epoch(self, fit: Fit, record: dict[str, Any]) -> None:
        """Stop where something was heard, also after the last step."""
        self.on_step(fit)

    def on_end(self, fit: Fit) -> None:
        """Listen no more."""
        self.stopped = fit.stopped
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


def _to_resume(given: Config) -> Run:
    """The run that is to go on; raises where it is complete, or where something else is asked for than then."""
    if "out" in given:
        found = runs.open_run(given["out"])
    elif "config" in given:
        found = runs.open_run(given["config"].parent)
    else:
        found = runs.newest_run(Path("runs"))
    found = Run(found.path, settings.of_run({"config": found.file("config.toml")}))  # checked: it may have been edited
    if found.finished():
        raise ValueError(
            f"there is nothing to resume: the run in {found.path} is complete; "
            f"`xpnn evaluate {found.quoted}` looks at it"
        )
    if found.lost():
        raise FileNotFoundError(
            f"there is no {found.file('last.safetensors')} to go on from, and to begin anew there would write over "
            f"what its epochs left; put it back, or {_instead(found)}"
        )
    asked = (settings.from_file(given["config"]) if "config" in given else {}) | settings.placed(given)
    for name, value in asked.items():
        if name not in settings.MAY_CHANGE and value != found.config.get(name):
            option = f"--{name.replace('_', '-')}"
            said = option if value is True else f"{option} {value}"
            then = f"with {option} {found.config[name]}" if name in found.config else f"without {option}"
            raise ValueError(
                f"{said}: the run in {found.path} was begun {then}, and goes on as it began; leave "
                f"{option} out, or begin a new run without --resume"
            )
    return found


def _tamer(config: Config, images: Any) -> str:
    """What to do on the command line where training left the finite numbers."""
    advice = f"begin a new run in another --out, with a smaller --lr than {config['lr']:g}"
    largest = np.abs(images[:256]).max()
    if config.get("normalize") or largest <= LARGE:
        return advice
    return f"{advice}, or with --normalize: the images have values up to {largest:g}, and about 1 is common"


def _trainer(config: Config, dataset: data.Dataset, images: Any, backend: backends.Backend) -> Trainer:
    model = models.get(config["model"], len(dataset.classes))
    if config.get("normalize"):
        model = Sequential([Normalize.of(images), *model.layers])
    trainer = Trainer(
        model,
        losses.CrossEntropy(label_smoothing=config.get("label_smoothing", 0.0)),
        settings.optimizer(config),
        settings.SCHEDULES[config["schedule"]],
        backend=backend,
        seed=config["seed"],
    )
    try:
        return trainer.build(images.shape[1:])
    except ShapeError as e:
        size = "×".join(map(str, images.shape[1:]))
        raise ShapeError(f"{config['model']} cannot take images of {size}, choose another --model: {e}") from None


def _interrupted(run: Run, wanted: Trainer) -> Trainer:
    """The trainer as the last checkpoint has it, which must be what the configuration asks for."""
    try:
        trainer = Trainer.load(run.file("last.safetensors"), backend=wanted.backend)
    except FileFormatError as e:
        raise FileFormatError(f"{e}, or {_instead(run)}") from None
    for name in ("model", "optimizer", "schedule", "loss", "seed"):
        then, now = getattr(trainer, name), getattr(wanted, name)
        if then != now:
            raise ValueError(
                f"{run.file('last.safetensors')} has the {name} {then!r}, but {run.file('config.toml')} asks for "
                f"{now!r}; restore the file, or begin a new run with it: xpnn train --config {run.quoted}/config.toml"
            )
    return trainer


def _instead(run: Run) -> str:
    """What to do where a run cannot go on."""
    best = f"; `xpnn evaluate {run.quoted} --checkpoint best` looks at its best epoch"
    return "begin a new run in another --out" + best * run.file("best.safetensors").exists()


def parts(dataset: data.Dataset, config: Config) -> tuple[Part, Part]:
    """What is trained on and what each epoch is validated with."""
    limit = config.get("limit", len(dataset.train_labels))
    images, labels = data.part(dataset.train_images, slice(limit)), dataset.train_labels[:limit]
    if not config.get("validation"):
        return (images, labels), (dataset.test_images, dataset.test_labels)
    held_out = round(config["validation"] * len(labels))
    if not 0 < held_out < len(labels):
        raise ValueError(
            f"--validation {config['validation']:g} of {len(labels)} images leaves none to train or to validate with"
        )
    order = Stream(0, "validation").permutation(len(labels))
    first, rest = np.sort(order[:held_out]), np.sort(order[held_out:])
    return (data.part(images, rest), labels[rest]), (data.part(images, first), labels[first])


def _augment(config: Config) -> augment.Augment | None:
    return augment.recipe(config["dataset"]) if config.get("augment") else None


def _keepers(run: Run, config: Config) -> list[Callback]:
    """The callbacks that write into the folder or end training early."""
    keepers: list[Callback] = [
        JSONLines(run.file("metrics.jsonl")),
        TensorBoard(run.path),
        Checkpoint(run.path, config["save_every"]),
    ]
    if "patience" in config:
        keepers.append(EarlyStopping(config["patience"]))
    if "time_limit" in config:
        keepers.append(TimeLimit(config["time_limit"]))
    return keepers


def _facts(trainer: Trainer, dataset: data.Dataset, config: Config) -> dict[str, Any]:
    """What a run is, before it has a result."""
    return {
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "in_shape": list(trainer.in_shape or ()),
        "model": config["model"],
        "parameters": sum(w.size for w in trainer.weights.values()),
        "epochs": config["epochs"],
        "batch_size": config["batch_size"],
        "optimizer": repr(trainer.optimizer),
        "schedule": repr(trainer.schedule),
        "seed": config["seed"],
        "backend": trainer.backend.describe(),
        "versions": {"xpnn": __version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def result(trainer: Trainer, train: Part, test: Part) -> dict[str, Any]:
    """How good it is, and how fast it was."""
    tested, trained, history = trainer.evaluate(*test), trainer.evaluate(*train), trainer.history
    seconds = sum(record["seconds"] for record in history)
    return {
        "test_accuracy": tested["accuracy"],
        "test_loss": tested["loss"],
        "train_accuracy": trained["accuracy"],
        "seconds": seconds,
        "images_per_second": len(train[1]) * len(history) / seconds,
    }


def _report(summary: dict[str, Any], stream: TextIO) -> None:
    print(
        f"test accuracy {summary['test_accuracy']:.4f}, test loss {summary['test_loss']:.4f}, "
        f"train accuracy {summary['train_accuracy']:.4f}\n"
        f"{summary['seconds']:.1f} s, {summary['images_per_second']:,.0f} images/s",
        file=stream,
    )


def _pictures(run: Run, trainer: Trainer, dataset: data.Dataset, summary: dict[str, Any], stream: TextIO) -> None:
    """Draw what `xpnn show` draws; a want of matplotlib is no reason to fail after training."""
    if find_spec("matplotlib") is None:
        print(f'no pictures: pip install "xpnn[train]", then `xpnn show {run.quoted}`', file=stream)
        return
    from xpnn import pictures

    pictures.write(run.path, trainer, dataset, trainer.history, summary, run.config)
