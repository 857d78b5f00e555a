"""Helpers that take parts of a compiled call: threads that look for work without the interpreter lock.

Waking a thread takes longer than most kernels, and one that comes back to Python waits for the lock once more. So
helpers stay in compiled code between kernels, as OpenMP's do, and look again and again whether there is work: a part
is taken within a microsecond. Who has looked for some milliseconds in vain naps between two looks, and goes back to
Python, to sleep, where there was nothing for longer. Nobody waits for a helper that has not come.

`share(f, arguments, parts)` in a compiled function calls `f(i, *arguments)` for each part, on whoever is free. How work
is cut is for the caller to fix, by shapes alone, so that the bits are the same for any number of helpers. Each begins
with a stretch of its own, the same one every time: what the last kernel wrote there lies in its cache.
"""

from __future__ import annotations

import atexit
import os
import platform
import threading
from typing import Any, cast

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from xpnn_numpy.fast._compiled import compiled, emits

ALLOWED, LOOKING, OWNED, JOBS, OPEN, FUNCTION, DATA, PARTS, TAKEN, INSIDE, FAILED, ENDED = range(12)
"""The words of the board: how many helpers may come, and how many look; whether somebody shares work; how many jobs
there were; the number of the one that may be entered, or 0; what to call, with what, and how often; a bit for
each part that somebody does; the helpers inside; how many parts failed; whether the process ends."""
LINE = 16
"""Words from one to the next, each in cache lines of its own."""
LEAST_ROWS, LEAST_COST, MOST_PARTS = 32, 1 << 18, 8
"""Of a part: less than some microseconds of work are not worth another thread."""
LOOKS, NAPS, NAP = 60_000, 2_000, 50
"""Looks before a helper naps (some milliseconds), naps before it goes to sleep, and microseconds of a nap."""

_memory = np.zeros((ENDED + 2) * LINE, np.int64)
_first = -_memory.ctypes.data % (8 * LINE) // 8
board = _memory.data[_first::LINE]
binding.add_symbol("xpnn_team", _memory.ctypes.data + 8 * _first)  # by name, for compiled code is kept on disk

_int64, _int32 = ir.IntType(64), ir.IntType(32)
_part = ir.FunctionType(_int32, [_int64, _int64])
"""A part as helpers call it: the address of the arguments and its number in, 0 out unless it failed."""


def _at(builder: Any, word: Any) -> Any:
    """The address of a word."""
    first = builder.module.globals.get("xpnn_team") or ir.GlobalVariable(builder.module, _int64, "xpnn_team")
    return builder.gep(first, [builder.mul(word, _int64(LINE))])


@emits
def _look(typing: Any, word: Any) -> Any:
    """A word as it is now."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_at(builder, values[0]), "seq_cst", align=8)

    return types.int64(types.int64), code


@emits
def _swap(typing: Any, word: Any, value: Any) -> Any:
    """Set a word; returns what it was."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("xchg", _at(builder, values[0]), values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@emits
def _add(typing: Any, word: Any, value: Any) -> Any:
    """Add to a word; returns what it was."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _at(builder, values[0]), values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@emits
def _mark(typing: Any, word: Any, bits: Any) -> Any:
    """Set bits of a word; returns what it was."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("or", _at(builder, values[0]), values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@emits
def _call(typing: Any, function: Any, data: Any, part: Any) -> Any:
    """Do a part of the work at these addresses; returns 1 where it failed."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        failed = builder.call(builder.inttoptr(values[0], _part.as_pointer()), values[1:])
        return builder.zext(builder.icmp_signed("!=", failed, failed.type(0)), _int64)

    return types.int64(types.int64, types.int64, types.int64), code


@emits
def _pause(typing: Any) -> Any:
    """Tell the core that this loop waits."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            _call_c(builder, "llvm.x86.sse2.pause")
        elif platform.machine() in ("aarch64", "arm64"):
            _call_c(builder, "llvm.aarch64.hint", _int32(1))  # yield
        return context.get_dummy_value()

    return types.void(), code


@emits
def _give_way(typing: Any) -> Any:
    """Let whoever waits for this core have it."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if os.name == "posix":  # elsewhere it looks all the time
            _call_c(builder, "sched_yield")
        return context.get_dummy_value()

    return types.void(), code


@emits
def _nap(typing: Any) -> Any:
    """Sleep for a moment."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if os.name == "posix":
            _call_c(builder, "usleep", _int32(NAP))
        return context.get_dummy_value()

    return types.void(), code


def _call_c(builder: Any, name: str, *values: Any) -> None:
    returns = ir.VoidType() if name.startswith("llvm.") else _int32
    kind = ir.FunctionType(returns, [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


@compiled
def cut(n: int, cost: int) -> int:
    """Into how many parts `n` rows are cut, each of which takes so many multiply-adds."""
    return max(1, min(n // LEAST_ROWS, n * cost // LEAST_COST, MOST_PARTS))


@compiled
def stretch(n: int, part: int, parts: int) -> tuple[int, int]:
    """Begin and end of one part of `n` rows."""
    return n * part // parts, n * (part + 1) // parts


@compiled
def _wait(looks: int) -> None:
    """Between one look and the next."""
    if looks > LOOKS:
        _nap()
    elif looks % 64 == 0:
        _give_way()
    else:
        _pause()


@compiled
def _take_parts(function: int, data: int, parts: int, number: int) -> None:
    """Do the parts that nobody else does, from the stretch of this one on: the caller's is 0."""
    first = parts * number // (_look(ALLOWED) + 1)
    for i in range(first, first + parts):
        bit = 1 << i % parts
        if _look(TAKEN) & bit == 0 and _mark(TAKEN, bit) & bit == 0 and _call(function, data, i % parts):
            _add(FAILED, 1)


@compiled
def _work(function: int, data: int, parts: int) -> None:
    """Do all parts, with helpers where there are any; one job is shared at a time: who comes second works alone."""
    if parts < 2 or _look(LOOKING) == 0 or _look(ALLOWED) == 0 or _swap(OWNED, 1) != 0:
        failed = 0
        for i in range(parts):
            failed += _call(function, data, i)
    else:
        for word, value in ((FUNCTION, function), (DATA, data), (PARTS, parts), (TAKEN, 0), (FAILED, 0)):
            _swap(word, value)
        _swap(OPEN, _add(JOBS, 1) + 1)
        _take_parts(function, data, parts, 0)
        _swap(OPEN, 0)
        looks = 0
        while _look(INSIDE) != 0:
            looks += 1
            _wait(looks)
        failed = _look(FAILED)
        _swap(OWNED, 0)
    if failed:
        raise MemoryError("a part of a compiled kernel failed")  # nothing else is raised in there


cast(Any, _work).compile("void(int64, int64, int64)")  # for `share` to call


def _lent(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Arrays without what counts who refers to them: cores would take that word from one another at each view."""
    if isinstance(kind, types.BaseTuple):
        values = zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(builder, kind, [_lent(context, builder, *each) for each in values])
    if not isinstance(kind, types.Array):
        return value
    array = context.make_array(kind)(context, builder, value)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    return array._getvalue()


@emits
def share(typing: Any, f: Any, arguments: Any, parts: Any) -> Any:
    """Call `f(i, *arguments)` for i = 0 … parts - 1 on all who are free; returns when all is done."""
    takes = f.get_call_type(typing, (types.int64, *arguments.types), {})

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        result = f.dispatcher.get_compile_result(takes)
        context.add_linking_libs([result.library])
        part = ir.Function(builder.module, _part, builder.module.get_unique_name("part"))
        part.linkage = "internal"
        inner = ir.IRBuilder(part.append_basic_block())
        packed = inner.load(inner.inttoptr(part.args[0], values[1].type.as_pointer()))
        kinds = zip(takes.args[1:], cgutils.unpack_tuple(inner, packed), strict=True)
        each = [part.args[1], *(_lent(context, inner, kind, value) for kind, value in kinds)]
        status, _ = context.call_internal_no_propagate(inner, result.fndesc, takes, each)
        inner.ret(status.code)
        places = part, cgutils.alloca_once_value(builder, values[1])
        addresses = [builder.ptrtoint(place, _int64) for place in places]
        work = cast(Any, _work).overloads[(types.int64,) * 3]
        context.add_linking_libs([work.library])
        return context.call_internal(builder, work.fndesc, work.signature, [*addresses, values[2]])

    return types.void(f, arguments, types.int64), code


@compiled
def _help(number: int) -> None:
    """Be helper `number`, from 0, until there was nothing to do for long."""
    _add(LOOKING, 1)
    done = looks = 0
    while looks < LOOKS + NAPS and _look(ENDED) == 0:
        job = _look(OPEN)
        if job != 0 and job != done and number < _look(ALLOWED):
            _add(INSIDE, 1)
            job = _look(OPEN)  # who opens another one waits until nobody is inside
            if job != 0:
                _take_parts(_look(FUNCTION), _look(DATA), _look(PARTS), number + 1)
                done, looks = job, 0
            _add(INSIDE, -1)
        else:
            looks += 1
            _wait(looks)
    _add(LOOKING, -1)


cast(Any, _help).compile("void(int64)")  # here, for who compiles holds a lock that a fork would never give back


class Team:
    """The helpers of this process."""

    def __init__(self) -> None:
        _memory[:] = 0
        self.lock = threading.Lock()
        self.helpers: list[_Helper] = []

    def sharing(self, threads: int) -> _Sharing:
        """Entered where kernels may share their work among so many threads, this one included."""
        return _Sharing(self, min(threads, MOST_PARTS) - 1)  # more would only look on

    def wake(self, many: int) -> None:
        """Have so many helpers look for work."""
        with self.lock:
            self.helpers += [_Helper(i) for i in range(len(self.helpers), many)]
            for helper in self.helpers[:many]:
                helper.bell.set()

    def leave(self) -> None:
        """End all helpers: compiled code does not outlive the interpreter."""
        board[ENDED] = 1
        for helper in self.helpers:
            helper.bell.set()
            helper.thread.join()


class _Sharing:
    def __init__(self, team: Team, helpers: int) -> None:
        self.team, self.helpers = team, helpers

    def __enter__(self) -> None:
        if board[LOOKING] < self.helpers:
            self.team.wake(self.helpers)
        board[ALLOWED] = self.helpers

    def __exit__(self, *raised: object) -> None:
        board[ALLOWED] = 0


class _Helper:
    def __init__(self, number: int) -> None:
        self.number, self.bell = number, threading.Event()
        self.thread = threading.Thread(target=self._live, name=f"xpnn-helper-{number}", daemon=True)
        self.thread.start()

    def _live(self) -> None:
        while not board[ENDED]:
            self.bell.wait()
            self.bell.clear()
            _help(self.number)


team = Team()
atexit.register(team.leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=team.__init__)  # type: ignore[misc]  # helpers stay with the parent
