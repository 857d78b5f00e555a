"""Windows over a padded image: their geometry as numbers, and their columns, gathered and scattered.

The outputs of a block are phase-major: those at one place of the pool's windows lie together.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from xpnn.ops._window import Window
from xpnn_numpy.fast._compiled import Host, compiled

N, SIZE, STRIDE, DILATION, POOL, OUT = range(6)
"""The rows of a grid; `N` is the padded image, and `OUT` counts the pool's windows."""


@lru_cache(maxsize=4096)
def grid(w: Window, pool: tuple[int, ...]) -> Host:
    """The geometry on three spatial axes, of which the first have one place where `w` has fewer."""
    out = tuple(m // p for m, p in zip(w.out, pool, strict=True))
    rows = (w.padded, w.size, w.stride, w.dilation, pool, out)
    return np.array([(1,) * (3 - len(row)) + row for row in rows], np.int64)


@compiled
def corner(g: Host, c: int, window: int, phase: int) -> int:
    """Where in the flat image the first tap of an output is."""
    (_, n1, n2), (p0, p1, p2), (o0, o1, o2), (s0, s1, s2) = g[N], g[POOL], g[OUT], g[STRIDE]
    i2 = (window % o2 * p2 + phase % p2) * s2
    i1 = (window // o2 % o1 * p1 + phase // p2 % p1) * s1
    i0 = (window // o2 // o1 % o0 * p0 + phase // (p1 * p2)) * s0
    place: int = (((window // o2 // o1 // o0 * g[N, 0] + i0) * n1 + i1) * n2 + i2) * c
    return place


@compiled
def reach(g: Host, c: int) -> tuple[Host, int]:
    """From the first tap to each run of taps that lie together, and how long a run is."""
    (_, n1, n2), (k0, k1, k2), (d0, d1, d2) = g[N], g[SIZE], g[DILATION]
    span = k2 if d2 == 1 else 1
    runs = np.empty(k0 * k1 * (k2 // span), np.int64)
    for i in range(len(runs)):
        t2, t1, t0 = i % (k2 // span), i // (k2 // span) % k1, i // (k2 // span) // k1
        runs[i] = ((t0 * d0 * n1 + t1 * d1) * n2 + t2 * d2) * c
    return runs, span * c


@compiled
def gather(x: Host, g: Host, c: int, first: int, last: int, rows: Host) -> None:
    """The columns of windows `first … last - 1` of the pool, one output after the other, K·C values each."""
    (runs, length), step, o2 = reach(g, c), g[POOL, 2] * g[STRIDE, 2] * c, g[OUT, 2]
    size = np.uint64(length)
    for phase in range(g[POOL, 0] * g[POOL, 1] * g[POOL, 2]):
        window, r = first, phase * (last - first) * len(runs) * length
        while window < last:  # a line of the image, or what is left of it
            many, source = min(o2 - window % o2, last - window), corner(g, c, window, phase)
            for _ in range(many):
                for run in runs:
                    i, j = np.uint64(r), np.uint64(source + run)
                    for k in range(size):
                        rows[i + k] = x[j + k]
                    r += length
                source += step
            window += many


@compiled
def scatter(x: Host, g: Host, c: int, first: int, last: int, rows: Host) -> None:
    """Add these columns to where they were gathered."""
    (runs, length), step, o2 = reach(g, c), g[POOL, 2] * g[STRIDE, 2] * c, g[OUT, 2]
    size = np.uint64(length)
    for phase in range(g[POOL, 0] * g[POOL, 1] * g[POOL, 2]):
        window, r = first, phase * (last - first) * len(runs) * length
        while window < last:
            many, source = min(o2 - window % o2, last - window), corner(g, c, window, phase)
            for _ in range(many):
                for run in runs:
                    i, j = np.uint64(r), np.uint64(source + run)
                    for k in range(size):
                        x[j + k] += rows[i + k]
                    r += length
                source += step
            window += many


@compiled
def gather_taps_first(x: Host, g: Host, c: int, first: int, last: int, rows: Host) -> None:
    """The same transposed, `(K·C, outputs)`: of few channels the runs are short, those along an image row are not.

    A tap at one place of the pool's window often sees what another sees at another place: that is copied in one go.
    """
    (runs, length), step, o2 = reach(g, c), np.uint64(g[POOL, 2] * g[STRIDE, 2] * c), g[OUT, 2]
    phases, size, width = g[POOL, 0] * g[POOL, 1] * g[POOL, 2], len(runs) * length, last - first
    lines, starts, window = 0, np.empty(width // o2 + 2, np.int64), first
    while window < last:
        starts[lines] = corner(g, c, window, 0)
        lines += 1
        window += o2 - window % o2
    offsets = np.empty(phases * size, np.int64)
    for m in range(phases * size):
        phase, tap = m // size, m % size
        offsets[m] = corner(g, c, 0, phase) + runs[tap // length] + tap % length
        same = 0
        while offsets[same] != offsets[m]:
            same += 1
        i = (tap * phases + phase) * width
        if same < m:
            a, b = np.uint64(i), np.uint64((same % size * phases + same // size) * width)
            for k in range(np.uint64(width)):
                rows[a + k] = rows[b + k]
            continue
        many, stop = min(o2 - first % o2, width), i + width
        for line in range(lines):
            a, b = np.uint64(i), np.uint64(starts[line] + offsets[m])
            if step == 1:
                for k in range(np.uint64(many)):
                    rows[a + k] = x[b + k]
            else:
                for k in range(np.uint64(many)):
                    rows[a + k] = x[b + k * step]
            i += many
            many = min(o2, stop - i)
