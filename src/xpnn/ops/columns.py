"""The two moves below convolutions, so that a backend replaces each of them once: into columns and back.

See Chellapilla, Puri, Simard, *High performance convolutional neural networks for document processing*, 2006.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import array_api_extra as xpx

from xpnn.errors import ShapeError
from xpnn.ops._array import Array, device, floats
from xpnn.ops._window import Padding, Sizes, Window, window

if TYPE_CHECKING:
    from xpnn.ops import Ops


def im2col(
    ops: Ops, x: Array, *, kernel: Sizes, stride: Sizes = 1, padding: Padding = "valid", dilation: Sizes = 1
) -> Array:
    """What lies under a window at each of its places, side by side.

    Args:
        x: `(N, *spatial, C)`.
        kernel: size of the window.
        stride, padding, dilation: of the window, as in `conv`.

    Returns:
        `(N, *out, K·C)`: for each of the K taps, in row-major order, the C channels of the input under it.

    Raises:
        ShapeError: a window larger than the padded input.
    """
    xp = floats("im2col", x=x)
    w = window("im2col", tuple(x.shape[1:-1]), kernel, stride, padding, dilation)
    if any(map(any, w.pads)):
        x = xpx.pad(x, ((0, 0), *w.pads, (0, 0)), xp=xp)
    return xp.concat([x[part] for part in _parts(w)], axis=-1)


def col2im(
    ops: Ops,
    columns: Array,
    *,
    spatial: tuple[int, ...],
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> Array:
    """The adjoint of `im2col`: every value is added to the place that `im2col` took it from.

    Args:
        columns: `(N, *out, K·C)`.
        spatial: the spatial size of the image.
        kernel, stride, padding, dilation: as in `im2col`; what came from the padding is dropped.

    Returns:
        `(N, *spatial, C)`; 0 where no window lies.

    Raises:
        ShapeError: columns that are not those of such an image.
    """
    xp, w, channels = unfolded(columns, spatial, kernel, stride, padding, dilation)
    image = xp.zeros((columns.shape[0], *w.padded, channels), dtype=columns.dtype, device=device(columns))
    for t, part in enumerate(_parts(w)):
        image = xpx.at(image)[part].add(columns[..., t * channels : (t + 1) * channels])
    inner = tuple(slice(before, before + m) for (before, _), m in zip(w.pads, w.n, strict=True))
    return image[(slice(None), *inner, slice(None))]


def unfolded(
    columns: Array, spatial: tuple[int, ...], kernel: Sizes, stride: Sizes, padding: Padding, dilation: Sizes
) -> tuple[Any, Window, int]:
    """The namespace, the window and the channels of the image that columns belong to, once they are checked."""
    xp = floats("col2im", columns=columns)
    w = window("col2im", spatial, kernel, stride, padding, dilation)
    taps = prod(w.size)
    if tuple(columns.shape[1:-1]) != w.out or columns.shape[-1] % taps:
        raise ShapeError(
            f"col2im: columns have shape {tuple(columns.shape)}; expected (N, {', '.join(map(str, w.out))}, {taps}·C) "
            f"for an image of {w.n}, padding {w.pads} and a window of {w.size}"
        )
    return xp, w, columns.shape[-1] // taps


def _parts(w: Window) -> list[tuple[Any, ...]]:
    """For each tap the inputs under it, as an index into the padded `(N, *spatial, C)`."""
    whole = Window(w.padded, w.size, w.stride, w.dilation, ((0, 0),) * len(w.n), w.out)
    return [(slice(None), *whole.inside(tap)[1], slice(None)) for tap in w.taps()]
