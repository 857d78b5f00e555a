"""The registry of cases: what every op and every layer is tried on, on every backend.

A case is one call: an op or a layer, the shapes of its arrays, its options. The rows are `OPS` and `LAYERS`
below; a new op or layer gets its rows there, and the tests, `xpnn parity` and the conformance tests of a
stranger's backend then run it: nothing else has to be written. `missing()` names what has no row.

The numbers of a case are keyed normals (`xpnn.random`), rounded to float32, so that runs in float32 and float64
start from the same values. They hold no zero and no tie, where a derivative would jump; rows that want ties
ask for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from xpnn import layers as L
from xpnn.ops import Ops
from xpnn.ops import names as op_names
from xpnn.ops._array import Array
from xpnn.random import Stream

Host = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Gradients = tuple[Array | None, ...]
Call = Callable[[Ops, dict[str, Array | None]], tuple[dict[str, Array], Callable[..., Gradients]]]

PARTS = ("matmul", "total", "im2col", "col2im")  # of ops: they return an array alone, without backward
LOSSES = ("softmax_cross_entropy", "nll", "mse", "huber", "binary_cross_entropy")  # return a 0-d sum
_LINEAR = ("matmul", "total", "col2im", "conv", "conv_transpose", "dense")
_EXACT = ("im2col", "relu", "max_pool", "global_max_pool", "ReLU", "MaxPool", "GlobalMaxPool", "Flatten", "Reshape")
_FROM_OUTPUT = ("elu", "sigmoid", "tanh", "ELU", "Sigmoid", "Tanh")
_BATCHED = ("x", "shortcut", "a", "b", "logits", "log_probabilities", "labels", "target", "keep")


@dataclass(frozen=True)
class Data:
    """One array of a case.

    Args:
        shape: its shape.
        fill: `normal`; `small` (normal / 8: weights with which nothing saturates); `large` (12 · normal, where
            functions saturate: numbers lost beside a 1 are then judged by the largest of their array); `shifted`
            (normal + 20); `negative`, `positive` (at least 0.5 away from 0); `unit` (uniform in [0, 1)); `ties` (-1, 0
            or 1); `mask` (bool, 70 % true); `labels`.
        classes, dtype: of `labels`.
    """

    shape: Shape
    fill: str = "normal"
    classes: int = 0
    dtype: str = "int32"

    def draw(self, stream: Stream) -> Host:
        """The values on the host: float64 that float32 can hold, or integers, or bool."""
        if self.fill == "normal":
            values = stream.normal(self.shape)
        elif self.fill == "small":
            values = stream.normal(self.shape) / 8
        elif self.fill == "large":
            values = 12 * stream.normal(self.shape)
        elif self.fill == "shifted":
            values = 20 + stream.normal(self.shape)
        elif self.fill == "negative":
            values = -0.5 - np.abs(stream.normal(self.shape))
        elif self.fill == "positive":
            values = 0.5 + np.abs(stream.normal(self.shape))
        elif self.fill == "unit":
            values = stream.uniform(self.shape)
        elif self.fill == "ties":
            values = np.floor(stream.uniform(self.shape, -1, 2))
        elif self.fill == "mask":
            return stream.uniform(self.shape) < 0.7
        elif self.fill == "labels":
            return stream.uniform(self.shape, 0, self.classes).astype(self.dtype)
        else:
            raise ValueError(f"Data: fill={self.fill!r}")
        return values.astype(np.float32).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Case:
    """One call of an op or a layer; `of_op` and `of_layer` make them."""

    name: str
    """Unique: `conv-strided`, `Conv2D-strided`."""
    subject: str
    """The name of the op, or of the layer's class."""
    data: dict[str, Data | None]
    """Its arrays by name, the input first; None where an optional one is left out."""
    call: Call
    """`call(ops, arrays) → outputs, backward`: outputs by name, `y` first; one gradient for each array."""
    batched: tuple[str, ...]
    """The arrays that have one entry for each sample on their first axis."""
    per_sample: bool
    """Whether each sample's result is its own."""
    exact: bool
    """Whether nothing is rounded: results are then compared by `==`."""
    linear: bool
    """Whether it is linear in each array by itself, as a convolution is: decides how its yardstick is found."""
    from_output: bool
    """Whether backward takes its slope from the output, so that the rounding of the output counts as well."""
    options: dict[str, Any]
    """Of the op."""
    layer: L.Layer | None = None
    """The layer, and whether it is trained, where this is not an op."""
    training: bool = False

    def arrays(self) -> dict[str, Host | None]:
        """The arrays on the host, floats as float64; read-only."""
        return {k: None if d is None else _read_only(d.draw(self._stream(k))) for k, d in self.data.items()}

    def dy(self, shape: Shape) -> Host:
        """What backward starts from; in exact cases whole numbers, whose sums are exact in any order."""
        dy = Data(shape).draw(self._stream("dy"))
        return _read_only(np.round(4 * dy) if self.exact else dy)

    @property
    def smooth(self) -> bool:
        """Whether it has a derivative at its data."""
        return all(d is None or d.fill != "ties" for d in self.data.values())

    def _stream(self, path: str) -> Stream:
        return Stream(0, "case", f"{self.name}/{path}")

    def __repr__(self) -> str:
        return self.name


def of_op(op: str, label: str, *arrays: Shape | Data | None, **options: Any) -> Case:
    """A case of an op: its arrays in their order (a shape stands for normal data), then its options."""
    parameters = list(inspect.signature(getattr(Ops, op)).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in options]
    data = {k: Data(a) if isinstance(a, tuple) else a for k, a in zip_longest(names, arrays)}

    def call(ops: Ops, arrays: dict[str, Array | None]) -> tuple[dict[str, Array], Callable[..., Gradients]]:
        result = getattr(ops, op)(*(arrays[k] for k in data), **options)
        if op in PARTS:
            return {"y": result}, lambda dy, **_: (None,) * len(data)
        y, backward = result
        if op == "batch_norm":
            return dict(zip(("y", "running_mean", "running_var"), y, strict=True)), backward
        return {"y": y}, backward

    return Case(
        f"{op}-{label}", op, data, call,
        batched=() if op in PARTS else tuple(k for k in data if k in _BATCHED),
        per_sample=op not in PARTS and not options.get("training"),
        exact=op in _EXACT, linear=op in _LINEAR, from_output=op in _FROM_OUTPUT, options=options,
    )  # fmt: skip


def of_layer(
    label: str, layer: L.Layer, in_shape: Shape, *, training: bool = False, samples: int = 3, fill: str = "normal"
) -> Case:
    """A case of a layer; its weights and statistics get keyed normals in the shapes that `init` gives them."""
    subject = type(layer).__name__
    init, statistics = layer.init(in_shape, Stream(0, "case"))
    weights = {k: Data(v.shape) for k, v in init.items()}
    stats = {k: Data(v.shape, "positive" if k.endswith("running_var") else "normal") for k, v in statistics.items()}
    draws = {d.path: Data((samples, *d.shape), "mask") for d in layer.draws(in_shape)} if training else {}
    data: dict[str, Data | None] = {"x": Data((samples, *in_shape), fill), **weights, **stats, **draws}

    def call(ops: Ops, arrays: dict[str, Array | None]) -> tuple[dict[str, Array], Callable[..., Gradients]]:
        w, s, d = ({k: arrays[k] for k in part} for part in (weights, stats, draws))
        y, new, layer_backward = layer.apply(w, s, arrays["x"], L.Run(ops, training, d))

        def backward(dy: Array, *, input_gradient: bool = True) -> Gradients:
            dx, dweights = layer_backward(dy, input_gradient=input_gradient)
            if set(dweights) != set(weights):
                raise AssertionError(f"{subject}: gradients of {sorted(dweights)} for weights {sorted(weights)}")
            return dx, *(dweights.get(k) for k in list(data)[1:])

        return {"y": y} | new, backward

    return Case(
        f"{subject}-{label}", subject, data, call,
        batched=("x", *draws), per_sample=layer.per_sample or not training,
        exact=subject.rstrip("123D") in _EXACT, linear=subject.startswith(("Conv", "Dense")),
        from_output=subject in _FROM_OUTPUT, options={}, layer=layer, training=training,
    )  # fmt: skip


def missing() -> list[str]:
    """The ops and the registered layers without a case."""
    covered = {case.subject for case in (*OPS, *LAYERS)}
    return [name for name in (*op_names(), *L.REGISTRY) if name not in covered]


def _read_only(a: Host) -> Host:
    a.flags.writeable = False
    return a


def _small(*shape: int) -> Data:
    return Data(shape, "small")


def _labels(*shape: int, classes: int, dtype: str = "int32") -> Data:
    return Data(shape, "labels", classes, dtype)


OPS = [
    of_op("matmul", "plain", (3, 4), (4, 5)),
    of_op("matmul", "batched", (3, 2, 4), (3, 4, 5)),
    of_op("matmul", "one-batch", (1, 5, 4), (1, 4, 2)),
    of_op("matmul", "long", (2, 700), (700, 3)),
    of_op("total", "first", (5, 3), axis=0),
    of_op("total", "last", (2, 3, 5), axis=-1, keepdims=True),
    of_op("total", "all", (4, 5), axis=(0, 1)),
    of_op("total", "blocks", (256, 2), axis=0),
    of_op("total", "blocks-and-rest", (3, 143, 2), axis=(1,), keepdims=True),
    of_op("total", "outer", (23, 2, 31), axis=(0, 2)),
    of_op("total", "long", (20000, 2), axis=0),
    of_op("im2col", "plain", (2, 5, 4, 3), kernel=(2, 3)),
    of_op("im2col", "1d", (2, 7, 3), kernel=3, stride=2),
    of_op("im2col", "3d", (2, 4, 3, 4, 2), kernel=2, dilation=(2, 1, 1)),
    of_op("im2col", "mixed", (2, 9, 8, 2), kernel=(2, 3), stride=(3, 1), dilation=(2, 3)),
    of_op("im2col", "one-channel", (3, 6, 6, 1), kernel=3),
    of_op("im2col", "rest", (1, 6, 7, 4), kernel=(1, 2), stride=3),
    of_op("im2col", "padded", (2, 5, 4, 3), kernel=(2, 3), stride=(1, 2), padding=((1, 0), (2, 3))),
    of_op("im2col", "padded-3d", (1, 3, 2, 4, 2), kernel=2, dilation=(2, 1, 1), padding=((1, 1), (0, 1), (0, 0))),
    of_op("col2im", "plain", (2, 4, 2, 18), spatial=(5, 4), kernel=(2, 3)),
    of_op("col2im", "1d", (2, 3, 9), spatial=(7,), kernel=3, stride=2),
    of_op("col2im", "3d", (2, 2, 2, 3, 16), spatial=(4, 3, 4), kernel=2, dilation=(2, 1, 1)),
    of_op("col2im", "mixed", (2, 3, 2, 12), spatial=(9, 8), kernel=(2, 3), stride=(3, 1), dilation=(2, 3)),
    of_op("col2im", "one-channel", (3, 4, 4, 9), spatial=(6, 6), kernel=3),
    of_op("col2im", "rest", (1, 2, 2, 8), spatial=(6, 7), kernel=(1, 2), stride=3),
    of_op("col2im", "padded", (2, 5, 4, 18), spatial=(5, 4), kernel=(2, 3), stride=(1, 2), padding=((1, 0), (2, 3))),
    of_op("col2im", "padded-1d", (2, 6, 8), spatial=(5,), kernel=4, padding=((2, 2),)),
    # conv: x (N, *spatial, C), weight (C_out, *kernel, C / groups), bias (C_out,)
    of_op("conv", "plain", (2, 5, 4, 3), (4, 2, 3, 3), (4,)),
    of_op("conv", "no-bias", (2, 4, 5, 2), (3, 3, 2, 2), None),
    of_op("conv", "ones", (1, 4, 3, 1), (1, 2, 2, 1), (1,)),
    of_op("conv", "pointwise", (2, 3, 2, 3), (5, 1, 1, 3), (5,)),
    of_op("conv", "whole-image", (2, 3, 2, 2), (3, 3, 2, 2), (3,)),
    of_op("conv", "many-places", (3, 15, 14, 2), (2, 2, 2, 2), (2,)),
    of_op("conv", "many-channels", (1, 4, 3, 18), (35, 2, 2, 18), (35,), padding=1),
    of_op("conv", "thirty-two-channels", (4, 18, 15, 32), (33, 3, 3, 32), (33,), padding=1),
    of_op("conv", "strided", (2, 6, 8, 2), (3, 2, 2, 2), (3,), stride=(2, 3)),
    of_op("conv", "stride-over-kernel", (2, 8, 7, 2), (3, 2, 1, 2), (3,), stride=3),
    of_op("conv", "dilated", (2, 7, 5, 2), (3, 2, 3, 2), None, dilation=(3, 1)),
    of_op("conv", "strided-dilated", (2, 7, 6, 2), (3, 2, 2, 2), (3,), stride=(2, 1), dilation=(1, 3), padding=1),
    of_op("conv", "padding", (2, 4, 3, 2), (3, 2, 3, 2), (3,), padding=1),
    of_op("conv", "padding-over-kernel", (2, 3, 2, 2), (2, 2, 1, 2), (2,), padding=3),
    of_op("conv", "padding-axes", (2, 4, 3, 2), (3, 2, 2, 2), (3,), padding=(0, 2)),
    of_op("conv", "padding-pairs", (2, 4, 3, 2), (3, 2, 2, 2), (3,), padding=((2, 0), (0, 1)), stride=2),
    of_op("conv", "fewer-channels", (2, 6, 5, 3), (2, 2, 3, 3), (2,), padding=((1, 0), (0, 4)), dilation=(3, 2)),
    of_op("conv", "same", (2, 4, 3, 2), (3, 2, 3, 2), (3,), padding="same"),
    of_op("conv", "same-strided", (2, 7, 5, 2), (3, 2, 3, 2), (3,), padding="same", stride=(3, 2)),
    of_op("conv", "same-dilated", (2, 5, 4, 2), (3, 2, 2, 2), (3,), padding="same", dilation=(3, 1)),
    of_op("conv", "groups", (2, 4, 3, 4), (6, 2, 2, 2), (6,), groups=2),
    of_op("conv", "groups-strided", (2, 5, 4, 6), (3, 2, 2, 2), (3,), groups=3, stride=2, padding=1),
    of_op("conv", "depthwise", (2, 4, 3, 3), (3, 2, 2, 1), (3,), groups=3),
    of_op("conv", "depthwise-multiplied", (2, 4, 3, 2), (6, 2, 2, 1), None, groups=2, padding="same"),
    of_op("conv", "1d", (2, 7, 3), (4, 3, 3), (4,), stride=2),
    of_op("conv", "1d-mixed", (2, 7, 2), (2, 3, 1), (2,), dilation=2, padding=(2,), groups=2),
    of_op("conv", "3d", (2, 3, 4, 3, 2), (3, 2, 1, 2, 2), (3,)),
    of_op("conv", "3d-mixed", (1, 3, 5, 4, 2), (2, 1, 2, 2, 1), (2,), stride=(1, 3, 2), padding=(1, 0, 1), groups=2),
    # conv_relu: the same, without groups, and a shortcut (N, *out, C_out)
    of_op("conv_relu", "plain", (2, 5, 4, 3), (4, 2, 3, 3), (4,)),
    of_op("conv_relu", "shortcut", (2, 5, 4, 3), (4, 2, 3, 3), (4,), (2, 4, 2, 4)),
    of_op("conv_relu", "no-bias", (2, 4, 5, 2), (3, 3, 2, 2), None, (2, 2, 4, 3)),
    of_op("conv_relu", "ones", (1, 4, 3, 1), (1, 2, 2, 1), (1,), (1, 3, 2, 1)),
    of_op("conv_relu", "pointwise", (2, 3, 2, 3), (5, 1, 1, 3), (5,), (2, 3, 2, 5)),
    of_op("conv_relu", "strided", (2, 6, 8, 2), (3, 2, 2, 2), (3,), (2, 3, 3, 3), stride=(2, 3)),
    of_op("conv_relu", "dilated", (2, 7, 5, 2), (3, 2, 3, 2), None, dilation=(3, 1)),
    of_op("conv_relu", "padding-pairs", (2, 4, 3, 2), (3, 2, 2, 2), (3,), padding=((2, 0), (0, 1)), stride=2),
    of_op("conv_relu", "same", (2, 7, 5, 2), (3, 2, 3, 2), (3,), (2, 7, 5, 3), padding="same"),
    of_op("conv_relu", "1d", (2, 7, 3), (4, 3, 3), (4,), (2, 3, 4), stride=2),
    of_op("conv_relu", "3d", (2, 3, 4, 3, 2), (3, 2, 1, 2, 2), (3,), (2, 2, 4, 2, 3)),
    # conv_pool: the same, without shortcut
    of_op("conv_pool", "plain", (2, 6, 5, 3), (4, 3, 2, 3), (4,), pool=2),
    of_op("conv_pool", "relu", (2, 6, 5, 2), (3, 3, 2, 2), (3,), pool=2, relu=True),
    of_op("conv_pool", "no-bias", (2, 5, 5, 4), (3, 2, 2, 4), None, pool=2, relu=True),
    of_op("conv_pool", "ones", (1, 4, 4, 1), (1, 1, 1, 1), (1,), pool=2),
    of_op("conv_pool", "one-channel", (3, 8, 7, 1), (5, 3, 3, 1), (5,), pool=2),
    of_op("conv_pool", "left-over", (2, 7, 6, 2), (3, 2, 2, 2), (3,), pool=(2, 3)),
    of_op("conv_pool", "uneven-window", (2, 5, 8, 2), (3, 2, 2, 2), (3,), pool=(1, 3)),
    of_op("conv_pool", "no-pool", (2, 4, 3, 2), (3, 2, 2, 2), (3,), pool=1),
    of_op("conv_pool", "same", (2, 4, 6, 2), (3, 3, 3, 2), (3,), pool=2, padding="same"),
    of_op("conv_pool", "same-left-over", (1, 4, 9, 2), (3, 3, 3, 2), (3,), pool=2, padding="same"),
    of_op("conv_pool", "padding-over-kernel", (2, 3, 2, 2), (2, 2, 1, 2), (2,), pool=2, padding=3),
    of_op("conv_pool", "padding-pairs", (2, 4, 4, 2), (3, 2, 2, 2), (3,), pool=2, padding=((2, 0), (0, 1))),
    of_op("conv_pool", "strided", (2, 8, 9, 2), (3, 2, 2, 2), (3,), pool=2, stride=(2, 1)),
    of_op("conv_pool", "dilated", (2, 7, 6, 2), (3, 2, 2, 2), (3,), pool=2, dilation=(2, 1), padding=1),
    of_op("conv_pool", "strided-dilated", (2, 8, 6, 3), (2, 2, 2, 3), (2,), pool=2, stride=2, dilation=2, padding=1),
    of_op("conv_pool", "1d", (2, 9, 3), (4, 3, 3), (4,), pool=3),
    of_op("conv_pool", "3d", (2, 4, 5, 3, 2), (3, 2, 2, 2, 2), (3,), pool=(2, 2, 1), relu=True),
    of_op("conv_pool", "ties", Data((2, 4, 6, 1), "ties"), Data((3, 1, 1, 1), "positive"), (3,), pool=2),
    of_op("conv_pool", "many-places", (3, 16, 15, 2), (2, 2, 2, 2), (2,), pool=2),
    of_op("conv_pool", "many-channels", (2, 5, 4, 3), (35, 2, 1, 3), (35,), pool=2),
    # conv_avg_pool: the same
    of_op("conv_avg_pool", "tanh", (2, 6, 5, 3), _small(4, 3, 2, 3), (4,), pool=2, activation="tanh"),
    of_op("conv_avg_pool", "relu", (2, 6, 5, 2), (3, 3, 2, 2), (3,), pool=2, activation="relu"),
    of_op("conv_avg_pool", "no-bias", (2, 5, 5, 4), _small(3, 2, 2, 4), None, pool=2, activation="tanh"),
    of_op("conv_avg_pool", "one-channel", (3, 8, 8, 1), _small(6, 5, 5, 1), (6,), pool=2, activation="tanh", padding=2),
    of_op("conv_avg_pool", "left-over", (2, 7, 6, 2), _small(3, 2, 2, 2), (3,), pool=(2, 3), activation="tanh"),
    of_op("conv_avg_pool", "uneven-window", (2, 5, 7, 2), (3, 2, 2, 2), (3,), pool=(1, 3), activation="relu"),
    of_op("conv_avg_pool", "tall-window", (2, 7, 3, 2), _small(3, 2, 2, 2), (3,), pool=(3, 1), activation="tanh"),
    of_op("conv_avg_pool", "no-pool", (2, 4, 3, 2), _small(3, 2, 2, 2), (3,), pool=1, activation="tanh"),
    of_op("conv_avg_pool", "same", (2, 4, 6, 2), _small(3, 3, 3, 2), (3,), pool=2, activation="tanh", padding="same"),
    of_op("conv_avg_pool", "strided", (2, 9, 5, 2), _small(3, 2, 2, 2), (3,), pool=2, activation="tanh", stride=(2, 1)),
    of_op("conv_avg_pool", "dilated", (2, 6, 5, 2), (3, 2, 2, 2), (3,), pool=2, activation="relu", dilation=(2, 1)),
    of_op("conv_avg_pool", "1d", (2, 8, 3), _small(4, 3, 3), (4,), pool=3, activation="tanh"),
    of_op("conv_avg_pool", "3d", (2, 5, 5, 3, 2), _small(3, 2, 2, 2, 2), (3,), pool=(1, 2, 2), activation="tanh"),
    of_op("conv_avg_pool", "deep-window", (2, 5, 3, 3, 2), (3, 2, 2, 2, 2), (3,), pool=2, activation="relu"),
    of_op("conv_avg_pool", "many-places", (3, 17, 15, 2), _small(2, 2, 2, 2), (2,), pool=2, activation="tanh"),
    of_op("conv_avg_pool", "many-channels", (2, 5, 4, 3), _small(35, 2, 1, 3), (35,), pool=2, activation="tanh"),
    # conv_transpose: x (N, *spatial, C), weight (C, *kernel, C_out / groups), bias (C_out,)
    of_op("conv_transpose", "room-for-windows", (1, 4, 2), (2, 2, 3), None, dilation=3, output_padding=2),
    of_op("conv_transpose", "plain", (2, 3, 4, 3), (3, 2, 3, 4), (4,)),
    of_op("conv_transpose", "no-bias", (2, 3, 2, 2), (2, 3, 2, 3), None),
    of_op("conv_transpose", "ones", (1, 2, 3, 1), (1, 2, 2, 1), (1,)),
    of_op("conv_transpose", "strided", (2, 3, 2, 2), (2, 3, 2, 3), (3,), stride=(2, 3)),
    of_op("conv_transpose", "output-padding", (2, 3, 2, 2), (2, 2, 3, 3), (3,), stride=(2, 3), output_padding=(1, 2)),
    of_op("conv_transpose", "dilated", (2, 3, 2, 2), (2, 2, 2, 3), (3,), dilation=(1, 3), stride=(2, 1)),
    of_op("conv_transpose", "padding", (2, 3, 4, 2), (2, 3, 2, 3), (3,), padding=1, stride=2),
    of_op("conv_transpose", "padding-pairs", (2, 3, 4, 2), (2, 3, 2, 3), (3,), padding=((2, 0), (0, 1))),
    of_op("conv_transpose", "same", (2, 3, 2, 2), (2, 3, 2, 3), (3,), padding="same"),
    of_op("conv_transpose", "same-strided", (2, 3, 2, 2), (2, 3, 2, 3), (3,), padding="same", stride=(2, 3)),
    of_op("conv_transpose", "groups", (2, 3, 2, 4), (4, 2, 2, 3), (6,), groups=2),
    of_op("conv_transpose", "depthwise", (2, 3, 2, 3), (3, 2, 2, 1), (3,), groups=3, stride=2),
    of_op("conv_transpose", "1d", (2, 4, 3), (3, 3, 2), (2,), stride=2, output_padding=1),
    of_op("conv_transpose", "3d", (1, 2, 2, 3, 2), (2, 1, 2, 2, 2), (2,), stride=(1, 2, 1)),
    of_op("dense", "plain", (3, 5), (4, 5), (4,)),
    of_op("dense", "no-bias", (2, 4), (3, 4), None),
    of_op("dense", "ones", (1, 1), (1, 1), (1,)),
    of_op("dense", "one-sample", (1, 7), (3, 7), (3,)),
    of_op("dense", "more-axes", (2, 3, 2, 5), (4, 5), (4,)),
    of_op("dense", "long", (150, 300), (2, 300), (2,)),
    # max_pool
    of_op("max_pool", "plain", (2, 4, 6, 3), window=2),
    of_op("max_pool", "left-over", (2, 5, 7, 2), window=(2, 3)),
    of_op("max_pool", "overlapping", (2, 5, 4, 2), window=(3, 2), stride=1),
    of_op("max_pool", "stride-over-window", (2, 7, 6, 2), window=2, stride=3),
    of_op("max_pool", "one-place", (1, 3, 4, 1), window=1, stride=2),
    of_op("max_pool", "whole-image", (2, 3, 4, 2), window=(3, 4)),
    of_op("max_pool", "dilated", (2, 6, 5, 2), window=2, stride=1, dilation=(3, 2)),
    of_op("max_pool", "padding", (2, 5, 4, 2), window=3, stride=2, padding=1),
    of_op("max_pool", "padding-negative", Data((2, 4, 4, 2), "negative"), window=2, stride=2, padding=1),
    of_op("max_pool", "padding-pairs", (2, 4, 5, 2), window=2, stride=2, padding=((0, 1), (1, 0))),
    of_op("max_pool", "padding-dilated", Data((2, 5, 5, 2), "negative"), window=3, stride=2, padding=2, dilation=2),
    of_op("max_pool", "same", (2, 5, 4, 2), window=(2, 3), stride=1, padding="same"),
    of_op("max_pool", "ceil", (2, 5, 6, 2), window=2, stride=(2, 3), ceil_mode=True),
    of_op("max_pool", "ceil-padding", (2, 4, 5, 2), window=2, stride=2, padding=1, ceil_mode=True),
    of_op("max_pool", "ties", Data((2, 4, 6, 2), "ties"), window=2),
    of_op("max_pool", "ties-overlapping", Data((2, 5, 5, 2), "ties"), window=3, stride=1, padding=1),
    of_op("max_pool", "1d", (2, 7, 3), window=3, stride=2),
    of_op("max_pool", "3d", (2, 3, 4, 3, 2), window=2, stride=(1, 2, 1)),
    # avg_pool
    of_op("avg_pool", "plain", (2, 4, 6, 3), window=2),
    of_op("avg_pool", "left-over", (2, 5, 7, 2), window=(2, 3)),
    of_op("avg_pool", "overlapping", (2, 5, 4, 2), window=(3, 2), stride=1),
    of_op("avg_pool", "stride-over-window", (1, 7, 6, 1), window=2, stride=3),
    of_op("avg_pool", "dilated", (2, 6, 5, 2), window=2, stride=1, dilation=(3, 2)),
    of_op("avg_pool", "padding", (2, 5, 4, 2), window=3, stride=2, padding=1),
    of_op("avg_pool", "padding-uncounted", (2, 5, 4, 2), window=3, stride=2, padding=1, count_include_pad=False),
    of_op("avg_pool", "padding-pairs", (2, 4, 5, 2), window=2, padding=((0, 1), (1, 0)), count_include_pad=False),
    of_op("avg_pool", "same", (2, 5, 4, 2), window=(2, 3), stride=2, padding="same"),
    of_op("avg_pool", "ceil", (2, 5, 6, 2), window=2, stride=(2, 3), ceil_mode=True),
    of_op("avg_pool", "ceil-padding", (2, 6, 4, 2), window=3, stride=2, padding=1, ceil_mode=True),
    of_op(
        "avg_pool", "ceil-padding-uncounted", (2, 6, 4, 2),
        window=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False,
    ),
    of_op("avg_pool", "1d", (2, 7, 3), window=3, stride=2),
    of_op("avg_pool", "3d", (2, 3, 4, 3, 2), window=2, stride=(1, 2, 1)),
    of_op("global_max_pool", "plain", (2, 3, 4, 2)),
    of_op("global_max_pool", "ones", Data((1, 1, 1, 1), "negative")),
    of_op("global_max_pool", "1d", (3, 5, 2)),
    of_op("global_max_pool", "3d", (2, 2, 3, 2, 2)),
    of_op("global_max_pool", "ties", Data((2, 3, 4, 2), "ties")),
    of_op("global_avg_pool", "plain", (2, 3, 4, 2)),
    of_op("global_avg_pool", "1d", (3, 5, 1)),
    of_op("global_avg_pool", "3d", (1, 2, 3, 2, 2)),
    of_op("global_avg_pool", "many-places", (2, 13, 11, 2)),
    # norms: x, scale, bias (and for batch_norm: running mean and variance)
    of_op("batch_norm", "training", (3, 2, 3, 2), (2,), (2,), (2,), Data((2,), "positive"), training=True),
    of_op("batch_norm", "training-dense", (6, 3), (3,), (3,), (3,), Data((3,), "positive"), training=True),
    of_op(
        "batch_norm", "training-one-sample", (1, 3, 2, 1), (1,), (1,), (1,), Data((1,), "positive"),
        training=True, momentum=0.3, epsilon=1e-2,
    ),
    of_op(
        "batch_norm", "training-shifted", Data((4, 2, 2, 2), "shifted"), (2,), (2,), (2,), Data((2,), "positive"),
        training=True,
    ),
    of_op("batch_norm", "training-many", (40, 4, 1), (1,), (1,), (1,), Data((1,), "positive"), training=True),
    of_op("batch_norm", "prediction", (2, 2, 3, 2), (2,), (2,), (2,), Data((2,), "positive"), training=False),
    of_op(
        "batch_norm", "prediction-dense", (1, 4), (4,), (4,), (4,), Data((4,), "positive"),
        training=False, epsilon=1e-2,
    ),
    of_op(
        "batch_norm", "training-relu", (5, 3, 2, 2), (2,), (2,), (2,), Data((2,), "positive"), training=True, relu=True
    ),
    of_op(
        "batch_norm", "prediction-relu", (4, 3, 3), (3,), (3,), (3,), Data((3,), "positive"), training=False, relu=True
    ),
    of_op("layer_norm", "plain", (3, 5), (5,), (5,)),
    of_op("layer_norm", "more-axes", (2, 2, 3, 4), (4,), (4,), epsilon=1e-2),
    of_op("layer_norm", "shifted", Data((1, 6), "shifted"), (6,), (6,)),
    of_op("layer_norm", "many-channels", (1, 140), (140,), (140,)),
    of_op("group_norm", "plain", (2, 3, 2, 4), (4,), (4,), groups=2),
    of_op("group_norm", "one-group", (2, 3, 3), (3,), (3,), groups=1, epsilon=1e-2),
    of_op("group_norm", "each-channel", (1, 3, 4, 2), (2,), (2,), groups=2),
    of_op("group_norm", "no-places", (3, 10), (10,), (10,), groups=2),
    # activations, and sums
    of_op("add", "plain", (2, 3, 4, 3), (2, 3, 4, 3)),
    of_op("add", "relu", (3, 5), (3, 5), relu=True),
    of_op("add", "ties", Data((3, 7), "ties"), Data((3, 7), "ties"), relu=True),
    of_op("relu", "plain", (2, 3, 4, 3)),
    of_op("relu", "one", (1, 3)),
    of_op("relu", "zeros", Data((3, 7), "ties")),
    of_op("leaky_relu", "plain", (2, 3, 4, 3)),
    of_op("leaky_relu", "steep", (1, 7), slope=0.5),
    of_op("elu", "plain", (2, 3, 4, 3)),
    of_op("elu", "half", (3, 7), alpha=0.5),
    of_op("elu", "large", Data((3, 7), "large")),
    of_op("gelu", "plain", (2, 3, 4, 3)),
    of_op("gelu", "tanh", (2, 3, 4, 3), approximate="tanh"),
    of_op("gelu", "one", (1, 3)),
    of_op("sigmoid", "plain", (2, 3, 4, 3)),
    of_op("sigmoid", "large", Data((3, 7), "large")),
    of_op("silu", "plain", (2, 3, 4, 3)),
    of_op("silu", "large", Data((3, 7), "large")),
    of_op("tanh", "plain", (2, 3, 4, 3)),
    of_op("tanh", "one", (1, 3)),
    of_op("softmax", "plain", (3, 5)),
    of_op("softmax", "more-axes", (2, 2, 3, 4)),
    of_op("softmax", "one-class", (2, 1)),
    of_op("softmax", "shifted", Data((3, 5), "shifted")),
    of_op("softmax", "many-classes", (1, 140)),
    of_op("log_softmax", "plain", (3, 5)),
    of_op("log_softmax", "more-axes", (2, 2, 3, 4)),
    of_op("log_softmax", "one-class", (2, 1)),
    of_op("log_softmax", "large", Data((3, 5), "large")),
    of_op("dropout", "plain", (2, 3, 4, 3), Data((2, 3, 4, 3), "mask"), rate=0.3),
    of_op("dropout", "half", (3, 7), Data((3, 7), "mask"), rate=0.5),
    of_op("dropout", "rate-0", (1, 5), Data((1, 5), "mask"), rate=0.0),
    # losses
    of_op("softmax_cross_entropy", "plain", (4, 5), _labels(4, classes=5)),
    of_op("softmax_cross_entropy", "one", (1, 2), _labels(1, classes=2)),
    of_op("softmax_cross_entropy", "uint8", (4, 5), _labels(4, classes=5, dtype="uint8")),
    of_op("softmax_cross_entropy", "labels-out-of-range", (6, 3), _labels(6, classes=7)),
    of_op("softmax_cross_entropy", "large", Data((4, 5), "large"), _labels(4, classes=5)),
    of_op("softmax_cross_entropy", "weighted", (5, 3), _labels(5, classes=3), Data((3,), "positive")),
    of_op("softmax_cross_entropy", "smoothed", (4, 5), _labels(4, classes=5), label_smoothing=0.1),
    of_op("softmax_cross_entropy", "ignoring", (6, 3), _labels(6, classes=3), ignored_label=1),
    of_op(
        "softmax_cross_entropy", "places", (2, 2, 3, 4), _labels(2, 2, 3, classes=4), Data((4,), "positive"),
        label_smoothing=0.2, ignored_label=0,
    ),
    of_op("softmax_cross_entropy", "many", (140, 2), _labels(140, classes=2)),
    of_op("nll", "plain", (4, 5), _labels(4, classes=5)),
    of_op("nll", "weighted", (5, 3), _labels(5, classes=3), Data((3,), "positive"), ignored_label=2),
    of_op("nll", "places", (2, 2, 3, 4), _labels(2, 2, 3, classes=4)),
    of_op("mse", "plain", (3, 4), (3, 4)),
    of_op("mse", "flat", (5,), (5,)),
    of_op("mse", "many", (50, 3, 1), (50, 3, 1)),
    of_op("huber", "plain", (3, 4), (3, 4)),
    of_op("huber", "narrow", (2, 3, 2), (2, 3, 2), delta=0.3),
    of_op("binary_cross_entropy", "plain", (4, 3), Data((4, 3), "unit")),
    of_op("binary_cross_entropy", "flat", (7,), Data((7,), "unit")),
    of_op("binary_cross_entropy", "large", Data((4, 3), "large"), Data((4, 3), "unit")),
]  # fmt: skip

LAYERS = [
    of_layer("plain", L.Conv1D(4, 3), (6, 2)),
    of_layer("mixed", L.Conv1D(4, 2, stride=2, padding="same", groups=2, bias=False), (5, 2)),
    of_layer("plain", L.Conv2D(4, 2), (4, 3, 2)),
    of_layer(
        "mixed", L.Conv2D(4, (2, 3), stride=(2, 1), padding=((1, 0), (1, 1)), dilation=(2, 1), groups=2), (5, 4, 2)
    ),
    of_layer("plain", L.Conv3D(3, 2), (3, 2, 3, 2)),
    of_layer("mixed", L.Conv3D(2, (1, 2, 2), padding=(0, 1, 0), groups=2, bias=False), (2, 3, 3, 2)),
    of_layer("plain", L.ConvTranspose1D(3, 2, stride=2), (4, 2)),
    of_layer("plain", L.ConvTranspose2D(3, 2), (3, 2, 2)),
    of_layer("mixed", L.ConvTranspose2D(4, (2, 3), stride=2, padding=1, output_padding=1, groups=2), (3, 2, 2)),
    of_layer("same", L.ConvTranspose2D(2, 3, stride=2, padding="same", bias=False), (2, 3, 1)),
    of_layer("plain", L.ConvTranspose3D(2, (1, 2, 2), dilation=(1, 2, 1)), (2, 2, 2, 2)),
    of_layer("plain", L.MaxPool1D(2), (7, 2)),
    of_layer("plain", L.MaxPool2D(2), (4, 5, 2)),
    of_layer("mixed", L.MaxPool2D((2, 3), stride=(2, 1), padding=(0, 1), dilation=(2, 1), ceil_mode=True), (6, 4, 2)),
    of_layer("ties", L.MaxPool2D(2), (4, 4, 2), fill="ties"),
    of_layer("plain", L.MaxPool3D(2, stride=1), (2, 3, 3, 2)),
    of_layer("plain", L.AvgPool1D(2), (7, 2)),
    of_layer("plain", L.AvgPool2D(2), (4, 5, 2)),
    of_layer("mixed", L.AvgPool2D(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), (4, 5, 2)),
    of_layer("plain", L.AvgPool3D((1, 2, 2), dilation=(1, 2, 1)), (2, 4, 3, 2)),
    of_layer("plain", L.GlobalAvgPool(), (3, 4, 2)),
    of_layer("plain", L.GlobalMaxPool(), (3, 4, 2)),
    of_layer("plain", L.Dense(4), (5,)),
    of_layer("mixed", L.Dense(3, bias=False), (2, 3, 4)),
    of_layer("plain", L.Flatten(), (2, 3, 2)),
    of_layer("plain", L.Reshape((3, -1)), (2, 3, 2)),
    of_layer("training", L.BatchNorm(), (2, 3, 2), training=True),
    of_layer("training-dense", L.BatchNorm(momentum=0.3, epsilon=1e-2), (3,), training=True, samples=5),
    of_layer("prediction", L.BatchNorm(), (2, 3, 2)),
    of_layer("plain", L.LayerNorm(), (2, 2, 5)),
    of_layer("plain", L.GroupNorm(2), (2, 3, 4)),
    of_layer("mixed", L.GroupNorm(2, epsilon=1e-2), (8,)),
    of_layer("plain", L.Normalize(0.13, 0.31), (3, 4)),
    of_layer("channels", L.Normalize((0.5, -0.2, 0.0), (0.3, 2.0, 1)), (2, 2, 3)),
    of_layer("training", L.Dropout(0.3), (3, 4), training=True),
    of_layer("rate-0", L.Dropout(0.0), (5,), training=True),
    of_layer("prediction", L.Dropout(0.3), (5,)),
    of_layer("plain", L.ReLU(), (3, 4)),
    of_layer("plain", L.LeakyReLU(0.2), (3, 4)),
    of_layer("plain", L.ELU(0.5), (3, 4)),
    of_layer("plain", L.GELU(), (3, 4)),
    of_layer("tanh", L.GELU(approximate="tanh"), (3, 4)),
    of_layer("plain", L.SiLU(), (3, 4)),
    of_layer("plain", L.Sigmoid(), (3, 4)),
    of_layer("plain", L.Tanh(), (3, 4)),
    of_layer("plain", L.Softmax(), (3, 4)),
    of_layer("plain", L.LogSoftmax(), (3, 4)),
    of_layer("plain", L.Sequential([L.Conv2D(3, 2), L.ReLU(), L.MaxPool2D(2), L.Flatten(), L.Dense(2)]), (5, 4, 1)),
    of_layer(
        "training", L.Sequential([L.Dropout(0.3), L.Dense(3, bias=False), L.BatchNorm()]), (4,),
        training=True, samples=5,
    ),
    of_layer("no-weights", L.Sequential([L.SiLU(), L.Flatten()]), (2, 2)),
    of_layer("empty", L.Sequential([]), (3,)),
    of_layer("nested", L.Sequential([L.SiLU(), L.Sequential([L.Dense(3), L.Sequential([L.Dense(2)])])]), (4,)),
    of_layer("plain", L.Residual(L.Sequential([L.Dense(4), L.SiLU(), L.Dense(3)])), (3,)),
    of_layer("shortcut", L.Residual(L.Conv2D(3, 2, stride=2), L.Conv2D(3, 1, stride=2, bias=False)), (4, 4, 2)),
    of_layer("training", L.Residual(L.Sequential([L.SiLU(), L.BatchNorm()])), (2,), training=True, samples=5),
    of_layer("plain", L.Parallel(L.Conv2D(2, 1), L.Conv2D(3, (2, 3), padding="same")), (3, 3, 2)),
    of_layer("one", L.Parallel(L.Dense(2)), (3,)),
    of_layer("mixed", L.Parallel(L.SiLU(), L.Dropout(0.5), L.Sequential([L.Dense(2), L.ReLU()])), (3,), training=True),
]  # fmt: skip

CASES = [*OPS, *LAYERS]
