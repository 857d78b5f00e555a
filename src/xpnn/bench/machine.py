"""What it is timed on: threads, load, and the machine's own peak."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from xpnn.backend import Backend


def cores() -> list[int]:
    """The cores that the process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have all that begins herein use `count` threads; JAX can be told by the cores that it may use alone."""
    mine, before = cores(), os.environ.copy()
    fewer = count < len(mine) and hasattr(os, "sched_setaffinity")
    os.environ |= {"XPNN_THREADS": str(count), "OMP_NUM_THREADS": str(count)}
    if fewer:
        os.sched_setaffinity(0, mine[:count])
    try:
        yield
    finally:
        if fewer:
            os.sched_setaffinity(0, mine)
        os.environ.clear()
        os.environ |= before


def peak(backend: Backend, count: int) -> float:
    """Flops a second of the best of ten products of float32 matrices: NumPy's on `count` threads, or the GPU's."""
    from threadpoolctl import threadpool_limits

    size = 4096 if backend.gpu() else 1024
    a = np.random.default_rng(0).random((size, size), dtype=np.float32)
    x = backend.asarray(a) if backend.gpu() else a
    best = float("inf")
    with threadpool_limits(limits=count, user_api="blas"):
        for _ in range(10):
            backend.synchronize()
            begun = time.perf_counter()
            x @ x
            backend.synchronize()
            best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def load() -> float | None:
    """How many processes wanted to run in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


class Others:
    """What others use of this machine from now on."""

    def __init__(self) -> None:
        self.begun = self._now()

    def share(self) -> float | None:
        """Of the cores, by other processes and, on a virtual machine, by other machines; None where nothing tells."""
        now = self._now()
        if now is None or self.begun is None:
            return None
        seconds, own, everyone = (b - a for a, b in zip(self.begun, now, strict=True))
        share = (everyone - own) / (seconds * (os.cpu_count() or 1))
        return min(max(share, 0.0), 1.0)  # time is counted in ticks, of which few are many in a short while

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds of the clock, of this process and its children, and of all processes."""
        try:
            words = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, stolen = map(int, words[1:9])
        ticks = user + nice + system + irq + softirq + stolen
        own = sum(os.times()[:4]) + sum(_children()) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), own, ticks / os.sysconf("SC_CLK_TCK")


def _children() -> Iterator[int]:
    """The ticks of the children that still run, of which `os.times` knows nothing."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            words = file.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            if int(words[1]) == os.getpid():
                yield int(words[11]) + int(words[12])


def versions() -> dict[str, str]:
    """Of Python and all libraries that may take part."""
    from xpnn import __version__

    found = {"xpnn": __version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "jax", "jaxlib"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
