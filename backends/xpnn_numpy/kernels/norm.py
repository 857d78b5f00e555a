"""Batch normalisation in as few passes over the images as its two sums allow."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import norm as standard
from xpnn_numpy.kernels._rows import Host, along, rectify, rows

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
    centred, y = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    np.subtract(rows(np.ascontiguousarray(x)), along(x, mean), out=rows(centred))
    if training:
        np.multiply(centred, centred, out=y)
        var = ops.whole(ops.total(y, axes), here)[0] / max(n, 1)
        running_mean, running_var = standard.moved(running_mean, running_var, mean, var, n, momentum)
    inverse = 1 / np.sqrt(var + epsilon)
    slope = inverse * scale
    np.multiply(rows(centred), along(x, slope), out=rows(y))
    np.add(rows(y), along(x, bias), out=rows(y))
    if relu:
        rectify(y, out=y)
    kept = y if relu else None

    def backward(dy: Host, *, input_gradient: bool = True) -> tuple[Host | None, Host, Host, None, None]:
        dy = np.ascontiguousarray(dy if kept is None else np.multiply(dy, kept > 0))
        product = np.multiply(dy, centred)
        sums = np.empty((2, dy.shape[-1]), dy.dtype)  # at once: `np.stack` takes longer
        sums[0], sums[1] = ops.total(dy, axes), ops.total(product, axes)
        dscale, dbias = sums[1] * inverse, sums[0]
        if not input_gradient:
            return None, dscale, dbias, None, None
        dx = np.empty_like(product)
        np.multiply(rows(dy), along(dy, slope), out=rows(dx))
        if training:
            means = ops.whole(sums, here)[0] * (slope / n)
            np.multiply(rows(centred), along(dy, means[1] * inverse * inverse), out=rows(product))
            np.subtract(dx, product, out=dx)
            np.subtract(rows(dx), along(dy, means[0]), out=rows(dx))
        return dx, dscale, dbias, None, None

    return (y, running_mean, running_var), backward
