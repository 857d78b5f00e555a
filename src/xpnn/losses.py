"""Losses as a trainer uses them: the op with its options, what it is divided by, and the checks of its targets.

The op gives a sum over the samples; the divisor is worked out here, on the host, from the targets of the whole
batch, so that a batch may be cut into pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xpnn.errors import NonFiniteError, ShapeError
from xpnn.layers import Dense, Layer, LogSoftmax, Sequential, Sigmoid, Softmax
from xpnn.ops import Ops
from xpnn.ops._array import Array, namespace
from xpnn.plain import keep_plain

Summed = tuple[Array, Callable[[Any], tuple[Array | None, ...]]]


def probabilities(scores: Any) -> np.ndarray[Any, Any]:
    """What a classifier's scores `(..., K)`, or their logarithms after `LogSoftmax`, say of each class, in float64."""
    scores = np.asarray(scores, np.float64)
    raised: np.ndarray[Any, Any] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    raised /= raised.sum(axis=-1, keepdims=True)
    return raised


@dataclass(frozen=True)
class Loss:
    """Base of all losses."""

    name: ClassVar[str]
    classifies: ClassVar[bool] = False
    """Whether the targets are integer labels; else they are numbers shaped like the model's output."""
    answers: ClassVar[bool] = False
    """Whether an output can be right or wrong, so that there is an accuracy."""

    def __post_init__(self) -> None:
        keep_plain(self)

    def __call__(self, ops: Ops, scores: Array, targets: Array, constants: dict[str, Array]) -> Summed:
        """The sum over the batch and its backward."""
        raise NotImplementedError

    def divisor(self, targets: np.ndarray[Any, Any]) -> float:
        """What the sum is divided by to make the mean: here the number of values."""
        return float(targets.size)

    def constants(self) -> dict[str, Any]:
        """Arrays that the op needs beside scores and targets."""
        return {}

    def counted(self, targets: np.ndarray[Any, Any]) -> int:
        """How many answers can be right or wrong."""
        return int(targets.size)

    def correct(self, scores: Array, targets: Array) -> Array | None:
        """Which answers are right, as bool; None where the question makes no sense."""
        return None

    def check_model(self, model: Layer) -> None:
        """Raise where the model's last layer does not go with this loss."""

    def check_targets(self, targets: np.ndarray[Any, Any], out_shape: tuple[int, ...]) -> None:
        """Raise where targets do not go with a model that makes `out_shape` of each sample."""
        if targets.ndim != len(out_shape) + 1 or targets.shape[1:] != out_shape:
            hint = "; add an axis: targets[:, None]" if (*targets.shape[1:], 1) == out_shape else ""
            raise ShapeError(
                f"{self.name}: targets have shape {targets.shape}, the model makes (N, {_csv(out_shape)}); "
                f"expected the same{hint}"
            )
        if not np.issubdtype(targets.dtype, np.floating):
            raise ShapeError(
                f"{self.name}: targets have dtype {targets.dtype}; expected floating point: targets.astype('float32')"
            )
        if not np.isfinite(targets).all():
            raise NonFiniteError(
                f"{self.name}: {int((~np.isfinite(targets)).sum()):,} of {targets.size:,} targets are NaN or infinite; "
                "clean the data first, e.g. leave those samples out"
            )


@dataclass(frozen=True)
class NLL(Loss):
    """Negative log-likelihood of integer labels, for a model that ends in `LogSoftmax`.

    Args:
        class_weights: one number a class; the mean is weighted by them.
        ignored_label: samples with this label do not count.
    """

    class_weights: tuple[float, ...] | None = None
    ignored_label: int | None = None

    name: ClassVar[str] = "nll"
    classifies: ClassVar[bool] = True
    answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(float(w) for w in self.class_weights))
            if not all(0 <= w < float("inf") for w in self.class_weights):
                raise ValueError(f"{self.name}: class_weights={self.class_weights}; expected numbers ≥ 0")

    def __call__(self, ops: Ops, scores: Array, targets: Array, constants: dict[str, Array]) -> Summed:
        """See `xpnn.ops.nll`."""
        return ops.nll(scores, targets, constants.get("class_weights"), ignored_label=self.ignored_label)

    def constants(self) -> dict[str, Any]:
        """The class weights, where there are any."""
        return {} if self.class_weights is None else {"class_weights": np.asarray(self.class_weights)}

    def divisor(self, targets: np.ndarray[Any, Any]) -> float:
        """The weights of the labels added up, the ignored ones left out."""
        labels = self._kept(targets)
        return float(labels.size if self.class_weights is None else np.take(self.class_weights, labels).sum())

    def counted(self, targets: np.ndarray[Any, Any]) -> int:
        """The samples that are not ignored."""
        return int(self._kept(targets).size)

    def correct(self, scores: Array, targets: Array) -> Array:
        """Where the largest score is that of the label."""
        xp = namespace(self.name, scores=scores)
        right: Array = xp.argmax(scores, axis=-1) == targets
        return right if self.ignored_label is None else right & (targets != self.ignored_label)

    def check_model(self, model: Layer) -> None:
        """Log-probabilities are what it takes."""
        last = _last(model)
        if isinstance(last, Softmax | Dense):
            raise ValueError(
                f"the loss 'nll' takes log-probabilities, and the model ends in {last!r}: end it in LogSoftmax()"
                + (", or use loss='cross_entropy'" if isinstance(last, Dense) else " instead")
            )

    def check_targets(self, targets: np.ndarray[Any, Any], out_shape: tuple[int, ...]) -> None:
        """Integers in 0 … K-1, one for each row of scores."""
        classes = out_shape[-1]
        if targets.ndim != len(out_shape) or targets.shape[1:] != out_shape[:-1]:
            hint = "add Flatten() before the last Dense, so that a sample has one row of scores"
            if targets.ndim == 2 and targets.shape[1] == classes:
                hint = "one-hot rows become labels by labels.argmax(axis=1)"
            elif targets.ndim == 2 and targets.shape[1] == 1:
                hint = "drop the axis of size 1: labels[:, 0]"
            raise ShapeError(
                f"{self.name}: labels have shape {targets.shape}, the model makes scores (N, {_csv(out_shape)}); "
                f"expected labels (N{''.join(f', {n}' for n in out_shape[:-1])}): {hint}"
            )
        if not np.issubdtype(targets.dtype, np.integer):
            raise ShapeError(
                f"{self.name}: labels have dtype {targets.dtype}; expected integers 0 … {classes - 1}: "
                "labels.astype('int64'), or another loss where these are no classes"
            )
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ShapeError(f"{self.name}: {len(self.class_weights)} class_weights for {classes} classes")
        labels = self._kept(targets)
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.size:
            raise ShapeError(
                f"{self.name}: {wrong.size:,} label(s) out of range, such as {wrong[0]}; the model has {classes} "
                f"outputs, so labels are 0 … {classes - 1}: fix the labels, widen the last layer, or set ignored_label"
            )

    def _kept(self, targets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return targets if self.ignored_label is None else targets[targets != self.ignored_label]


@dataclass(frozen=True)
class CrossEntropy(NLL):
    """Softmax cross-entropy of integer labels, for a model that ends in its logits.

    Args:
        class_weights: one number a class; the mean is weighted by them.
        ignored_label: samples with this label do not count.
        label_smoothing: share of the target spread over all classes.
    """

    label_smoothing: float = 0.0

    name: ClassVar[str] = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"cross_entropy: label_smoothing={self.label_smoothing!r}; expected 0 ≤ s < 1")

    def __call__(self, ops: Ops, scores: Array, targets: Array, constants: dict[str, Array]) -> Summed:
        """See `xpnn.ops.softmax_cross_entropy`."""
        return ops.softmax_cross_entropy(
            scores, targets, constants.get("class_weights"),
            label_smoothing=self.label_smoothing, ignored_label=self.ignored_label,
        )  # fmt: skip

    def check_model(self, model: Layer) -> None:
        """Logits are what it takes: it contains the softmax."""
        last = _last(model)
        if isinstance(last, Softmax | LogSoftmax):
            other = ", or use loss='nll'" if isinstance(last, LogSoftmax) else ""
            raise ValueError(
                f"the loss 'cross_entropy' contains the softmax, and the model ends in {last!r}: "
                f"leave that layer out{other} (xpnn.ops.softmax turns the scores of predict into probabilities)"
            )


@dataclass(frozen=True)
class MSE(Loss):
    """Mean squared error."""

    name: ClassVar[str] = "mse"

    def __call__(self, ops: Ops, scores: Array, targets: Array, constants: dict[str, Array]) -> Summed:
        """See `xpnn.ops.mse`."""
        return ops.mse(scores, targets)


@dataclass(frozen=True)
class Huber(Loss):
    """Mean of Huber's loss: quadratic up to `delta`, linear beyond."""

    delta: float = 1.0

    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.delta < float("inf"):
            raise ValueError(f"huber: delta={self.delta!r}; expected a number above 0")

    def __call__(self, ops: Ops, scores: Array, targets: Array, constants: dict[str, Array]) -> Summed:
        """See `xpnn.ops.huber`."""
        return ops.huber(scores, targets, delta=self.delta)


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Mean cross-entropy between sigmoid of the logits and targets in [0, 1]."""

    name: ClassVar[str] = "binary_cross_entropy"
    answers: ClassVar[bool] = True

    def __call__(self, ops: Ops, scores: Array, targets: Array, constants: dict[str, Array]) -> Summed:
        """See `xpnn.ops.binary_cross_entropy`."""
        return ops.binary_cross_entropy(scores, targets)

    def correct(self, scores: Array, targets: Array) -> Array:
        """Where the probability lies on the target's side of one half."""
        return (scores > 0) == (targets > 0.5)

    def check_model(self, model: Layer) -> None:
        """Logits are what it takes: it contains the sigmoid."""
        if isinstance(_last(model), Sigmoid):
            raise ValueError("the loss 'binary_cross_entropy' contains the sigmoid: leave the last Sigmoid() out")

    def check_targets(self, targets: np.ndarray[Any, Any], out_shape: tuple[int, ...]) -> None:
        """Numbers in [0, 1], shaped like the output."""
        super().check_targets(targets, out_shape)
        if targets.size and not (targets.min() >= 0 and targets.max() <= 1):
            raise ShapeError(
                f"{self.name}: targets lie in [{targets.min()}, {targets.max()}]; expected probabilities in [0, 1]"
            )


LOSSES: dict[str, type[Loss]] = {cls.name: cls for cls in (CrossEntropy, NLL, MSE, Huber, BinaryCrossEntropy)}


def get(loss: str | Loss) -> Loss:
    """A loss by name, with its defaults; a finished one passes through."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise TypeError(
            f"loss={loss!r}; expected one of {', '.join(LOSSES)} or a loss of xpnn.losses, e.g. CrossEntropy(); one of "
            "your own is an instance of a subclass of xpnn.losses.Loss"
        )
    if loss not in LOSSES:
        raise ValueError(f"no loss {loss!r}; there are {', '.join(LOSSES)}")
    return LOSSES[loss]()


def _last(model: Layer) -> Layer:
    while isinstance(model, Sequential) and model.layers:
        model = model.layers[-1]
    return model


def _csv(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))
