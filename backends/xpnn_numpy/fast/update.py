"""Optimizers in one pass over the weights: NumPy takes one for each operation.

An update fills `new` and the new moments, and returns whether all new weights are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xpnn.optim import SGD, Adam, AdamW, Optimizer
from xpnn_numpy.fast._compiled import Host, compiled
from xpnn_numpy.fast._team import cut, share, stretch

BLOCK = 1024
"""Weights at a time, which stay in the first-level cache."""
Moments = Mapping[str, Host]
Update = Callable[[Any, Host, Host, Moments, Host, Host, Moments], bool]


def sgd(
    optimizer: SGD, weights: Host, gradient: Host, moments: Moments, scalars: Host, new: Host, new_moments: Moments
) -> bool:
    """See `xpnn.optim.SGD`."""
    none = np.empty(0, weights.dtype)
    old, velocity = moments.get("velocity", none), new_moments.get("velocity", none)
    keep = scalars.dtype.type(optimizer.momentum), scalars.dtype.type(optimizer.weight_decay)
    return bool(_sgd(weights, gradient, old, scalars[0], *keep, optimizer.nesterov, new, velocity))


def adam(
    optimizer: Adam, weights: Host, gradient: Host, moments: Moments, scalars: Host, new: Host, new_moments: Moments
) -> bool:
    """See `xpnn.optim.Adam`."""
    fixed = np.asarray(
        [optimizer.beta1, 1 - optimizer.beta1, optimizer.beta2, 1 - optimizer.beta2, optimizer.epsilon,
         optimizer.weight_decay], weights.dtype,
    )  # fmt: skip
    old, told = (moments["mean"], moments["square"]), (new_moments["mean"], new_moments["square"])
    return bool(_adam(weights, gradient, old, scalars, fixed, new, told))


UPDATES: Mapping[type[Optimizer], Update] = {SGD: sgd, Adam: adam, AdamW: adam}


@compiled
def _sgd(
    weights: Host, gradient: Host, old: Host, lr: float, momentum: float, decay: float, nesterov: bool, new: Host,
    velocity: Host,
) -> bool:  # fmt: skip
    lost = np.zeros(cut(len(weights), 8), np.int64)
    share(_sgd_part, (weights, gradient, old, lr, momentum, decay, nesterov, new, velocity, lost), len(lost))
    return bool(lost.sum() == 0)


@compiled
def _sgd_part(
    part: int, weights: Host, gradient: Host, old: Host, lr: float, momentum: float, decay: float, nesterov: bool,
    new: Host, velocity: Host, lost: Host,
) -> None:  # fmt: skip
    space, (begin, end) = np.empty(BLOCK, weights.dtype), stretch(len(weights), part, len(lost))
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        step, w, out = gradient[first:last], weights[first:last], new[first:last]
        if len(old):
            before, v = old[first:last], velocity[first:last]
            for i in range(len(v)):
                v[i] = momentum * before[i] + step[i]
            if nesterov:
                for i in range(len(v)):
                    space[i] = step[i] + momentum * v[i]
                step = space
            else:
                step = v
        for i in range(len(w)):
            out[i] = w[i] - lr * decay * w[i] - lr * step[i]
    lost[part] = _not_finite(new[begin:end])


@compiled
def _adam(
    weights: Host, gradient: Host, old: tuple[Host, Host], scalars: Host, fixed: Host, new: Host,
    moments: tuple[Host, Host],
) -> bool:  # fmt: skip
    lost = np.zeros(cut(len(weights), 16), np.int64)
    share(_adam_part, (weights, gradient, old, scalars, fixed, new, moments, lost), len(lost))
    return bool(lost.sum() == 0)


@compiled
def _adam_part(
    part: int, weights: Host, gradient: Host, old: tuple[Host, Host], scalars: Host, fixed: Host, new: Host,
    moments: tuple[Host, Host], lost: Host,
) -> None:  # fmt: skip
    lr, corrected_lr, root = scalars[0], scalars[1], scalars[2]
    beta1, rest1, beta2, rest2, epsilon, decay = fixed[0], fixed[1], fixed[2], fixed[3], fixed[4], fixed[5]
    (old_mean, old_square), (mean, square) = old, moments
    begin, end = stretch(len(weights), part, len(lost))
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        g, w, out = gradient[first:last], weights[first:last], new[first:last]
        old_m, old_s, m, s = old_mean[first:last], old_square[first:last], mean[first:last], square[first:last]
        for i in range(len(w)):
            m[i] = beta1 * old_m[i] + rest1 * g[i]
            s[i] = beta2 * old_s[i] + rest2 * (g[i] * g[i])
        for i in range(len(w)):
            out[i] = w[i] - lr * decay * w[i] - corrected_lr * m[i] / (root * np.sqrt(s[i]) + epsilon)
    lost[part] = _not_finite(new[begin:end])


@compiled
def _not_finite(x: Host) -> int:
    """How many are not: their difference from themselves is NaN."""
    lost = 0
    for i in range(len(x)):
        lost += x[i] - x[i] != 0
    return lost
