"""A whole step as one compiled function: forward, backward and update."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax

from xpnn.ops._array import Array
from xpnn.train.executor import Executor, State


class CompiledExecutor(Executor):
    """The plain executor under `jax.jit`; compiled anew for each batch size."""

    def step(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scalars: Array
    ) -> tuple[State, Array]:
        """As the plain one."""
        result: tuple[State, Array] = self._step(state, images, targets, draws, scalars)
        return result

    def evaluate(self, state: State, images: Array, targets: Array) -> Array:
        """As the plain one."""
        return self._evaluate(state, images, targets)

    def predict(self, state: State, images: Array) -> Array:
        """As the plain one."""
        return self._predict(state, images)

    @cached_property
    def _step(self) -> Any:
        return jax.jit(super().step, donate_argnums=0)

    @cached_property
    def _evaluate(self) -> Any:
        return jax.jit(super().evaluate)

    @cached_property
    def _predict(self) -> Any:
        return jax.jit(super().predict)
