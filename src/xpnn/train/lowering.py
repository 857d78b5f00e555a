"""Lowering: a model as the short list of calls that a step makes.

Nested `Sequential`s become one chain that knows beforehand which arrays go to which layer. A convolution becomes one
op with the ReLU that follows, or the max-pool (and ReLU), or an activation and an average pool; so does batch
normalisation, or the sum of a residual block, with its ReLU, and with the convolution that may end the block. For
prediction, where batch normalisation is a fixed line for each channel, a convolution before it takes that into its
weights. What is computed stays the same, and so do the paths of all arrays. Who wants to look between the layers uses
the model itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, TypeGuard, TypeVar

from xpnn.errors import ShapeError
from xpnn.layers.activation import ReLU, Tanh
from xpnn.layers.base import Applied, Arrays, Backward, Layer, Run
from xpnn.layers.containers import Parallel, Residual, Sequential, named
from xpnn.layers.conv import Conv, Conv1D, Conv2D, Conv3D, weighted
from xpnn.layers.norm import BatchNorm
from xpnn.layers.pool import AvgPool, AvgPool1D, AvgPool2D, AvgPool3D, MaxPool, MaxPool1D, MaxPool2D, MaxPool3D
from xpnn.ops._array import Array, namespace
from xpnn.ops._window import each

CONVS = (Conv1D, Conv2D, Conv3D)
MAXIMA, MEANS = (MaxPool1D, MaxPool2D, MaxPool3D), (AvgPool1D, AvgPool2D, AvgPool3D)
P = TypeVar("P", bound=MaxPool)
AVERAGED: dict[type[Layer], str] = {ReLU: "relu", Tanh: "tanh"}
"""The activations that go together with an average."""
Paths = tuple[Iterable[str], Iterable[str], Iterable[str]]
"""Of weights, statistics and draws."""


def for_prediction(model: Layer, paths: Paths) -> tuple[Layer, tuple[Fold, ...]]:
    """The same function as `model` where it predicts, of the weights that `folded` makes of its own."""
    weights, stats, draws = paths
    together = tuple(folds(model))
    gone = tuple(f"{fold.norm}." for fold in together)
    of_convs = {f"{fold.conv}.bias": None for fold in together}
    left = [path for path in {**dict.fromkeys(weights), **of_convs} if not path.startswith(gone)]
    return lower(model, (left, [path for path in stats if not path.startswith(gone)], draws), training=False), together


def lower(model: Layer, paths: Paths, *, training: bool = True) -> Layer:
    """The same function as `model`, whose arrays have these paths; not for `training` it is `for_prediction`'s."""
    if type(model) is Sequential:
        layers = list(_flat(model))
        norms = () if training else dict(_norms(layers)).values()
        links = []
        for name, layer in _joined([(name, layer) for name, layer in layers if name not in norms]):
            part = lower(layer, _under(name, paths), training=training)
            links.append(Link(name, part, *_keys(name, paths)))
        return Chain(tuple(links))
    if type(model) in (Residual, SumReLU, Parallel):
        assert isinstance(model, Residual | Parallel)
        lowered = type(model)(*(lower(part, _under(name, paths), training=training) for name, part in model.parts()))
        return _ending(lowered, paths) if isinstance(lowered, SumReLU) else lowered
    return model


Keys = tuple[tuple[str, str], ...]
"""What a layer calls an array, and its path."""


@dataclass(frozen=True)
class Link:
    """One layer of a chain, with its arrays."""

    name: str
    layer: Layer
    weights: Keys
    stats: Keys
    draws: Keys


@dataclass(frozen=True, repr=False)
class Chain(Layer):
    """A `Sequential`, prepared."""

    links: tuple[Link, ...]

    @cached_property
    def first(self) -> int:
        """The first link that has weights: the last one that backward comes to where nobody asks for `dx`."""
        return next((i for i, link in enumerate(self.links) if link.weights), len(self.links))

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """As `Sequential.apply`, but that it shows nothing to `run.watch`."""
        new: dict[str, Array] = {}
        backwards: list[Backward] = []
        for link in self.links:
            masked = run.training and link.draws
            inner = Run(run.ops, True, {k: run.draws[p] for k, p in link.draws}) if masked else run
            try:
                own = {k: stats[p] for k, p in link.stats} if link.stats else {}
                x, s, part = link.layer.apply({k: weights[p] for k, p in link.weights}, own, x, inner)
            except ShapeError as e:
                raise e.within(named(link.name, link.layer)) from None
            for k, p in link.stats:
                new[p] = s[k]
            backwards.append(part)
        first = self.first

        def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
            gradients: dict[str, Array] = {}
            for i in range(len(backwards) - 1, (-1 if input_gradient else first - 1), -1):
                dy, dweights = backwards[i](dy, input_gradient=input_gradient or i > first)
                for k, p in self.links[i].weights:
                    gradients[p] = dweights[k]
            return (dy if input_gradient else None), gradients

        return x, new, backward

    def __repr__(self) -> str:
        return "Sequential([…])"


@dataclass(frozen=True, repr=False)
class ConvReLU(Layer):
    """A convolution and the ReLU after it, as one op."""

    conv: Conv

    per_sample: ClassVar[bool] = True

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.conv_relu`."""
        y, op_backward = _conv_relu(self.conv, weights, x, None, run)
        return y, {}, weighted(lambda dy, **options: op_backward(dy, **options)[:-1])

    def __repr__(self) -> str:
        return f"{self.conv!r} and {ReLU()!r}"


def _conv_relu(conv: Conv, weights: Arrays, x: Array, shortcut: Array | None, run: Run) -> Any:
    """See `xpnn.ops.conv_relu`."""
    return run.ops.conv_relu(
        x, weights["weight"], weights.get("bias"), shortcut,
        stride=conv.stride, padding=conv.padding, dilation=conv.dilation,
    )  # fmt: skip


@dataclass(frozen=True, repr=False)
class ConvPool(Layer):
    """A convolution and the max-pool after it, with ReLU between or behind them, as one op."""

    conv: Conv
    pool: MaxPool
    relu: bool

    per_sample: ClassVar[bool] = True

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.conv_pool`."""
        y, op_backward = run.ops.conv_pool(
            x, weights["weight"], weights.get("bias"), pool=self.pool.window, relu=self.relu,
            stride=self.conv.stride, padding=self.conv.padding, dilation=self.conv.dilation,
        )  # fmt: skip
        return y, {}, weighted(op_backward)

    def __repr__(self) -> str:
        return f"{self.conv!r} and {self.pool!r}"


@dataclass(frozen=True, repr=False)
class ConvAvgPool(Layer):
    """A convolution, an activation and the average pool after it, as one op."""

    conv: Conv
    activation: Layer
    pool: AvgPool

    per_sample: ClassVar[bool] = True

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """See `xpnn.ops.conv_avg_pool`."""
        y, op_backward = run.ops.conv_avg_pool(
            x, weights["weight"], weights.get("bias"), activation=AVERAGED[type(self.activation)],
            pool=self.pool.window, stride=self.conv.stride, padding=self.conv.padding, dilation=self.conv.dilation,
        )  # fmt: skip
        return y, {}, weighted(op_backward)

    def __repr__(self) -> str:
        return f"{self.conv!r}, {self.activation!r} and {self.pool!r}"


class NormReLU(BatchNorm):
    """Batch normalisation and the ReLU after it."""

    relu = True

    def __repr__(self) -> str:
        return f"{BatchNorm(self.momentum, self.epsilon)!r} and {ReLU()!r}"


class SumReLU(Residual):
    """A residual block and the ReLU after it."""

    relu = True


@dataclass(frozen=True, repr=False)
class ConvSumReLU(Layer):
    """A residual block whose body ends in a convolution, and the ReLU after it: convolution, sum and ReLU as one op.

    The arrays have the paths that they have in the block.
    """

    body: Chain
    last: Link
    shortcut: Chain

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """Both ways, and last what joins them."""
        (inner, new, back), (other, more, shortcut_back) = (
            way.apply(weights, stats, x, run) for way in (self.body, self.shortcut)
        )
        conv = self.last.layer
        assert isinstance(conv, Conv)
        try:
            y, op_backward = _conv_relu(conv, {k: weights[p] for k, p in self.last.weights}, inner, other, run)
        except ShapeError as e:
            raise e.within(named(self.last.name, conv)) from None
        further = self.body.first < len(self.body.links)

        def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
            d, dweight, dbias, dother = op_backward(dy, input_gradient=input_gradient or further)
            found = {"weight": dweight, "bias": dbias}
            dx, gradients = back(d, input_gradient=input_gradient)
            dshort, others = shortcut_back(dother, input_gradient=input_gradient)
            gradients |= others | {p: found[k] for k, p in self.last.weights}
            return run.ops.add(dx, dshort)[0] if input_gradient else None, gradients

        return y, new | more, backward

    def __repr__(self) -> str:
        return f"Residual(…) and {ReLU()!r}"


def _ending(block: SumReLU, paths: Paths) -> Layer:
    """The lowered block itself, or with the convolution at its end taken together with the sum."""
    body = block.body
    parts = [(f"body.{i.name}", i.layer) for i in body.links] if isinstance(body, Chain) else [("body", body)]
    if not (parts and _single(parts[-1][1])):
        return block
    around = [] if block.shortcut is None else [("shortcut", block.shortcut)]
    *links, last = (Link(name, layer, *_keys(name, paths)) for name, layer in parts)
    shortcut = (Link(name, layer, *_keys(name, paths)) for name, layer in around)
    return ConvSumReLU(Chain(tuple(links)), last, Chain(tuple(shortcut)))


class Fold(NamedTuple):
    """A convolution that takes in the batch normalisation behind it: the paths of both."""

    conv: str
    norm: str
    epsilon: float


def folds(model: Layer, prefix: str = "") -> Iterator[Fold]:
    """What becomes one for prediction."""
    if type(model) is Sequential:
        layers = dict(_flat(model))
        for name, after in _norms(list(layers.items())):
            norm = layers[after]
            assert isinstance(norm, BatchNorm)
            yield Fold(prefix + name, prefix + after, norm.epsilon)
    elif type(model) in (Residual, Parallel):
        assert isinstance(model, Residual | Parallel)
        layers = dict(model.parts())
    else:
        return
    for name, layer in layers.items():
        yield from folds(layer, f"{prefix}{name}.")


def folded(together: Iterable[Fold], weights: Arrays, stats: Arrays) -> dict[str, Array]:
    """The weights with which convolutions do what their normalisations did.

    `scale·(W·x + b - mean) + shift` is a convolution, too; see Jacob et al., 2018 (arXiv:1712.05877), section 3.2.
    """
    made = dict(weights)
    for conv, norm, epsilon in together:
        weight, mean, var = made[f"{conv}.weight"], stats[f"{norm}.running_mean"], stats[f"{norm}.running_var"]
        xp = namespace("batch_norm", weight=weight, var=var)
        slope, shift = made.pop(f"{norm}.weight") / xp.sqrt(var + epsilon), made.pop(f"{norm}.bias")
        bias = made[f"{conv}.bias"] - mean if f"{conv}.bias" in made else -mean
        made[f"{conv}.weight"] = weight * xp.reshape(slope, (-1, *(1 for _ in weight.shape[1:])))
        made[f"{conv}.bias"] = shift + bias * slope
    return made


def _norms(layers: list[tuple[str, Layer]]) -> Iterator[tuple[str, str]]:
    """Which convolution has a batch normalisation right after it, and which."""
    for (name, layer), (after, norm) in pairwise(layers):
        if type(layer) in CONVS and type(norm) is BatchNorm:
            yield name, after


def _flat(model: Sequential, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    for name, layer in model.parts():
        if type(layer) is Sequential:
            yield from _flat(layer, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def _joined(layers: list[tuple[str, Layer]]) -> Iterator[tuple[str, Layer]]:
    """`conv → [relu] → max_pool`, `conv → max_pool → relu`, `conv → relu or tanh → avg_pool`, `conv → relu`,
    `norm → relu` and `residual → relu` as one.

    It has the name of the first.
    """
    while layers:
        (name, first), *layers = layers
        after = [layer for _, layer in layers[:2]]
        kinds = [type(layer) for layer in after]
        between = [kind for kind in kinds[:1] if kind in AVERAGED]  # convolution and pool
        pool = after[len(between)] if len(between) < len(after) else None
        if _single(first) and between != [Tanh] and _tiles(pool, MAXIMA):
            relu = ReLU in kinds
            first, layers = ConvPool(first, pool, relu), layers[1 + relu :]
        elif _single(first) and between and _tiles(pool, MEANS):
            first, layers = ConvAvgPool(first, after[0], pool), layers[2:]
        elif kinds[:1] == [ReLU] and _single(first):
            first, layers = ConvReLU(first), layers[1:]
        elif kinds[:1] == [ReLU] and type(first) is BatchNorm:
            first, layers = NormReLU(first.momentum, first.epsilon), layers[1:]
        elif kinds[:1] == [ReLU] and type(first) is Residual:
            first, layers = SumReLU(first.body, first.shortcut), layers[1:]
        yield name, first


def _single(layer: Layer) -> TypeGuard[Conv]:
    """Whether this is a convolution that is not one of several groups."""
    return isinstance(layer, Conv) and type(layer) in CONVS and layer.groups == 1


def _tiles(layer: Layer | None, kinds: tuple[type[P], ...]) -> TypeGuard[P]:
    """Whether this is such a pool, whose windows lie side by side, without padding."""
    if not isinstance(layer, MaxPool) or type(layer) not in kinds:
        return False
    window = each("pool", "window", layer.window, layer.spatial)
    stride = window if layer.stride is None else each("pool", "stride", layer.stride, layer.spatial)
    return window == stride and layer.padding in ("valid", 0) and layer.dilation == 1 and not layer.ceil_mode


def _keys(name: str, paths: Paths) -> tuple[Keys, Keys, Keys]:
    return tuple(tuple((p[len(name) + 1 :], p) for p in kind if p.startswith(f"{name}.")) for kind in paths)  # type: ignore[return-value]


def _under(name: str, paths: Paths) -> Paths:
    return tuple([k for k, _ in keys] for keys in _keys(name, paths))  # type: ignore[return-value]
