"""Functions of arrays as recordings of NumPy's calls, which are played instead.

A small step is a hundred of NumPy's calls, of some microseconds each, and to come to them takes as long again: shapes
are checked, geometry is looked up, views are made, memory is asked for. With arrays of the same shapes all of that is
the same. So a function is recorded: it gets arrays that write down what NumPy does with them, each call with its
operands and where its result is. To play it, other arrays are copied to where those were, and the same calls are made
once more: the same bits. (CUDA graphs are this for a GPU.)

What it asks of a function:

- What it takes from elsewhere than its arrays does not change: played, that is a constant.
- It makes arrays by NumPy's `like=` (NEP 35), and does not turn them into plain ones, as `np.asarray` would.
- Values are seen by NumPy alone. A decision by one (`if`) is written down too: where it would be another, the function
  itself is called.
- An op that is not written so is `unrecorded`: it is one call itself, however many it makes.

What can be noticed of the contrary is an error (`NotRecordable`), and nothing is played that did not first give, with
other arrays than it was made of, what the function gives.
"""

from __future__ import annotations

import mmap
import threading
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial, wraps
from typing import Any, TypeVar

import numpy as np
from numpy.lib.array_utils import byte_bounds

from xpnn.ops import unkept

Function = Callable[..., Sequence[Any]]
Op = TypeVar("Op", bound=Callable[..., Any])
REPEATED = 8
"""The call with arrays of the same shapes that is recorded: to record takes as long as some calls."""
MOST_KEPT = 32
"""Shapes of which a function has recordings on a thread."""
SIZE, LINE = 1 << 25, 64
"""Bytes that the arrays of a recording may take, its weights aside, and of a line of the cache, where each begins."""
UNSEEN = (
    "argmax argmin argpartition argsort byteswap choose compress conj conjugate cumprod cumsum diagonal dot dump dumps "
    "fill flatten item nonzero partition put ravel repeat resize searchsorted sort take tobytes tofile tolist trace "
    "__complex__ __contains__ __float__ __index__ __int__"
)
"""Methods with which values are read or written past the recording."""
WITH_OUT = (np.dot, np.concatenate, np.stack, np.argmax)
"""Functions that take `out=`."""


class NotRecordable(Exception):
    """A function does what a recording would not do again."""


class Diverged(Exception):
    """A recorded decision is another one now."""


class Recorded(np.ndarray[Any, Any]):
    """An array of a recording: NumPy's calls with it are made, and written down."""

    room: Room

    def __new__(cls, shape: tuple[int, ...], dtype: Any, buffer: Recorded, *, strides: tuple[int, ...]) -> Recorded:
        """A view with strides of its own."""
        view: Recorded = buffer.room.array(np.ndarray(shape, dtype, buffer, strides=strides))
        return view

    def __array_finalize__(self, source: Any) -> None:
        """A view is where its source is."""
        if isinstance(source, Recorded):
            self.room = source.room

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        recording, given, options = _recording(inputs, out), _plain(inputs), _plain(options)
        if ufunc.nout != 1 or method == "at":
            raise NotRecordable(f"{ufunc.__name__} ({method})")
        call = ufunc if method == "__call__" else getattr(ufunc, method)
        if out is None:
            result = recording.keep(call(*given, **options))
        else:
            result = _checked(ufunc, out[0])
            call(*given, out=_plain(result), **options)
        if method == "__call__" and ufunc not in (np.maximum, np.minimum):  # which take no third array any more
            recording.add(call, *given, _plain(result), **options)  # which NumPy comes to sooner than to `out=`
        else:
            recording.add(call, *given, out=_plain(result), **options)
        return result

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        recording, given, out, options = self.room.recording, _plain(args), options.get("out"), _plain(options)
        if out is not None:
            _checked(function, out)
        result = function(*given, **options)
        if function in (np.empty, np.empty_like):
            return recording.keep(result)
        if function in (np.zeros, np.zeros_like):
            kept = recording.keep(result)
            recording.add(_plain(kept).fill, 0)
            return kept
        if result is None or out is not None:
            recording.add(function, *given, **options)
            return out
        if isinstance(result, list | tuple):
            raise NotRecordable(function.__name__)
        sources = (array for array in _arrays(args) if isinstance(array, Recorded))
        source = next((array for array in sources if np.may_share_memory(result, _plain(array))), None)
        if source is not None:
            return source.room.array(result)
        kept = recording.keep(result)
        if function in WITH_OUT:
            recording.add(function, *given, out=_plain(kept), **options)
        else:
            recording.add(_store, _plain(kept), function, given, options)
        return kept

    def __getitem__(self, at: Any) -> Any:
        if any(isinstance(part, np.ndarray | list) for part in _parts(at)):
            recording, here, at = self.room.recording, _plain(self), _plain(at)
            kept = recording.keep(here[at])
            recording.add(_store, _plain(kept), here.__getitem__, (at,), {})
            return kept
        return super().__getitem__(_as_view(at))

    def __setitem__(self, at: Any, values: Any) -> None:
        if any(isinstance(part, np.ndarray | list) for part in _parts(at)):
            raise NotRecordable("assignment to values picked by an array")
        target, values = _plain(self[at]), _plain(values)
        if not isinstance(values, np.ndarray):
            target.fill(values)
            self.room.recording.add(target.fill, values)
        elif _layout(values) != _layout(target):  # else `x[…] += y` has done it
            np.copyto(target, values)
            self.room.recording.add(np.copyto, target, values)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        value = _plain(self)
        expected = bool(value)

        def decide() -> None:
            if bool(value) != expected:
                raise Diverged

        self.room.recording.add(decide)
        return expected

    def copy(self, order: Any = "C") -> Any:
        """A copy, recorded."""
        return self._copied(_plain(self).copy(order))

    def astype(self, dtype: Any, *args: Any, copy: bool = True, **options: Any) -> Any:  # type: ignore[override]
        """Values of another dtype, recorded."""
        return self._copied(_plain(self).astype(dtype)) if copy or dtype != self.dtype else self

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """A view, or a copy, recorded."""
        here = _plain(self)
        result = here.reshape(*shape, **options)
        if np.may_share_memory(result, here):
            return self.room.array(result)
        kept = self.room.recording.keep(result)
        self.room.recording.add(_store, _plain(kept), here.reshape, shape, options)
        return kept

    def _copied(self, result: Any) -> Any:
        kept = self.room.recording.keep(result)
        self.room.recording.add(np.copyto, _plain(kept), _plain(self), casting="unsafe")
        return kept


def _unseen(name: str) -> Callable[..., Any]:
    def method(self: Recorded, *args: Any, **options: Any) -> Any:
        raise NotRecordable(name)

    return method


for _name in UNSEEN.split():
    setattr(Recorded, _name, _unseen(_name))


class Arena:
    """Memory for recordings that are played one at a time; what is not used yet is not there."""

    def __init__(self, size: int) -> None:
        room = mmap.mmap(-1, size + LINE, access=mmap.ACCESS_COPY)  # a forked process has its own
        self.memory = np.frombuffer(room, np.uint8)
        self.taken: list[tuple[int, int]] = []
        """From where to where, in order."""

    def take(self, size: int) -> tuple[int, int]:
        """The first place with so many bytes."""
        size, start = -(-max(size, 1) // LINE) * LINE, 0
        for other, stop in tuple(self.taken):  # of which some may be given back meanwhile
            if other - start >= size:
                break
            start = stop
        if start + size > len(self.memory):
            raise NotRecordable(f"more than {len(self.memory)} bytes")
        insort(self.taken, (start, start + size))
        return start, start + size


class Room:
    """Where a recorded array and its views are; when they are gone, it is that of what is made after them."""

    def __init__(self, recording: Recording, arena: Arena, place: tuple[int, int]) -> None:
        self.recording, self.arena, self.place = recording, arena, place
        self.memory = arena.memory[slice(*place)]

    def __del__(self) -> None:
        self.arena.taken.remove(self.place)

    def array(self, plain: Any) -> Any:
        """A view of an array in here that writes down what is done with it."""
        recorded = plain.view(Recorded)
        recorded.room = self
        return recorded


class Weights:
    """The weights of all recordings of a function on a thread, where none of these writes."""

    def __init__(self, array: Any) -> None:
        self.arena, self.last = Arena(array.nbytes), None
        self.array = np.ndarray(array.shape, array.dtype, self.arena.memory)

    def set(self, array: Any) -> None:
        """Copy other weights there; nobody writes to them, so that the same object is not copied again."""
        if array is not self.last:
            np.copyto(self.array, array)
            self.last = array

    def recorded(self, recording: Recording) -> Any:
        """As an input."""
        place = 0, self.array.nbytes
        self.arena.taken.append(place)  # also where somebody still has it as that of another recording
        return Room(recording, self.arena, place).array(self.array)


class Recording:
    """The calls that a function made of some arrays."""

    def __init__(self, function: Function, weights: Weights, arrays: Sequence[Any], arena: Arena) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.arena, self.weights = arena, weights
        inputs = [self.keep(array) for array in arrays]
        self.inputs: list[Any] = _plain(inputs)
        self.outputs: list[Any] = _plain(list(function(weights.recorded(self), *inputs)))

    def play(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """What the function would return; it is overwritten the next time that one is played here.

        Raises:
            Diverged: it would not make the same calls.
        """
        for its, array in zip(self.inputs, arrays, strict=True):
            np.copyto(its, array)
        for call in self.calls:
            call()
        return self.outputs

    def add(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Write down a call."""
        self.calls.append(partial(call, *args, **options))

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The arrays that a function gives, which is called again with the same arguments whenever this is played."""
        given = _plain(args)
        kept = _each(self.keep, function(*given))
        results = list(_arrays(_plain(kept)))

        def again() -> None:
            for its, new in zip(results, _arrays(function(*given)), strict=True):
                its[...] = new

        self.add(again)
        return kept

    def keep(self, result: Any) -> Any:
        """A result, in memory that is there for the next time, too."""
        result = np.asarray(result)
        room = Room(self, self.arena, self.arena.take(result.nbytes))
        strides = result.strides if _dense(result) else None
        kept = np.ndarray(result.shape, result.dtype, room.memory, strides=strides)
        kept[...] = result
        return room.array(kept)


def unrecorded(op: Op) -> Op:
    """An op, its arrays positional, that is one call for a recording, and so is its backward."""

    @wraps(op)
    def called(ops: Any, *args: Any, **options: Any) -> Any:
        if not any(type(array) is Recorded for array in args):
            return op(ops, *args, **options)
        recording, backwards = _recording(args), list[Callable[..., Any]]()

        def forward(*arrays: Any) -> Any:
            result = op(ops, *arrays, **options)
            if not isinstance(result, tuple):
                return result
            backwards[:] = result[1:] if ops.backward else [unkept]
            return result[0]

        def backward(dy: Any, **wanted: Any) -> Any:
            return recording.call(lambda d, *seen: backwards[0](d, **wanted), dy, *args)  # which must be there still

        result = recording.call(forward, *args)
        return (result, backward) if backwards else result

    return called  # type: ignore[return-value]


class OfThread(threading.local):
    """The memory of all recordings on a thread."""

    @cached_property
    def arena(self) -> Arena:
        """There when it is needed."""
        return Arena(SIZE)


class Kept(threading.local):
    """What a thread found out about a function: by shapes how often it was called, its recording, or None for none."""

    def __init__(self) -> None:
        self.found: dict[Any, int | Recording | None] = {}
        self.weights: Weights | None = None


of_thread = OfThread()


class Played:
    """A function of arrays that is recorded where such of the same shapes and layouts come again and again.

    What it returns is overwritten by the next recording that is played on the same thread. Nobody writes to the
    weights, the first array, which are of one shape: the same object is not copied again.
    """

    def __init__(self, function: Function) -> None:
        self.function, self.kept = function, Kept()

    def __call__(self, weights: Any, *arrays: Any) -> Sequence[Any]:
        """The function's results."""
        found, shapes = self.kept.found, tuple([(array.shape, array.strides, array.dtype) for array in arrays])
        known = found.get(shapes, 0)
        if isinstance(known, Recording):
            try:
                known.weights.set(weights)
                return known.play(arrays)
            except Diverged:
                found[shapes] = None
        elif isinstance(known, int):
            if not known and len(found) >= MOST_KEPT:
                found.clear()
            found[shapes] = known + 1 if known + 1 < REPEATED else self._recorded(weights, arrays)
        return self.function(weights, *arrays)

    def _recorded(self, weights: Any, arrays: Sequence[Any]) -> Recording | None:
        try:
            if not all(map(_dense, arrays)):
                return None
            kept = self.kept.weights = self.kept.weights or Weights(weights)
            kept.set(weights)
            recording = Recording(self.function, kept, arrays, of_thread.arena)
            other, *others = (_other(array) for array in (weights, *arrays))
            kept.set(other)
            results = zip(recording.play(others), self.function(other, *others), strict=True)
            return recording if all(_same(played, due) for played, due in results) else None
        except Exception:  # of which the function itself will tell, if it is not one of recordings alone
            return None


def _recording(*arrays: Any) -> Recording:
    return next(array.room.recording for array in _arrays(arrays) if isinstance(array, Recorded))


def _plain(given: Any) -> Any:
    """The arrays themselves, also within lists and the like."""
    if isinstance(given, Recorded):
        memory = given.room.memory
        offset = _address(given) - _address(memory)
        return np.ndarray(given.shape, given.dtype, memory, offset, given.strides)  # which holds no room
    if type(given) in (list, tuple):
        return type(given)(map(_plain, given))
    if type(given) is dict:
        return {name: _plain(value) for name, value in given.items()}
    return given


def _store(kept: Any, function: Callable[..., Any], args: Any, options: Any) -> None:
    kept[...] = function(*args, **options)


def _each(f: Callable[[Any], Any], given: Any) -> Any:
    """`f` of an array, or of each within a tuple; None stays."""
    if isinstance(given, tuple):
        return tuple(_each(f, part) for part in given)
    return None if given is None else f(given)


def _arrays(given: Any) -> Iterator[Any]:
    if isinstance(given, np.ndarray | np.generic):
        yield given
    elif isinstance(given, list | tuple):
        for part in given:
            yield from _arrays(part)


def _parts(at: Any) -> tuple[Any, ...]:
    return at if isinstance(at, tuple) else (at,)


def _as_view(at: Any) -> tuple[Any, ...]:
    """An index with which a single number is an array, too."""
    parts = _parts(at)
    return parts if any(part is Ellipsis for part in parts) else (*parts, ...)


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def _layout(array: Any) -> tuple[Any, ...]:
    return _address(array), array.shape, array.strides, array.dtype


def _other(array: Any) -> Any:
    """Other values that may stand in an array's place."""
    other = np.zeros_like(array)
    if array.dtype.kind == "f":
        other[...] = np.roll(array, 1) * array.dtype.type(0.5)
    return other


def _dense(array: Any) -> bool:
    """Whether its values fill the memory from the first to the last, in whatever order."""
    low, high = byte_bounds(array)
    return not array.size or (min(array.strides, default=1) > 0 and high - low == array.nbytes)


def _checked(function: Any, out: Any) -> Any:
    if not isinstance(out, Recorded):
        raise NotRecordable(f"{function.__name__} into an array that was not made like one of the recording's")
    return out


def _same(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())
