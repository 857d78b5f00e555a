"""Helper processes: lanes of a step computed outside of the interpreter's lock.

Threads of one interpreter wait for its lock before and after each call of NumPy's, and to be woken takes as long as a
small call. A helper is an interpreter of its own, with an executor like the one that it helps: it is handed weights,
statistics and its part of the batch, and hands back the gradients of its lanes; what depends on the whole batch goes to
and fro at their meetings. Since lanes say what is computed and not by whom, helpers change no bit.

To start one takes as long as some hundred steps. So they are started by who has computed for `PATIENCE` seconds.
Until they have come, and wherever they cannot (Linux alone has `memfd_create`; a model of classes or functions that a
helper cannot import; a helper that was killed), threads take the lanes.
"""

from __future__ import annotations

import atexit
import mmap
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpnn_numpy.executor import PiecesExecutor

PATIENCE = 1.0
"""Seconds of computing, after which helpers are started."""
AWAKE = 2e-4
"""Seconds in which an answer is waited for awake: to be woken takes some 25 µs."""
MESSAGE, ALIGNED = 1 << 17, 64
POSSIBLE = hasattr(os, "memfd_create") and Path(sys.executable or "").name.startswith("python")
"""Whether there is memory without a name, and an interpreter that can be started."""


class Lost(Exception):
    """The other side is gone, or failed."""


class Channel:
    """Objects to and fro between two processes; large arrays in them through memory that both see."""

    def __init__(self, end: socket.socket, outgoing: int, incoming: int) -> None:
        self.end, self.files, self.rooms = end, (outgoing, incoming), [memoryview(b""), memoryview(b"")]

    def tell(self, *message: Any) -> None:
        """Send what is small."""
        self._send(pickle.dumps(message), [], 0)

    def hand(self, *message: Any) -> None:
        """Send arrays; who receives them sees them until the next are handed over."""
        buffers, spans, size = list[pickle.PickleBuffer](), list[tuple[int, int]](), 0
        data = pickle.dumps(message, 5, buffer_callback=buffers.append)
        raws = [buffer.raw() for buffer in buffers]
        for raw in raws:
            spans.append((size, size + raw.nbytes))
            size += -(-raw.nbytes // ALIGNED) * ALIGNED
        room = self._room(0, size)
        for raw, (start, stop) in zip(raws, spans, strict=True):
            room[start:stop] = raw
        self._send(data, spans, size)

    def _send(self, data: bytes, spans: list[tuple[int, int]], size: int) -> None:
        try:
            self.end.send(pickle.dumps((data, spans, size)))
        except OSError as e:
            raise Lost from e

    def receive(self) -> tuple[Any, ...]:
        """The next message."""
        data, spans, size = pickle.loads(self._packed())
        room = self._room(1, size)
        message: tuple[Any, ...] = pickle.loads(data, buffers=[room[start:stop] for start, stop in spans])
        return message

    def _packed(self) -> bytes:
        packed, until = None, time.perf_counter() + AWAKE
        try:
            while packed is None and time.perf_counter() < until:
                with suppress(BlockingIOError):
                    packed = self.end.recv(MESSAGE, socket.MSG_DONTWAIT)
            packed = self.end.recv(MESSAGE) if packed is None else packed
        except OSError as e:
            raise Lost from e
        if not packed:
            raise Lost
        return packed

    def _room(self, side: int, size: int) -> memoryview:
        """The memory of what goes out (0) or comes in (1), grown where it is smaller."""
        if self.rooms[side].nbytes < size:
            if not side:
                os.ftruncate(self.files[side], size)
            self.rooms[side] = memoryview(mmap.mmap(self.files[side], size))
        return self.rooms[side]

    def close(self) -> None:
        """Leave; the other side is told."""
        self.end.close()
        for file in self.files:
            os.close(file)


class Helper:
    """One process, and the channel to it."""

    def __init__(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outgoing, incoming = os.memfd_create("xpnn"), os.memfd_create("xpnn")
        self.channel, self.ready = Channel(here, outgoing, incoming), False
        numbers = there.fileno(), incoming, outgoing
        code = f"import sys; sys.path[:] = {sys.path!r}; from xpnn_numpy.helpers import serve; serve{numbers!r}"
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=numbers,
                start_new_session=True,  # Ctrl-C is for the process that asks
                env=os.environ | {"XPNN_THREADS": "1", "XPNN_KERNELS": "plain"},
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            there.close()

    def has_come(self) -> bool:
        """Whether it is ready; does not wait for that."""
        if not self.ready:
            with suppress(BlockingIOError):
                if not self.channel.end.recv(MESSAGE, socket.MSG_DONTWAIT):
                    raise Lost
                self.ready = True
        return self.ready

    def answer(self) -> tuple[Any, ...]:
        """What it has to say next."""
        kind, *answer = self.channel.receive()
        if kind == "failed":
            raise Lost(*answer)
        return tuple(answer)

    def end(self) -> None:
        """Whatever it does."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


class Helpers:
    """Those of this process: who computes with them has them alone."""

    def __init__(self) -> None:
        self.lock, self.all, self.computed, self.numbers = threading.Lock(), list[Helper](), 0.0, count()
        self.known: weakref.WeakKeyDictionary[PiecesExecutor, int | None] = weakref.WeakKeyDictionary()
        """The number under which the helpers know an executor; None: they cannot."""

    @contextmanager
    def lent(self, executor: PiecesExecutor, most: int) -> Iterator[list[Helper]]:
        """At most so many, who know the executor; none where they have not come, or are with another thread.

        An error within ends them, for it leaves them in the middle of something.
        """
        if not (POSSIBLE and most and self.computed > PATIENCE and self.lock.acquire(blocking=False)):
            yield []
            return
        try:
            yield self._met(executor, most)
        except BaseException:
            self.end()
            raise
        finally:
            self.lock.release()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Entered by who computes without them."""
        begun = time.perf_counter()
        yield
        self.computed += time.perf_counter() - begun

    def _met(self, executor: PiecesExecutor, most: int) -> list[Helper]:
        try:
            if len(self.all) < most:
                self.all += [Helper() for _ in range(most - len(self.all))]
                self.known.clear()
            if not all(helper.has_come() for helper in self.all):
                return []
        except (OSError, Lost):
            self.end()
            self.computed = -inf  # what could not be started once is not tried again
            return []
        if executor not in self.known:
            number, recipe = next(self.numbers), executor.recipe
            for helper in self.all if recipe else []:
                helper.channel.tell("meet", number, list(self.known.values()), recipe)
            answers = [helper.answer()[0] for helper in self.all] if recipe else [False]
            self.known[executor] = number if all(answers) else None
        return [] if self.known[executor] is None else self.all[:most]

    def end(self) -> None:
        """End them all; who computes for a while longer starts others."""
        for helper in self.all:
            helper.end()
        self.all, self.computed = [], 0.0
        self.known.clear()

    def forget(self) -> None:
        """In a process that was forked: they are the parent's."""
        for helper in self.all:
            helper.channel.close()
        self.__init__()  # type: ignore[misc]


def serve(end: int, outgoing: int, incoming: int) -> None:
    """What a helper does, until who started it is gone."""
    from xpnn import backend
    from xpnn_numpy.executor import PiecesExecutor, session

    channel = Channel(socket.socket(fileno=end), outgoing, incoming)
    numpy, executors = backend.get("numpy"), dict[int, Any]()

    def meet(number: int, known: list[int | None], recipe: bytes) -> bool:
        for old in executors.keys() - set(known):
            del executors[old]
        try:
            executors[number] = PiecesExecutor(numpy, *pickle.loads(recipe))
        except Exception:  # whatever a class of somebody's own raises
            return False
        return True

    def joined(parts: Any) -> Any:
        channel.tell("parts", parts)
        return channel.receive()

    with session(1), suppress(Lost):
        channel.tell("ready")
        while True:
            kind, number, *rest = channel.receive()
            try:
                if kind == "meet":
                    channel.tell("met", meet(number, *rest))
                elif kind == "lanes":
                    flats, _, losses, rights = executors[number].lanes(*rest, None, joined)
                    channel.hand("done", flats, losses, rights)
                else:
                    channel.hand("done", executors[number].scores(*rest))
            except Exception:
                channel.tell("failed", traceback.format_exc())


helpers = Helpers()
atexit.register(helpers.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.forget)
