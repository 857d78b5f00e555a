"""Figures of a training and of a network, by matplotlib's objects alone: no window, no global state.

Each function makes one `Figure`; `figure.savefig(path)` writes it. All are readable at the width
of a page, and in grey but for the sign of kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpnn.layers import Layer

WIDTH = 6.0  # inches: letters of 10 points can still be read at the width of a phone
TRAINED, HELD_OUT = "#2a6f97", "#d1495b"
AT_ONCE = 32
"""Channels of a layer that are drawn."""
LONGEST = 14
"""Letters of a class's name that are drawn."""

Figure = Any
"""`matplotlib.figure.Figure`."""


def curves(history: Sequence[dict[str, Any]], held_out: str = "held out") -> Figure:
    """Loss and accuracy by epoch, of training and of the images held out.

    Args:
        history: the records of the epochs, as `Trainer.fit` gives them.
        held_out: what the images of validation are called.
    """
    names = [name for name in ("loss", "accuracy") if name in history[0]]
    figure = _figure(2.6)
    epochs = [record["epoch"] for record in history]
    few = len(epochs) < 25
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        for key, text, colour, style, marker, size in (  # in grey, and one upon the other, both can be told
            (name, "training", TRAINED, "--", "s", 6),
            (f"validation_{name}", held_out, HELD_OUT, "-", "o", 3),
        ):
            if key in history[0]:
                values = [np.nan if record[key] is None else record[key] for record in history]
                axes.plot(epochs, values, style, color=colour, label=text, marker=marker if few else None,
                          markersize=size, markerfacecolor="white" if marker == "s" else colour)  # fmt: skip
        axes.set(title=name, xlabel="epoch")
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def confusion(counts: NDArray[Any], classes: Sequence[str]) -> Figure:
    """How often each class was taken for which.

    Args:
        counts: `(K, K)`; row: what it was, column: what was said.
        classes: their names, each as `label` makes it.
    """
    size = len(classes)
    few = size <= 20
    figure = _figure(WIDTH * (0.85 if few else 0.95))
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=f"{np.trace(counts):,} of {counts.sum():,} right", xlabel="what was said", ylabel="what it was")
    if size <= 50:
        upright = max(map(len, classes)) <= 3
        axes.set_xticks(range(size), classes, rotation=0 if upright else 90)
        axes.set_yticks(range(size), classes)
    if few:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour, size_ = "white" if shares[i, j] > 0.5 else "black", 8 if size <= 12 else 6
                text = f"{count:,}" if size <= 12 else count
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size_)
    return figure


def kernels(weight: NDArray[Any], what: str) -> Figure:
    """The kernels of a convolution on images.

    Args:
        weight: `(C_out, KH, KW, C_in)`; with three input channels each is drawn in colours, else channel by channel.
        what: whose they are.
    """
    shown = weight[:64]
    if weight.shape[-1] == 3:
        tiles, scale = list(0.5 + shown / (2 * np.abs(shown).max() or 1)), "grey is 0"
    else:
        tiles = [k for kernel in shown for k in np.moveaxis(kernel, -1, 0)][:64]
        scale = "blue is positive, red negative"
    columns = min(len(tiles), 8 if len(tiles) <= 32 else 12)
    rows = ceil(len(tiles) / columns)
    figure = _figure(0.6 + rows * WIDTH / max(columns, 8))
    count = weight.shape[0] * (1 if weight.shape[-1] == 3 else weight.shape[-1])
    of_them = f"{len(tiles)} of {count} kernels, {weight.shape[1]}×{weight.shape[2]}; {scale}"
    figure.suptitle(f"{what}\n{of_them}", fontsize=10)
    most = np.abs(np.asarray(tiles)).max() or 1
    grid = figure.subplots(rows, max(columns, 8), squeeze=False).ravel()
    for axes, tile in zip(grid, tiles, strict=False):
        axes.imshow(tile, cmap="RdBu", vmin=-most, vmax=most)
        axes.set(xticks=[], yticks=[])
    for axes in grid[len(tiles) :]:
        axes.set_axis_off()
    return figure


def maps(image: NDArray[Any], found: Sequence[tuple[str, Layer, NDArray[Any]]], title: str) -> Figure:
    """What some layers make of an image, beside the image itself.

    Args:
        image: `(H, W, C)`.
        found: path, layer and output `(H, W, C)` of each.
        title: of the image.
    """
    sheets = [
        (f"{path} {type(layer).__name__}: {' × '.join(map(str, y.shape))}", _sheet(y)) for path, layer, y in found
    ]
    heights = [1.1, *(sheet.shape[0] / sheet.shape[1] * WIDTH + 0.35 for _, sheet in sheets)]
    figure = _figure(sum(heights) + 0.1)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = figure.add_subplot(grid[0])
    draw(axes, image)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_anchor("W")
    for i, (name, sheet) in enumerate(sheets, 1):
        axes = figure.add_subplot(grid[i])
        axes.imshow(sheet, cmap="gray", interpolation="nearest")
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_anchor("W")
        axes.set_axis_off()
    return figure


def mistakes(images: NDArray[Any], titles: Sequence[str]) -> Figure:
    """Some images with what was said of each and what it is.

    Args:
        images: `(N, H, W, C)`, one or more.
        titles: one for each.
    """
    rows = ceil(len(images) / 4)
    lines = 1 + max(title.count("\n") for title in titles)
    figure = _figure(rows * (WIDTH / 4 + 0.2 * lines))
    grid = figure.subplots(rows, 4, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, title in zip(grid, images, titles, strict=False):
        draw(axes, image)
        axes.set_title(title, fontsize=9)
    return figure


def label(name: str) -> str:
    """A class's name as text of a figure: no longer than there is room for, and its `$` no formula's."""
    half = LONGEST // 2
    short = name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"
    return short.replace("$", r"\$")


def draw(axes: Any, image: NDArray[Any]) -> None:
    """An image `(H, W, C)` in grey or colours, its smallest value dark and its largest bright."""
    low, high = float(image.min()), float(image.max())
    if image.shape[-1] == 3:
        inside = low >= 0 and high <= 1
        axes.imshow(image if inside else (image - low) / ((high - low) or 1), interpolation="nearest")
    else:
        axes.imshow(image[..., 0], cmap="gray", interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _sheet(y: NDArray[Any]) -> NDArray[Any]:
    """Channels side by side, two rows from 16 on, with a gap between them."""
    height, width, channels = y.shape
    shown = min(channels, AT_ONCE)
    rows = 1 if shown < 16 else 2
    columns = max(ceil(shown / rows), 8)
    sheet = np.full((rows * (height + 1), columns * (width + 1)), np.nan)
    for i in range(shown):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = y[..., i]
    return sheet[:-1, :-1]


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=150, layout="constrained", facecolor="white")
