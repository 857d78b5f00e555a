"""Helper processes: lanes of a step computed outside of the interpreter's lock.

Threads of one interpreter wait for its lock before and after each call of NumPy's, and to be woken takes as long as a
small call. A helper is an interpreter of its own, with an executor like the one that it helps: it is handed weights,
statistics and its part of the batch, and hands back the gradients of its lanes; what depends on the whole batch goes to
and fro at their meetings. It keeps the weights that it predicts with, until it trains; of many pieces to predict some
are dealt to whoever is quicker. Since lanes and pieces say what is computed and not by whom, helpers change no bit.

To start one takes as long as some hundred steps. So they are started by who has computed for `PATIENCE` seconds. Until
they have come, where they cannot (Linux alone has `memfd_create`), for models with classes or functions of somebody's
own, whose modules may not be elsewhere what they are here, and where a helper is lost, threads take the lanes.

A program that waits for whichever child ends (`os.wait`) has one more, which ends with it; `--threads 1` does without.
"""

from __future__ import annotations

import atexit
import ctypes
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import accumulate, count
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from xpnn.ops._array import Array

if TYPE_CHECKING:
    from xpnn_numpy.executor import PiecesExecutor

Layout = list[tuple[tuple[int, ...], np.dtype[Any]]]
"""Shapes and dtypes of arrays."""
PATIENCE = 1.0
"""Seconds of computing, after which helpers are started."""
AWAKE = 2e-3
"""Seconds in which a message is waited for awake: who hands one to a sleeper takes 130 µs longer."""
HEAD, HELLO, ALIGNED = 8, b"!", 64
DEALT = 256
"""Pieces that are dealt, at the most: each is a byte."""
POSSIBLE = hasattr(os, "memfd_create") and Path(sys.executable or "").name.startswith("python")
"""Whether there is memory without a name, and an interpreter that can be started."""


versions = count(1)
"""Of the weights that are handed to helpers, one number for each; a forked process counts on."""


class Lost(Exception):
    """The other side is gone, or failed."""


class OursAlone(pickle.Unpickler):
    """Refuses what is neither xpnn's nor of the libraries below it."""

    def find_class(self, module: str, name: str) -> Any:
        """As the plain one."""
        if module.partition(".")[0] not in ("xpnn", "numpy", "builtins"):
            raise pickle.UnpicklingError(module)
        return super().find_class(module, name)


class Channel:
    """Messages to and fro between two processes; the arrays of one through memory that both see.

    What is handed over step by step differs in its numbers alone. So of a message like the one before it only these
    are copied, to where those were, and whoever receives it has the views already.
    """

    def __init__(self, line: socket.socket, *files: int) -> None:
        self.line, self.rooms = line, [memoryview(b""), memoryview(b"")]
        self.files = list(files)
        """Memory of what goes out, and of what comes in."""
        self.handed: tuple[Any, Layout] | None = None
        self.views, self.received = list[Array](), (None, list[Array]())

    def made(self) -> list[int]:
        """The memory, of whoever begins a channel."""
        for _ in range(2):
            self.files.append(os.memfd_create("xpnn"))
        return self.files

    def tell(self, what: Any) -> None:
        """Send what is small."""
        self._send(pickle.dumps((what, None)))

    def hand(self, what: Any, *arrays: Array) -> None:
        """Send arrays, and what they are; who receives them sees them until the next are handed over."""
        message, data = (what, [(array.shape, array.dtype) for array in arrays]), b""
        if message != self.handed:
            self.views, data, self.handed = self._views(0, message[1]), pickle.dumps(message), message
        for view, array in zip(self.views, arrays, strict=True):
            view[...] = array
        self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            self.line.sendall(len(data).to_bytes(HEAD, "little") + data, socket.MSG_NOSIGNAL)
        except OSError as e:
            raise Lost from e

    def receive(self) -> tuple[Any, list[Array]]:
        """The next message: what was told, or what was handed over, and the arrays."""
        if length := int.from_bytes(self._head(), "little"):
            what, layout = pickle.loads(self._exactly(length, b""))
            if layout is None:
                return what, []
            self.received = what, self._views(1, layout)
        what, views = self.received
        return what, [view[...] for view in views]  # new objects: a recording copies no weights that it knows

    def came(self, what: bytes) -> bool:
        """Whether the other side has just said this.

        Raises:
            BlockingIOError: it has not said anything.
        """
        return self._received(len(what), socket.MSG_DONTWAIT) == what

    def _head(self) -> bytes:
        """That of the next message; it is waited for awake for a while."""
        until = time.perf_counter() + AWAKE
        while time.perf_counter() < until:
            with suppress(BlockingIOError):
                return self._exactly(HEAD, self._received(HEAD, socket.MSG_DONTWAIT))
        return self._exactly(HEAD, b"")

    def _exactly(self, size: int, begun: bytes) -> bytes:
        while len(begun) < size:
            begun += self._received(size - len(begun))
        return begun

    def _received(self, most: int, flags: int = 0) -> bytes:
        try:
            found = self.line.recv(most, flags)
        except BlockingIOError:
            raise
        except OSError as e:
            raise Lost from e
        if not found:
            raise Lost
        return found

    def _views(self, side: int, layout: Layout) -> list[Array]:
        """Of the memory of what goes out (0) or comes in (1), which grows where it is smaller."""
        sizes = [-(-prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED for shape, dtype in layout]
        if self.rooms[side].nbytes < sum(sizes):
            try:
                if not side:
                    os.ftruncate(self.files[side], sum(sizes))
                self.rooms[side] = memoryview(mmap.mmap(self.files[side], sum(sizes)))
            except (OSError, ValueError) as e:  # no more memory, or a limit of the user's
                raise Lost from e
        places = zip(layout, accumulate(sizes, initial=0), strict=False)
        return [np.ndarray(shape, dtype, self.rooms[side], place) for (shape, dtype), place in places]

    def close(self) -> None:
        """Leave; the other side is told."""
        files, self.files = self.files, []
        self.line.close()
        for file in files:
            os.close(file)


class Deal:
    """Pieces of which each goes to whoever of all processes asks next."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def begin(self, n: int) -> None:
        """Deal so many; all that were dealt before are taken."""
        if n:
            os.write(self.writing, bytes(range(n)))

    def close(self) -> None:
        """There will be no more."""
        os.close(self.reading)
        os.close(self.writing)


def taken(file: int, n: int) -> Iterator[int]:
    """Of so many pieces that were dealt those that come to who asks here."""
    with suppress(BlockingIOError):
        while n and (card := os.read(file, 1)):
            yield card[0]


class Helper:
    """One process, and the channel to it."""

    def __init__(self, pieces: int) -> None:
        here, there = socket.socketpair()
        for end in (here, there):
            end.settimeout(None)  # whatever the program has others time out after
        self.channel, self.ready = Channel(here), False
        self.seen: int | None = None
        try:
            outgoing, incoming = self.channel.made()
            numbers = there.fileno(), incoming, outgoing, pieces
            code = f"import sys; sys.path[:] = {sys.path!r}; from xpnn_numpy.helpers import serve; serve{numbers!r}"
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
                self.ready = self.channel.came(HELLO)
        return self.ready

    def unseen(self, version: int, *weights: Mapping[str, Array]) -> tuple[Mapping[str, Array], ...]:
        """The weights to hand over to predict with: none where it has this version of them."""
        if self.seen == version:
            return ()
        self.seen = version
        return weights

    def answer(self, expected: str) -> tuple[Any, list[Array]]:
        """What it has to say or to hand over next."""
        (kind, what), arrays = self.channel.receive()
        if kind != expected:
            raise Lost(what)
        return what, arrays

    def end(self) -> None:
        """Whatever it does."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


class Helpers:
    """Those of this process: who computes with them has them alone."""

    def __init__(self) -> None:
        self.lock, self.all, self.computed, self.numbers = threading.Lock(), list[Helper](), 0.0, count()
        self.patience, self.deal = PATIENCE, cast(Any, None)
        self.known: weakref.WeakKeyDictionary[PiecesExecutor, int | None] = weakref.WeakKeyDictionary()
        """The number under which the helpers know an executor; None: they cannot."""

    @contextmanager
    def lent(self, executor: PiecesExecutor, most: int) -> Iterator[list[Helper]]:
        """At most so many, who know the executor; none where they have not come, or are with another thread.

        An error within ends them, for it leaves them in the middle of something.
        """
        wanted = POSSIBLE and most > 0 and self.computed > self.patience and executor.recipe is not None
        if not (wanted and self.lock.acquire(blocking=False)):
            yield []
            return
        try:
            yield self._met(executor, most)
        except BaseException as e:
            self.end()
            if isinstance(e, Lost):
                self.patience *= 8  # it may be lost again
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
                self.known.clear()
                self.deal = self.deal or Deal()
                while len(self.all) < most:
                    self.all.append(Helper(self.deal.reading))
            if not all(helper.has_come() for helper in self.all):
                return []
        except (OSError, Lost):
            self.end()
            self.patience *= 8  # it may fail again
            return []
        if executor not in self.known:
            number = next(self.numbers)
            for helper in self.all:
                helper.channel.tell(("meet", number, list(self.known.values()), executor.recipe))
            answers = [helper.answer("met")[0] for helper in self.all]
            self.known[executor] = number if all(answers) else None
            _give_back()  # what all lanes took here, for from now on some are elsewhere
        return [] if self.known[executor] is None else self.all[:most]

    def end(self) -> None:
        """End them all; who computes for a while longer starts others."""
        ended, self.all, self.computed = self.all, [], 0.0
        self.known.clear()
        self._clear()
        for helper in ended:
            helper.end()

    def forget(self) -> None:
        """In a process that was forked: they are the parent's."""
        for helper in self.all:
            helper.channel.close()
            helper.process.returncode = 0  # nobody here has to wait for it
        self._clear()
        self.__init__()  # type: ignore[misc]

    def _clear(self) -> None:
        """Leave no piece for those who come later."""
        deal, self.deal = self.deal, None
        if deal:
            deal.close()


def _give_back() -> None:
    """Memory that is free to the system: of the GNU C library, which `executor.keep_memory` has keep it."""
    with suppress(OSError, AttributeError, TypeError):  # another library
        ctypes.CDLL(None).malloc_trim(0)


def serve(line: int, outgoing: int, incoming: int, pieces: int) -> None:
    """What a helper does, until who started it is gone."""
    from xpnn import backend
    from xpnn_numpy.executor import PiecesExecutor, session

    channel = Channel(socket.socket(fileno=line), outgoing, incoming)
    numpy, executors, seen = backend.get("numpy"), dict[int, Any](), list[dict[str, Any]]()

    def meet(number: int, known: list[int | None], recipe: bytes) -> bool:
        for old in executors.keys() - set(known):
            del executors[old]
        try:
            executors[number] = PiecesExecutor(numpy, *pickle.loads(recipe))
        except Exception:  # whatever a class of somebody's own raises
            return False
        return True

    def joined(parts: Any) -> Any:
        channel.tell(("parts", parts))
        return channel.receive()[0]

    with session(1), suppress(Lost):
        channel.line.sendall(HELLO)
        while True:
            (kind, number, *rest), arrays = channel.receive()
            try:
                if kind == "meet":
                    channel.tell(("met", meet(number, *rest)))
                elif kind == "lanes":
                    seen = []
                    flats, _, losses, rights = executors[number].handed(*arrays, cuts=rest[0], joined=joined)
                    channel.hand(("done", None), *flats, *losses, *rights)
                else:
                    cuts, dealt_cuts, names = rest
                    images, dealt_images, *unseen = arrays
                    if names:  # kept as copies: they are seen until the next arrays are handed over
                        copies = iter([array.copy() for array in unseen])
                        seen = [{path: next(copies) for path in paths} for paths in names]
                    own = executors[number].scores(*seen, images, cuts)
                    found = executors[number].dealt(*seen, dealt_images, dealt_cuts, pieces)
                    channel.hand(("done", list(found)), own, *found.values())
            except Exception:
                channel.tell(("failed", traceback.format_exc()))


helpers = Helpers()
atexit.register(helpers.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.forget)
