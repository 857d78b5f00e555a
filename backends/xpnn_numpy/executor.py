"""Steps in pieces, by helper processes or on threads.

With NumPy's own kernels a batch is cut into at most 8 lanes, where it has work enough for them, and helpers (`helpers`)
or threads take whole lanes; compiled kernels (`fast`) share what each of them does, and have one lane. Where a sample's
result is its own, a lane is computed in pieces whose largest activation stays in the cache; where batch normalisation
joins the samples, the lanes go side by side through the layers and meet at its sums. A piece that meets nobody is
recorded and played (`recording`). The update is cut as well. BLAS is held to one thread meanwhile, for all this is its
parallel work.
"""

from __future__ import annotations

import ctypes
import io
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, cached_property, lru_cache, partial
from itertools import pairwise
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xpnn.layers.base import Layer, Run
from xpnn.layers.containers import Container
from xpnn.ops import Ops
from xpnn.ops._array import Array
from xpnn.ops._made import Once
from xpnn.optim import SGD
from xpnn.train.executor import Executor, State
from xpnn_numpy.blas import one_blas_thread, touch_buffers
from xpnn_numpy.helpers import DEALT, Helper, Lost, OursAlone, helpers, taken, versions
from xpnn_numpy.lanes import (
    LANES,
    LEAST,
    LEAST_HELPED,
    MOST,
    Crew,
    Joined,
    Meeting,
    added,
    settled,
    threads,
)
from xpnn_numpy.recording import Played, unrecorded

if TYPE_CHECKING:
    from xpnn_numpy import NumPyBackend

Cuts = tuple[int, ...]
"""Where parts begin, and where the last one ends."""
PIECE_BYTES, PLAYED_BYTES = 1 << 23, 3 << 19
"""Of the largest activation of a piece: what stays in the third-level cache with all that is made of it. And of one
that is played (`recording`): with less between its calls it may be smaller."""
PLAYED_WORK = 3 << 21
"""Multiply-adds of a layer, on average, of a piece that is played to predict: with more, calls are long in a smaller
one as well, of which two cores have more in the cache that they share."""
UNRECORDED = ("binary_cross_entropy", "col2im", "conv_transpose", "gelu", "huber", "max_pool")
"""Ops whose standard body a recording cannot hold (see there)."""
FEW_WEIGHTS = 1 << 22
"""Bytes: more weights are copied too long, for each piece, to make pieces small."""
Lanes = tuple[list[Array], dict[str, Array], list[Array], list[Array]]
"""For each lane the flat gradient; the new statistics; for each the sum of the loss and of right answers."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
NO_WEIGHTS = np.empty(0)
"""Those of predictions do not change: their recordings hold them."""
DEALT_OF = 4
"""Pieces of which one is dealt (`helpers.Deal`), for cores are not equally fast; its images are handed to all."""
CHUNK = 1 << 18
"""Weights that are updated at a time: handing fewer to another thread takes as long as updating them."""


class Prepared(NamedTuple):
    """The predictor's weights, the arrays of the state that they were made of, and a number that no others have."""

    of: list[Array]
    weights: dict[str, Array]
    version: int


class PiecesExecutor(Executor):
    """The plain executor, its forward and backward cut into lanes and pieces, its update into chunks."""

    backend: NumPyBackend

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.in_shape = in_shape = args[4] if len(args) > 4 else kwargs["in_shape"]
        model = self.model
        layers = list(model.walk(in_shape)) if isinstance(model, Container) else [("", model, in_shape)]
        sizes = [prod(in_shape), *(prod(layer.shape(shape)) for _, layer, shape in layers)]
        self.sample_bytes = max(sizes) * np.dtype(self.dtype).itemsize
        self.sample_work = sum(layer.multiply_adds(shape) or 0 for _, layer, shape in layers) / max(len(layers), 1)
        """Multiply-adds of a layer, on average."""
        each = [path and f"{path}." for path, layer, _ in layers if layer.per_sample]
        cut = not any(stat.startswith(path) for path in each for stat in self.stats)  # which would be those of a part
        self.per_sample, self.divisible = cut and self.model.per_sample, cut and self.model.divisible
        self.crew, self.alone = Crew(threads()), Crew(1)
        self._gathering = threading.Lock()  # the lanes of one step at a time
        self._prepared: Prepared | None = None
        self._made = Once()
        self._predicting: tuple[Mapping[str, Array], Played] | None = None

    def session(self) -> AbstractContextManager[None]:
        """Hold BLAS to one thread, and settle NumPy."""
        return session(self.crew.threads)

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
        self, weights: Array, flats: list[Array], moments: Mapping[str, Array], scalars: Array
    ) -> tuple[Array, dict[str, Array], bool]:
        """The new weights and moments, and whether all weights are finite."""
        optimizer, ops = self.optimizer, self.backend.ops
        if optimizer.clip_norm is not None:
            flats = [optimizer.clip(ops, _sum(flats))]
        compiled = self.backend.updates.get(type(optimizer))
        if compiled is None and (len(weights) <= CHUNK or not optimizer.elementwise):
            new, new_moments = optimizer.update(ops, weights, _sum(flats), moments, scalars)
            return new, new_moments, _finite(new)
        new, new_moments = np.empty_like(weights), {name: np.empty_like(m) for name, m in moments.items()}
        if compiled is not None:
            if len(flats[0]) != len(weights):  # compiled code would read past the end
                raise ValueError(f"layers return gradients of {len(flats[0])} numbers for {len(weights)} weights")
            with self.backend.sharing(self.crew.threads):
                return new, new_moments, compiled(optimizer, weights, flats[0], moments, scalars, new, new_moments)

        def update(i: int) -> bool:
            part = slice(i * CHUNK, (i + 1) * CHUNK)
            gradient, old = _sum([flat[part] for flat in flats]), {name: m[part] for name, m in moments.items()}
            moved, m = optimizer.update(ops, weights[part], gradient, old, scalars)
            new[part] = moved
            for name, moment in m.items():
                new_moments[name][part] = moment
            return _finite(moved)

        return new, new_moments, all(self.crew.each(update, -(-len(new) // CHUNK)))

    def _right(self, scores: Array, targets: Array, loss: Array) -> Array:
        right = self.loss.correct(scores, targets)
        return np.zeros_like(loss) if right is None else np.add.reduce(right, None, loss.dtype)

    def _flat_gradient(self, gradients: Mapping[str, Array]) -> Array:
        parts = [gradients[path].reshape(-1) for path in self.shapes]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def _tree(self, flat: Array, xp: Any = None) -> dict[str, Array]:
        return {path: flat[part].reshape(shape) for path, part, shape in self._parts}

    def gradient(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scale: Array
    ) -> tuple[Array, dict[str, Array], Array, Array]:
        """As the plain one: the lanes' sums, added in their order."""
        flats, *rest = self._lanes(state, images, targets, draws, scale)
        return np.array(_sum(flats)), *rest

    def prepared(self, state: State) -> dict[str, Array]:
        """As the plain one, once for a state, whose arrays nobody writes to: small batches take no longer than that."""
        return self._ready(state).weights

    def _ready(self, state: State) -> Prepared:
        of, last = [state["weights"], *state["stats"].values()], self._prepared
        if last is None or len(of) != len(last.of) or any(a is not b for a, b in zip(of, last.of, strict=True)):
            self._prepared = None  # which need not be there beside the new ones
            last = self._prepared = Prepared(of, super().prepared(state), next(versions))
        return last

    def _scores(self, state: State, images: Array) -> Array:
        """As the plain one, piece by piece."""
        n = len(images)
        lanes = self._lanes_of(n, LEAST_HELPED)
        most = min(self._most(), PLAYED_WORK // max(self.sample_work, 1)) if self.recordable else self._most()
        pieces = min(-(-_pieces(n, int(most)) // lanes) * lanes, max(n, 1)) if self.model.divisible else 1
        if pieces == 1:
            with self.backend.sharing(self.crew.threads):
                return super()._scores(state, images)
        ready, cuts = self._ready(state), _cuts(n, pieces)
        given = ready.weights, state["stats"]
        if self.backend.compiled:
            with self.backend.sharing(self.crew.threads):
                return self.scores(*given, images, cuts)
        with suppress(Lost), self._help(pieces) as lent:
            if lent:
                (own, own_cuts), *others, (rest, rest_cuts) = _shares(cuts, len(lent) + 1)
                helpers.deal.begin(len(rest_cuts) - 1)
                for helper, (its, its_cuts) in zip(lent, others, strict=True):
                    unseen = helper.unseen(ready.version, *given)
                    what = "scores", helpers.known[self], its_cuts, rest_cuts, [tuple(arrays) for arrays in unseen]
                    weights = (array for arrays in unseen for array in arrays.values())
                    helper.channel.hand(what, images[its], images[rest], *weights)
                done = [self.scores(*given, images[own], own_cuts)]
                found = self.dealt(*given, images[rest], rest_cuts, helpers.deal.reading)
                for helper in lent:
                    numbers, (scores, *more) = helper.answer("done")
                    done.append(scores)
                    found |= zip(numbers, more, strict=True)
                return np.concatenate([*done, *(found[i] for i in range(len(found)))])
        with helpers.counting():
            return self.scores(*given, images, cuts, self._crew(n))

    def _predicted(self, weights: Mapping[str, Array], stats: Mapping[str, Array], images: Array) -> Array:
        predicting = self._predicting
        if predicting is None or predicting[0] is not weights:
            self._made.forget()

            def predict(_: Array, images: Array) -> list[Array]:
                return [self.predictor.apply(weights, stats, images, self._prediction)[0]]

            predicting = self._predicting = weights, Played(predict)
        played = predicting[1]
        return played(NO_WEIGHTS, images)[0].copy() if self._small(images) else played.function(NO_WEIGHTS, images)[0]

    def _forget(self) -> None:
        """What predictions keep of a state."""
        self._prepared = self._predicting = None
        self._made.forget()

    @cached_property
    def _prediction(self) -> Run:
        """With ops that need keep nothing; a layer of somebody's own may call their backward itself."""
        ops = self.backend.ops
        if _ours(self.model):
            ops = Ops(self._kernels, self.backend.column_bytes, backward=False, made=self._made)
        return Run(ops)

    @cached_property
    def _kernels(self) -> dict[str, Callable[..., Any]]:
        """The kernels, and as single calls the ops that are not written for a recording."""
        return {name: unrecorded(getattr(Ops, name)) for name in UNRECORDED} | dict(self.backend.kernels)

    def scores(
        self,
        weights: Mapping[str, Array],
        stats: Mapping[str, Array],
        images: Array,
        cuts: Cuts,
        crew: Crew | None = None,
    ) -> Array:
        """The model's output for prepared weights, piece by piece."""

        def piece(i: int) -> Array:
            return self._predicted(weights, stats, images[cuts[i] : cuts[i + 1]])

        parts = (crew or self.alone).each(piece, len(cuts) - 1)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def dealt(
        self, weights: Mapping[str, Array], stats: Mapping[str, Array], images: Array, cuts: Cuts, file: int
    ) -> dict[int, Array]:
        """The same, of those pieces that were dealt and come to who asks here."""
        return {i: self._predicted(weights, stats, images[cuts[i] : cuts[i + 1]]) for i in taken(file, len(cuts) - 1)}

    def _count(self, n: int) -> int:
        """The lanes in which a batch of `n` is trained."""
        least = LEAST_HELPED if self.per_sample else LEAST
        return self._lanes_of(n, least) if self.divisible else 1

    def _lanes_of(self, n: int, least: int) -> int:
        """Into how many lanes `n` samples are cut where they can be, two from so much work on."""
        if self.backend.compiled:
            return 1  # compiled kernels share what each of them does
        lanes = next((lanes for size, lanes in LANES if n * self.sample_bytes >= size and n >= lanes), 1)
        return 2 if lanes == 1 and n > 1 and n * self.sample_work >= least else lanes

    def _most(self) -> int:
        """How many samples a piece has at the most."""
        return int(max(1, (PLAYED_BYTES if self.recordable else PIECE_BYTES) // self.sample_bytes))

    def _lanes(
        self, state: State, images: Array, targets: Array, draws: Mapping[str, Array], scale: Array
    ) -> tuple[list[Array], dict[str, Array], Array, Array]:
        """The flat gradient of each lane; the new statistics, the sum of the loss and of right answers."""
        n = len(images)
        lanes = self._count(n)
        given, batch = (state["weights"], state["stats"]), (images, targets, draws)
        cuts = _lane_cuts(n, lanes, self._most() if self.per_sample else n)
        done = self._by_helpers(*given, batch, scale, cuts) if lanes > 1 else self.lanes(*given, *batch, scale, cuts)
        if done is None:
            with helpers.counting():
                done = self.lanes(*given, *batch, scale, cuts, self._crew(n))
        flats, stats, losses, rights = done
        return flats, stats, _sum(losses), _sum(rights)

    def _by_helpers(
        self, weights: Array, stats: Mapping[str, Array], batch: Any, scale: Array, cuts: Sequence[Cuts]
    ) -> Lanes | None:
        """As `lanes`, with the sum of their gradients alone; None where there are no helpers, or one was lost."""
        with suppress(Lost), self._help(len(cuts)) as lent:
            if not lent:
                return None
            own, *others = [cuts[a:b] for a, b in pairwise(_cuts(len(cuts), len(lent) + 1))]
            for helper, its in zip(lent, others, strict=True):
                first, (x, y, masks) = its[0][0], _part(batch, its[0][0], its[-1][-1])
                what = "lanes", helpers.known[self], [tuple(at - first for at in lane) for lane in its]
                helper.seen = None  # it keeps no weights of an old state
                helper.channel.hand(what, weights, x, y, np.asarray(scale, self.dtype), *self._others(stats, masks))

            def joined(parts: list[tuple[Array, int]]) -> tuple[Array, int]:
                total = added([*parts, *(part for helper in lent for part in helper.answer("parts")[0])])
                for helper in lent:
                    helper.channel.tell(total)
                return total

            def left() -> None:
                for helper in lent:
                    helper.process.kill()  # a thread may wait for it, whom no interrupt reaches

            x, y, masks = _part(batch, 0, own[-1][-1])
            flats, new, losses, rights = self.lanes(weights, stats, x, y, masks, scale, own, self.alone, joined, left)
            for helper in lent:
                done = helper.answer("done")[1]
                n = len(done) // 3
                flats += done[:n]
                losses += [loss.copy() for loss in done[n : 2 * n]]
                rights += [right.copy() for right in done[2 * n :]]
            return [_sum(flats)], new, losses, rights  # nothing of a helper's, who is asked by others from here on
        return None

    def handed(
        self, weights: Array, images: Array, targets: Array, scale: Array, *others: Array, cuts: Any, joined: Joined
    ) -> Lanes:
        """As `lanes`, of what a helper is handed."""
        stats, draws = self._named(others)
        return self.lanes(weights, stats, images, targets, draws, scale, cuts, None, joined)

    def _others(self, stats: Mapping[str, Array], draws: Mapping[str, Array]) -> list[Array]:
        """The arrays of both, for who can do with arrays alone."""
        return [*(stats[path] for path in self.stats), *(draws[draw.path] for draw in self.draws)]

    def _named(self, others: Sequence[Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Statistics and masks by their paths again."""
        masked, n = [draw.path for draw in self.draws], len(self.stats)
        return dict(zip(self.stats, others[:n], strict=True)), dict(zip(masked, others[n:], strict=True))

    def _help(self, parts: int) -> AbstractContextManager[list[Helper]]:
        """Helpers for so many parts of a batch, of which some are done here."""
        return helpers.lent(self, min(parts, self.crew.threads, MOST) - 1)

    @cached_property
    def recipe(self) -> bytes | None:
        """What a helper makes an executor of that computes the same; None where it cannot."""
        if not self._plain:
            return None
        try:
            recipe = pickle.dumps((self.model, self.loss, SGD(lr=0), self.in_shape, self.dtype))
            OursAlone(io.BytesIO(recipe)).load()
        except Exception:  # whatever a class of somebody's own raises
            return None
        return recipe

    def _crew(self, n: int) -> Crew:
        """The threads for `n` samples: they cannot help where there is little to do."""
        much = n * self.sample_work >= LEAST or n * self.sample_bytes >= LANES[-1][0]
        return self.crew if much else self.alone

    def lanes(
        self,
        weights: Array,
        stats: Mapping[str, Array],
        images: Array,
        targets: Array,
        draws: Mapping[str, Array],
        scale: Array,
        cuts: Sequence[Cuts],
        crew: Crew | None = None,
        joined: Joined = added,
        left: Callable[[], None] = lambda: None,
    ) -> Lanes:
        """Forward and backward in lanes, and each in pieces from one of its `cuts` to the next.

        Where there are more lanes elsewhere, `joined` joins the parts of these with theirs (see `Meeting`).
        """
        self._forget()
        lanes, crew = len(cuts), crew or self.alone
        meets = not self.per_sample and (lanes > 1 or joined is not added)

        def lane(i: int) -> tuple[Array, dict[str, Array], Array, Array]:
            parts = list(pairwise(cuts[i]))
            for start, stop in parts:
                x, y = images[start:stop], targets[start:stop]
                masks = {path: mask[start:stop] for path, mask in draws.items()}
                if meets:
                    done = self._gradient(self._ops[i], weights, stats, x, y, masks, scale)
                else:
                    passing = start != cuts[i][0] or lanes == len(parts) == 1
                    done = self._piece(weights, stats, x, y, masks, scale, passing=passing)
                if start == cuts[i][0]:
                    flat, new, loss, right = done
                else:
                    flat, new, loss, right = np.add(flat, done[0], out=flat), new, loss + done[2], right + done[3]
            return flat, new, loss, right

        if meets:
            with self._gathering:
                self._meeting = Meeting(lanes, crew.threads, joined, left)
                results = crew.together(lane, self._meeting)
        else:
            with self.backend.sharing(self.crew.threads) if lanes == 1 else nullcontext():
                results = crew.each(lane, lanes)
        flats, new, losses, rights = zip(*results, strict=True)
        return list(flats), new[0], list(losses), list(rights)

    def _piece(
        self,
        weights: Array,
        stats: Mapping[str, Array],
        images: Array,
        targets: Array,
        draws: Mapping[str, Array],
        scale: Array,
        *,
        passing: bool,
    ) -> tuple[Array, dict[str, Array], Array, Array]:
        """As `_gradient`, played where it is small: a `passing` gradient is then overwritten by the next."""
        if not self._small(images):
            return self._gradient(self._alone, weights, stats, images, targets, draws, scale)
        arrays = weights, images, targets, np.asarray(scale, self.dtype), *self._others(stats, draws)
        flat, loss, right, *new = self._played(*arrays)
        its = {path: stat.copy() for path, stat in zip(self.stats, new, strict=True)}
        return flat if passing else flat.copy(), its, loss[()], right[()]

    def _small(self, images: Array) -> bool:
        """Whether what is done with them is played."""
        return self.recordable and len(images) * self.sample_bytes <= PLAYED_BYTES

    @cached_property
    def _alone(self) -> Ops:
        """The ops of a piece that meets nobody."""

        def whole(part: Array, n: int) -> tuple[Array, int]:
            raise ValueError(
                f"a layer of {self.model} says `per_sample`, and calls `ops.whole`, which joins the samples: leave "
                "`per_sample` out there, and set `divisible = True`"
            )

        return Ops(self.backend.kernels, self.backend.column_bytes, whole) if self.per_sample else self.backend.ops

    @cached_property
    def _played(self) -> Played:
        """A step as a function of arrays alone."""
        ops = Ops(self._kernels, self.backend.column_bytes)

        def step(weights: Array, images: Array, targets: Array, scale: Array, *others: Array) -> list[Array]:
            stats, draws = self._named(others)
            flat, new, loss, right = self._gradient(ops, weights, stats, images, targets, draws, scale)
            return [flat, loss, right, *(new[path] for path in self.stats)]

        return Played(step)

    @cached_property
    def recordable(self) -> bool:
        """Whether pieces are played: those of few weights, where all that computes is xpnn's own, and NumPy's calls.

        An optimizer of somebody's own might keep a gradient, which the next step overwrites.
        """
        own = _of_xpnn(self.loss) and _of_xpnn(self.optimizer) and _ours(self.model)
        weights = sum(map(prod, self.shapes.values())) * np.dtype(self.dtype).itemsize
        return own and self._plain and weights <= FEW_WEIGHTS

    @property
    def _plain(self) -> bool:
        """Whether the backend is NumPy's own, with its own kernels."""
        from xpnn_numpy import NumPyBackend

        backend, plain = self.backend, NumPyBackend
        return (type(backend), backend.kernels, backend.column_bytes) == (plain, plain.kernels, plain.column_bytes)

    @cached_property
    def _ops(self) -> list[Ops]:
        """The ops of each lane, whose sums over the batch go through the meeting."""

        def whole(lane: int, part: Array, n: int) -> tuple[Array, int]:
            return self._meeting.whole(lane, part, n)

        return [Ops(self.backend.kernels, self.backend.column_bytes, partial(whole, i)) for i in range(MOST)]


@contextmanager
def session(threads: int) -> Iterator[None]:
    """Hold BLAS to one thread, and settle NumPy and memory, for steps on so many threads."""
    keep_memory()
    with settled(), one_blas_thread():
        touch_buffers(min(threads, MOST))
        yield


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


def _ours(layer: Layer) -> bool:
    """Whether it is one of xpnn's layers, and made of these."""
    parts = layer.parts() if isinstance(layer, Container) else []
    return _of_xpnn(layer) and all(_ours(part) for _, part in parts)


def _of_xpnn(thing: object) -> bool:
    return type(thing).__module__.partition(".")[0] == "xpnn"


def _pieces(n: int, most: int) -> int:
    """The pieces, of at most so many, of `n` samples."""
    return max(1, -(-n // max(1, most)))


@lru_cache(maxsize=4096)
def _cuts(n: int, parts: int) -> Cuts:
    """Where so many parts of `n` begin and end."""
    return tuple(n * i // parts for i in range(parts + 1))


@lru_cache(maxsize=4096)
def _shares(cuts: Cuts, processes: int) -> tuple[tuple[slice, Cuts], ...]:
    """The samples that each of some processes has, and last those that are dealt, with the pieces in them."""
    pieces = len(cuts) - 1
    own = min(pieces // processes, -(-(pieces - min(pieces // DEALT_OF, DEALT)) // processes))
    bounds = *(own * i for i in range(processes + 1)), pieces
    ends = [cuts[a : b + 1] for a, b in pairwise(bounds)]
    return tuple((slice(its[0], its[-1]), tuple(at - its[0] for at in its)) for its in ends)


@lru_cache(maxsize=4096)
def _lane_cuts(n: int, lanes: int, most: int) -> tuple[Cuts, ...]:
    """Where the pieces, of at most so many samples, of each lane begin and end."""
    return tuple(tuple(a + at for at in _cuts(b - a, _pieces(b - a, most))) for a, b in pairwise(_cuts(n, lanes)))


def _part(batch: Any, start: int, stop: int) -> Any:
    """Images, targets and masks of some samples."""
    images, targets, draws = batch
    whole = np.ascontiguousarray
    return whole(images[start:stop]), whole(targets[start:stop]), {p: whole(m[start:stop]) for p, m in draws.items()}


def _finite(values: Array) -> bool:
    return isfinite(values.dot(values)) or bool(np.isfinite(values).all())  # squares alone may overflow


def _sum(parts: Any) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
