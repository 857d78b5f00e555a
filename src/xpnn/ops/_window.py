"""The geometry of a sliding window, on the host in plain integers: conv and pool share it.

A window of size `k` with stride `s` and dilation `d` over an axis of `n` values, `before` and `after`
of them added by padding, has `(n + before + after - d·(k - 1) - 1) // s + 1` positions; output `o` reads
the inputs `o·s - before + t·d` for the taps `t = 0 … k-1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

from xpnn.errors import ShapeError
from xpnn.plain import plain

Sizes = int | tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
Padding = str | int | tuple[int, ...] | Pads


@dataclass(frozen=True)
class Window:
    """One checked geometry: everything is a tuple with one entry for each spatial axis."""

    n: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    out: tuple[int, ...]

    @cached_property
    def _hash(self) -> int:
        return hash((self.n, self.size, self.stride, self.dilation, self.pads, self.out))

    def __hash__(self) -> int:
        return self._hash  # a step looks some tables up by it

    @property
    def padded(self) -> tuple[int, ...]:
        """The size of the input with its padding."""
        return tuple(n + a + b for n, (a, b) in zip(self.n, self.pads, strict=True))

    @property
    def disjoint(self) -> bool:
        """Whether no input lies under two windows."""
        return all(d * (k - 1) < s for k, s, d in zip(self.size, self.stride, self.dilation, strict=True))

    @cached_property
    def tiles(self) -> bool:
        """Whether the windows lie side by side and cover the input."""
        covered = tuple(m * k for m, k in zip(self.out, self.size, strict=True))
        return (
            self.size == self.stride and not any(map(any, self.pads)) and max(self.dilation) == 1 and covered == self.n
        )

    def reach(self, places: tuple[int, ...]) -> tuple[int, ...]:
        """How many inputs in a row so many places of the window span, along each axis."""
        rows = zip(places, self.size, self.stride, self.dilation, strict=True)
        return tuple((count - 1) * s + d * (k - 1) + 1 for count, k, s, d in rows)

    def part(self, start: tuple[int, ...], length: tuple[int, ...]) -> tuple[tuple[slice, ...], Pads]:
        """What a part of the padded input is made of: the inputs in it, as slices, and the padding around them."""
        slices, pads = [], []
        for first, m, n, (before, _) in zip(start, length, self.n, self.pads, strict=True):
            low = min(max(first - before, 0), n)
            high = max(min(first - before + m, n), low)
            ahead = min(max(before - first, 0), m)
            slices.append(slice(low, high))
            pads.append((ahead, m - ahead - (high - low)))
        return tuple(slices), tuple(pads)

    def axes(self) -> list[Window]:
        """The same along each axis by itself."""
        rows = zip(self.n, self.size, self.stride, self.dilation, self.pads, self.out, strict=True)
        return [Window(*((value,) for value in row)) for row in rows]

    def taps(self) -> list[tuple[int, ...]]:
        """The taps of the window in row-major order."""
        return list(product(*(range(k) for k in self.size)))

    def inside(self, tap: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The outputs for which `tap` falls on a real input, and these inputs, as slices.

        With them padding need not exist: it is what no slice names.
        """
        outputs, inputs = [], []
        for t, n, s, d, (before, _), out in zip(
            tap, self.n, self.stride, self.dilation, self.pads, self.out, strict=True
        ):
            low = max(0, -(-(before - t * d) // s))
            high = max(low, min(out, (n - 1 + before - t * d) // s + 1))
            start = low * s - before + t * d
            outputs.append(slice(low, high))
            inputs.append(slice(start, start + max(0, (high - low - 1) * s + 1) if high > low else start, s))
        return tuple(outputs), tuple(inputs)

    def covers(self, outputs: tuple[slice, ...]) -> bool:
        """Whether these slices are all the outputs."""
        return all(s.start == 0 and s.stop == out for s, out in zip(outputs, self.out, strict=True))


def window(
    op: str,
    n: tuple[int, ...],
    size: Sizes,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
    ceil_mode: bool = False,
) -> Window:
    """Check a geometry and work out its output size; remembered, so that a step pays for it once."""
    try:
        return _checked(op, n, size, stride, padding, dilation, ceil_mode)
    except TypeError:  # lists cannot be looked up
        given = (plain(value) for value in (size, stride, padding, dilation))
        return _checked(op, n, *given, ceil_mode)


@lru_cache(maxsize=4096)
def _checked(
    op: str,
    n: tuple[int, ...],
    size: Sizes,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
    ceil_mode: bool,
) -> Window:
    axes = len(n)
    size, stride, dilation = (
        each(op, name, value, axes) for name, value in (("window", size), ("stride", stride), ("dilation", dilation))
    )
    pads = each_pad(op, padding, n, size, stride, dilation)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    out = []
    for axis, (m, (before, after), r, s) in enumerate(zip(n, pads, reach, stride, strict=True)):
        room = m + before + after - r
        if room < 0:
            raise ShapeError(
                f"{op}: a window of {size}{f' with dilation {dilation}' if max(dilation) > 1 else ''} is "
                f"larger than its input of {n}{f' with padding {pads}' if any(map(any, pads)) else ''} "
                f"on spatial axis {axis}; use a smaller window, more padding (padding='same') or fewer pools"
            )
        positions = room // s + 1
        if ceil_mode and room % s and positions * s < m + before:  # PyTorch: no window starts in the padding
            positions += 1
        out.append(positions)
    return Window(n, size, stride, dilation, pads, tuple(out))


def each(op: str, name: str, value: Sizes, axes: int, least: int = 1) -> tuple[int, ...]:
    """One integer for each spatial axis, from one for all or from a tuple."""
    value = plain(value)
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or not all(isinstance(v, int) and v >= least for v in values):
        raise ShapeError(
            f"{op}: {name}={value!r}; expected an integer ≥ {least}, or {axes} of them, one a spatial axis"
        )
    return values


def each_pad(
    op: str,
    padding: Padding,
    n: tuple[int, ...],
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """The padding before and after each axis."""
    padding = plain(padding)
    if padding == "valid":
        return ((0, 0),) * len(n)
    if padding == "same":  # ceil(n / s) outputs, the odd one at the end, as in Keras
        totals = [
            max((-(-m // s) - 1) * s + d * (k - 1) + 1 - m, 0)
            for m, k, s, d in zip(n, size, stride, dilation, strict=True)
        ]
        return tuple((t // 2, t - t // 2) for t in totals)
    entries = (padding,) * len(n) if isinstance(padding, int) else padding
    if isinstance(entries, tuple) and len(entries) == len(n):
        pairs = tuple((p, p) if isinstance(p, int) else tuple(p) for p in entries)
        if all(len(p) == 2 and all(isinstance(v, int) and v >= 0 for v in p) for p in pairs):
            return pairs  # type: ignore[return-value]
    raise ShapeError(
        f"{op}: padding={padding!r}; expected 'valid', 'same', an integer ≥ 0, a tuple of {len(n)} integers "
        f"(one a spatial axis) or of {len(n)} pairs (before, after)"
    )
