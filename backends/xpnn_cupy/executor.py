"""A whole step as one CUDA graph: recorded once for each shape of a batch, then launched with one call.

A step of a small network is hundreds of short kernels, and to launch each from Python takes far longer than to run it.
"""

from __future__ import annotations

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any

import cupy

from xpnn.backend import one_line
from xpnn.ops._array import Array
from xpnn.train.executor import Executor, State
from xpnn_cupy import products

KEPT = 32  # recordings, and shapes that were seen once: a batch of every size would be too many
ATTEMPTS = 2  # to record: what another thread does to the device may spoil one

Arrays = dict[str, Array]


class GraphExecutor(Executor):
    """The plain executor, whose work is recorded where it comes a second time in the same shapes.

    A recording holds the addresses of all arrays, so the state stays where it is: a step updates it in place. And it
    repeats what the layers launched then: these may depend on their arrays alone. What cannot be recorded, such as a
    layer that looks at values, is computed one call after the other, as it was.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recordings: OrderedDict[Any, Recording | None] = OrderedDict()
        self._state: list[Array] = []
        self._recorder: Recorder | None = Recorder()
        self._attempts, self._lock = ATTEMPTS, RLock()

    def step(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scalars: Array
    ) -> tuple[State, Array]:
        """As the plain one; the new state is the old one, updated."""

        def compute(arrays: Arrays) -> Array:
            masks = {path: arrays[f"draws {path}"] for path in draws}
            return Executor.step(self, state, arrays["images"], arrays["targets"], masks, arrays["scalars"])[1]

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
        with self._lock:  # recordings share their memory
            held = leaves(state)
            if len(held) != len(self._state) or any(a is not b for a, b in zip(held, self._state, strict=True)):
                self._recordings.clear()
                self._state = held
            key = what, *((name, a.shape, a.dtype) for name, a in arrays.items())
            recording = self._recordings.get(key)
            if recording is None and key in self._recordings:
                recording = self._record(what, arrays, compute)
            self._recordings[key] = recording
            self._recordings.move_to_end(key)
            while len(self._recordings) > KEPT:
                self._recordings.popitem(last=False)
            return compute(arrays) if recording is None else recording.launch(arrays)

    def _record(self, what: str, arrays: Arrays, compute: Callable[[Arrays], Array]) -> Recording | None:
        if self._recorder is None:
            return None
        try:
            recording = self._recorder.record(compute, arrays)
        except Exception as e:  # whatever it is: the same has been computed before
            self._attempts -= 1
            if not self._attempts:
                self._recorder = None
                text = f"this {what} cannot be recorded as a CUDA graph and runs call by call, which is slower"
                warnings.warn(f"{text} ({one_line(e)})", RuntimeWarning, stacklevel=4)
            return None
        self._attempts = ATTEMPTS
        return recording

    def _where_finite(self, new: State, old: State) -> State:
        held, finite = leaves(old), new["finite"]
        values = [new["weights"], *(new[kind][name] for kind in ("moments", "stats") for name in old[kind])]
        for i, value in enumerate(values):  # an optimizer may hand on what it was given
            if any(cupy.may_share_memory(value, a) for a in held):
                values[i] = value.copy()
        for a, value in zip(held[:-1], values, strict=True):  # the last one is `finite`
            cupy.copyto(a, value, where=finite)
        old["finite"][...] = finite
        return old

    def _flat_gradient(self, gradients: Mapping[str, Array]) -> Array:
        parts = self._parts
        flat = cupy.empty(parts[-1][1].stop, self.dtype)
        for path, part, _ in parts:  # `concat` of more than eight copies their addresses from the host
            flat[part] = self.backend.xp.reshape(gradients[path], (-1,))
        return flat


class Recording:
    """A graph with the arrays that it reads, the one that it leaves, and what else it must outlive."""

    def __init__(self, graph: Any, inputs: Arrays, output: Array, handle: Any, done: Any) -> None:
        self.graph, self.inputs, self.output, self.handle, self.done = graph, inputs, output, handle, done

    def launch(self, arrays: Arrays) -> Array:
        """Compute anew, after what was launched before, on whichever stream that was."""
        stream = cupy.cuda.get_current_stream()
        stream.wait_event(self.done)
        for name, a in arrays.items():
            self.inputs[name][...] = a
        self.graph.launch()
        output = self.output.copy()
        self.done.record(stream)
        return output


class Recorder:
    """Records on a stream of its own, with memory of its own, which nobody else is given while recordings live."""

    def __init__(self) -> None:
        self.stream, self.pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool(allocate)
        self.done = cupy.cuda.Event(disable_timing=True)

    def record(self, compute: Callable[[Arrays], Array], arrays: Arrays) -> Recording:
        """Note down what `compute` launches for arrays like these; nothing is computed."""
        inputs = {name: a.copy() for name, a in arrays.items()}
        cupy.get_default_memory_pool().free_all_blocks()  # left from the first time; a recording takes as much again
        with cupy.cuda.using_allocator(self.pool.malloc), self.stream, uncollected():
            handle = products.current()  # not made while recording
            try:
                self.stream.begin_capture()
                output = compute(inputs)
                graph = self.stream.end_capture()
            except BaseException:
                with suppress(cupy.cuda.runtime.CUDARuntimeError):  # the call that failed has spoiled the recording
                    self.stream.end_capture()
                raise
        return Recording(graph, inputs, output, handle, self.done)


def allocate(size: int) -> Any:
    """Memory of the device. At CuPy's own error its pool would free blocks that recordings have noted down."""
    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise MemoryError(f"the GPU has not {size:,} bytes left for a recording: {one_line(e)}") from e


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
