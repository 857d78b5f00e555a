"""What an executor promises a trainer, whichever backend brings it; and that a backend may bring one."""

from contextlib import contextmanager

from training import IMAGES, LABELS, PLAIN, SHAPE, assert_same_tree, plain
from xpnn_numpy import NumPyBackend

from xpnn import Trainer
from xpnn.conformance.test_executor import *  # noqa: F403
from xpnn.conformance.test_training import *  # noqa: F403
from xpnn.train import Executor


class Own(NumPyBackend):
    """A backend with an executor of its own."""

    def executor(self, *args, **kwargs):
        return Watched(self, *args, **kwargs)


class Watched(Executor):
    log: list[str]

    def __init__(self, *args):
        super().__init__(*args)
        self.log = []

    @contextmanager
    def session(self):
        self.log.append("in")
        yield
        self.log.append("out")

    def step(self, *args):
        self.log.append("step")
        return super().step(*args)

    def evaluate(self, *args):
        self.log.append("evaluate")
        return super().evaluate(*args)

    def predict(self, *args):
        self.log.append("predict")
        return super().predict(*args)


def test_a_backend_brings_its_own_executor():
    trainer = plain(Own())
    trainer.fit(IMAGES, LABELS, batch_size=10, validation_data=(IMAGES, LABELS))
    assert type(trainer.executor) is Watched
    assert trainer.executor.log == ["in", "step", "step", "evaluate", "evaluate", "out"]
    trainer.executor.log.clear()
    trainer.predict(IMAGES)
    trainer.evaluate(IMAGES, LABELS)
    assert trainer.executor.log == ["in", "predict", "out", "in", "evaluate", "out"]


def test_the_plain_executor_is_the_standard(monkeypatch):
    monkeypatch.setenv("XPNN_KERNELS", "standard")
    trainer = plain("numpy").build(SHAPE)
    assert type(trainer.executor) is Executor
    other = Trainer(PLAIN, backend=Own()).build(SHAPE)
    for t in (trainer, other):
        t.fit(IMAGES, LABELS, batch_size=8, epochs=2)
    assert_same_tree(trainer.host_state(), other.host_state())
