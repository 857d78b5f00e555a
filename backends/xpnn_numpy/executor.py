"""Steps in pieces on threads.

With NumPy's own kernels a batch is cut into at most 8 lanes, where it has work enough for them, and threads take whole
lanes; compiled kernels (`fast`) share what each of them does, and have one lane. Where a sample's result is its own, a
lane is computed in pieces whose largest activation stays in the cache; where batch normalisation joins the samples,
the lanes go side by side through the layers and meet at its sums. The update is cut as well. BLAS is held to one thread
meanwhile, for all this is its parallel work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial
from itertools import pairwise
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn.layers.base import Run
from xpnn.layers.containers import Container
from xpnn.ops import Ops
from xpnn.ops._array import Array
from xpnn.train.executor import Executor, State
from xpnn_numpy.blas import one_blas_thread, touch_buffers
from xpnn_numpy.lanes import LANES, LEAST, MOST, Crew, Meeting, settled, threads

if TYPE_CHECKING:
    from xpnn_numpy import NumPyBackend

PIECE_BYTES = 1 << 23
"""Of the largest activation of a piece: what stays in the third-level cache with all that is made of it."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
CHUNK = 1 << 18
"""Weights that are updated at a time: handing fewer to another thread takes as long as updating them."""


class PiecesExecutor(Executor):
    """The plain executor, its forward and backward cut into lanes and pieces, its update into chunks."""

    backend: NumPyBackend

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        in_shape = args[4] if len(args) > 4 else kwargs["in_shape"]
        model = self.model
        layers = list(model.walk(in_shape)) if isinstance(model, Container) else [("", model, in_shape)]
        sizes = [prod(in_shape), *(prod(layer.shape(shape)) for _, layer, shape in layers)]
        self.sample_bytes = max(sizes) * np.dtype(self.dtype).itemsize
        self.sample_work = sum(layer.multiply_adds(shape) or 0 for _, layer, shape in layers) / max(len(layers), 1)
        """Multiply-adds of a layer, on average."""
        self.per_sample, self.divisible = self.model.per_sample, self.model.divisible
        self.crew = Crew(threads())

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold BLAS to one thread, and settle NumPy."""
        keep_memory()
        with settled(), one_blas_thread():
            touch_buffers(min(self.crew.threads, MOST))
            yield

    def step(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scalars: Array
    ) -> tuple[State, Array]:
        """As the plain one."""
        flats, stats, loss, right = self._lanes(state, images, targets, draws, scalars[0])
        finite = bool(state["finite"]) and isfinite(loss)
        if finite:
            weights, moments, finite = self._update(state["weights"], flats, state["moments"], scalars[1:])
        if finite:
            state = {"weights": weights, "moments": moments, "stats": stats, "finite": np.True_}
        else:
            state = {**state, "finite": np.False_}
        return state, np.asarray([loss, right, finite], loss.dtype)

    def _update(
        self, weights: Array, flats: Array, moments: Mapping[str, Array], scalars: Array
    ) -> tuple[Array, dict[str, Array], bool]:
        """The new weights and moments, and whether all weights are finite."""
        optimizer, ops = self.optimizer, self.backend.ops
        if optimizer.clip_norm is not None:
            flats = optimizer.clip(ops, _sum(flats))[None]
        compiled = self.backend.updates.get(type(optimizer))
        if compiled is None and (len(weights) <= CHUNK or not optimizer.elementwise):
            new, new_moments = optimizer.update(ops, weights, _sum(flats), moments, scalars)
            return new, new_moments, _finite(new)
        new, new_moments = np.empty_like(weights), {name: np.empty_like(m) for name, m in moments.items()}
        if compiled is not None:
            with self.backend.sharing(self.crew.threads):
                return new, new_moments, compiled(optimizer, weights, flats[0], moments, scalars, new, new_moments)

        def update(i: int) -> bool:
            part = slice(i * CHUNK, (i + 1) * CHUNK)
            moved, m = optimizer.update(
                ops, weights[part], _sum(flats[:, part]), {name: m[part] for name, m in moments.items()}, scalars
            )
            new[part] = moved
            for name, moment in m.items():
                new_moments[name][part] = moment
            return _finite(moved)

        return new, new_moments, all(self.crew.each(update, -(-len(new) // CHUNK)))

    def _right(self, scores: Array, targets: Array, loss: Array) -> Array:
        right = self.loss.correct(scores, targets)
        return loss.dtype.type(0 if right is None else np.count_nonzero(right))

    def _fill(self, flat: Array, gradients: Mapping[str, Array]) -> None:
        parts = [gradients[path].reshape(-1) for path in self.shapes]
        if parts:
            np.concatenate(parts, out=flat)

    def _tree(self, flat: Array, xp: Any = None) -> dict[str, Array]:
        return {path: flat[part].reshape(shape) for path, part, shape in self._parts}

    def gradient(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scale: Array
    ) -> tuple[Array, dict[str, Array], Array, Array]:
        """As the plain one: the lanes' sums, added in their order."""
        flats, *rest = self._lanes(state, images, targets, draws, scale)
        return _sum(flats), *rest

    def _scores(self, state: State, images: Array) -> Array:
        """As the plain one, piece by piece."""
        n, whole = len(images), super()._scores
        pieces = max(self._lanes_of(n), self._pieces(n)) if self.divisible else 1
        if pieces == 1 and not self.backend.compiled:
            return whole(state, images)
        cuts = [n * i // pieces for i in range(pieces + 1)]

        def piece(i: int) -> Array:
            return whole(state, images[cuts[i] : cuts[i + 1]])

        if self.backend.compiled:
            with self.backend.sharing(self.crew.threads):
                parts = [piece(i) for i in range(pieces)]
        else:
            parts = self.crew.each(piece, pieces)
        return parts[0] if pieces == 1 else np.concatenate(parts)

    def _count(self, n: int) -> int:
        """The lanes in which a batch of `n` is trained."""
        return self._lanes_of(n) if self.divisible else 1

    def _lanes_of(self, n: int) -> int:
        """Into how many lanes `n` samples are cut where they can be."""
        if self.backend.compiled:
            return 1  # compiled kernels share what each of them does
        lanes = next((lanes for least, lanes in LANES if n * self.sample_bytes >= least and n >= lanes), 1)
        return 2 if lanes == 1 and n > 1 and n * self.sample_work >= LEAST else lanes

    def _pieces(self, n: int) -> int:
        """The pieces of `n` samples."""
        return int(max(1, -(-n // max(1, PIECE_BYTES // self.sample_bytes))))

    def _lanes(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scale: Array
    ) -> tuple[Array, dict[str, Array], Array, Array]:
        """For each lane a row, the flat gradient; the new statistics, the sum of the loss and of right answers."""
        n, weights = len(images), self._tree(state["weights"])
        lanes = self._count(n)
        meeting = None if lanes == 1 or self.per_sample else Meeting(lanes, self.crew.threads)
        flats = np.empty((lanes, len(state["weights"])), self.dtype)

        def lane(i: int) -> tuple[dict[str, Array], Array, Array]:
            a, b = n * i // lanes, n * (i + 1) // lanes
            ops = self.backend.ops if meeting is None else self._ops[i]
            stats, loss, right = dict[str, Array](), None, None
            pieces = self._pieces(b - a) if self.per_sample else 1
            for start, stop in pairwise(a + (b - a) * k // pieces for k in range(pieces + 1)):
                run = Run(ops, training=True, draws={path: mask[start:stop] for path, mask in draws.items()})
                scores, stats, backward = self.program.apply(weights, state["stats"], images[start:stop], run)
                part, loss_backward = self.loss(ops, scores, targets[start:stop], self.constants)
                _, gradients = backward(loss_backward(scale)[0], input_gradient=False)
                hits = self._right(scores, targets[start:stop], part)
                if loss is None:
                    loss, right = part, hits
                    self._fill(flats[i], gradients)
                else:
                    loss, right = loss + part, right + hits
                    for path, g in self._tree(flats[i]).items():
                        g += gradients[path]
            return stats, loss, right

        if lanes == 1:
            with self.backend.sharing(self.crew.threads):
                results = [lane(0)]
        elif meeting is None:
            results = self.crew.each(lane, lanes)
        else:
            self._meeting = meeting
            results = self.crew.together(lane, meeting)
        stats, losses, rights = zip(*results, strict=True)
        return flats, stats[0], _sum(losses), _sum(rights)

    @cached_property
    def _ops(self) -> list[Ops]:
        """The ops of each lane, whose sums over the batch go through the meeting."""

        def whole(lane: int, part: Array, n: int) -> tuple[Array, int]:
            return self._meeting.whole(lane, part, n)

        return [Ops(self.backend.kernels, self.backend.column_bytes, partial(whole, i)) for i in range(MOST)]


@cache
def keep_memory() -> None:
    """Have freed memory kept by this process, up to 1 GiB of a heap: else a step begins with a page fault each 4 KiB.

    glibc gives back what lies free at the end of its heaps and takes larger blocks from the system alone; the heap
    of a thread it gives up when it is empty, unless that is all the room there would be. See mallopt(3).
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in ((M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 64 << 20), (M_MMAP_THRESHOLD, 32 << 20)):
            mallopt(option, size)


def _finite(values: Array) -> bool:
    return isfinite(values.dot(values)) or bool(np.isfinite(values).all())  # squares alone may overflow


def _sum(parts: Any) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
