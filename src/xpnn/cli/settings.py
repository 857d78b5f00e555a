"""What a run is begun with: the options of `xpnn train`, what suits each data set and model, and the file of both."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from xpnn import data, models, optim, runs
from xpnn.cli.values import Parser, below_one, count, positive, share
from xpnn.runs import Config

OPTIMIZERS: dict[str, optim.Optimizer] = {
    "sgd": optim.SGD(lr=0.05, momentum=0.9),
    "nesterov": optim.SGD(lr=0.05, momentum=0.9, nesterov=True),
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
RECIPES: dict[str, Config] = {  # what a data set is trained with unless the command line says otherwise
    "digits": {"model": "tiny-cnn", "epochs": 20, "batch_size": 32},
    "mnist": {"model": "small-cnn", "epochs": 3, "batch_size": 64},
    "fashion-mnist": {"model": "small-cnn", "epochs": 8, "batch_size": 64},
    "kmnist": {"model": "small-cnn", "epochs": 8, "batch_size": 64},
    "cifar10": {"model": "resnet20", "epochs": 30, "batch_size": 128},
}
OF_MODELS: Config = {  # and what a model asks for beyond that
    "deep-cnn": {
        "epochs": 20, "batch_size": 128, "optimizer": "nesterov", "lr": 0.1, "weight_decay": 5e-3,
        "label_smoothing": 0.05,
    },
}  # fmt: skip
OTHERS: Config = {"model": "small-cnn", "epochs": 10, "batch_size": 32}
DEFAULTS: Config = {"dataset": "digits", "optimizer": "sgd", "schedule": "one-cycle", "seed": 0, "save_every": 60.0}
NOT_OF_THE_RUN = ("config", "resume", "out", "target_accuracy", "json", "no_pictures", "threads")
SWITCHES = ("skip_corrupt", "normalize", "augment")
"""Those of a configuration that are true or false."""
MAY_CHANGE = (*NOT_OF_THE_RUN, "backend", "device", "data_dir", "time_limit", "save_every")
"""What may be said anew where a run goes on: where it computes and how long, not what."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options; those that are not given are absent."""
    rates = ", ".join(f"{optimizer.lr:g} for {name}" for name, optimizer in OPTIMIZERS.items())
    group: Any = None

    def add(name: str, metavar: str | None, help: str, **options: Any) -> None:
        if metavar is None:
            options["action"] = "store_true"
        else:
            options["metavar"] = metavar
        group.add_argument(name, default=argparse.SUPPRESS, help=help, **options)

    def one_of(name: str, known: Mapping[str, Any], default: str) -> None:
        add(name, "NAME", f"{', '.join(known)}; {default}", choices=list(known))

    group = parser.add_argument_group("the images")
    add("--dataset", "D", f"{', '.join(data.NAMES)}, or a FILE.npz or FOLDER of images; default: digits")
    add("--data-dir", "DIR", "folder of the set's original files (or set XPNN_DATA); else they are downloaded")
    add("--image-size", "N", "bring the images of a FOLDER to N×N; default: their own size, or 64", type=count)
    add("--skip-corrupt", None, "leave images of a FOLDER out that cannot be read, and name them")
    add("--limit", "N", "train on the first N images only", type=count)
    add("--validation", "X", "hold this share of the training images out, to see by them which epoch is best; "
        "default: 0, which shows the test images after each epoch", type=share)  # fmt: skip
    add("--augment", None, "change the training images at random, as suits the data set")

    group = parser.add_argument_group("the network")
    one_of("--model", models.MODELS, _recipes("model"))
    add("--normalize", None, "subtract the mean of the training images and divide by their standard deviation")

    group = parser.add_argument_group("the training")
    add("--epochs", "N", f"times through the images; {_recipes('epochs')}", type=count)
    add("--batch-size", "N", f"images a step; {_recipes('batch_size')}", type=count)
    one_of("--optimizer", OPTIMIZERS, f"default: {DEFAULTS['optimizer']}")
    add("--lr", "X", f"largest learning rate; default: {rates}", type=positive)
    one_of("--schedule", SCHEDULES, f"of the learning rate; default: {DEFAULTS['schedule']}")
    add("--weight-decay", "X", "shrink the weights by so much of the learning rate a step; default: 0", type=share)
    add("--label-smoothing", "X", "take so much of each label away and give it to all; default: 0", type=below_one)
    add("--seed", "N", "of weights, order, dropout and augmentation; default: 0", type=int)
    add("--patience", "N", "stop after N epochs without a better one", type=count)
    add("--time-limit", "SECONDS", "stop after so long; --resume goes on", type=positive)

    group = parser.add_argument_group("where it computes")
    add("--backend", "NAME", "numpy, cupy, … (`xpnn backends` lists them); default: auto")
    add("--device", "NAME", "which device, in the words of the backend, e.g. cuda:1")
    add("--threads", "N", "threads of the numpy backend; default: the cores it may use", type=count)

    group = parser.add_argument_group("the run")
    add("--out", "DIR", "its folder; default: runs/DATASET-MODEL-BACKEND-TIME", type=Path)
    add("--config", "FILE", "take what is not given here from the config.toml of a run", type=Path)
    add("--resume", None, "go on with the run in --out, in the folder of --config, or else the newest below runs")
    add("--save-every", "SECONDS", "also write a checkpoint within an epoch; default: 60", type=positive)
    add("--no-pictures", None, "draw no pictures and no report at the end (`xpnn show RUN` does)")
    add("--target-accuracy", "X", "exit with status 1 below it", type=share)
    add("--json", None, "print nothing but the summary, as JSON")


def of_run(given: Config) -> Config:
    """All that makes the run: what is given, else what the file of `--config` says, else what suits the data set."""
    filed = from_file(given["config"]) if "config" in given else {}
    if "optimizer" in given:
        filed.pop("lr", None)  # it was that of another optimizer
    said = DEFAULTS | filed | given
    recipe = RECIPES.get(said["dataset"], OTHERS)
    recipe = recipe | OF_MODELS.get((recipe | said)["model"], {})
    if "optimizer" in filed | given:
        recipe = {k: v for k, v in recipe.items() if k not in ("lr", "weight_decay")}
    config = placed(DEFAULTS | recipe | filed | given)
    config = {"lr": OPTIMIZERS[config["optimizer"]].lr} | config
    return {key: config[key] for key in _keys() if key in config}


def placed(config: Config) -> Config:
    """With absolute paths: a relative one would mean something else elsewhere."""
    paths = {name: Path(config[name]).expanduser() for name in ("dataset", "data_dir") if name in config}
    if config.get("dataset") in data.NAMES:
        del paths["dataset"]
    return config | {name: str(path.resolve()) for name, path in paths.items() if path.exists()}


def _keys() -> list[str]:
    """What a configuration may hold, in the order of `--help`."""
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    return [a.dest for a in parser._actions if a.dest not in NOT_OF_THE_RUN]


class _FileParser(Parser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {self.explained(message)}")


def from_file(path: Path) -> Config:
    """The options that a configuration gives, checked as those of the command line are."""
    parser = _FileParser(prog=str(path), add_help=False)
    add_options(parser)
    words, known = [], _keys()
    for key, value in runs.read_config(path).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{path}: unknown key {key!r}; {hint}")
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, bool) != (key in SWITCHES):
            expected = "true or false" if key in SWITCHES else "a number or a string"
            raise ValueError(f"{path}: {key} = {json.dumps(value, default=str)}; expected {expected}")
        if isinstance(value, bool):
            words += [option] if value else []
        else:
            words.append(f"{option}={value}")
    return vars(parser.parse_args(words))


def optimizer(config: Config) -> optim.Optimizer:
    """The optimizer that a configuration asks for."""
    chosen = replace(OPTIMIZERS[config["optimizer"]], lr=config["lr"])
    if "weight_decay" not in config:
        return chosen
    if isinstance(chosen, optim.SGD | optim.AdamW):
        return replace(chosen, weight_decay=config["weight_decay"])
    raise ValueError(f"--weight-decay: {config['optimizer']} has none; it goes with --optimizer sgd, nesterov or adamw")


def _recipes(name: str) -> str:
    """The default of what depends on the data set."""
    values: dict[Any, list[str]] = {}
    for dataset, recipe in RECIPES.items():
        values.setdefault(recipe[name], []).append(dataset)
    parts = [f"{value} for {' and '.join(datasets)}" for value, datasets in values.items()]
    return f"default: {', '.join(parts)}, else {OTHERS[name]}"
