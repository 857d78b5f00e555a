"""What a layer is.

A layer is a description: it holds hyper-parameters, never an array and never a size that follows from its
input. Weights and running statistics come in as flat dicts `{name: array}` and go out again, so the same
object runs on two backends side by side. A new layer is a frozen dataclass with these few methods:

    shape(in_shape) → out_shape                       sizes without N; raises ShapeError on what does not fit
    multiply_adds(in_shape) → int or None             the work of it, where the layer can say
    init(in_shape, stream) → weights, stats           host arrays
    draws(in_shape) → [Draw, …]                       the random masks a training step must hand in
    apply(weights, stats, x, run) → y, stats, backward
    backward(dy, *, input_gradient=True) → dx, dweights

`xpnn.layers.check_layer` holds one to this and its gradients to differences; where a step fails, a trainer names the
layer that breaks it, if one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from inspect import cleandoc
from math import inf, isfinite
from typing import Any, ClassVar, TypeVar

from xpnn.errors import ShapeError
from xpnn.ops import Ops
from xpnn.ops._array import Array
from xpnn.ops._window import Padding, Sizes, each, each_pad
from xpnn.plain import keep_plain
from xpnn.random import Stream

Shape = tuple[int, ...]
Arrays = Mapping[str, Array]
Backward = Callable[..., tuple[Array | None, dict[str, Array]]]
Applied = tuple[Array, dict[str, Array], Backward]


@dataclass(frozen=True)
class Draw:
    """A random mask that a layer asks for: bool, `shape` for each sample, true with `probability`."""

    path: str
    shape: Shape
    probability: float


@dataclass(frozen=True)
class Run:
    """What a layer needs beside its arrays: the bound ops, whether this is training, and its masks.

    `watch(path, layer, y)`, where given, is shown the output of each layer in turn.
    """

    ops: Ops
    training: bool = False
    draws: Arrays = field(default_factory=dict)
    path: str = ""
    watch: Callable[[str, Layer, Array], None] | None = None

    def child(self, name: str, draws: Arrays) -> Run:
        """The run as part `name` sees it."""
        return Run(self.ops, self.training, draws, f"{self.path}.{name}" if self.path else name, self.watch)


@dataclass(frozen=True, repr=False)
class Layer:
    """Base of all layers; `repr` is the code that makes it."""

    per_sample: ClassVar[bool] = False
    """Whether a sample's result is its own in training, and the layer has no statistics of its own."""

    @property
    def divisible(self) -> bool:
        """Whether parts of a batch may be computed side by side: what joins the samples goes through `ops.whole`."""
        return self.per_sample

    def __post_init__(self) -> None:
        keep_plain(self)  # lists, from JSON or from habit, become tuples: a description is immutable

    def shape(self, in_shape: Shape) -> Shape:
        """The shape of the output of one sample; default: that of the input."""
        return in_shape

    def multiply_adds(self, in_shape: Shape) -> int | None:
        """How many products are added up for one sample; None, the default: unknown.

        By the usual convention convolutions and dense layers count, padding included, biases not; pools,
        normalisations, activations and sums of branches are 0.
        """
        return None

    def init(self, in_shape: Shape, stream: Stream) -> tuple[dict[str, Any], dict[str, Any]]:
        """Initial weights and running statistics as host arrays; default: none."""
        return {}, {}

    def draws(self, in_shape: Shape) -> Sequence[Draw]:
        """The masks that a training step must hand in; default: none."""
        return ()

    def apply(self, weights: Arrays, stats: Arrays, x: Array, run: Run) -> Applied:
        """The output, the new statistics and `backward(dy, *, input_gradient=True) → dx, dweights`."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(weights, stats, x, run)")

    def __repr__(self) -> str:
        parts = []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.default is MISSING:
                parts.append(_code(value))
            elif value != f.default:
                parts.append(f"{f.name}={_code(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"


L = TypeVar("L", bound=Layer)


def own_name(cls: type[L]) -> type[L]:
    """A base under another name: its errors call it by that, and its docstring goes on with that of the base."""
    rest = cleandoc(cls.__base__.__doc__ or "").partition("\n\n")[2]
    cls.__doc__ = f"{cls.__doc__}\n\n{rest}".rstrip()
    return dataclass(frozen=True, repr=False)(cls)


def check_axes(layer: Layer, in_shape: Shape, spatial: int) -> None:
    """Check that a sample has `spatial` axes and channels."""
    if len(in_shape) == spatial + 1:
        return
    axes = ", ".join([*(("D", "H", "W")[-spatial:] if spatial > 1 else ("length",)), "C"])
    hint = ""
    if len(in_shape) == spatial:
        hint = "; add a channel axis: images[..., None]"
    elif len(in_shape) == 1:
        hint = "; spatial layers come before Flatten and Dense"
    raise ShapeError(f"expected samples of shape ({axes}), came {in_shape}{hint}")


def positive(layer: Layer, **values: Any) -> None:
    """Check hyper-parameters that count something."""
    for name, value in values.items():
        entries = value if isinstance(value, tuple) else (value,)
        if not entries or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in entries):
            raise ShapeError(f"{type(layer).__name__}: {name}={value!r}; expected a positive integer")


def check_window(layer: Layer, spatial: int, padding: Padding, **sizes: Sizes) -> None:
    """Check sizes and steps of a window and its padding: one for all spatial axes, or one for each."""
    positive(layer, **sizes)
    name = type(layer).__name__
    for key, value in sizes.items():
        each(name, key, value, spatial)
    one = (1,) * spatial
    each_pad(name, padding, one, one, one, one)


def number(layer: Layer, least: float = 0.0, most: float = inf, **values: Any) -> None:
    """Check hyper-parameters that are finite numbers from `least` to `most`."""
    for name, value in values.items():
        finite = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        if not finite or not least <= value <= most:
            limit = "" if least == -inf else f" ≥ {least:g}" if most == inf else f" from {least:g} to {most:g}"
            raise ShapeError(f"{type(layer).__name__}: {name}={value!r}; expected a number{limit}")


def _code(value: Any) -> str:
    """`repr`, with tuples of layers as lists, over several lines where one would be long."""
    if isinstance(value, tuple) and value and all(isinstance(v, Layer) for v in value):
        line = f"[{', '.join(map(repr, value))}]"
        if len(line) <= 80:
            return line
        inner = "\n".join("    " + row for v in value for row in f"{v!r},".splitlines())
        return f"[\n{inner}\n]"
    return repr(value)
