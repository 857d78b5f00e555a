"""What a network is, layer by layer: sizes, work, memory, and how much of an image each value sees.

`summarise` makes a `Summary`, which has a `Row` for each layer and prints as a table 80 columns wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, gcd, prod
from textwrap import wrap
from typing import Literal

from xpnn.layers.activation import Activation, Dropout
from xpnn.layers.base import Layer, Shape
from xpnn.layers.containers import Container, Parallel, Residual, Sequential
from xpnn.layers.conv import Conv, ConvTranspose
from xpnn.layers.dense import Dense, Reshape
from xpnn.layers.norm import BatchNorm, GroupNorm, LayerNorm
from xpnn.layers.normalize import Normalize
from xpnn.layers.pool import GlobalMaxPool, MaxPool
from xpnn.ops._window import each
from xpnn.random import Stream

ITEM = 4
"""Bytes of a float32, which all memory is counted in."""
WIDTH = 80

Field = tuple[tuple[Fraction, Fraction], ...] | Literal["all"] | None
"""For each spatial axis how many pixels a value sees, and by how many its neighbour sees further."""


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        path: where it is, e.g. `3.body.0`; its arrays lie under it. Empty where it is the whole model.
        layer: the layer.
        out_shape: of what it makes of a sample, without N.
        parameters: how many numbers it learns.
        multiply_adds: for one sample, see `Layer.multiply_adds`; None: unknown.
        activation_bytes: what it makes of one sample, in float32; 0 where that is a view of its input.
        receptive_field: how many pixels of the image one value depends on, an entry for each spatial axis, those
            beyond the edge included; "all": on the whole image, as behind Flatten; None: unknown, behind a layer
            that is not xpnn's own.
    """

    path: str
    layer: Layer
    out_shape: Shape
    parameters: int
    multiply_adds: int | None
    activation_bytes: int
    receptive_field: tuple[int, ...] | Literal["all"] | None


@dataclass(frozen=True)
class Summary:
    """All layers of a network in the order of their use, containers opened; `str` is a table.

    Attributes:
        in_shape: of a sample, without N.
        rows: one a layer.
    """

    in_shape: Shape
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """For one sample, of the layers that say it."""
        return sum(row.multiply_adds or 0 for row in self.rows)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The paths of the layers whose multiply-adds are unknown."""
        return tuple(row.path for row in self.rows if row.multiply_adds is None)

    def training_bytes(self, batch_size: int, moments: int = 1) -> int:
        """About how much memory a step of training takes at its peak, with the standard bodies, in float32.

        It counts weights, gradient and moments twice, for a step makes the new ones beside the old, the images, the
        output of each layer, which backward needs, and the largest of these twice more, for the gradients on their
        way. The named networks on NumPy take what it says within a factor of 1.7; with NumPy's kernels some take a
        seventh of it.

        Args:
            batch_size: samples a step.
            moments: vectors that the optimizer keeps beside the weights: `len(optimizer.moments)`.
        """
        outputs = [ITEM * prod(self.in_shape), *(row.activation_bytes for row in self.rows)]
        return 2 * (2 + moments) * ITEM * self.parameters + batch_size * (sum(outputs) + 2 * max(outputs))

    def __str__(self) -> str:
        head = ("layer", "", "output", "parameters", "mult-adds", "activation", "field")
        cells = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        widths[0] = max(len("layer"), min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(head) - 1)))
        lines = []
        for path, name, *others in cells:
            right = (f"{cell:>{width}}" for cell, width in zip(others, widths[2:], strict=True))
            left = path if len(path) <= widths[0] else "…" + path[1 - widths[0] :]
            lines.append("  ".join((left.ljust(widths[0]), name.ljust(widths[1]), *right)))
        notes = [
            f"{self.parameters:,} parameters, {count_text(self.multiply_adds)} multiply-adds for {_by(self.in_shape)} "
            "(field: receptive field)"
        ]
        if self.unknown:
            paths = ", ".join(path or "the model" for path in self.unknown)
            notes.append(f"? is not in the sum: {paths}; a layer of one's own tells it by multiply_adds(in_shape)")
        return "\n".join([*lines, *(line for note in notes for line in wrap(note, WIDTH))])


def summarise(model: Layer, in_shape: Shape) -> Summary:
    """What a network is, layer by layer.

    The receptive field is worked out from window, stride and dilation (Dumoulin, Visin, 2016), through branches as
    the larger of them; behind a transposed convolution it is an upper bound. BatchNorm counts as in prediction.

    Args:
        model: a layer, most often `Sequential`.
        in_shape: the shape of one sample, without N.

    Raises:
        ShapeError: a layer does not fit.
    """
    model.shape(in_shape)  # an error from here leads down to the layer
    one = Fraction(1)
    rows, _ = _rows("", model, in_shape, ((one, one),) * (len(in_shape) - 1))
    return Summary(in_shape, tuple(rows))


def count_text(count: int) -> str:
    """A number to one place, e.g. "40.8 M"."""
    return _scaled(count, 1000, ("", " k", " M", " G", " T"))


def bytes_text(size: int) -> str:
    """Bytes to one place, e.g. "64.0 KiB"."""
    return _scaled(size, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _rows(path: str, layer: Layer, in_shape: Shape, field: Field) -> tuple[list[Row], Field]:
    """The rows of a layer that sees `field` of the image through each of its inputs, and what its outputs see."""
    if not isinstance(layer, Container):
        field = _seen(layer, in_shape, field)
        return [_row(path, layer, in_shape, field)], field
    rows, ends = list[Row](), list[Field]()
    for name, part, shape in layer.placed(in_shape):
        before = ends[-1] if ends and isinstance(layer, Sequential) else field
        found, end = _rows(f"{path}.{name}" if path else name, part, shape, before)
        rows, ends = [*rows, *found], [*ends, end]
    if isinstance(layer, Sequential):
        return rows, ends[-1] if ends else field
    branches = isinstance(layer, Residual | Parallel)  # where x itself is added, the body sees as much
    return rows, _largest(ends) if branches else None


def _row(path: str, layer: Layer, in_shape: Shape, field: Field) -> Row:
    out_shape = layer.shape(in_shape)
    return Row(
        path,
        layer,
        out_shape,
        sum(prod(a.shape) for a in layer.init(in_shape, Stream(0, "sizes"))[0].values()),
        layer.multiply_adds(in_shape),
        0 if isinstance(layer, Reshape) else ITEM * prod(out_shape),
        tuple(ceil(size) for size, _ in field) if isinstance(field, tuple) else field,
    )


def _seen(layer: Layer, in_shape: Shape, field: Field) -> Field:
    """What a value of the output sees, where each of the input sees `field`."""
    if isinstance(layer, GlobalMaxPool | GroupNorm) or (
        isinstance(layer, Reshape | Dense) and len(layer.shape(in_shape)) == 1
    ):
        return "all"
    if isinstance(layer, Dense | Activation | Dropout | BatchNorm | LayerNorm | Normalize):
        return field
    if not isinstance(layer, Conv | MaxPool):
        return "all" if field == "all" else None
    if not isinstance(field, tuple):
        return field
    size = layer.window if isinstance(layer, MaxPool) else layer.kernel
    stride = size if layer.stride is None else layer.stride
    axes = (each("window", "size", value, layer.spatial) for value in (size, stride, layer.dilation))
    move = _transposed if isinstance(layer, ConvTranspose) else _moved
    return tuple(move(*seen, *axis) for seen, *axis in zip(field, *axes, strict=True))


def _moved(size: Fraction, step: Fraction, k: int, s: int, d: int) -> tuple[Fraction, Fraction]:
    """Along one axis, under a window of `k` taps with stride `s` and dilation `d`."""
    return size + (k - 1) * d * step, step * s


def _transposed(size: Fraction, step: Fraction, k: int, s: int, d: int) -> tuple[Fraction, Fraction]:
    """The same for its transpose, of whose taps those meet in one output that lie `s / gcd(s, d)` apart."""
    g = gcd(s, d)
    return size + (k - 1) // (s // g) * (d // g) * step, step / s


def _largest(fields: list[Field]) -> Field:
    """What a value sees through several branches."""
    known = [field for field in fields if isinstance(field, tuple)]
    if len(known) < len(fields):
        return "all" if "all" in fields else None
    return tuple((max(a[0] for a in axis), max(a[1] for a in axis)) for axis in zip(*known, strict=True))


def _cells(row: Row) -> tuple[str, ...]:
    field = row.receptive_field
    return (
        row.path,
        type(row.layer).__name__,
        _by(row.out_shape),
        f"{row.parameters:,}",
        "?" if row.multiply_adds is None else count_text(row.multiply_adds),
        bytes_text(row.activation_bytes) if row.activation_bytes else "view",
        "?" if field is None else field if field == "all" else _by(field),
    )


def _by(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes)) or "1"


def _scaled(value: int, base: int, units: tuple[str, ...]) -> str:
    power = sum(value >= base**p for p in range(1, len(units)))
    return f"{value / base**power:.{1 if power else 0}f}{units[power]}"
