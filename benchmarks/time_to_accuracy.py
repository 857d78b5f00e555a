"""How long from the start of the process to 99 % on MNIST's test set, beside PyTorch?

    XPNN_DATA=DIR python benchmarks/time_to_accuracy.py [--seeds 0 1 2 3 4] [--json FILE]

Both sides train small-cnn by one recipe: from the same weights, by the same optimizer, schedule, batch and epochs; the
order of the images is each side's own. Both look at the whole test set at the same moments, which counts as time, and
stop at the target. Each run is a process of its own, timed from outside: imports and reading the files count as well.
PyTorch runs channels-last, its fastest setting that needs no compiler.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import xpnn
from xpnn.bench import machine
from xpnn.bench.measure import Side, ratio
from xpnn.optim import OneCycle, Progress

MODEL, BATCH, EPOCHS, LR, MOMENTUM = "small-cnn", 128, 2, 0.15, 0.9
LOOKS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the last epoch; the others have one at their end


def looks(steps):
    """The steps after which both look at the test set."""
    return {steps * epoch for epoch in range(1, EPOCHS)} | {steps * (EPOCHS - 1) + round(steps * s) for s in LOOKS}


def told(images, accuracy, target):
    """Say how good it is, to whoever holds the watch; whether it is good enough."""
    print(json.dumps({"images": images, "accuracy": accuracy}), flush=True)
    return accuracy >= target


def ours(data, seed, target, backend):
    class Look(xpnn.Callback):
        def on_step(self, fit):
            if fit.done in looks(fit.steps):
                found = fit.trainer.evaluate(data.test_images, data.test_labels, batch_size=1000)
                if told((fit.epoch - 1) * len(data.train_labels) + fit.images, found["accuracy"], target):
                    fit.stop("the target is reached")

    optimizer = xpnn.optim.SGD(lr=LR, momentum=MOMENTUM)
    trainer = xpnn.Trainer(xpnn.models.get(MODEL), optimizer=optimizer, schedule=OneCycle(), backend=backend, seed=seed)
    trainer.fit(data.train_images, data.train_labels, epochs=EPOCHS, batch_size=BATCH, callbacks=[Look()])


def pytorch(data, seed, target, threads):
    import torch
    from xpnn_torch.peer import initial, network

    torch.set_num_threads(threads)
    torch.manual_seed(seed)

    def tensors(images, labels):
        x = torch.from_numpy(np.moveaxis(images, -1, 1)).contiguous(memory_format=torch.channels_last)
        return x, torch.from_numpy(labels.astype(np.int64))

    model, shape = xpnn.models.get(MODEL), data.train_images.shape[1:]
    net = network(model, shape)
    net.load_state_dict(initial(model, shape, seed))
    net.to(memory_format=torch.channels_last)
    x, y = tensors(data.train_images, data.train_labels)
    test, answers = tensors(data.test_images, data.test_labels)
    steps = -(-len(y) // BATCH)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: OneCycle()(Progress(step, steps * EPOCHS)))
    done = images = 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
            done, images = done + 1, images + len(rows)
            if done in looks(steps):
                with torch.inference_mode():
                    found = torch.cat([net(part).argmax(1) for part in test.split(1000)])
                if told(images, int((found == answers).sum()) / len(answers), target):
                    return


def child(args):
    """One run, in its own process."""
    data = xpnn.data.mnist()
    if args.run == "xpnn":
        ours(data, args.seeds[0], args.target, args.backend)
    else:
        pytorch(data, args.seeds[0], args.target, args.threads)


def timed(side, seed, args):
    """Start a run and note when it says what."""
    command = [sys.executable, __file__, "--run", side, "--seeds", str(seed)]
    for name in ("backend", "target", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = os.environ | {"XPNN_THREADS": str(args.threads)}
    begun, seen = time.perf_counter(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            seen.append({"seconds": time.perf_counter() - begun, **json.loads(line)})
    if process.returncode:
        sys.exit(f"the run of {side} with seed {seed} failed: see above")
    return {"side": side, "seed": seed, "reached": seen[-1]["accuracy"] >= args.target, "looks": seen}


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Time to an accuracy on MNIST, beside PyTorch; data from XPNN_DATA.")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--target", type=float, default=0.99)
    parser.add_argument("--threads", type=int, default=len(machine.cores()))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--run", choices=["xpnn", "torch"], help=argparse.SUPPRESS)  # the processes that it starts
    args = parser.parse_args(arguments)
    if args.run:
        child(args)
        return
    before, runs = machine.load(), []
    for seed in args.seeds:  # in turns
        for side in ("xpnn", "torch"):
            runs.append(timed(side, seed, args))
            last = runs[-1]["looks"][-1]
            text = f"{side:5}  seed {seed}  {last['accuracy']:.4f} after {last['images']:6,} images"
            print(f"{text}  {last['seconds']:6.1f} s" + "  not reached" * (not runs[-1]["reached"]), flush=True)
    sides = {
        name: Side(name, name, 1, None, [r["looks"][-1]["seconds"] for r in runs if r["side"] == name and r["reached"]])
        for name in ("xpnn", "torch")
    }
    found = None
    if all(len(side.times) == len(args.seeds) > 1 for side in sides.values()):
        medians = ", ".join(f"{name} {side.seconds:.1f} s" for name, side in sides.items())
        found = ratio(*sides.values())
        print(f"medians: {medians}; " + (f"{found.value:.2f} times as fast" if found.value else found.why))
    if args.json:
        record = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "recipe": {"model": MODEL, "batch": BATCH, "epochs": EPOCHS, "lr": LR, "momentum": MOMENTUM},
            "settings": {k: v for k, v in vars(args).items() if k not in ("json", "run")},
            "machine": xpnn.backend.get(args.backend).describe(),
            "versions": machine.versions(),
            "load": {"before": before, "after": machine.load()},
            "ratio": found.value if found else None,
            "why": None if found and found.value else found.why if found else "not all runs reached the target",
            "runs": runs,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
