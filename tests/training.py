"""What the tests of training share: a small data set, small networks, and a look at what a step is handed."""

from contextlib import contextmanager

import numpy as np

from xpnn import Callback, Trainer
from xpnn.conformance.networks import ADAM, CLASSES, IMAGES, LABELS, NET, PLAIN, SHAPE, assert_same_tree
from xpnn.random import Stream

__all__ = [
    "ADAM", "CLASSES", "IMAGES", "LABELS", "NET", "PLAIN", "SHAPE", "Moments", "assert_same_state", "assert_same_tree",
    "net", "plain", "recorded", "samples",
]  # fmt: skip


def samples(n, seed=0, shape=SHAPE, classes=CLASSES):
    """Images and labels that have nothing to do with each other."""
    images = Stream(seed, "tests", "more images").normal((n, *shape)).astype("float32")
    labels = Stream(seed, "tests", "more labels").words(0, n) % np.uint64(classes)
    return images, labels.astype("int64")


def net(backend="numpy", **options):
    return Trainer(NET, optimizer=ADAM, backend=backend, **options)


def plain(backend="numpy", model=PLAIN, **options):
    return Trainer(model, backend=backend, **options)


def assert_same_state(a, b):
    """That two trainers hold the same weights, statistics, moments and counters, bit for bit."""
    assert (a.step, a.samples, len(a.history)) == (b.step, b.samples, len(b.history))
    assert_same_tree(a.host_state(), b.host_state())


@contextmanager
def recorded(trainer):
    """What each step is handed, on the host: `images, targets, draws, scalars`."""
    executor, seen, to_numpy = trainer.executor, [], trainer.backend.to_numpy
    step = executor.step

    def watched(state, images, targets, draws, scalars):
        masks = {path: np.array(to_numpy(mask)) for path, mask in draws.items()}
        seen.append((np.array(to_numpy(images)), np.array(to_numpy(targets)), masks, np.array(to_numpy(scalars))))
        return step(state, images, targets, draws, scalars)

    executor.step = watched
    try:
        yield seen
    finally:
        del executor.step


class Moments(Callback):
    """Writes down what it is told."""

    def __init__(self, log=None, name=""):
        self.log, self.name = [] if log is None else log, name

    def on_begin(self, fit):
        self.log.append((f"{self.name}begin", fit.epochs, fit.steps))

    def on_step(self, fit):
        self.log.append((f"{self.name}step", fit.epoch, fit.step))

    def on_epoch(self, fit, record):
        self.log.append((f"{self.name}epoch", fit.epoch, record["epoch"]))

    def on_end(self, fit):
        self.log.append((f"{self.name}end",))
