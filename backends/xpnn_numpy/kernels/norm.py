"""Batch normalisation in as few passes over the images as its two sums allow."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import norm as standard
from xpnn.ops import unkept
from xpnn_numpy.kernels._rows import Host, by_channel, empty, rectify, whole

if TYPE_CHECKING:
    from xpnn.ops import Ops


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
    standard.check_batch_norm(x, scale, bias, running_mean, running_var)
    axes, here = tuple(range(x.ndim - 1)), prod(x.shape[:-1])
    mean, var, n = running_mean, running_var, here
    if training:
        sums, n = ops.whole(ops.total(x, axes), here)
        mean = sums / max(n, 1)
    centred, y = empty(x.shape, x), empty(x.shape, x)
    by_channel(np.subtract, whole(x), mean, out=centred)
    if training:
        np.multiply(centred, centred, out=y)
        var = ops.whole(ops.total(y, axes), here)[0] / max(n, 1)
        running_mean, running_var = standard.moved(running_mean, running_var, mean, var, n, momentum)
    inverse = 1 / np.sqrt(var + epsilon)
    slope = inverse * scale
    by_channel(np.multiply, centred, slope, out=y)
    by_channel(np.add, y, bias, out=y)
    if relu:
        rectify(y, out=y)
    kept = y if relu else None

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host, None, None]:
        dy = whole(dy if kept is None else np.multiply(dy, kept > 0))
        product = np.multiply(dy, centred)
        sums = empty((2, dy.shape[-1]), dy)  # at once: `np.stack` takes longer
        sums[0], sums[1] = ops.total(dy, axes), ops.total(product, axes)
        dscale, dbias = sums[1] * inverse, sums[0]
        if not input_gradient:
            return None, dscale, dbias, None, None
        dx = np.empty_like(product)
        by_channel(np.multiply, dy, slope, out=dx)
        if training:
            means = ops.whole(sums, here)[0] * (slope / n)
            by_channel(np.multiply, centred, means[1] * inverse * inverse, out=product)
            np.subtract(dx, product, out=dx)
            by_channel(np.subtract, dx, means[0], out=dx)
        return dx, dscale, dbias, None, None

    return (y, running_mean, running_var), backward if ops.backward else unkept
