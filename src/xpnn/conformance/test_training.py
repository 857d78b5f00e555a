"""Training steps through the executor of a backend, each held against the plain one in float64 on NumPy.

Steps are judged one by one, from the same state: rounding grows from step to step, on correct backends too.
"""

import numpy as np
import pytest

from xpnn import backend as backends
from xpnn import losses
from xpnn.conformance.networks import CLASSES, IMAGES, LABELS, SHAPE
from xpnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Sequential, SiLU
from xpnn.optim import SGD, Adam
from xpnn.parity.functions import yardstick_of
from xpnn.parity.yardstick import bound, ratio
from xpnn.random import Stream
from xpnn.train import Executor

N, STEPS = 8, 3
NORMED = Sequential(
    [Conv2D(3, 3, bias=False), BatchNorm(), ReLU(), MaxPool2D(2), Dropout(0.3), Flatten(), Dense(CLASSES)]
)
SMOOTH = Sequential([Conv2D(2, 3, padding="same"), SiLU(), Conv2D(3, 2, stride=2), Flatten(), Dense(CLASSES)])
RUNS = {"normed": (NORMED, SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)), "smooth": (SMOOTH, Adam(0.02))}
TERMS = 64  # and more, in the gradients of weights: the bound is at its largest


@pytest.mark.parametrize("run", RUNS)
def test_steps_are_those_of_numpy_in_float64(variant, backend, run):
    model, optimizer = RUNS[run]
    dtype = variant.dtypes[0]
    executor = backend.executor(model, losses.CrossEntropy(), optimizer, SHAPE, dtype)
    plain = Executor(backends.get("numpy"), model, losses.CrossEntropy(), optimizer, SHAPE, "float64")
    weights, stats = model.init(SHAPE, Stream(0, "weights"))
    moments = {m: {p: np.full(a.shape, 0.25) for p, a in weights.items()} for m in optimizer.moments}
    state = executor.load({"weights": weights, "stats": stats, "moments": moments})
    for number in range(1, STEPS + 1):
        before = executor.save(state)
        images, labels = IMAGES[:N] + np.float32(number) / 8, LABELS[:N]
        masks = {d.path: Stream(number, d.path).mask(0, N, d.shape, 0.7) for d in model.draws(SHAPE)}

        def in_float64(arrays, before=before, labels=labels, masks=masks, number=number):
            x, *rest = arrays
            host = joined(before, rest)
            new, metrics = plain.step(plain.load(host), x, labels, masks, plain.scalars(N, 0.1, number))
            return flat(plain.save(new)) | {"loss": np.array(metrics[0])}

        arrays = [a.astype(np.float64) for a in (images, *flat(before).values())]
        expected = in_float64(arrays)
        yardsticks = yardstick_of(in_float64, arrays, expected)
        draws = {path: backend.asarray(mask) for path, mask in masks.items()}
        given = backend.asarray(images, dtype), backend.asarray(labels), draws, executor.scalars(N, 0.1, number)
        state, metrics = executor.step(state, *given)
        after = flat(executor.save(state)) | {"loss": np.array(backend.to_numpy(metrics))[0]}
        assert after.keys() == expected.keys()
        ratios = {k: ratio(np.asarray(after[k]), expected[k], yardsticks[k], dtype) for k in expected}
        assert not {k: r for k, r in ratios.items() if not r <= bound(TERMS)}, f"step {number}"


def flat(host):
    """The arrays of a state on the host, by kind and path."""
    moments = {f"{m}/{path}": a for m, tree in host["moments"].items() for path, a in tree.items()}
    return {f"{kind}/{path}": a for kind in ("weights", "stats") for path, a in host[kind].items()} | moments


def joined(like, arrays):
    """The state whose arrays are these."""
    parts = iter(arrays)
    named = {kind: {path: next(parts) for path in like[kind]} for kind in ("weights", "stats")}
    return named | {"moments": {m: {path: next(parts) for path in tree} for m, tree in like["moments"].items()}}
