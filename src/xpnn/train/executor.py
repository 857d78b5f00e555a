"""The executor: how a training step is placed on the machine. The layers know nothing of it.

This is the plain one, which every backend has: whole batches, eager, one op after the other. A backend brings
its own where it can do better (`Backend.executor`): a compiled step, pieces on threads, a captured graph.

A step is a pure function: state, batch, masks and scalars go in, state and metrics come out. All weights lie
in one flat vector, and so do the gradient and each moment of the optimizer, so that an update is a handful of
calls; layers see them as a tree of slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn.backend import standard_only
from xpnn.layers.base import Layer, Run
from xpnn.losses import Loss
from xpnn.ops import Ops
from xpnn.ops._array import Array
from xpnn.optim import Optimizer
from xpnn.random import Stream
from xpnn.train.lowering import folded, for_prediction, lower

if TYPE_CHECKING:
    from xpnn.backend import Backend

State = dict[str, Any]
"""On the device: `weights` (flat), `moments` {name: flat}, `stats` {path: array}, `finite` (0-d bool)."""
HostState = dict[str, Any]
"""On the host: `weights` and `stats` {path: array}, `moments` {name: {path: array}}."""


class Executor:
    """Carries out steps of one model with one loss and one optimizer on one backend."""

    def __init__(
        self,
        backend: Backend,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        in_shape: tuple[int, ...],
        dtype: str,
    ) -> None:
        self.backend, self.model, self.loss, self.optimizer, self.dtype = backend, model, loss, optimizer, dtype
        weights, stats = model.init(in_shape, Stream(0, "sizes"))
        self.draws = tuple(model.draws(in_shape))
        paths = weights, stats, [d.path for d in self.draws]
        self.program = model if standard_only() else lower(model, paths)
        self.predictor, self.folds = (model, ()) if standard_only() else for_prediction(model, paths)
        self.shapes = {path: tuple(array.shape) for path, array in weights.items()}
        self.stats = tuple(stats)
        self.constants = {name: backend.asarray(a, dtype) for name, a in loss.constants().items()}

    def load(self, host: HostState) -> State:
        """Copy a state from the host to the device."""
        asarray, zeros = self.backend.asarray, {path: np.zeros(shape) for path, shape in self.shapes.items()}
        return {
            "weights": self._flat(host["weights"]),
            "moments": {name: self._flat(host["moments"].get(name, zeros)) for name in self.optimizer.moments},
            "stats": {path: asarray(a, self.dtype, copy=True) for path, a in host["stats"].items()},
            "finite": asarray(np.asarray(True)),
        }

    def save(self, state: State) -> HostState:
        """Copy a state from the device to the host."""
        return {
            "weights": self._tree(np.array(self.backend.to_numpy(state["weights"])), np),
            "moments": {
                name: self._tree(np.array(self.backend.to_numpy(m)), np) for name, m in state["moments"].items()
            },
            "stats": {path: np.array(self.backend.to_numpy(a)) for path, a in state["stats"].items()},
        }

    def scalars(self, divisor: float, lr: float, step: int) -> Array:
        """All that changes from step to step as one vector: what the gradient is scaled by, then the optimizer's."""
        scale = 1 / divisor if divisor else 0.0  # a batch of ignored labels alone has no gradient
        return self.backend.asarray(np.asarray([scale, *self.optimizer.scalars(lr, step)]), self.dtype)

    def session(self) -> AbstractContextManager[Any]:
        """Entered around many steps: a backend's chance to set the machine up for them.

        Here it holds NumPy's warnings back: the step itself tells of what is not finite.
        """
        return np.errstate(all="ignore")

    def step(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scalars: Array
    ) -> tuple[State, Array]:
        """Forward, backward and update; consumes `state`.

        Returns:
            The new state and the metrics of the batch before the update: `[sum of the loss, right answers,
            finite]`. Where loss or weights are not finite, this update and all later ones do nothing.
        """
        xp, ops = self.backend.xp, self.backend.ops
        gradient, stats, loss, right = self.gradient(state, images, targets, draws, scalars[0])
        weights, moments = self.optimizer.update(
            ops, state["weights"], self.optimizer.clip(ops, gradient), state["moments"], scalars[1:]
        )
        finite = state["finite"] & xp.isfinite(loss) & xp.all(xp.isfinite(weights))
        new = {"weights": weights, "moments": moments, "stats": stats, "finite": finite}
        return self._where_finite(new, state), xp.stack([loss, right, xp.astype(finite, loss.dtype)])

    def gradient(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scale: Array
    ) -> tuple[Array, dict[str, Array], Array, Array]:
        """Forward and backward.

        Returns:
            The flat gradient of `scale` times the sum of the loss, the new statistics, the sum of the loss and
            the number of right answers.
        """
        return self._gradient(self.backend.ops, state["weights"], state["stats"], images, targets, draws, scale)

    def _gradient(
        self,
        ops: Ops,
        weights: Array,
        stats: Mapping[str, Array],
        images: Array,
        targets: Array,
        draws: Mapping[str, Array],
        scale: Array,
    ) -> tuple[Array, dict[str, Array], Array, Array]:
        run = Run(ops, training=True, draws=draws)
        scores, new, backward = self.program.apply(self._tree(weights), stats, images, run)
        loss, loss_backward = self.loss(ops, scores, targets, self.constants)
        _, gradients = backward(loss_backward(scale)[0], input_gradient=False)
        return self._flat_gradient(gradients), new, loss, self._right(scores, targets, loss)

    def evaluate(self, state: State, images: Array, targets: Array) -> Array:
        """The metrics of a batch, without training: `[sum of the loss, right answers, finite]`."""
        xp, scores = self.backend.xp, self._scores(state, images)
        loss, _ = self.loss(self.backend.ops, scores, targets, self.constants)
        return xp.stack([loss, self._right(scores, targets, loss), xp.astype(xp.isfinite(loss), loss.dtype)])

    def predict(self, state: State, images: Array) -> Array:
        """The model's output for a batch."""
        return self._scores(state, images)

    def prepared(self, state: State) -> dict[str, Array]:
        """The weights of the `predictor`."""
        return folded(self.folds, self._tree(state["weights"]), state["stats"])

    def _scores(self, state: State, images: Array) -> Array:
        return self._predicted(self.prepared(state), state["stats"], images)

    def _predicted(self, weights: Mapping[str, Array], stats: Mapping[str, Array], images: Array) -> Array:
        return self.predictor.apply(weights, stats, images, Run(self.backend.ops))[0]

    def first_not_finite(self, state: State, images: Array, draws: Mapping[str, Array]) -> tuple[str, Layer] | None:
        """Replay the forward pass of a step and find the first layer whose output is not finite."""
        xp, found = self.backend.xp, list[tuple[str, Layer]]()

        def watch(path: str, layer: Layer, y: Array) -> None:
            if not found and not bool(xp.all(xp.isfinite(y))):
                found.append((path, layer))

        run = Run(self.backend.ops, training=True, draws=draws, watch=watch)
        self.model.apply(self._tree(state["weights"]), state["stats"], images, run)
        return found[0] if found else None

    def _where_finite(self, new: State, old: State) -> State:
        """The new state where it is finite, else the old one, which is used up."""
        where, finite = self.backend.xp.where, new["finite"]
        return {
            "weights": where(finite, new["weights"], old["weights"]),
            "moments": {name: where(finite, m, old["moments"][name]) for name, m in new["moments"].items()},
            "stats": {path: where(finite, a, old["stats"][path]) for path, a in new["stats"].items()},
            "finite": finite,
        }

    def _flat_gradient(self, gradients: Mapping[str, Array]) -> Array:
        xp = self.backend.xp
        return xp.concat([xp.reshape(gradients[path], (-1,)) for path in self.shapes])

    def _right(self, scores: Array, targets: Array, loss: Array) -> Array:
        xp, right = self.backend.xp, self.loss.correct(scores, targets)
        return xp.zeros_like(loss) if right is None else xp.sum(xp.astype(right, loss.dtype))

    def _flat(self, tree: Mapping[str, Any]) -> Array:
        rows = [np.asarray(tree[path], dtype=self.dtype).reshape(-1) for path in self.shapes]
        return self.backend.asarray(np.concatenate(rows) if rows else np.zeros(0, self.dtype), copy=True)

    def _tree(self, flat: Array, xp: Any = None) -> dict[str, Array]:
        xp = xp or self.backend.xp
        return {path: xp.reshape(flat[part], shape) for path, part, shape in self._parts}

    @cached_property
    def _parts(self) -> list[tuple[str, slice, tuple[int, ...]]]:
        """Where in a flat array each tensor is."""
        ends = list(accumulate(map(prod, self.shapes.values()), initial=0))
        return [(path, slice(*ends[i : i + 2]), shape) for i, (path, shape) in enumerate(self.shapes.items())]
