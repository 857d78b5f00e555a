"""The peer in JAX: plain functions of `jax.lax`, differentiated by JAX, the whole step compiled."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from xpnn import layers as L
from xpnn.bench.measure import Side
from xpnn.bench.work import LR, MOMENTUM, Work, initial_arrays, unknown, window_of
from xpnn.layers.base import Layer
from xpnn.layers.pool import MaxPool

Arrays = dict[str, Any]


def side(work: Work, gpu: bool = False) -> Side:
    """Steps as a JAX user would write them."""
    device = jax.devices()[0] if gpu else jax.devices("cpu")[0]
    initial = initial_arrays(work.model, work.in_shape)
    arrays = jax.device_put({path: _own_layout(path, a) for path, a in initial.items()}, device)
    stats = {path: arrays.pop(path) for path in initial if "running_" in path}
    velocity = jax.tree.map(jnp.zeros_like, arrays)
    x, y = jax.device_put((work.images, work.labels.astype(np.int32)), device)
    state = (arrays, velocity, stats, jax.random.key(0))

    def loss_of(weights: Arrays, stats: Arrays, x: Any, y: Any, key: Any) -> tuple[Any, Arrays]:
        scores, stats = forward(work.model, "", weights, stats, x, key)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=1)
        return -jnp.mean(chosen), stats

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        weights, velocity, stats, key = state
        key, own = jax.random.split(key)
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(weights, stats, x, y, own)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
        weights = jax.tree.map(lambda w, v: w - LR * v, weights, velocity)
        return (weights, velocity, stats, key), loss

    scores_of = jax.jit(lambda weights, stats, x: forward(work.model, "", weights, stats, x, None)[0])

    def train(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, loss = step(state, x, y)
        return float(loss)

    def predict(count: int) -> Any:
        for _ in range(count):
            scores = scores_of(state[0], state[2], x)
        return np.asarray(scores)

    return Side("jax", "jax", work.batch, train if work.training else predict)


def forward(layer: Layer, path: str, weights: Arrays, stats: Arrays, x: Any, key: Any) -> tuple[Any, Arrays]:
    """The output of a layer and its new statistics; `key` is for dropout, None where this is no training."""
    match layer:
        case L.Sequential():
            new: Arrays = {}
            for i, (name, part) in enumerate(layer.parts()):
                own = None if key is None else jax.random.fold_in(key, i)
                x, changed = forward(part, f"{path}{name}.", weights, stats, x, own)
                new |= changed
            return x, new
        case L.Residual():
            y, new = forward(layer.body, f"{path}body.", weights, stats, x, key)
            if layer.shortcut is not None:
                x, changed = forward(layer.shortcut, f"{path}shortcut.", weights, stats, x, key)
                new |= changed
            return y + x, new
        case L.BatchNorm():
            return _batch_norm(layer, path, weights, stats, x, key is not None)
        case L.Conv2D():
            w = window_of(layer, x.shape[1:])
            y = lax.conv_general_dilated(
                x, weights[f"{path}weight"], w.stride, w.pads, rhs_dilation=w.dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=layer.groups,
            )  # fmt: skip
            return (y + weights[f"{path}bias"] if layer.bias else y), {}
        case L.AvgPool2D():  # padding counts in the mean
            return _pool(layer, x, 0.0, lax.add) / prod(window_of(layer, x.shape[1:]).size), {}
        case L.MaxPool2D():
            return _pool(layer, x, -jnp.inf, lax.max), {}
        case L.GlobalAvgPool():
            return jnp.mean(x, axis=(1, 2)), {}
        case L.Dense():
            y = x @ weights[f"{path}weight"]
            return (y + weights[f"{path}bias"] if layer.bias else y), {}
        case L.Dropout():
            if key is None:
                return x, {}
            return jnp.where(jax.random.bernoulli(key, 1 - layer.rate, x.shape), x / (1 - layer.rate), 0), {}
        case L.Flatten():
            return x.reshape(len(x), -1), {}
        case L.ReLU():
            return jax.nn.relu(x), {}
        case L.Tanh():
            return jnp.tanh(x), {}
    raise unknown(layer, "jax")


def _own_layout(path: str, a: Any) -> Any:
    """Kernels as (H, W, in, out), dense weights as (in, out)."""
    return np.moveaxis(a, 0, -1) if path.endswith("weight") else a


def _pool(layer: MaxPool, x: Any, start: float, function: Any) -> Any:
    w = window_of(layer, x.shape[1:])
    pads = ((0, 0), *w.pads, (0, 0))
    return lax.reduce_window(x, start, function, (1, *w.size, 1), (1, *w.stride, 1), pads)


def _batch_norm(
    layer: L.BatchNorm, path: str, weights: Arrays, stats: Arrays, x: Any, training: bool
) -> tuple[Any, Arrays]:
    mean, var, new = stats[f"{path}running_mean"], stats[f"{path}running_var"], {}
    if training:
        axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
        kept, old_mean, old_var = 1 - layer.momentum, mean, var
        mean, var = jnp.mean(x, axes), jnp.var(x, axes)
        new[f"{path}running_mean"] = kept * old_mean + layer.momentum * mean
        new[f"{path}running_var"] = kept * old_var + layer.momentum * var * n / (n - 1)
    scale = weights[f"{path}weight"] * lax.rsqrt(var + layer.epsilon)
    return (x - mean) * scale + weights[f"{path}bias"], new
