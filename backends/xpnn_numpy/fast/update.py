"""Optimizers in one pass over the weights: NumPy takes one for each operation.

An update is given the gradients of all lanes, `(lanes, weights)`, and adds them up in their order. It fills `new` and
the new moments, and returns whether all new weights are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xpnn.optim import SGD, Adam, AdamW, Optimizer
from xpnn_numpy.fast._compiled import Host, compiled
from xpnn_numpy.fast._team import cut, share, stretch

Moments = Mapping[str, Host]
Update = Callable[[Any, Host, Host, Moments, Host, Host, Moments], bool]


def sgd(
    optimizer: SGD, weights: Host, gradients: Host, moments: Moments, scalars: Host, new: Host, new_moments: Moments
) -> bool:
    """See `xpnn.optim.SGD`."""
    none = np.empty(0, weights.dtype)
    old, velocity = moments.get("velocity", none), new_moments.get("velocity", none)
    keep = scalars.dtype.type(optimizer.momentum), scalars.dtype.type(optimizer.weight_decay)
    return bool(_sgd(weights, gradients, old, scalars[0], *keep, optimizer.nesterov, new, velocity))


def adam(
    optimizer: Adam, weights: Host, gradients: Host, moments: Moments, scalars: Host, new: Host, new_moments: Moments
) -> bool:
    """See `xpnn.optim.Adam`."""
    fixed = np.asarray(
        [optimizer.beta1, 1 - optimizer.beta1, optimizer.beta2, 1 - optimizer.beta2, optimizer.epsilon,
         optimizer.weight_decay], weights.dtype,
    )  # fmt: skip
    old, told = (moments["mean"], moments["square"]), (new_moments["mean"], new_moments["square"])
    return bool(_adam(weights, gradients, old, scalars, fixed, new, told))


UPDATES: Mapping[type[Optimizer], Update] = {SGD: sgd, Adam: adam, AdamW: adam}


@compiled
def _sgd(
    weights: Host, gradients: Host, old: Host, lr: float, momentum: float, decay: float, nesterov: bool, new: Host,
    velocity: Host,
) -> bool:  # fmt: skip
    finite = np.ones(cut(len(weights), 8), np.bool_)
    share(_sgd_part, (weights, gradients, old, lr, momentum, decay, nesterov, new, velocity, finite), len(finite))
    return bool(finite.all())


@compiled
def _sgd_part(
    part: int, weights: Host, gradients: Host, old: Host, lr: float, momentum: float, decay: float, nesterov: bool,
    new: Host, velocity: Host, finite: Host,
) -> None:  # fmt: skip
    begin, end = stretch(len(weights), part, len(finite))
    moving, lost, decayed = len(old) > 0, 0, lr * decay
    for i in range(begin, end):
        g = gradients[0, i]
        for lane in range(1, len(gradients)):
            g += gradients[lane, i]
        step = g
        if moving:
            v = momentum * old[i] + g
            velocity[i] = v
            step = g + momentum * v if nesterov else v
        w = weights[i] - decayed * weights[i] - lr * step
        new[i] = w
        lost += not np.isfinite(w)
    finite[part] = lost == 0


@compiled
def _adam(
    weights: Host, gradients: Host, old: tuple[Host, Host], scalars: Host, fixed: Host, new: Host,
    moments: tuple[Host, Host],
) -> bool:  # fmt: skip
    finite = np.ones(cut(len(weights), 16), np.bool_)
    share(_adam_part, (weights, gradients, old, scalars, fixed, new, moments, finite), len(finite))
    return bool(finite.all())


@compiled
def _adam_part(
    part: int, weights: Host, gradients: Host, old: tuple[Host, Host], scalars: Host, fixed: Host, new: Host,
    moments: tuple[Host, Host], finite: Host,
) -> None:  # fmt: skip
    begin, end = stretch(len(weights), part, len(finite))
    lr, corrected_lr, root = scalars[0], scalars[1], scalars[2]
    beta1, rest1, beta2, rest2, epsilon, decay = fixed[0], fixed[1], fixed[2], fixed[3], fixed[4], fixed[5]
    (old_mean, old_square), (mean, square), lost = old, moments, 0
    for i in range(begin, end):
        g = gradients[0, i]
        for lane in range(1, len(gradients)):
            g += gradients[lane, i]
        m, s = beta1 * old_mean[i] + rest1 * g, beta2 * old_square[i] + rest2 * (g * g)
        mean[i], square[i] = m, s
        w = weights[i] - lr * decay * weights[i] - corrected_lr * m / (root * np.sqrt(s) + epsilon)
        new[i] = w
        lost += not np.isfinite(w)
    finite[part] = lost == 0
