"""Who does the work: xpnn, the tutorial's loops, and the peers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from xpnn import backend as backends
from xpnn import naive
from xpnn.backend import Backend
from xpnn.bench.measure import Side
from xpnn.bench.work import LR, MOMENTUM, Work
from xpnn.optim import SGD
from xpnn.train import Trainer

PEERS = {"torch": "PyTorch", "jax": "JAX", "loops": "the tutorial's loops"}
LOOPS = 8  # images: enough, for the loops take a hundred times as long


def installed(peer: str) -> bool:
    """Whether a peer can take part here."""
    return peer == "loops" or find_spec(peer) is not None


def sides(work: Work, backend: Backend, peers: list[str], threads: int, compiled: bool) -> list[Side]:
    """All that take turns at a work."""
    found = [ours(work, backend)]
    for peer in ("torch", "jax"):
        if peer in peers:
            found += backends.find(peer).peers(work, backend.gpu(), threads, compiled)
    if "jax" in peers and backend.name != "jax":
        found += [ours(work, backends.get("jax"))]
    if "loops" in peers and work.model_name == "article":
        found += [loops(work)]
    return found


def ours(work: Work, backend: Backend) -> Side:
    """Steps of a backend's executor, each with all that the trainer hands it."""
    trainer = Trainer(work.model, optimizer=SGD(lr=LR, momentum=MOMENTUM), backend=backend).build(work.in_shape)
    executor, n = trainer.executor, work.batch
    state = executor.load(trainer.host_state())
    x, y = backend.asarray(work.images), backend.asarray(work.labels)
    done = 0

    def train(count: int) -> float:
        nonlocal state, done
        with executor.session():
            for _ in range(count):
                draws, done = trainer._draws(done * n, n), done + 1
                state, metrics = executor.step(state, x, y, draws, executor.scalars(n, LR, done))
            return float(backend.to_numpy(metrics)[0]) / n

    def predict(count: int) -> Any:
        with executor.session():
            for _ in range(count):
                scores = executor.predict(state, x)
            return backend.to_numpy(scores)

    return Side(f"xpnn {backend.name}", "xpnn", n, train if work.training else predict)


def loops(work: Work) -> Side:
    """The tutorial's steps on a few images, one after the other."""
    network = naive.article(np.random.default_rng(0), (28, 28, 1))
    images, labels = work.images[:LOOPS], work.labels[:LOOPS]

    def train(count: int) -> float:
        return network.train(images, labels, epochs=count, lr=LR)[-1][0]

    def predict(count: int) -> Any:
        return [[network.forward(image) for image in images] for _ in range(count)][-1]

    return Side("loops", "loops", len(images), train if work.training else predict)
