"""Losses: each returns the **sum** over the batch, a 0-d array, and its backward.

A sum, so that a batch may be cut into pieces; what it is divided by is known on the host beforehand
(`xpnn.losses`). `backward(dy)` takes the 0-d gradient of that sum, or a Python number (1/divisor).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpnn.errors import ShapeError
from xpnn.ops._array import Array, device, floats, is_integral, namespace, shape_of, vectors

if TYPE_CHECKING:
    from xpnn.ops import Ops

Result = tuple[Array, Callable[..., tuple[Array, None, None]]]


def softmax_cross_entropy(
    ops: Ops,
    logits: Array,
    labels: Array,
    class_weights: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    ignored_label: int | None = None,
) -> Result:
    """Cross-entropy between softmax of the logits and integer labels.

    The sum of `-Σ_k t_k·w_k·log softmax(logits)_k` over the samples, where the target `t` is 1 at the label,
    softened to `(1 - s)·t + s/K` (Szegedy et al., 2016), and `w` are the class weights.

    Args:
        logits: `(N, ..., K)`, before any softmax.
        labels: `(N, ...)`, integers in 0 … K-1; not checked here (a value would be a wait on a GPU): one out of
            range hits no class.
        class_weights: `(K,)` or None.
        label_smoothing: `s`.
        ignored_label: samples with this label add nothing.

    Returns:
        The sum and `backward(dy) → dlogits, None, None`.

    Raises:
        ShapeError: shapes or dtypes that do not fit, or an empty batch.
    """
    xp = floats("softmax_cross_entropy", x=logits, class_weights=class_weights)
    log_p, log_p_backward = ops.log_softmax(logits)
    target = _target(xp, "softmax_cross_entropy", logits, labels, class_weights, label_smoothing, ignored_label)

    def backward(dy: Array | float) -> tuple[Array, None, None]:
        (dlogits,) = log_p_backward(-target * dy)
        return dlogits, None, None

    return -_sum(ops, target * log_p), backward


def nll(
    ops: Ops,
    log_probabilities: Array,
    labels: Array,
    class_weights: Array | None = None,
    *,
    ignored_label: int | None = None,
) -> Result:
    """Negative log-likelihood of integer labels, from log-probabilities (the output of log-softmax).

    Args:
        log_probabilities: `(N, ..., K)`.
        labels, class_weights, ignored_label: as in `softmax_cross_entropy`.

    Returns:
        The sum and `backward(dy) → dlog_probabilities, None, None`.

    Raises:
        ShapeError: shapes or dtypes that do not fit, or an empty batch.
    """
    xp = floats("nll", x=log_probabilities, class_weights=class_weights)
    target = _target(xp, "nll", log_probabilities, labels, class_weights, 0.0, ignored_label)
    return -_sum(ops, target * log_probabilities), lambda dy: (-target * dy, None, None)


def mse(ops: Ops, x: Array, target: Array) -> tuple[Array, Callable[..., tuple[Array, Array]]]:
    """Squared error: the sum of `(x - target)²`; `backward(dy) → dx, dtarget`."""
    xp = _pair("mse", x, target)
    error = x - target
    return _sum(ops, xp.square(error)), lambda dy: (2 * error * dy, -2 * error * dy)


def huber(ops: Ops, x: Array, target: Array, *, delta: float = 1.0) -> tuple[Array, Callable[..., tuple[Array, Array]]]:
    """Huber's loss: the sum of `e²/2` where `|e| ≤ delta`, `delta·(|e| - delta/2)` beyond (Huber, 1964).

    `e = x - target`; `backward(dy) → dx, dtarget`.
    """
    xp = _pair("huber", x, target)
    error = x - target
    slope = xp.clip(error, -delta, delta)
    return _sum(ops, slope * (error - 0.5 * slope)), lambda dy: (slope * dy, -slope * dy)


def binary_cross_entropy(ops: Ops, logits: Array, target: Array) -> tuple[Array, Callable[..., tuple[Array, Array]]]:
    """Cross-entropy between sigmoid of the logits and targets in [0, 1], both of one shape.

    The sum of `max(z, 0) - z·t + log(1 + exp(-|z|))`, which never overflows; `backward(dy) → dlogits, dtarget`.
    """
    xp = _pair("binary_cross_entropy", logits, target)
    p, _ = ops.sigmoid(logits)
    terms = xp.clip(logits, 0.0) - logits * target + xp.log1p(xp.exp(-xp.abs(logits)))
    return _sum(ops, terms), lambda dy: ((p - target) * dy, -logits * dy)


def check_labels(op: str, scores: Array, labels: Array) -> None:
    """Check that there is an integer for each row of scores, and at least one."""
    xp = namespace(op, scores=scores, labels=labels)
    if tuple(labels.shape) != tuple(scores.shape[:-1]) or not is_integral(xp, labels.dtype):
        raise ShapeError(
            f"{op}: labels have shape {tuple(labels.shape)} and dtype {labels.dtype} for scores of shape "
            f"{tuple(scores.shape)}; expected integers of shape {tuple(scores.shape[:-1])}"
        )
    if 0 in labels.shape:
        raise ShapeError(f"{op}: the batch is empty (labels of shape {tuple(labels.shape)})")


def _target(
    xp: Any,
    op: str,
    scores: Array,
    labels: Array,
    class_weights: Array | None,
    smoothing: float,
    ignored: int | None,
) -> Array:
    """What multiplies each log-probability: `(N, ..., K)`, zero for the ignored samples."""
    check_labels(op, scores, labels)
    classes = scores.shape[-1]
    if classes - 1 > xp.iinfo(labels.dtype).max:  # in which the last classes would be others
        labels = xp.astype(labels, xp.arange(1).dtype)
    hit = labels[..., None] == xp.arange(classes, dtype=labels.dtype, device=device(scores))
    target = xp.astype(hit, scores.dtype)
    if smoothing:
        target = (1 - smoothing) * target + smoothing / classes
    if class_weights is not None:
        vectors(op, classes, class_weights=shape_of(class_weights))
        target = target * class_weights
    return target if ignored is None else xp.where((labels != ignored)[..., None], target, 0.0)


def _pair(op: str, x: Array, target: Array) -> Any:
    xp = floats(op, x=x, target=target)
    if tuple(x.shape) != tuple(target.shape):
        raise ShapeError(
            f"{op}: x has shape {tuple(x.shape)} and target {tuple(target.shape)}; expected the same "
            "(an extra axis would broadcast to all pairs in silence)"
        )
    if 0 in x.shape:
        raise ShapeError(f"{op}: the batch is empty (shape {tuple(x.shape)})")
    return xp


def _sum(ops: Ops, x: Array) -> Array:
    return ops.total(x, tuple(range(x.ndim)))
