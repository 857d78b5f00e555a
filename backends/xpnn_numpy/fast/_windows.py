"""Where in a flat image the windows of a convolution are: places of outputs and offsets of taps, which add up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import NamedTuple

import numpy as np

from xpnn.ops._window import Window
from xpnn_numpy.fast._compiled import Host, compiled
from xpnn_numpy.fast._product import MOST

Pads = tuple[tuple[int, int], ...]


@lru_cache(maxsize=4096)
def forward(w: Window, pool: tuple[int, ...], c: int) -> tuple[Host, Host]:
    """In the padded image: the outputs, `(responses under a window of the pool, windows)`, and the `K·C` taps."""
    steps = _steps(w.padded, c)
    over = [s * m for s, m in zip(w.stride, steps, strict=True)]
    phases = _sums([range(0, p * m, m) for p, m in zip(pool, over, strict=True)])
    windows = _sums([m * p * np.arange(n // p) for n, p, m in zip(w.out, pool, over, strict=True)])
    taps = [m * d * np.arange(k) for k, d, m in zip(w.size, w.dilation, steps, strict=True)]
    return phases[:, None] + windows, _sums([*taps, range(c)])


@lru_cache(maxsize=4096)
def frame(shape: tuple[int, ...], pads: Pads) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """An image `(*spatial, C)` as one of three axes, the channels in the last: shape, what comes before it, padded."""
    *spatial, c = shape
    axes = [(1, 0, 0)] * (3 - len(spatial)) + [(n, *pad) for n, pad in zip(spatial, pads, strict=True)]
    axes[-1] = tuple(m * c for m in axes[-1])  # type: ignore[assignment]
    return tuple(n for n, _, _ in axes), tuple(a for _, a, _ in axes), tuple(map(sum, axes))


class Part(NamedTuple):
    """The inputs at one place between the strides, and what of the kernel and of `dy` they meet."""

    inputs: tuple[slice, ...]
    taps: tuple[slice, ...]
    places: Host
    offsets: Host


@lru_cache(maxsize=4096)
def backward(w: Window, c_out: int) -> tuple[Pads, list[Part]]:
    """How far to pad `dy`, and the parts of the gradient of the input, each of them a convolution of it.

    Input `i` is under tap `t` of output `(i + before - t·d) / s`, where that is an integer: inputs that are a stride
    apart meet the same taps, and outputs that are one apart.
    """
    axes: list[list[tuple[slice, slice, list[int]]]] = []
    pads: list[tuple[int, int]] = []
    for n, k, s, d, (before, _), out in zip(w.n, w.size, w.stride, w.dilation, w.pads, w.out, strict=True):
        parts = []
        for first in range(min(s, n)):
            taps = [t for t in range(k) if (first + before - t * d) % s == 0]  # as far apart as the first two
            which = slice(taps[0], k, s // gcd(s, d)) if taps else slice(0)
            parts.append((slice(first, n, s), which, [(first + before - t * d) // s for t in taps]))
        reach = [(o, o + len(range(n)[i])) for i, _, outputs in parts for o in outputs]
        pads.append((max([0, *(-o for o, _ in reach)]), max([0, *(o - out for _, o in reach)])))
        axes.append(parts)
    steps = _steps(tuple(a + n + b for n, (a, b) in zip(w.out, pads, strict=True)), c_out)
    found = []
    for combination in product(*axes):
        inputs, taps, outputs = zip(*combination, strict=True)
        counts = [len(range(n)[i]) for n, i in zip(w.n, inputs, strict=True)]
        places = _sums([m * np.arange(n) for m, n in zip(steps, counts, strict=True)])
        offsets = [[m * (a + o) for o in under] for m, (a, _), under in zip(steps, pads, outputs, strict=True)]
        found.append(Part(inputs, taps, places[None], _sums([*offsets, range(c_out)])))
    return tuple(pads), found


def _steps(shape: tuple[int, ...], c: int) -> list[int]:
    """From one value of each axis to the next."""
    return [c * int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]


def _sums(terms: Sequence[Sequence[int] | Host]) -> Host:
    """Every sum of one term of each, the last running fastest."""
    total = np.zeros(1, np.int64)
    for values in terms:
        total = np.add.outer(total, np.asarray(values, np.int64)).reshape(-1)
    return total


@lru_cache(maxsize=4096)
def spreads(w: Window, c: int, c_out: int, lanes: int) -> bool:
    """Whether adding each output's share up under it is less work for the gradient of the input than a convolution.

    That has vectors along the input's channels, which may not fill one, and a sum for each input. Spread, vectors go
    along all columns; there is one more pass over what is added up, and sums over the outputs' channels are short.
    """
    taps, vectors = prod(w.size), -(-prod(w.size) * c // lanes)
    convolved = prod(w.n) * taps * c_out * -(-c // lanes) // prod(w.stride)
    return 4 * convolved > 5 * prod(w.out) * (c_out + 3) * vectors


@compiled
def among(places: Host, size: int, first: int, last: int, rows: Host) -> None:
    """The places `first … last - 1` in a row of images of `size` values, from those in one; then a tile of the last."""
    image, i, count = first // len(places), first % len(places), last - first
    for j in range(count):
        rows[j] = image * size + places[i]
        i += 1
        if i == len(places):
            image, i = image + 1, 0
    for j in range(count, count + MOST):
        rows[j] = rows[count - 1]
