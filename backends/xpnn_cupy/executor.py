"""A whole step as one CUDA graph: recorded once for each shape of a batch, then launched with one call.

A step of a small network is hundreds of short kernels, and to launch each from Python takes far longer than to run it.
"""

from __future__ import annotations

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import cupy

from xpnn.backend import one_line
from xpnn.ops._array import Array
from xpnn.train.executor import Executor, State
from xpnn_cupy import products

KEPT = 32  # recordings, and shapes that were seen once: a batch of every size would be too many

Arrays = dict[str, Array]


class GraphExecutor(Executor):
    """The plain executor, whose work is recorded where it comes a second time in the same shapes.

    A recording holds the addresses of all arrays, so the state stays where it is: a step updates it in place. What
    cannot be recorded, such as a layer that looks at values, is computed one call after the other, as it was.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recordings: OrderedDict[Any, Recording | None] = OrderedDict()
        self._state: list[Array] = []
        self._recorder: Recorder | None = Recorder()
        self._attempts = 2  # what another thread does to the device may spoil one

    def step(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scalars: Array
    ) -> tuple[State, Array]:
        """As the plain one; the new state is the old one, updated."""

        def compute(arrays: Arrays) -> Array:
            masks = {path: arrays[f"draws {path}"] for path in draws}
            new, metrics = Executor.step(self, state, arrays["images"], arrays["targets"], masks, arrays["scalars"])
            for old, value in zip(leaves(state), leaves(new), strict=True):
                old[...] = value
            return metrics

        given = {"images": images, "targets": targets, "scalars": scalars}
        return state, self._run("step", state, given | {f"draws {path}": a for path, a in draws.items()}, compute)

    def evaluate(self, state: State, images: Array, targets: Array) -> Array:
        """As the plain one."""

        def compute(arrays: Arrays) -> Array:
            return Executor.evaluate(self, state, arrays["images"], arrays["targets"])

        return self._run("evaluate", state, {"images": images, "targets": targets}, compute)

    def predict(self, state: State, images: Array) -> Array:
        """As the plain one."""
        return self._run("predict", state, {"images": images}, lambda arrays: self._scores(state, arrays["images"]))

    def _run(self, what: str, state: State, arrays: Arrays, compute: Callable[[Arrays], Array]) -> Array:
        """Launch the recording of `compute`; the first time compute at once, the second time record."""
        if self._recorder is None:
            return compute(arrays)
        held = leaves(state)
        if len(held) != len(self._state) or any(a is not b for a, b in zip(held, self._state, strict=True)):
            self._recordings.clear()
            self._state = held
        key = what, *((name, a.shape, a.dtype) for name, a in arrays.items())
        seen, recording = key in self._recordings, self._recordings.get(key)
        if seen and recording is None:
            try:
                recording = self._recorder.record(compute, arrays)
            except Exception as e:  # whatever it is: the same has been computed before
                self._attempts -= 1
                if not self._attempts:
                    self._give_up(what, e)
                    return compute(arrays)
        self._recordings[key] = recording
        self._recordings.move_to_end(key)
        while len(self._recordings) > KEPT:
            self._recordings.popitem(last=False)
        return compute(arrays) if recording is None else recording.launch(arrays)

    def _give_up(self, what: str, e: Exception) -> None:
        self._recorder = None
        self._recordings.clear()
        text = f"this {what} cannot be recorded as a CUDA graph and runs call by call, which is slower ({one_line(e)})"
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    def _joined(self, gradients: Mapping[str, Array]) -> Array:
        parts = self._parts
        flat = cupy.empty(parts[-1][1].stop, self.dtype)
        for path, part, _ in parts:  # `concat` of more than eight copies their addresses from the host
            flat[part] = self.backend.xp.reshape(gradients[path], (-1,))
        return flat


class Recording:
    """A graph with the arrays that it reads and the one that it leaves."""

    def __init__(self, graph: Any, inputs: Arrays, output: Array) -> None:
        self.graph, self.inputs, self.output = graph, inputs, output

    def launch(self, arrays: Arrays) -> Array:
        """Compute anew."""
        for name, a in arrays.items():
            self.inputs[name][...] = a
        self.graph.launch()
        return self.output.copy()


class Recorder:
    """Records on a stream of its own, with memory of its own, which nobody else is given while recordings live."""

    def __init__(self) -> None:
        self.stream, self.pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()

    def record(self, compute: Callable[[Arrays], Array], arrays: Arrays) -> Recording:
        """Note down what `compute` launches for arrays like these; nothing is computed."""
        inputs = {name: a.copy() for name, a in arrays.items()}
        with cupy.cuda.using_allocator(self.pool.malloc), self.stream, uncollected():
            products.current()  # a handle is not made while recording
            self.stream.begin_capture()
            try:
                output = compute(inputs)
            except BaseException:
                with suppress(cupy.cuda.runtime.CUDARuntimeError):  # the call that failed has spoiled the recording
                    self.stream.end_capture()
                raise
            return Recording(self.stream.end_capture(), inputs, output)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: an old handle that it frees waits for the device, which spoils a recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def leaves(state: State) -> list[Array]:
    """The arrays of a state."""
    return [state["weights"], *state["moments"].values(), *state["stats"].values(), state["finite"]]
