"""Where a model's arrays lie in PyTorch, whose layout the files have.

Convolution kernels have channels first there. What follows a Flatten is permuted:

**The order of flat features.** Flatten gives the features of an (H, W, C) sample in the order H,W,C; PyTorch's
gives C,H,W. The file holds what follows in PyTorch's order:

- a dense layer has its columns permuted; what it makes is in an order of its own, so none remains after it;
- activations, Dropout, BatchNorm and LayerNorm hand the order on; the arrays of the latter two are permuted;
- a Reshape of flat features to (H, W, C) is PyTorch's Unflatten to (C, H, W): the *rows* of the dense layer that
  makes the features, its bias and the norms in between are permuted;
- what Residual adds is in one order: a dense layer that ends its body takes that of the shortcut;
- after Parallel the branches' features follow each other, each in its branch's order;
- after global pooling there is nothing to permute.

In a few models no order serves PyTorch's own modules; `differences` names the layers. GroupNorm of several
groups over features that are not in our order has other groups there; its arrays go with their features. A
Reshape of features in another order than its target's, or from (H, W, C) to another such shape, is
`x.movedim(1, -1).reshape(N, H, W, C).movedim(-1, 1)` there; what follows is stored as for any (H, W, C).
A dense layer or a LayerNorm over the channels of (H, W, C) has the same arrays there, but acts on the last axis.

The arrays of a custom layer are stored as they are. If it has none and keeps the shape, it is taken for a
function of each element; what any other makes is taken to be in our order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpnn.layers.base import Layer, Shape
from xpnn.layers.containers import Container, Parallel, Residual, Sequential
from xpnn.layers.conv import Conv
from xpnn.layers.dense import Dense, Reshape
from xpnn.layers.norm import BatchNorm, GroupNorm, LayerNorm
from xpnn.random import Stream


@dataclass(eq=False)
class _Order:
    """The order of flat features in PyTorch.

    It is what Flatten makes of a sample of shape `shape`, or a sequence of orders, or that of another; a dense
    layer leaves it open (None), to be closed by what needs its features in a certain order.
    """

    size: int
    shape: Shape | None = None
    others: Sequence[_Order] | None = None

    @property
    def open(self) -> bool:
        """Whether any order will do."""
        return self.shape is None and self.others is None

    def root(self) -> _Order:
        """The order that this one is equal to."""
        return self.others[0].root() if self.others and len(self.others) == 1 else self

    def meet(self, other: _Order) -> None:
        """Make two orders equal where one of them is open."""
        mine, its = self.root(), other.root()
        if mine is its:
            return
        if mine.open:
            mine.others = (its,)
        elif its.open:
            its.others = (mine,)

    def places(self) -> NDArray[np.intp]:
        """For each place in PyTorch's order the place in ours."""
        if self.others:
            starts = np.cumsum([0, *(o.size for o in self.others)])
            return np.concatenate([start + o.places() for start, o in zip(starts, self.others, strict=False)])
        ours = np.arange(self.size)
        return ours if self.shape is None else np.moveaxis(ours.reshape(self.shape), -1, 0).reshape(-1)


@dataclass(frozen=True)
class Place:
    """How an array of ours, of shape `shape`, lies in PyTorch: axis 1 is our last one, then axes are permuted."""

    shape: Shape
    channels_first: bool = False
    orders: Mapping[int, _Order] = field(default_factory=dict)

    @property
    def torch_shape(self) -> Shape:
        """The shape in PyTorch."""
        return (self.shape[0], self.shape[-1], *self.shape[1:-1]) if self.channels_first else self.shape

    def to_torch(self, a: NDArray[Any]) -> NDArray[Any]:
        """The array as PyTorch has it."""
        if self.channels_first:
            a = np.moveaxis(a, -1, 1)
        for axis, order in self.orders.items():
            a = np.take(a, order.places(), axis=axis)
        return a

    def from_torch(self, a: NDArray[Any]) -> NDArray[Any]:
        """The array as we have it."""
        for axis, order in self.orders.items():
            a = np.take(a, np.argsort(order.places()), axis=axis)
        return np.moveaxis(a, 1, -1) if self.channels_first else a


@dataclass
class Places:
    """Where all arrays of a model lie; `counters` are the names that PyTorch has beyond ours.

    `doubts` say, once all orders are closed, where PyTorch's own modules differ.
    """

    weights: dict[str, Place] = field(default_factory=dict)
    stats: dict[str, Place] = field(default_factory=dict)
    counters: list[str] = field(default_factory=list)
    doubts: list[tuple[Callable[[], bool], str]] = field(default_factory=list)

    @property
    def all(self) -> dict[str, Place]:
        """Weights and statistics."""
        return self.weights | self.stats

    def add(self, layer: Layer, path: str, in_shape: Shape, order: _Order | None) -> _Order | None:
        """Place the arrays of a layer fed with features in `order` (None: not flat); the order of its output."""
        if isinstance(layer, Container):
            return self._add_parts(layer, path, in_shape, order)
        weights, stats = layer.init(in_shape, _Zeros(0, "shapes"))
        out_shape = layer.shape(in_shape)
        out, first, orders = self._orders(layer, path, in_shape, out_shape, order, bool(weights or stats))
        for arrays, places in ((weights, self.weights), (stats, self.stats)):
            for name, a in arrays.items():
                shape = tuple(a.shape)
                known = name in ("weight", "bias", "running_mean", "running_var")
                places[_join(path, name)] = Place(
                    shape,
                    first and name == "weight",
                    {axis: o for axis, o in orders.items() if known and axis < len(shape) and o.size == shape[axis]},
                )
        if isinstance(layer, BatchNorm):
            self.counters.append(_join(path, "num_batches_tracked"))
        return out

    def _add_parts(self, layer: Container, path: str, in_shape: Shape, order: _Order | None) -> _Order | None:
        orders = []
        for name, part, shape in layer.placed(in_shape):
            if not isinstance(layer, Sequential | Residual | Parallel):  # who knows what it feeds its parts with
                order = _flat(shape)
            orders.append(self.add(part, _join(path, name), shape, order))
            if isinstance(layer, Sequential):
                order = orders[-1]
        if isinstance(layer, Sequential):
            return order
        if isinstance(layer, Residual):
            body, short = orders[0], orders[1] if len(orders) == 2 else order
            if body and short:
                body.meet(short)
                self._doubt(path, layer, body, short, "adds features that are in two orders there")
            return body
        if isinstance(layer, Parallel) and all(orders):
            flat = [o for o in orders if o]
            return _Order(sum(o.size for o in flat), others=flat)
        return _flat(layer.shape(in_shape))

    def _orders(
        self, layer: Layer, path: str, in_shape: Shape, out_shape: Shape, order: _Order | None, arrays: bool
    ) -> tuple[_Order | None, bool, dict[int, _Order]]:
        """The order of a layer's output, whether its weight has channels first, the orders of its arrays' axes."""
        if isinstance(layer, Conv):
            return None, True, {}
        if isinstance(layer, Reshape):
            return self._reshaped(layer, path, in_shape, out_shape, order), False, {}
        if order is None:
            return _flat(out_shape), False, {}
        if isinstance(layer, Dense):
            made = _Order(out_shape[0])
            return made, False, {0: made, 1: order}
        if isinstance(layer, GroupNorm) and layer.groups > 1:
            groups, ours = layer.groups, _Order(order.size, in_shape)
            order.meet(ours)
            placed = order
            self.doubts.append((lambda: _regrouped(placed, groups), f"{_named(path, layer)} has other groups there"))
        if isinstance(layer, BatchNorm | LayerNorm | GroupNorm):
            return order, False, {0: order}
        if out_shape == in_shape and not arrays:  # activations, Dropout, a custom function of each element
            return order, False, {}
        order.meet(_Order(order.size, in_shape))
        return _flat(out_shape), False, {}

    def _reshaped(
        self, layer: Reshape, path: str, in_shape: Shape, out_shape: Shape, order: _Order | None
    ) -> _Order | None:
        came = order or _Order(prod(in_shape), in_shape)
        if len(out_shape) == 1:
            return came
        needed = _Order(prod(out_shape), out_shape)
        came.meet(needed)
        self._doubt(path, layer, came, needed, "moves values between places and channels in another way there")
        return None

    def _doubt(self, path: str, layer: Layer, a: _Order, b: _Order, text: str) -> None:
        self.doubts.append((lambda: not np.array_equal(a.places(), b.places()), f"{_named(path, layer)} {text}"))


class _Zeros(Stream):
    """A stream of nothing, for the shapes of the initial weights at no cost."""

    def child(self, name: str) -> Stream:
        return self

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        return np.broadcast_to(np.zeros(()), shape)

    def normal(self, shape: tuple[int, ...], deviation: float = 1.0) -> NDArray[np.float64]:
        return np.broadcast_to(np.zeros(()), shape)


def place_arrays(model: Layer, in_shape: Shape) -> Places:
    """Where the arrays of a model fed with samples of shape `in_shape` lie in PyTorch."""
    places = Places()
    places.add(model, "", tuple(in_shape), _flat(in_shape))
    return places


def differences(model: Layer, in_shape: Shape) -> list[str]:
    """Where PyTorch's own modules, given the file's arrays, would compute something else: a sentence for each layer.

    Empty for most models; see the head of this module. Custom layers are not judged.
    """
    return [text for differs, text in place_arrays(model, in_shape).doubts if differs()]


def _flat(shape: Shape) -> _Order | None:
    """Flat features in our order; None for a shape of several axes."""
    return _Order(shape[0], shape) if len(shape) == 1 else None


def _regrouped(order: _Order, groups: int) -> bool:
    """Whether a group of features in PyTorch's order is none in ours."""
    members = (order.places() // (order.size // groups)).reshape(groups, -1)
    return bool((members != members[:, :1]).any())


def _named(path: str, layer: Layer) -> str:
    text = repr(layer).partition("(")[0] if isinstance(layer, Container) else repr(layer)
    return f"layer {path} ({text})" if path else text


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
