"""How fast is a training step beside PyTorch's, in one run on one machine?

    python benchmarks/step.py [--backend numpy] [--models article small-cnn] [--batches 32 128] [--json FILE]

A step is forward, backward and update in float32, fed from memory. The sides take turns, round after round, after
a warm-up; the table shows the median of the rounds, the spread between their quartiles, and the ratio to the
best setting of PyTorch. Where the difference is smaller than the spread, no ratio is shown. Labels are random, so
the learning rate is small: weights that overflow would slow both sides down.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import xpnn

LR, MOMENTUM = 1e-3, 0.9
SHAPES = {"article": (28, 28, 1), "small-cnn": (28, 28, 1), "lenet5": (28, 28, 1), "resnet20": (32, 32, 3)}


def ours(backend, model, images, labels):
    """Steps of xpnn's executor, each with all that the trainer hands it (these networks draw no masks)."""
    optimizer = xpnn.optim.SGD(lr=LR, momentum=MOMENTUM)
    trainer = xpnn.Trainer(xpnn.models.get(model), optimizer=optimizer, backend=backend).build(images.shape[1:])
    executor = trainer.executor
    state = executor.load(trainer.host_state())
    x, y, n = backend.asarray(images), backend.asarray(labels), len(labels)

    def steps(count):
        nonlocal state
        with executor.session():  # entered once a fit
            for _ in range(count):
                state, metrics = executor.step(state, x, y, {}, executor.scalars(n, LR, 1))
            backend.to_numpy(metrics)  # wait for the device

    return steps


def loops(images, labels):
    """The tutorial's steps: image by image."""
    network = xpnn.naive.article(np.random.default_rng(0), images.shape[1:])
    return lambda count: network.train(images, labels, epochs=count, lr=LR)


def pytorch(model, images, labels, device, channels_last, compiled):
    """The same steps in PyTorch."""
    import torch

    if device != "cpu":
        torch.backends.cudnn.allow_tf32 = False  # float32 on both sides; PyTorch's default is less
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = torch_network(xpnn.models.get(model), images.shape[1:]).to(device=device, memory_format=layout)
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(device=device, memory_format=layout)
    y = torch.from_numpy(labels).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
    call = torch.compile(net) if compiled else net

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(call(x), y)
            loss.backward()
            optimizer.step()
        loss.item()  # wait for the device

    return steps


def torch_network(layer, in_shape):
    """PyTorch's own modules for one of xpnn's layers."""
    from torch import nn

    name = type(layer).__name__
    if name == "Sequential":
        parts = []
        for part in layer.layers:
            parts.append(torch_network(part, in_shape))
            in_shape = part.shape(in_shape)
        return nn.Sequential(*parts)
    if name == "Residual":
        return residual(layer, in_shape)
    c = in_shape[-1]
    makers = {
        "Conv2D": lambda: nn.Conv2d(c, layer.channels, layer.kernel, layer.stride, layer.padding, bias=layer.bias),
        "MaxPool2D": lambda: nn.MaxPool2d(layer.window),
        "AvgPool2D": lambda: nn.AvgPool2d(layer.window),
        "GlobalAvgPool": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "BatchNorm": lambda: nn.BatchNorm2d(c),
        "Flatten": nn.Flatten,
        "Dense": lambda: nn.Linear(c, layer.units),
        "ReLU": nn.ReLU,
        "Tanh": nn.Tanh,
    }
    return makers[name]()


def residual(layer, in_shape):
    """A residual block as a module."""
    from torch import nn

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch_network(layer.body, in_shape)
            self.shortcut = torch_network(layer.shortcut, in_shape) if layer.shortcut else nn.Identity()

        def forward(self, x):
            return self.body(x) + self.shortcut(x)

    return Residual()


def measure(sides, rounds, seconds):
    """For each side the seconds of a step in each round; the sides take turns."""
    counts = {}
    for name, steps in sides.items():
        steps(3)  # the first ones compile and allocate
        begun = time.perf_counter()
        steps(3)
        counts[name] = max(1, round(3 * seconds / (time.perf_counter() - begun)))
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, steps in sides.items():
            begun = time.perf_counter()
            steps(counts[name])
            times[name].append((time.perf_counter() - begun) / counts[name])
    return times


def summary(times, batch):
    """Median images a second and the spread, as a share, of each side."""
    rows = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        rows[name] = {"images_per_second": batch / middle, "spread": (high - low) / middle, "seconds": values}
    return rows


def ratio(rows):
    """Ours to the best of PyTorch's settings; None where the rounds do not tell them apart."""
    peers = [row for name, row in rows.items() if name.startswith("torch")]
    if not peers:
        return None
    best = max(peers, key=lambda row: row["images_per_second"])
    value = rows["xpnn"]["images_per_second"] / best["images_per_second"]
    return value if abs(value - 1) > max(rows["xpnn"]["spread"], best["spread"]) else None


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Time a training step beside PyTorch's.")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one side in one round")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well (slow to start)")
    parser.add_argument("--loops", action="store_true", help="the tutorial's loops as well (article only)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(arguments)
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: the spread comes from them")

    try:
        backend = xpnn.backend.get(args.backend)
    except xpnn.errors.BackendError as e:
        parser.error(str(e))
    peer = None
    try:
        import torch

        peer = torch.__version__
        device = "cuda" if backend.gpu() and torch.cuda.is_available() else "cpu"
    except ImportError:
        print("PyTorch is not installed: no peer (pip install torch)", file=sys.stderr)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"others compute on this machine (load {load:.1f}): the times will tell little", file=sys.stderr)
    rng = np.random.default_rng(0)
    results = []
    print(f"{'network':10} {'batch':>5}  {'side':22} {'images/s':>9} {'spread':>7}  ratio")
    for model in args.models:
        for batch in args.batches:
            images = rng.random((batch, *SHAPES[model]), dtype=np.float32)
            labels = rng.integers(0, 10, batch)
            sides = {"xpnn": ours(backend, model, images, labels)}
            if peer:
                for compiled in (False, True)[: 1 + args.compile]:
                    for last in (False, True):
                        name = f"torch{' channels-last' * last}{' compiled' * compiled}"
                        sides[name] = pytorch(model, images, labels, device, last, compiled)
            if args.loops and model == "article":
                sides["loops"] = loops(images[:8], labels[:8])
            times = measure(sides, args.rounds, args.seconds)
            if "loops" in times:
                times["loops"] = [t * batch / len(images[:8]) for t in times["loops"]]
            rows = summary(times, batch)
            found = ratio(rows)
            for name, row in rows.items():
                text = (
                    f"{found:.2f}"
                    if found and name == "xpnn"
                    else "within the spread" * (name == "xpnn" and bool(peer))
                )
                print(
                    f"{model:10} {batch:5}  {name:22} {row['images_per_second']:9,.0f} {row['spread']:7.0%}  {text}",
                    flush=True,
                )
            results.append({"model": model, "batch": batch, "ratio": found, "sides": rows})
    if args.json:
        record = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "backend": backend.describe(),
            "torch": peer,
            "torch_threads": torch.get_num_threads() if peer else None,
            "load_before": load,
            "settings": {k: v for k, v in vars(args).items() if k != "json"},
            "results": results,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
