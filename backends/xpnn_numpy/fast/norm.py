"""Batch normalisation: one pass over the images for each of its sums, one for what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import norm as standard
from xpnn_numpy.fast._compiled import Host, compiled, fitting, plain, takes
from xpnn_numpy.fast._team import cut, share, stretch
from xpnn_numpy.kernels import norm as numpys
from xpnn_numpy.kernels._rows import FEW

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
    relu: bool = False,
) -> tuple[tuple[Host, Host, Host], Callable[..., tuple[Host | None, Host, Host, None, None]]]:
    """See `xpnn.ops.batch_norm`."""
    if not takes(x):
        return numpys.batch_norm(
            ops,
            x,
            scale,
            bias,
            running_mean,
            running_var,
            training=training,
            momentum=momentum,
            epsilon=epsilon,
            relu=relu,
        )
    standard.check_batch_norm(x, scale, bias, running_mean, running_var)
    here, flat = prod(x.shape[:-1]), _rows(plain(x))
    mean, var, n = running_mean, running_var, here
    if training:
        sums, n = ops.whole(_sum(flat, len(scale)), here)
        mean = sums / max(n, 1)
        var = ops.whole(_sum_of_squares(flat, mean), here)[0] / max(n, 1)
        running_mean, running_var = standard.moved(running_mean, running_var, mean, var, n, momentum)
    inverse = 1 / np.sqrt(var + epsilon)
    slope = inverse * scale
    y = np.empty(x.shape, x.dtype)
    _normalise(flat, mean, slope, bias, relu, _rows(y))
    kept = _rows(y) if relu else np.empty((0, 0), x.dtype)

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host, None, None]:
        d = _rows(fitting("batch_norm", dy, x.shape, flat.dtype))
        sums = _sum_with(d, flat, kept, mean)
        dscale, dbias = sums[1] * inverse, sums[0]
        if not input_gradient:
            return None, dscale, dbias, None, None
        means = np.zeros_like(sums)
        if training:
            means = ops.whole(sums, here)[0] * (slope / n)
            means[1] *= inverse * inverse
        dx = np.empty(x.shape, x.dtype)
        _pass_back(d, flat, kept, mean, slope, means, _rows(dx))
        return dx, dscale, dbias, None, None

    return (y, running_mean, running_var), backward


def _rows(x: Host) -> Host:
    """`(N, *spatial, C)` as image rows, `(…, W·C)`, or few pixels as `(…, C)`: a view."""
    pixels = x.shape[-2] if x.ndim > 2 and x.size > FEW * x.shape[-1] else 1
    return x.reshape(-1, pixels * x.shape[-1])


@compiled
def _folded(sums: Host, channels: Host) -> None:
    """Add up what belongs to a channel: the sums of all parts along an image row."""
    many = len(channels)
    totals = np.zeros(many)
    for part in sums:
        for first in range(0, len(part), many):
            for j in range(many):
                totals[j] += part[first + j]
    for j in range(many):
        channels[j] = totals[j]


@compiled
def _along(channels: Host, length: int) -> Host:
    """One value a channel, repeated along an image row."""
    row = np.empty(length, channels.dtype)
    for first in range(0, length, len(channels)):
        for j in range(len(channels)):
            row[first + j] = channels[j]
    return row


@compiled
def _sum(x: Host, channels: int) -> Host:
    sums, total = np.zeros((cut(len(x), 4 * x.shape[1]), x.shape[1])), np.empty(channels, x.dtype)
    share(_sum_part, (x, sums), len(sums))
    _folded(sums, total)
    return total


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
def _sum_of_squares(x: Host, mean: Host) -> Host:
    """Of what is left without the mean."""
    sums, total = np.zeros((cut(len(x), 4 * x.shape[1]), x.shape[1])), np.empty_like(mean)
    share(_sum_of_squares_part, (x, _along(mean, x.shape[1]), sums), len(sums))
    _folded(sums, total)
    return total


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
def _sum_with(d: Host, x: Host, y: Host, mean: Host) -> Host:
    """The sums of `d` and of `d · (x - mean)`, of what ReLU let through to `y`."""
    sums, total = np.zeros((2, cut(len(d), 8 * d.shape[1]), d.shape[1])), np.empty((2, len(mean)), d.dtype)
    share(_sum_with_part, (d, x, y, _along(mean, x.shape[1]), sums), sums.shape[1])
    _folded(sums[0], total[0])
    _folded(sums[1], total[1])
    return total


@compiled
def _sum_with_part(part: int, d: Host, x: Host, y: Host, centre: Host, totals: Host) -> None:
    total, (begin, end), zero = totals[:, part], stretch(len(d), part, totals.shape[1]), d.dtype.type(0)
    for first in range(begin, end, BLOCK):
        sums, products = np.zeros(d.shape[1], d.dtype), np.zeros(d.shape[1], d.dtype)
        for i in range(first, min(first + BLOCK, end)):
            if len(y):
                for j in range(d.shape[1]):
                    a = d[i, j]
                    a = a if y[i, j] > zero else zero
                    sums[j] += a
                    products[j] += a * (x[i, j] - centre[j])
            else:
                for j in range(d.shape[1]):
                    sums[j] += d[i, j]
                    products[j] += d[i, j] * (x[i, j] - centre[j])
        for j in range(d.shape[1]):
            total[0, j] += sums[j]
            total[1, j] += products[j]


@compiled
def _normalise(x: Host, mean: Host, slope: Host, bias: Host, relu: bool, y: Host) -> None:
    parts, length = cut(len(x), 4 * x.shape[1]), x.shape[1]
    channels = _along(mean, length), _along(slope, length), _along(bias, length)
    share(_normalise_part, (parts, x, channels, relu, y), parts)


@compiled
def _normalise_part(part: int, parts: int, x: Host, channels: tuple[Host, Host, Host], relu: bool, y: Host) -> None:
    (centre, slope, bias), (begin, end), zero = channels, stretch(len(x), part, parts), x.dtype.type(0)
    for i in range(begin, end):
        if relu:
            for j in range(x.shape[1]):
                a = (x[i, j] - centre[j]) * slope[j] + bias[j]
                y[i, j] = zero if a <= zero else a  # NaN is not
        else:
            for j in range(x.shape[1]):
                y[i, j] = (x[i, j] - centre[j]) * slope[j] + bias[j]


@compiled
def _pass_back(d: Host, x: Host, y: Host, mean: Host, slope: Host, means: Host, dx: Host) -> None:
    parts, length = cut(len(d), 4 * d.shape[1]), x.shape[1]
    channels = _along(mean, length), _along(slope, length), _along(means[0], length), _along(means[1], length)
    share(_pass_back_part, (parts, d, x, y, channels, dx), parts)


@compiled
def _pass_back_part(
    part: int, parts: int, d: Host, x: Host, y: Host, channels: tuple[Host, Host, Host, Host], dx: Host
) -> None:
    (centre, slope, shift, tilt), (begin, end) = channels, stretch(len(d), part, parts)
    zero = d.dtype.type(0)
    for i in range(begin, end):
        if len(y):
            for j in range(d.shape[1]):
                a = d[i, j]
                a = a if y[i, j] > zero else zero
                dx[i, j] = a * slope[j] - (x[i, j] - centre[j]) * tilt[j] - shift[j]
        else:
            for j in range(d.shape[1]):
                dx[i, j] = d[i, j] * slope[j] - (x[i, j] - centre[j]) * tilt[j] - shift[j]
