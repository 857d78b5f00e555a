"""Batch normalisation: one pass over the images for each of its sums, one for what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import norm as standard
from xpnn_numpy.fast._compiled import Host, compiled, plain, takes
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.kernels import norm as numpys
from xpnn_numpy.kernels._rows import along, rows

if TYPE_CHECKING:
    from xpnn.ops import Ops

BLOCK = 128
"""Terms added one after the other, as in `ops.total`; their sums are added in 64 bits."""


def batch_norm(
    ops: Ops,
    x: Host,
    scale: Host,
    bias: Host,
    running_mean: Host,
    running_var: Host,
    *,
    training: bool,
    momentum: float = 0.1,
    epsilon: float = 1e-5,
) -> tuple[tuple[Host, Host, Host], Callable[..., tuple[Host | None, Host, Host, None, None]]]:
    """See `xpnn.ops.batch_norm`."""
    if not takes(x):
        return numpys.batch_norm(
            ops, x, scale, bias, running_mean, running_var, training=training, momentum=momentum, epsilon=epsilon
        )
    standard.check_batch_norm(x, scale, bias, running_mean, running_var)
    here, flat = prod(x.shape[:-1]), rows(plain(x))
    mean, var, n = running_mean, running_var, here
    if training:
        sums, n = ops.whole(_folded(_sum(flat), scale), here)
        mean = sums / max(n, 1)
    centre = along(x, mean)
    if training:
        var = ops.whole(_folded(_sum_of_squares(flat, centre), scale), here)[0] / max(n, 1)
        running_mean, running_var = standard.moved(running_mean, running_var, mean, var, n, momentum)
    inverse = 1 / np.sqrt(var + epsilon)
    slope = inverse * scale
    y = np.empty(x.shape, x.dtype)
    _normalise(flat, centre, along(x, slope), along(x, bias), rows(y))

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host, None, None]:
        d = rows(plain(dy))
        both = _sum_with(d, flat, centre)
        sums = np.stack([_folded(both[0], scale), _folded(both[1], scale)])
        dscale, dbias = sums[1] * inverse, sums[0]
        if not input_gradient:
            return None, dscale, dbias, None, None
        means = np.zeros_like(sums)
        if training:
            means = ops.whole(sums, here)[0] * (slope / n)
            means[1] *= inverse * inverse
        dx = np.empty(x.shape, x.dtype)
        _pass_back(d, flat, centre, along(x, slope), along(x, means[0]), along(x, means[1]), rows(dx))
        return dx, dscale, dbias, None, None

    return (y, running_mean, running_var), backward


def _folded(sums: Host, like: Host) -> Host:
    """The sums of all parts, along an image row, as one a channel."""
    folded: Host = sums.reshape(-1, len(like)).sum(0).astype(like.dtype)
    return folded


@compiled
def _sum(x: Host) -> Host:
    sums = np.zeros((cut(len(x), 4 * x.shape[1]), x.shape[1]))
    share(_sum_part, (x, sums), len(sums))
    return sums


@compiled
def _sum_part(part: int, x: Host, totals: Host) -> None:
    total, (begin, end) = totals[part], stretch(len(x), part, len(totals))
    for first in range(begin, end, BLOCK):
        sums = np.zeros(x.shape[1], x.dtype)
        for i in range(first, min(first + BLOCK, end)):
            for j in range(x.shape[1]):
                sums[j] += x[i, j]
        for j in range(x.shape[1]):
            total[j] += sums[j]


@compiled
def _sum_of_squares(x: Host, centre: Host) -> Host:
    sums = np.zeros((cut(len(x), 4 * x.shape[1]), x.shape[1]))
    share(_sum_of_squares_part, (x, centre, sums), len(sums))
    return sums


@compiled
def _sum_of_squares_part(part: int, x: Host, centre: Host, totals: Host) -> None:
    total, (begin, end) = totals[part], stretch(len(x), part, len(totals))
    for first in range(begin, end, BLOCK):
        sums = np.zeros(x.shape[1], x.dtype)
        for i in range(first, min(first + BLOCK, end)):
            for j in range(x.shape[1]):
                centred = x[i, j] - centre[j]
                sums[j] += centred * centred
        for j in range(x.shape[1]):
            total[j] += sums[j]


@compiled
def _sum_with(d: Host, x: Host, centre: Host) -> Host:
    """The sums of `d` and of `d · (x - centre)`."""
    sums = np.zeros((2, cut(len(d), 8 * d.shape[1]), d.shape[1]))
    share(_sum_with_part, (d, x, centre, sums), sums.shape[1])
    return sums


@compiled
def _sum_with_part(part: int, d: Host, x: Host, centre: Host, totals: Host) -> None:
    total, (begin, end) = totals[:, part], stretch(len(d), part, totals.shape[1])
    for first in range(begin, end, BLOCK):
        sums, products = np.zeros(d.shape[1], d.dtype), np.zeros(d.shape[1], d.dtype)
        for i in range(first, min(first + BLOCK, end)):
            for j in range(d.shape[1]):
                sums[j] += d[i, j]
                products[j] += d[i, j] * (x[i, j] - centre[j])
        for j in range(d.shape[1]):
            total[0, j] += sums[j]
            total[1, j] += products[j]


@compiled
def _normalise(x: Host, centre: Host, slope: Host, bias: Host, y: Host) -> None:
    parts = cut(len(x), 4 * x.shape[1])
    share(_normalise_part, (parts, x, centre, slope, bias, y), parts)


@compiled
def _normalise_part(part: int, parts: int, x: Host, centre: Host, slope: Host, bias: Host, y: Host) -> None:
    begin, end = stretch(len(x), part, parts)
    for i in range(begin, end):
        for j in range(x.shape[1]):
            y[i, j] = (x[i, j] - centre[j]) * slope[j] + bias[j]


@compiled
def _pass_back(d: Host, x: Host, centre: Host, slope: Host, mean: Host, tilt: Host, dx: Host) -> None:
    parts = cut(len(d), 4 * d.shape[1])
    share(_pass_back_part, (parts, d, x, centre, slope, mean, tilt, dx), parts)


@compiled
def _pass_back_part(
    part: int, parts: int, d: Host, x: Host, centre: Host, slope: Host, mean: Host, tilt: Host, dx: Host
) -> None:
    begin, end = stretch(len(d), part, parts)
    for i in range(begin, end):
        for j in range(d.shape[1]):
            dx[i, j] = d[i, j] * slope[j] - (x[i, j] - centre[j]) * tilt[j] - mean[j]
