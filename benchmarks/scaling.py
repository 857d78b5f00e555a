"""How far it scales: threads, sizes of images, memory, and the way to the first step.

    python benchmarks/scaling.py [--json FILE]

- threads: what two threads gain on a step at batch 128, beside what the machine's own GEMM gains from them;
- sizes: the time a pixel takes at 28², 64², 128² and 224², in a convolution, a pool, a convolution, a global mean;
- memory: the most that a process which trains at batch 512 holds with its helpers, beside PyTorch's (on Linux);
- start: from the start of the process to the end of the first step, on the digits.

Within a part the settings take turns; medians of the rounds are told.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import xpnn
from xpnn.backend import get
from xpnn.bench import machine
from xpnn.bench.sides import ours
from xpnn.bench.work import Work
from xpnn.layers import Conv2D, Dense, GlobalAvgPool, MaxPool2D, ReLU, Sequential

NETWORKS = ("article", "small-cnn", "lenet5", "resnet20")
SIZES = (28, 64, 128, 224)
PIXELS = 32 * 224**2  # of a batch of any size, so that all have the same work
PIXEL_NET = Sequential(
    [Conv2D(16, 3, padding=1), ReLU(), MaxPool2D(2), Conv2D(32, 3, padding=1), ReLU(), GlobalAvgPool(), Dense(10)]
)

TRAIN = """
import sys, threading, time, numpy as np
from pathlib import Path
from xpnn import models
def held(key, *processes):
    found = [Path(f"/proc/{pid}/status").read_text() for pid in ("self", *processes)]
    return sum(int(line.split()[1]) for status in found for line in status.splitlines() if line.startswith(key))
rng = np.random.default_rng(0)
shape = (32, 32, 3) if sys.argv[1] == "resnet20" else (28, 28, 1)
x, y = rng.random((512, *shape), dtype=np.float32), rng.integers(0, 10, 512)
"""
OURS = (
    TRAIN
    + """
import xpnn
trainer = xpnn.Trainer(models.get(sys.argv[1]), optimizer=xpnn.optim.SGD(1e-3, momentum=0.9), backend="numpy")
from xpnn_numpy.helpers import PATIENCE, helpers
found, over = [0], threading.Event()
def look():
    while not over.wait(0.02):
        found.append(held("VmRSS", *(helper.process.pid for helper in helpers.all)))
thread = threading.Thread(target=look)
thread.start()
begun = time.monotonic()
while time.monotonic() - begun < 8 * PATIENCE:  # until helpers have come, where there are any
    trainer.fit(x, y, epochs=4, batch_size=512)
over.set()
thread.join()
print(max(held("VmHWM"), *found))
"""
)
THEIRS = (
    TRAIN
    + """
import torch
from xpnn_torch.peer import network
model = network(models.get(sys.argv[1]), shape).to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
x, y = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
for _ in range(4):
    optimizer.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
print(held("VmHWM"))
"""
)
START = """
import xpnn
class Stop(Exception): pass
class First(xpnn.Callback):
    def on_step(self, fit): raise Stop
digits = xpnn.data.digits()
trainer = xpnn.Trainer(xpnn.models.get("tiny-cnn"), backend="numpy")
try:
    trainer.fit(digits.train_images, digits.train_labels, batch_size=32, callbacks=[First()])
except Stop:
    pass
"""


def interleaved(works, rounds):
    """The median seconds of each, the works taking turns of a quarter of a second and more."""
    times, counts = {name: [] for name in works}, {}
    for name, work in works.items():
        work()  # the first time compiles and allocates
        begun = time.perf_counter()
        work()
        counts[name] = max(1, round(0.25 / (time.perf_counter() - begun)))
    for _ in range(rounds):
        for name, work in works.items():
            work()  # the caches hold what the last one had
            begun = time.perf_counter()
            for _ in range(counts[name]):
                work()
            times[name].append((time.perf_counter() - begun) / counts[name])
    return {name: statistics.median(t) for name, t in times.items()}


def threads(rounds):
    a = np.random.default_rng(0).random((1024, 1024), dtype=np.float32)

    def gemm(count):
        with threadpool_limits(count, user_api="blas"):
            for _ in range(10):
                a @ a

    works = {("GEMM", n): lambda n=n: gemm(n) for n in (1, 2)}
    for name in NETWORKS:
        for n in (1, 2):
            os.environ["XPNN_THREADS"] = str(n)
            side, steps = ours(Work(name, 128, training=True), get("numpy")), 1 if name == "resnet20" else 8
            works[name, n] = lambda side=side, steps=steps: side.steps(steps)
    os.environ.pop("XPNN_THREADS")
    seconds = interleaved(works, rounds)
    gains = {name: seconds[name, 1] / seconds[name, 2] for name in ("GEMM", *NETWORKS)}
    return {name: {"gain": gain, "share": (gain - 1) / (gains["GEMM"] - 1)} for name, gain in gains.items()}


def sizes(rounds):
    works = {}
    for size in SIZES:
        n = PIXELS // size**2
        rng = np.random.default_rng(0)
        x, y = rng.random((n, size, size, 1), dtype=np.float32), rng.integers(0, 10, n)
        trainer = xpnn.Trainer(PIXEL_NET, optimizer=xpnn.optim.SGD(1e-3), backend="numpy")
        works[size] = lambda trainer=trainer, x=x, y=y: trainer.fit(x, y, batch_size=128)
    return {f"{size}²": 1e9 * t / PIXELS for size, t in interleaved(works, rounds).items()}


def run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def memory(rounds):
    sides = {"xpnn": OURS} | ({"torch": THEIRS} if find_spec("torch") else {})
    return {name: {side: int(run(code, name)) / 1024 for side, code in sides.items()} for name in NETWORKS}


def start(rounds):
    return interleaved({"seconds": lambda: run(START)}, rounds)


PARTS = {"threads": threads, "sizes": sizes, "memory": memory, "start": start}
UNITS = {"threads": "gain of two threads, as a share of GEMM's", "sizes": "ns a pixel", "memory": "MiB at most"}


def main():
    parser = argparse.ArgumentParser(description="How far it scales.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    record = {"versions": machine.versions(), "load": machine.load(), "backend": get("numpy").describe()}
    for part in args.parts:
        record[part] = PARTS[part](args.rounds)
        print(f"{part} ({UNITS.get(part, 's')})")
        for name, value in record[part].items():
            row = value if isinstance(value, dict) else {"": value}
            print(f"  {name:10}", "  ".join(f"{key} {number:,.2f}" for key, number in row.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
