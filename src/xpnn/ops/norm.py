"""Normalisation: subtract a mean, divide by a standard deviation, then scale and shift by weights.

All three share `_standardize`; they differ in the axes over which mean and variance are taken.
With `x̂ = (x - μ)/√(σ² + ε)` the gradient is `dx = (dx̂ - mean(dx̂) - x̂·mean(dx̂·x̂)) / √(σ² + ε)`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from xpnn.errors import ShapeError
from xpnn.ops._array import Array, channels, floats, shape_of, vectors
from xpnn.ops._whole import Whole, alone

if TYPE_CHECKING:
    from xpnn.ops import Ops


def batch_norm(
    ops: Ops,
    x: Array,
    scale: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    *,
    training: bool,
    momentum: float = 0.1,
    epsilon: float = 1e-5,
    relu: bool = False,
) -> tuple[tuple[Array, Array, Array], Callable[..., tuple[Array | None, Array, Array, None, None]]]:
    """Normalise each channel over the batch and all spatial axes (Ioffe, Szegedy, 2015).

    In training by the statistics of the batch, which also move the running ones:
    `running ← (1 - momentum)·running + momentum·batch`, with the unbiased variance (PyTorch's convention;
    `y` is made with the biased one). Otherwise by the running statistics.

    Args:
        x: `(N, *spatial, C)`.
        scale, bias, running_mean, running_var: `(C,)`.
        training: which statistics to use.
        momentum: weight of the batch in the new running statistics.
        epsilon: added to the variance.
        relu: whether ReLU follows.

    Returns:
        `(y, running_mean, running_var)` and `backward(dy) → dx, dscale, dbias, None, None`: the running
        statistics are followed, not trained.

    Raises:
        ShapeError: shapes that do not fit, or fewer than two values a channel in training.
    """
    xp = check_batch_norm(x, scale, bias, running_mean, running_var)
    axes = tuple(range(x.ndim - 1))
    if training:
        normal, mean, var, standardized, n = _standardize(ops, xp, x, axes, epsilon, ops.whole)
        running_mean, running_var = moved(running_mean, running_var, mean, var, n, momentum)
    else:
        inverse = 1 / xp.sqrt(running_var + epsilon)
        normal = (x - running_mean) * inverse

        def standardized(dnormal: Array) -> Array:
            return dnormal * inverse

    y = normal * scale + bias
    through = None
    if relu:
        y, through = ops.relu(y)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array, None, None]:
        d = dy if through is None else through(dy)[0]
        dx = standardized(d * scale) if input_gradient else None
        return dx, ops.total(d * normal, axes), ops.total(d, axes), None, None

    return (y, running_mean, running_var), backward


def layer_norm(
    ops: Ops, x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array]]]:
    """Normalise the last axis of each row by itself (Ba, Kiros, Hinton, 2016).

    Args:
        x: `(N, ..., C)`.
        scale, bias: `(C,)`.
        epsilon: added to the variance.

    Returns:
        `y`, shaped like `x`, and `backward(dy) → dx, dscale, dbias`.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
    """
    xp = floats("layer_norm", x=x, scale=scale, bias=bias)
    channels("layer_norm", x.shape, scale.shape[0], "its weights")
    vectors("layer_norm", x.shape[-1], scale=shape_of(scale), bias=shape_of(bias))
    normal, _, _, standardized, _ = _standardize(ops, xp, x, (x.ndim - 1,), epsilon)
    return normal * scale + bias, _affine(ops, normal, scale, standardized)


def group_norm(
    ops: Ops, x: Array, scale: Array, bias: Array, *, groups: int, epsilon: float = 1e-5
) -> tuple[Array, Callable[..., tuple[Array | None, Array, Array]]]:
    """Normalise each sample over groups of channels and all spatial axes (Wu, He, 2018).

    Args:
        x: `(N, *spatial, C)`.
        scale, bias: `(C,)`.
        groups: number of groups the channels are cut into.
        epsilon: added to the variance.

    Returns:
        `y`, shaped like `x`, and `backward(dy) → dx, dscale, dbias`.

    Raises:
        ShapeError: shapes or dtypes that do not fit, or groups that do not divide the channels.
    """
    xp = floats("group_norm", x=x, scale=scale, bias=bias)
    n, c = x.shape[0], x.shape[-1]
    channels("group_norm", x.shape, scale.shape[0], "its weights")
    vectors("group_norm", c, scale=shape_of(scale), bias=shape_of(bias))
    if groups < 1 or c % groups:
        raise ShapeError(f"group_norm: groups={groups} does not divide the {c} channels; choose a divisor")
    grouped = (n, prod(x.shape[1:-1]), groups, c // groups)
    normal, _, _, inner, _ = _standardize(ops, xp, xp.reshape(x, grouped), (1, 3), epsilon)
    normal = xp.reshape(normal, x.shape)

    def standardized(dnormal: Array) -> Array:
        return xp.reshape(inner(xp.reshape(dnormal, grouped)), x.shape)

    return normal * scale + bias, _affine(ops, normal, scale, standardized)


def check_batch_norm(x: Array, scale: Array, bias: Array, running_mean: Array, running_var: Array) -> Any:
    """The namespace of these arrays, once they are checked."""
    xp = floats("batch_norm", x=x, scale=scale, bias=bias, running_mean=running_mean, running_var=running_var)
    channels("batch_norm", x.shape, scale.shape[0], "its weights")
    vectors("batch_norm", x.shape[-1], scale=shape_of(scale), bias=shape_of(bias))
    vectors("batch_norm", x.shape[-1], running_mean=shape_of(running_mean), running_var=shape_of(running_var))
    return xp


def moved(running_mean: Array, running_var: Array, mean: Array, var: Array, n: int, momentum: float) -> Any:
    """The running statistics after a batch with `n` values a channel, whose variance is given with the divisor n."""
    check_count(n)
    unbiased = (momentum * n / (n - 1)) * var
    return (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + unbiased


def check_count(n: int) -> None:
    """Check that `n` values a channel have a variance."""
    if n < 2:
        raise ShapeError(
            f"batch_norm: the batch has {n} value(s) a channel; its variance needs at least 2: use a larger batch, "
            "or training=False"
        )


def _standardize(
    ops: Ops, xp: Any, x: Array, axes: tuple[int, ...], epsilon: float, whole: Whole = alone
) -> tuple[Array, Array, Array, Callable[[Array], Array], int]:
    """`x` with mean 0 and variance 1 over `axes`; also the mean, the biased variance, the backward, and how many.

    The variance is taken around the mean in a second pass: `E[x²] - E[x]²` cancels. `whole` joins a sum over
    these samples with those over the rest of the batch.
    """
    shape = tuple(1 if a in axes else m for a, m in enumerate(x.shape))
    here = prod(x.shape[a] for a in axes)
    sums, n = whole(ops.total(x, axes), here)
    mean = sums / max(n, 1)
    centred = x - xp.reshape(mean, shape)
    var = whole(ops.total(centred * centred, axes), here)[0] / max(n, 1)
    inverse = xp.reshape(1 / xp.sqrt(var + epsilon), shape)
    normal = centred * inverse

    def backward(dnormal: Array) -> Array:
        both = xp.stack([ops.total(dnormal, axes), ops.total(dnormal * normal, axes)])
        means = whole(both, here)[0] / n
        return (dnormal - xp.reshape(means[0, ...], shape) - normal * xp.reshape(means[1, ...], shape)) * inverse

    return normal, mean, var, backward, n


def _affine(
    ops: Ops, normal: Array, scale: Array, standardized: Callable[[Array], Array]
) -> Callable[..., tuple[Array | None, Array, Array]]:
    """The backward of `normal · scale + bias` behind that of the normalisation."""
    axes = tuple(range(normal.ndim - 1))

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array, Array]:
        dx = standardized(dy * scale) if input_gradient else None
        return dx, ops.total(dy * normal, axes), ops.total(dy, axes)

    return backward
