"""Steps recorded as CUDA graphs: on a GPU where there is one, and everywhere on a stand-in that plays them back.

The stand-in computes a recording anew from its own inputs, as a graph does, so that it tells whether these are
filled, whether results outlive the next launch, and whether a state is followed.
"""

import gc
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest

import xpnn.backend
from xpnn import losses
from xpnn.conformance.networks import ADAM, CLASSES, IMAGES, LABELS, SHAPE, assert_same_tree
from xpnn.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Residual, Sequential
from xpnn.layers.base import Layer
from xpnn.optim import Optimizer
from xpnn.random import Stream
from xpnn.train.executor import Executor

NET = Sequential([Conv2D(3, 3), BatchNorm(), ReLU(), MaxPool2D(2), Dropout(0.5), Flatten(), Dense(CLASSES)])


class PlaysBack:
    """What stands in for a CUDA graph."""

    def __init__(self, compute, inputs, output):
        self.compute, self.inputs, self.output = compute, inputs, output

    def launch(self):
        self.output[...] = self.compute(self.inputs)


@pytest.fixture(params=["cupy", "stand-in"])
def backend(request, monkeypatch):
    if request.param == "cupy":
        if reason := xpnn.backend.find("cupy").why_unavailable():
            pytest.skip(f"cupy: {reason}")
        yield xpnn.backend.get("cupy")
        return
    with fake_cupy.installed(gpus=1):
        executor = import_module("xpnn_cupy.executor")

        class Recorder:
            def record(self, compute, arrays):
                inputs = {name: a.copy() for name, a in arrays.items()}
                with TheirState(compute):  # to record is not to compute
                    output = compute(inputs)
                return executor.Recording(PlaysBack(compute, dict(inputs), output), inputs, output, None, done)

        done = SimpleNamespace(record=lambda stream: None)
        stream = SimpleNamespace(wait_event=lambda event: None)
        monkeypatch.setattr(executor, "Recorder", Recorder)
        monkeypatch.setattr(executor.cupy.cuda, "get_current_stream", lambda: stream, raising=False)
        yield xpnn.backend.get("cupy")


class TheirState:
    """The state that a step closes over, as it was, when this is left."""

    def __init__(self, compute):
        cells = [cell.cell_contents for cell in compute.__closure__ or ()]
        self.states = [content for content in cells if isinstance(content, dict) and "weights" in content]

    def __enter__(self):
        leaves = import_module("xpnn_cupy.executor").leaves
        self.kept = [(a, a.copy()) for state in self.states for a in leaves(state)]

    def __exit__(self, *_):
        for a, before in self.kept:
            a[...] = before


class Remembering(Optimizer):
    """Whose moments are the weights of the two steps before: arrays that it was given."""

    moments = ("last", "before")

    def update(self, ops, weights, gradient, moments, scalars):
        step = scalars[0] * gradient + 0.01 * (weights - moments["before"])
        return weights - step, {"before": moments["last"], "last": weights}


def executors(backend, model=NET, optimizer=ADAM):
    """The plain one, and the one that records."""
    classes = Executor, import_module("xpnn_cupy.executor").GraphExecutor
    return [cls(backend, model, losses.CrossEntropy(), optimizer, SHAPE, "float32") for cls in classes]


def begun(executor, seed=0):
    weights, stats = executor.model.init(SHAPE, Stream(seed, "weights"))
    return executor.load({"weights": weights, "stats": stats, "moments": {}})


def step(executor, state, number, n=10):
    backend, model = executor.backend, executor.model
    first = number * 3 % (len(IMAGES) - n)
    masks = {
        d.path: backend.asarray(Stream(0, "draws").child(d.path).mask(number, n, d.shape, d.probability))
        for d in model.draws(SHAPE)
    }
    images, labels = (backend.asarray(a[first : first + n]) for a in (IMAGES, LABELS))
    return executor.step(state, images, labels, masks, executor.scalars(n, 0.1 / (number + 1), number + 1))


def test_a_recorded_step_is_the_step(backend):
    """The same bits, with another batch size between that is recorded by itself."""
    sizes = [10, 10, 7, 10, 7, 7, 10]
    results = []
    for executor in executors(backend):
        state, all_metrics = begun(executor), []
        for number, n in enumerate(sizes):
            state, metrics = step(executor, state, number, n)
            all_metrics.append(metrics)
        results.append((executor.save(state), [backend.to_numpy(m) for m in all_metrics]))
    assert [recording is not None for recording in executor._recordings.values()] == [True, True]
    (plain, their_metrics), (recorded, metrics) = results
    np.testing.assert_array_equal(metrics, their_metrics)
    assert_same_tree(recorded, plain)
    assert len({tuple(m) for m in metrics}) == len(sizes)


def test_an_optimizer_may_hand_on_what_it_was_given(backend):
    found = []
    for executor in executors(backend, optimizer=Remembering(0.1)):
        state = begun(executor)
        for number in range(5):
            state, _ = step(executor, state, number)
        found.append(executor.save(state))
    assert_same_tree(found[1], found[0])


def test_each_state_goes_its_own_way(backend):
    """Recordings hold the arrays of a state; another one must not be written to them."""
    plain, recording = executors(backend)
    found = []
    for executor in (plain, recording):
        states = [begun(executor, seed) for seed in (1, 2)]
        for number, which in enumerate([0, 0, 0, 1, 0, 1, 1, 1, 0]):
            states[which], _ = step(executor, states[which], number)
        found.append([executor.save(state) for state in states])
    for theirs, ours in zip(*found, strict=True):
        assert_same_tree(ours, theirs)


def test_predictions_follow_the_state_and_outlive_the_next(backend):
    plain, recording = executors(backend)
    results = []
    for executor in (plain, recording):
        state, found = begun(executor), []
        for number in range(4):
            images, labels = (backend.asarray(a[number : number + 8]) for a in (IMAGES, LABELS))
            found += [executor.predict(state, images), executor.evaluate(state, images, labels)]
            state, _ = step(executor, state, number)
        results.append([backend.to_numpy(a) for a in found])
    for theirs, ours in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Looks(Layer):
    """Looks at a value, which nothing can do before it is computed."""

    def shape(self, in_shape):
        return in_shape

    def apply(self, weights, stats, x, run):
        if bool(run.ops.total(x, (0, 1)) > 0):
            x = x * 2
        return x, {}, lambda dy, *, input_gradient=True: (dy * 2, {})


def test_what_cannot_be_recorded_is_computed_and_told_once(backend, monkeypatch):
    model = Sequential([Flatten(), Looks(), Dense(CLASSES)])
    plain, recording = executors(backend, model)
    if type(recording._recorder).__module__ != "xpnn_cupy.executor":

        def refuse(compute, arrays):
            raise RuntimeError("the current stream is capturing")

        monkeypatch.setattr(recording._recorder, "record", refuse, raising=False)
    states = []
    for executor in (plain, recording):
        state = begun(executor)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in range(4):
                state, _ = step(executor, state, number)
        states.append(executor.save(state))
        told = [str(w.message) for w in caught]
    assert_same_tree(*states)
    assert len(told) == 1
    assert told[0].startswith("this step cannot be recorded as a CUDA graph and runs call by call, which is slower (")


def test_one_attempt_may_fail(backend, monkeypatch):
    """As where another thread waits for the device meanwhile."""
    plain, recording = executors(backend)
    record, failures = recording._recorder.record, [RuntimeError("operation failed due to a previous error")]

    def fails_once(compute, arrays):
        if failures:
            raise failures.pop()
        return record(compute, arrays)

    monkeypatch.setattr(recording._recorder, "record", fails_once)
    states = []
    for executor in (plain, recording):
        state = begun(executor)
        for number in range(5):
            state, _ = step(executor, state, number)
        states.append(executor.save(state))
    assert_same_tree(*states)
    assert not failures
    assert None not in recording._recordings.values()


class Swaps(Layer):
    """Returns its statistics in another order than it has them."""

    def shape(self, in_shape):
        return in_shape

    def init(self, in_shape, stream):
        return {}, {"a": np.zeros(2), "b": np.ones(2)}

    def apply(self, weights, stats, x, run):
        return x, {"b": stats["b"] * 3, "a": stats["a"] - 1}, lambda dy, *, input_gradient=True: (dy, {})


def test_statistics_go_by_their_names(backend):
    for executor in executors(
        backend, Residual(Sequential([Flatten(), Dense(CLASSES), Swaps()]), Sequential([Flatten(), Dense(CLASSES)]))
    ):
        state = begun(executor)
        for number in range(3):
            state, _ = step(executor, state, number)
        found = {path.rpartition(".")[2]: a.tolist() for path, a in executor.save(state)["stats"].items()}
        assert found == {"a": [-3, -3], "b": [27, 27]}


class Log:
    """What stands in for CuPy's stream: who was called, in what order, and whether the collector was at work."""

    def __init__(self, fails=None):
        self.calls, self.fails = [], fails

    def call(self, name, *_, **__):
        self.calls.append((name, gc.isenabled()))
        if name == self.fails:
            raise CUDARuntimeError
        return name

    def __enter__(self):
        self.call("stream")

    def __exit__(self, *_):
        self.call("back")

    def __getattr__(self, name):
        return partial(self.call, name)


class CUDARuntimeError(Exception):
    pass


@pytest.fixture
def recorder(monkeypatch):
    """Makes the recorder itself, on such a stream."""
    with fake_cupy.installed(gpus=1):
        executor = import_module("xpnn_cupy.executor")

        def make(log):
            cuda = SimpleNamespace(
                Stream=lambda non_blocking: log,
                MemoryPool=lambda allocate: SimpleNamespace(malloc="malloc"),
                Event=lambda disable_timing: "done",
                using_allocator=lambda malloc: nullcontext(),
                runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
                get_current_stream=lambda: log,
                Memory=partial(log.call, "memory"),
                MemoryPointer=lambda memory, offset: (memory, offset),
            )
            pool = SimpleNamespace(free_all_blocks=partial(log.call, "free"))
            monkeypatch.setattr(executor, "cupy", SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool))
            monkeypatch.setattr(executor, "products", SimpleNamespace(current=partial(log.call, "handle")))
            return executor.Recorder(), executor

        yield make


def test_how_it_records(recorder):
    log, given = Log(), {"x": np.ones(2)}
    made, _ = recorder(log)
    found = made.record(lambda arrays: log.call("compute") and arrays["x"], given)
    assert log.calls == [
        ("free", True), ("stream", True), ("handle", False), ("begin_capture", False), ("compute", False),
        ("end_capture", False), ("back", True),
    ]  # fmt: skip
    assert (found.graph, found.handle, found.done) == ("end_capture", "handle", "done")
    assert found.output is found.inputs["x"]
    assert found.inputs["x"] is not given["x"]


def test_a_launch_waits_for_the_one_before(recorder):
    """On whichever stream that was: they share their memory."""
    log, inputs = Log(), {"x": np.zeros(2)}
    _, executor = recorder(log)
    output = executor.Recording(log, inputs, inputs["x"], None, log).launch({"x": np.arange(2)})
    assert [name for name, _ in log.calls] == ["wait_event", "launch", "record"]
    np.testing.assert_array_equal(output, [0, 1])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("fails", [None, "end_capture"])
def test_a_recording_that_fails_is_ended(recorder, error, fails):
    def compute(arrays):
        raise error

    log = Log(fails)
    with pytest.raises(error):
        recorder(log)[0].record(compute, {})
    assert [name for name, _ in log.calls][-2:] == ["end_capture", "back"]
    assert gc.isenabled()


def test_memory_that_is_not_there_is_no_error_of_cupy(recorder):
    """Its pool would answer that one by freeing blocks that recordings have noted down."""
    assert recorder(Log())[1].allocate(5000) == ("memory", 0)
    executor = recorder(Log("memory"))[1]
    with pytest.raises(MemoryError, match=r"the GPU has not 5,000 bytes left for a recording: CUDARuntimeError"):
        executor.allocate(5000)


def test_few_recordings_are_kept(backend, monkeypatch):
    _, executor = executors(backend)
    monkeypatch.setattr(sys.modules[type(executor).__module__], "KEPT", 3)
    state = begun(executor)
    for n in (5, 5, 6, 6, 7, 7, 8, 8, 5):
        executor.predict(state, backend.asarray(IMAGES[:n]))
    kept = {key[1][1][0]: recording is not None for key, recording in executor._recordings.items()}
    assert kept == {7: True, 8: True, 5: False}
    for n in (7, 9):  # what was used last stays
        executor.predict(state, backend.asarray(IMAGES[:n]))
    assert [key[1][1][0] for key in executor._recordings] == [5, 7, 9]


def test_failures_that_a_success_lies_between_are_not_added_up(backend, monkeypatch):
    _, executor = executors(backend)
    record, fails = executor._recorder.record, iter([True, False, True, False])

    def fails_at_times(compute, arrays):
        if next(fails):
            raise RuntimeError("operation failed due to a previous error")
        return record(compute, arrays)

    monkeypatch.setattr(executor._recorder, "record", fails_at_times)
    state = begun(executor)
    for n in (5, 5, 5, 6, 6, 6):
        executor.predict(state, backend.asarray(IMAGES[:n]))
    assert None not in executor._recordings.values()


def test_threads_launch_one_after_the_other(backend, monkeypatch):
    """Recordings share their memory."""
    _, executor = executors(backend)
    state, images = begun(executor), backend.asarray(IMAGES[:5])
    expected = backend.to_numpy(executor.predict(state, images))
    executor.predict(state, images)  # recorded
    recording = import_module("xpnn_cupy.executor").Recording
    launch, inside, most = recording.launch, [], []

    def slowly(self, arrays):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        output = launch(self, arrays)
        inside.pop()
        return output

    monkeypatch.setattr(recording, "launch", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: executor.predict(state, images), range(8)))
    assert max(most) == 1
    for scores in found:
        np.testing.assert_array_equal(backend.to_numpy(scores), expected)
