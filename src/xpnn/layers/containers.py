"""Layers made of layers: one after the other, around a shortcut, side by side.

The arrays of a part lie under its path: `0.weight`, `3.body.0.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xpnn.errors import ShapeError
from xpnn.layers.base import Applied, Arrays, Backward, Draw, Layer, Run, Shape
from xpnn.ops._array import Array, namespace
from xpnn.random import Stream


class Container(Layer):
    """A layer made of named parts; a subclass says which, what each is fed with, and how they combine."""

    def parts(self) -> list[tuple[str, Layer]]:
        """The parts with the names that their arrays carry."""
        raise NotImplementedError

    def placed(self, in_shape: Shape) -> Iterator[tuple[str, Layer, Shape]]:
        """The parts with the shape of what each is fed: here all of them with the input."""
        for name, layer in self.parts():
            yield name, layer, in_shape

    def walk(self, in_shape: Shape, path: str = "") -> Iterator[tuple[str, Layer, Shape]]:
        """All layers inside, with path and input shape, in the order of their use; containers are opened."""
        for name, layer, shape in self.placed(in_shape):
            full = f"{path}.{name}" if path else name
            if isinstance(layer, Container):
                yield from layer.walk(shape, full)
            else:
                yield full, layer, shape

    @property
    def per_sample(self) -> bool:  # type: ignore[override]
        """Whether it holds for every part."""
        return all(layer.per_sample for _, layer in self.parts())

    @property
    def divisible(self) -> bool:
        """Whether it holds for every part."""
        return all(layer.divisible for _, layer in self.parts())

    def multiply_adds(self, in_shape: Shape) -> int | None:
        """Those of the parts; unknown where one of them is."""
        counts = [layer.multiply_adds(shape) for _, layer, shape in self.placed(in_shape)]
        return None if None in counts else sum(counts)  # type: ignore[arg-type]

    def init(self, in_shape: Shape, stream: Stream) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those of the parts, under their paths."""
        self.shape(in_shape)  # an error from here leads all the way down to the layer
        weights: dict[str, Any] = {}
        stats: dict[str, Any] = {}
        for name, layer, shape in self.placed(in_shape):
            w, s = layer.init(shape, stream.child(name))
            weights |= prefixed(name, w)
            stats |= prefixed(name, s)
        return weights, stats

    def draws(self, in_shape: Shape) -> Sequence[Draw]:
        """Those of the parts, under their paths."""
        return [
            Draw(f"{name}.{d.path}", d.shape, d.probability)
            for name, layer, shape in self.placed(in_shape)
            for d in layer.draws(shape)
        ]

    def _appliers(self, weights: Arrays, stats: Arrays, run: Run) -> list[Callable[[Array], Applied]]:
        """For each part a function of its input, which names the part in errors and shows what it made."""
        w, s, d = _split(weights), _split(stats), _split(run.draws)

        def applier(name: str, layer: Layer) -> Callable[[Array], Applied]:
            inner = run.child(name, d.get(name, {}))

            def apply(x: Array) -> Applied:
                try:
                    y, new, backward = layer.apply(w.get(name, {}), s.get(name, {}), x, inner)
                except ShapeError as e:
                    raise e.within(named(name, layer)) from None
                if run.watch and not isinstance(layer, Container):
                    run.watch(inner.path, layer, y)
                return y, prefixed(name, new), backward

            return apply

        return [applier(name, layer) for name, layer in self.parts()]


@dataclass(frozen=True, repr=False, init=False)
class Sequential(Container):
    """Layers one after the other, each fed with the output of the one before.

    Args:
        layers: a list of layers.
    """

    layers: Sequence[Layer]

    def __init__(self, layers: Sequence[Layer], *more: Layer) -> None:
        if more:
            raise TypeError(f"Sequential takes a list of layers, Sequential([…]); came {1 + len(more)} arguments")
        object.__setattr__(self, "layers", layers)
        super().__post_init__()
        if not isinstance(self.layers, tuple):
            raise TypeError(f"Sequential takes a list of layers; came {self.layers!r}")
        _check_layers("Sequential takes a list of layers", self.layers)

    def parts(self) -> list[tuple[str, Layer]]:
        """`0`, `1`, …"""
        return [(str(i), layer) for i, layer in enumerate(self.layers)]

    def placed(self, in_shape: Shape) -> Iterator[tuple[str, Layer, Shape]]:
        """Each part is fed with the output of the one before."""
        for name, layer in self.parts():
            yield name, layer, in_shape
            in_shape = _shape(name, layer, in_shape)

    def shape(self, in_shape: Shape) -> Shape:
        """That of the last layer."""
        for name, layer in self.parts():
            in_shape = _shape(name, layer, in_shape)
        return in_shape

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """One layer after the other; backward goes no further back than the first layer with weights."""
        new: dict[str, Array] = {}
        chain: list[Backward] = []
        for apply in self._appliers(weights, stats, run):
            x, s, part_backward = apply(x)
            new |= s
            chain.append(part_backward)
        trained = {name.partition(".")[0] for name in weights}
        first = min(map(int, trained), default=len(chain))

        def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
            gradients: dict[str, Array] = {}
            for i in range(len(chain) - 1, (-1 if input_gradient else first - 1), -1):
                dy, dweights = chain[i](dy, input_gradient=input_gradient or i > first)
                gradients |= prefixed(str(i), dweights)
            return (dy if input_gradient else None), gradients

        return x, new, backward


@dataclass(frozen=True, repr=False)
class Residual(Container):
    """`y = body(x) + shortcut(x)` (He et al., 2016); no activation follows.

    Args:
        body: a layer, most often a `Sequential`.
        shortcut: a layer that brings `x` to the shape of the body's output; None: `x` itself.
    """

    body: Layer
    shortcut: Layer | None = None

    relu: ClassVar[bool] = False  # a layer of its own follows, unless lowering joins the two

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_layers("Residual takes a layer, or Sequential([…])", [layer for _, layer in self.parts()])

    def parts(self) -> list[tuple[str, Layer]]:
        """`body` and, where there is one, `shortcut`."""
        return [("body", self.body)] + ([] if self.shortcut is None else [("shortcut", self.shortcut)])

    def shape(self, in_shape: Shape) -> Shape:
        """That of the body, which the shortcut must share."""
        body, *short = [_shape(name, layer, in_shape) for name, layer in self.parts()] + [in_shape]
        self._check_sum(in_shape, body, short[0])
        return body

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """Both ways, then their sum."""
        results = [apply(x) for apply in self._appliers(weights, stats, run)]
        body, *short = [r[0] for r in results] + [x]
        self._check_sum(*(tuple(a.shape[1:]) for a in (x, body, short[0])))
        new = {k: v for _, s, _ in results for k, v in s.items()}
        names, backwards = [name for name, _ in self.parts()], [r[2] for r in results]
        y, sum_backward = run.ops.add(body, short[0], relu=self.relu)

        def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
            _, d = sum_backward(dy, input_gradient=False)  # both are the same
            dxs, gradients = _all_back(backwards, names, [d] * len(names), input_gradient)
            if not input_gradient:
                return None, gradients
            return run.ops.add(dxs[0], d if self.shortcut is None else dxs[1])[0], gradients

        return y, new, backward

    def _check_sum(self, in_shape: Shape, body: Shape, short: Shape) -> None:
        if body != short:
            raise ShapeError(
                f"the body makes {body} of {in_shape}, but the shortcut {short}: they cannot be added; "
                + self._advice(in_shape, body)
            )

    def _advice(self, in_shape: Shape, body: Shape) -> str:
        """A shortcut follows strides and channels; what kernels cut off at the edges is a matter of padding."""
        if len(body) != len(in_shape):
            return "let the body keep the axes of its input"
        (*n, c), (*out, channels) = in_shape, body
        inside = (layer for _, layer, _ in Sequential([self.body]).walk(in_shape))
        strides = (getattr(layer, "stride", 1) or getattr(layer, "window", 1) for layer in inside)
        strided = n != out and any(np.max(stride) > 1 for stride in strides)
        steps = tuple(-(-a // b) if strided else 1 for a, b in zip(n, out, strict=True))
        if [-(-a // step) for a, step in zip(n, steps, strict=True)] != out:
            also = ", and a shortcut of the same strides and channels" if strided or c != channels else ""
            return f"give the body padding='same', so that strides alone change its sizes{also}"
        if not strided and c == channels:
            return "leave the shortcut out"
        stride = f", stride={steps[0] if len(set(steps)) == 1 else steps}" if strided else ""
        made = f"Conv{len(n)}D({channels}, 1{stride})" if n else f"Dense({channels})"
        return f"give a shortcut that makes the same of it, e.g. shortcut={made}"


@dataclass(frozen=True, repr=False, init=False)
class Parallel(Container):
    """Several layers fed with the same input, their outputs side by side on the channels (Szegedy et al., 2015).

    Args:
        branches: the layers.
    """

    branches: tuple[Layer, ...]

    def __init__(self, *branches: Layer) -> None:
        object.__setattr__(self, "branches", branches)
        if not branches:
            raise TypeError("Parallel takes one or more layers; came none")
        _check_layers("Parallel takes layers, each as an argument of its own", branches)

    def __repr__(self) -> str:
        return f"Parallel({', '.join(map(repr, self.branches))})"

    def parts(self) -> list[tuple[str, Layer]]:
        """`0`, `1`, …, as in a `torch.nn.ModuleList`."""
        return [(str(i), layer) for i, layer in enumerate(self.branches)]

    def shape(self, in_shape: Shape) -> Shape:
        """The branches' channels added up; all other sizes must agree."""
        shapes = [_shape(name, layer, in_shape) for name, layer in self.parts()]
        self._check_sizes(in_shape, shapes)
        return (*shapes[0][:-1], sum(s[-1] for s in shapes))

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """All branches, then their outputs side by side."""
        results = [apply(x) for apply in self._appliers(weights, stats, run)]
        self._check_sizes(tuple(x.shape[1:]), [tuple(r[0].shape[1:]) for r in results])
        xp = namespace("parallel", x=x)
        widths = [r[0].shape[-1] for r in results]
        new = {k: v for _, s, _ in results for k, v in s.items()}
        names, backwards = [name for name, _ in self.parts()], [r[2] for r in results]

        def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, dict[str, Array]]:
            starts = [sum(widths[:i]) for i in range(len(widths))]
            dys = [dy[..., a : a + n] for a, n in zip(starts, widths, strict=True)]
            dxs, gradients = _all_back(backwards, names, dys, input_gradient)
            if not input_gradient:
                return None, gradients
            dx = dxs[0]
            for other in dxs[1:]:
                dx = dx + other
            return dx, gradients

        return xp.concat([r[0] for r in results], axis=-1), new, backward

    def _check_sizes(self, in_shape: Shape, shapes: list[Shape]) -> None:
        if len({s[:-1] for s in shapes}) > 1:
            raise ShapeError(
                f"the branches make {', '.join(map(str, shapes))} of {in_shape}: all sizes but the channels must agree"
            )


def prefixed(name: str, arrays: Arrays) -> dict[str, Array]:
    """The arrays under the path of the part that they belong to."""
    return {f"{name}.{key}": value for key, value in arrays.items()}


def _check_layers(expected: str, layers: Sequence[Any]) -> None:
    for layer in layers:
        if not isinstance(layer, Layer):
            hint = f" (call it: {layer.__name__}(…))" if isinstance(layer, type) else ""
            raise TypeError(f"{expected}; came {layer!r}{hint}")


def _split(arrays: Arrays) -> dict[str, dict[str, Array]]:
    """The arrays of each part, without its name."""
    parts: dict[str, dict[str, Array]] = {}
    for path, array in arrays.items():
        name, _, rest = path.partition(".")
        parts.setdefault(name, {})[rest] = array
    return parts


def _all_back(
    backwards: list[Backward], names: list[str], dys: list[Array], input_gradient: bool
) -> tuple[list[Array], dict[str, Array]]:
    dxs: list[Array] = []
    gradients: dict[str, Array] = {}
    for name, backward, dy in zip(names, backwards, dys, strict=True):
        dx, dweights = backward(dy, input_gradient=input_gradient)
        dxs.append(dx)
        gradients |= prefixed(name, dweights)
    return dxs, gradients


def _shape(name: str, layer: Layer, in_shape: Shape) -> Shape:
    try:
        return layer.shape(in_shape)
    except ShapeError as e:
        raise e.within(named(name, layer)) from None


def named(name: str, layer: Layer) -> str:
    """How a message calls a part."""
    return f"layer {name}" if isinstance(layer, Container) else f"layer {name} ({layer!r})"
