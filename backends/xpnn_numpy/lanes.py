"""Lanes: parts of a batch computed side by side, and the threads that do it.

How a batch is cut depends on the model and the batch alone, and sums over lanes are taken in their order; threads
and helper processes only decide who computes a lane, and when. So the bits are the same for any number of them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xpnn.ops._array import Array
from xpnn_numpy.kernels._rows import LONG

T = TypeVar("T")
Joined = Callable[[list[tuple[Array, int]]], tuple[Array, int]]
"""The sum of the parts of some lanes, and perhaps of those elsewhere."""

LANES = ((32 << 20, 8), (16 << 20, 4), (2 << 20, 2))
"""Bytes of a batch's largest activation, from which on it is cut into so many lanes.

A call of NumPy that other threads wait for costs some 100 µs beside its work, so lanes must be large.
"""
MOST = LANES[0][1]
LEAST, LEAST_HELPED = 2_200_000, 950_000
"""Multiply-adds of a layer, on average, from which on NumPy's own kernels have two lanes, however small the images: for
threads, and where lanes do not meet for helpers, which do not wait for each other's calls."""


@contextmanager
def settled() -> Iterator[None]:
    """NumPy in this thread without warnings, for a step itself tells of what is not finite, and with short buffers.

    Operands whose runs are shorter than a buffer, of 8192 values otherwise, are copied through it: three times the work
    of a sum.
    """
    with np.errstate(all="ignore"):  # at whose end both are as before
        np.setbufsize(LONG)
        yield


def threads(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How many threads to use: `XPNN_THREADS`, else the cores that this process may use."""
    given = os.environ.get("XPNN_THREADS", "")
    if given and not (given.isdecimal() and int(given)):
        raise ValueError(f"XPNN_THREADS={given!r}; expected a positive integer")
    if given:
        return int(given)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(cgroup)))


def _quota(cgroup: Path) -> int:
    """The cores that the control group of a container allows, rounded up (versions 2 and 1)."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((cgroup / file).read_text(encoding="ascii") for file in files).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max": no limit
            continue
        if quota > 0:
            return max(1, -(-quota // period))
    return 1 << 10


class Crew:
    """The threads of one executor; the calling thread is one of them."""

    def __init__(self, threads: int) -> None:
        self.threads, self.process = threads, 0

    @property
    def helpers(self) -> ThreadPoolExecutor:
        """The other threads; none is started before it is needed, and a forked process starts its own."""
        if self.process != os.getpid():
            self.process, self._helpers = os.getpid(), ThreadPoolExecutor(MOST - 1, thread_name_prefix="xpnn")
        return self._helpers

    def each(self, work: Callable[[int], T], n: int) -> list[T]:
        """`[work(0), …, work(n - 1)]`, each on some thread; the first error stops it and is raised."""
        return [work(0)] if n == 1 else self._run(work, n, min(n, self.threads), lambda: None)

    def together(self, work: Callable[[int], T], meeting: Meeting) -> list[T]:
        """The same for lanes that meet on their way: all are under way at once, as many as threads compute."""
        return self._run(meeting.attended(work), meeting.lanes, meeting.lanes, meeting.abort)

    def _run(self, work: Callable[[int], T], n: int, threads: int, abort: Callable[[], None]) -> list[T]:
        results: list[Any] = [None] * n
        numbers, errors = count(), list[BaseException]()

        def take() -> None:
            try:
                with settled():
                    while not errors and (i := next(numbers)) < n:
                        results[i] = work(i)
            except BaseException as e:  # also an interrupt: nobody may go on computing once it is raised
                errors.append(e)
                abort()

        waiting = []
        try:
            for _ in range(threads - 1):
                waiting.append(self.helpers.submit(take))
            take()
        except BaseException as e:  # an interrupt: who was sent already would wait for the others for ever
            errors.append(e)
            abort()
        while waiting:
            try:
                waiting = list(wait(waiting).not_done)
            except BaseException as e:
                errors.append(e)
                abort()
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return results


def added(parts: list[tuple[Array, int]]) -> tuple[Array, int]:
    """Sums and how many terms they have, added in the order of the lanes."""
    total, n = parts[0]
    for part, m in parts[1:]:
        total, n = total + part, n + m
    return total, n


class Meeting:
    """Where the lanes of one step add up what each of them has (`ops.whole`).

    No more lanes compute at a time than there are turns. A lane that comes hands its turn to one that can use it, and
    sleeps until all have come and a turn is handed to it: once a meeting, for to be woken takes as long as a layer.
    Where lanes elsewhere come too, `joined` adds up all of them, and `left` tells them that these will not come.
    """

    def __init__(self, lanes: int, turns: int, joined: Joined = added, left: Callable[[], None] = lambda: None) -> None:
        self.lanes, self.free, self.joined, self.left = lanes, turns, joined, left
        self.broken = self.ended = False
        self.parts, self.here = list[tuple[Array, int]]([(None, 0)] * lanes), 0
        self.ready: deque[int] = deque()  # lanes that wait for a turn alone
        self.lock, self.bells = threading.Lock(), [threading.Lock() for _ in range(lanes)]
        for bell in self.bells:
            bell.acquire()

    def whole(self, lane: int, part: Array, n: int) -> tuple[Array, int]:
        """The sum over all lanes, once all have come.

        Raises:
            ValueError: one of them will not.
        """
        self.parts[lane] = part, n
        with self.lock:
            self.here += 1
            last = self.here == self.lanes
            self._check()
        if last:
            self.total = self.joined(self.parts)
            with self.lock:
                self.ready += [i for i in range(self.lanes) if i != lane]
                self.here = 0
                self._call()
        else:
            self._leave()
            self._wait(lane)
        return self.total

    def attended(self, work: Callable[[int], T]) -> Callable[[int], T]:
        """`work`, by lanes that have a turn."""

        def attend(lane: int) -> T:
            with self.lock:
                self.ready.append(lane)
                self._call()
            self._wait(lane)
            try:
                result = work(lane)
                with self.lock:
                    self.ended = True
                    self._check()
                return result
            finally:
                self._leave()

        return attend

    def _check(self) -> None:
        if self.ended and self.here:
            raise ValueError(
                "of the parts of a batch that are computed side by side some came to `ops.whole` more often than "
                "others: a layer that is `divisible` has to call it equally often whatever its samples are; else leave "
                "`divisible` out, and batches are not cut"
            )

    def abort(self) -> None:
        """Let nobody wait for who will not come."""
        self.left()
        with self.lock:
            self.broken = True
            for bell in self.bells:
                with suppress(RuntimeError):  # it rings already
                    bell.release()

    def _leave(self) -> None:
        """Hand on one's turn."""
        with self.lock:
            self.free += 1
            self._call()

    def _call(self) -> None:
        """Give the turns that are free to lanes that wait for nothing else."""
        while self.free and self.ready and not self.broken:
            self.free -= 1
            self.bells[self.ready.popleft()].release()

    def _wait(self, lane: int) -> None:
        self.bells[lane].acquire()
        if self.broken:
            raise threading.BrokenBarrierError
