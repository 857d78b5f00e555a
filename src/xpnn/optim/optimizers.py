"""Optimizers: how a gradient moves the weights.

An optimizer is a description; its moments live outside it, like the weights. It sees all weights as one flat
vector, so an update is a handful of array operations however many layers there are. What changes from step
to step is worked out on the host in float64 and handed in as scalars: a number inside a compiled step would
freeze.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from math import sqrt
from typing import ClassVar

from xpnn.ops import Ops
from xpnn.ops._array import Array, namespace
from xpnn.optim import _check
from xpnn.plain import keep_plain

Updated = tuple[Array, dict[str, Array]]


@dataclass(frozen=True)
class Optimizer:
    """Base of all optimizers.

    Args:
        lr: learning rate, the largest one where a schedule scales it.
        clip_norm: scale a gradient down whose global norm is larger (Pascanu, Mikolov, Bengio, 2013).
    """

    lr: float
    _: KW_ONLY
    clip_norm: float | None = None

    elementwise: ClassVar[bool] = False
    """Whether `update` moves each weight by itself, so that the vectors may be cut into chunks."""

    def __post_init__(self) -> None:
        keep_plain(self)
        _check.number(self, "lr", *([] if self.clip_norm is None else ["clip_norm"]))

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the vectors that it keeps beside the weights, all zero at first."""
        return ()

    def scalars(self, lr: float, step: int) -> Sequence[float]:
        """What `update` needs at this step (counted from 1), with the scheduled learning rate first."""
        return (lr,)

    def update(
        self, ops: Ops, weights: Array, gradient: Array, moments: Mapping[str, Array], scalars: Array
    ) -> Updated:
        """New weights and moments from flat vectors; `scalars` is a vector of what `scalars()` gave."""
        raise NotImplementedError

    def clip(self, ops: Ops, gradient: Array) -> Array:
        """The gradient, its global norm limited to `clip_norm`."""
        if self.clip_norm is None:
            return gradient
        xp = namespace("clip", gradient=gradient)
        norm = xp.sqrt(ops.total(gradient * gradient, 0))
        return gradient * xp.clip(self.clip_norm / (norm + 1e-6), None, 1.0)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent: `v ← momentum·v + g`, `w ← w - lr·v`.

    Args:
        lr, clip_norm: see `Optimizer`.
        momentum: how much of the last step is kept (Polyak, 1964).
        nesterov: step by `g + momentum·v` instead (Nesterov, 1983; Sutskever et al., 2013).
        weight_decay: decoupled: `w ← w - lr·weight_decay·w` beside the step (Loshchilov, Hutter, 2019). PyTorch's
            SGD adds `weight_decay·w` to the gradient instead, so that it runs through the momentum.
    """

    _: KW_ONLY
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.number(self, "weight_decay")
        _check.number(self, "momentum", below=1)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov=True without momentum changes nothing; give one, e.g. momentum=0.9")

    @property
    def moments(self) -> tuple[str, ...]:
        """The velocity, where there is momentum."""
        return ("velocity",) if self.momentum else ()

    def update(
        self, ops: Ops, weights: Array, gradient: Array, moments: Mapping[str, Array], scalars: Array
    ) -> Updated:
        """One step."""
        lr, step, new = scalars[0], gradient, {}
        if self.momentum:
            new["velocity"] = velocity = self.momentum * moments["velocity"] + gradient
            step = gradient + self.momentum * velocity if self.nesterov else velocity
        return _decayed(weights, lr, self.weight_decay) - lr * step, new


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Divide by a running mean of the gradient's size (Tieleman, Hinton, 2012): `w ← w - lr·g/(√s + epsilon)`.

    Args:
        lr, clip_norm: see `Optimizer`.
        smoothing: weight of the past in the mean `s` of `g²`.
        epsilon: added to the root.
    """

    lr: float = 1e-2
    _: KW_ONLY
    smoothing: float = 0.99
    epsilon: float = 1e-8

    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.number(self, "epsilon")
        _check.number(self, "smoothing", below=1)

    @property
    def moments(self) -> tuple[str, ...]:
        """The mean of the squares."""
        return ("square",)

    def update(
        self, ops: Ops, weights: Array, gradient: Array, moments: Mapping[str, Array], scalars: Array
    ) -> Updated:
        """One step."""
        xp = namespace("RMSprop", weights=weights)
        square = self.smoothing * moments["square"] + (1 - self.smoothing) * (gradient * gradient)
        return weights - scalars[0] * gradient / (xp.sqrt(square) + self.epsilon), {"square": square}


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adaptive moments (Kingma, Ba, 2015): `w ← w - lr·m̂/(√v̂ + epsilon)`, without weight decay (see `AdamW`).

    PyTorch's `Adam(weight_decay=…)` adds the decay to the gradient, where the division by `√v̂` undoes most of it.

    Args:
        lr, clip_norm: see `Optimizer`.
        beta1, beta2: weight of the past in the means of `g` and of `g²`.
        epsilon: added to the root.
    """

    lr: float = 1e-3
    _: KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    weight_decay: ClassVar[float] = 0.0
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.number(self, "epsilon", "weight_decay")
        _check.number(self, "beta1", "beta2", below=1)

    @property
    def moments(self) -> tuple[str, ...]:
        """The means of the gradient and of its square."""
        return ("mean", "square")

    def scalars(self, lr: float, step: int) -> Sequence[float]:
        """Learning rate; learning rate and root, each with the correction for moments that began at zero."""
        return lr, lr / (1 - self.beta1**step), 1 / sqrt(1 - self.beta2**step)

    def update(
        self, ops: Ops, weights: Array, gradient: Array, moments: Mapping[str, Array], scalars: Array
    ) -> Updated:
        """One step."""
        xp = namespace("Adam", weights=weights)
        lr, corrected_lr, root = scalars[0], scalars[1], scalars[2]
        mean = self.beta1 * moments["mean"] + (1 - self.beta1) * gradient
        square = self.beta2 * moments["square"] + (1 - self.beta2) * (gradient * gradient)
        step = corrected_lr * mean / (root * xp.sqrt(square) + self.epsilon)
        return _decayed(weights, lr, self.weight_decay) - step, {"mean": mean, "square": square}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: `w ← w - lr·weight_decay·w` beside the step (Loshchilov, Hutter, 2019).

    Args:
        lr, clip_norm, beta1, beta2, epsilon: see `Adam`.
        weight_decay: share of a weight that a step of size 1 takes away.
    """

    _: KW_ONLY
    weight_decay: float = 1e-2  # type: ignore[misc]


def _decayed(weights: Array, lr: Array, weight_decay: float) -> Array:
    return weights - (lr * weight_decay) * weights if weight_decay else weights
