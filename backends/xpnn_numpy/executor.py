"""Steps in pieces on threads.

Where a sample's result is its own, a batch is cut into at most 8 lanes and each lane into pieces whose largest
activation fits the second-level cache; threads take whole lanes. Cut and order of the sums depend on model,
input and batch size alone, so the bits are the same for any number of threads. BLAS is held to one thread
meanwhile, for the pieces are its parallel work.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import pairwise
from math import prod
from typing import Any, cast

import numpy as np

from xpnn.layers.containers import Container
from xpnn.ops._array import Array
from xpnn.train.executor import Executor, State

LANES = 8
PIECE_BYTES = 1 << 20


class PiecesExecutor(Executor):
    """The plain executor, its forward and backward cut into lanes and pieces."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        in_shape = args[4] if len(args) > 4 else kwargs["in_shape"]
        sizes = [prod(in_shape)]
        if isinstance(self.model, Container):
            sizes += [prod(layer.shape(shape)) for _, layer, shape in self.model.walk(in_shape)]
        self.piece = max(1, PIECE_BYTES // (max(sizes) * np.dtype(self.dtype).itemsize))
        self.pieces, self.threads = self.model.per_sample, threads()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold BLAS to one thread, and NumPy's warnings back: the step itself tells of what is not finite.

        Also where nothing is cut: BLAS's threads wait by spinning, which on a busy machine costs far more
        than they gain on matrices of this size.
        """
        with np.errstate(all="ignore"), _one_blas_thread():
            yield

    def gradient(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scale: Array
    ) -> tuple[Array, dict[str, Array], Array, Array]:
        """As the plain one: the lanes' sums, added in their order."""
        whole = super().gradient
        if not self.pieces:
            return whole(state, images, targets, draws, scale)

        def part(start: int, stop: int) -> tuple[Array, Array, Array]:
            masks = {path: mask[start:stop] for path, mask in draws.items()}
            flat, _, loss, right = whole(state, images[start:stop], targets[start:stop], masks, scale)
            return flat, loss, right

        flat, loss, right = self._in_lanes(part, len(images))
        return flat, {}, loss, right

    def predict(self, state: State, images: Array) -> Array:
        """As the plain one, piece by piece."""
        whole = super().predict
        if not self.pieces or len(images) <= self.piece:
            return whole(state, images)
        cuts = [*range(0, len(images), self.piece), len(images)]

        def piece(cut: tuple[int, int]) -> Array:
            with np.errstate(all="ignore"):
                return whole(state, images[cut[0] : cut[1]])

        return np.concatenate(list(_pool(self.threads).map(piece, pairwise(cuts))))

    def _in_lanes(self, part: Callable[[int, int], tuple[Array, Array, Array]], n: int) -> tuple[Array, ...]:
        """The sum of `part(start, stop)` over the pieces of each lane, then over the lanes."""
        lanes = min(LANES, -(-n // self.piece))
        bounds = [n * lane // lanes for lane in range(lanes + 1)]

        def lane(bound: tuple[int, int]) -> tuple[Array, Array, Array]:
            with np.errstate(all="ignore"):  # the session's holds for its own thread only
                cuts = [*range(bound[0], bound[1], self.piece), bound[1]]
                return _summed(part(a, b) for a, b in pairwise(cuts))

        return _summed(map(lane, pairwise(bounds)) if lanes == 1 else _pool(self.threads).map(lane, pairwise(bounds)))


def threads() -> int:
    """How many threads to use: `XPNN_THREADS`, else the cores that the process may use."""
    given = os.environ.get("XPNN_THREADS", "")
    if given and not (given.isdecimal() and int(given)):
        raise ValueError(f"XPNN_THREADS={given!r}; expected a positive integer")
    return int(given) if given else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _summed(parts: Iterator[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    flat, loss, right = next(parts)
    for more in parts:
        flat += more[0]  # the first part's gradient is ours
        loss, right = loss + more[1], right + more[2]
    return flat, loss, right


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="xpnn")


class _Blas:
    """BLAS's own threads, taken away by the first who enters and given back by the last who leaves.

    Limits are set and lifted by one thread of its own: threadpoolctl lets no other thread lift them.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.limiter = threading.Lock(), 0, cast(Any, None)

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.limiter = self.keeper.submit(lambda: self.controller.limit(limits=1, user_api="blas")).result()
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if not self.inside:
                    self.keeper.submit(self.limiter.restore_original_limits).result()

    @cached_property
    def keeper(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="xpnn-blas")

    @cached_property
    def controller(self) -> Any:
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController()  # finding the libraries takes a while: once is enough


_one_blas_thread = _Blas().one_thread
