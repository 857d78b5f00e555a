"""A picture's way through a network as one page: every feature map, and for each of its pixels the sum that made it.

- `explain(trainer, image, …)`: the page;
- `trace(trainer, image)`: the nodes of the page: each layer with its input, its output and what tells how it computes.

The page is `explain.html`, whose script computes each sum again from the numbers that are embedded. Here is said, for
each layer, which window, weights and options it needs for that.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnn import layers as L
from xpnn.layers.activation import Activation
from xpnn.layers.base import Layer
from xpnn.layers.conv import Conv, ConvTranspose
from xpnn.layers.pool import AvgPool, MaxPool
from xpnn.losses import probabilities
from xpnn.ops._window import Window, window
from xpnn.ops.convolution import transposed_window
from xpnn.ops.pool import pool_window
from xpnn.pictures.feature_maps import feature_maps
from xpnn.train.trainer import Trainer

if TYPE_CHECKING:
    from PIL.Image import Image

Host = np.ndarray[Any, Any]

FLOATS = 1_400_000
"""Numbers embedded in a page at most: 7.5 MB as base64."""

_FUNCTIONS = {"ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Sigmoid", "Tanh"}
_SAME = {
    "Flatten": "the same number, in one row",
    "Reshape": "the same number, in another shape",
    "Dropout": "the same number: dropout drops in training alone",
}
_PLAIN = {
    "GlobalAvgPool": "global_avg_pool", "GlobalMaxPool": "global_max_pool", "Dense": "dense", "BatchNorm": "batch_norm",
    "LayerNorm": "layer_norm", "GroupNorm": "group_norm", "Normalize": "normalize", "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
}  # fmt: skip


@dataclass
class Node:
    """One array on the way, and how it came about.

    Attributes:
        path: of the layer in the model.
        name: of its class, or "Input", "Sum", "Side by side".
        code: what makes the layer, or what is done.
        kind: which of the page's sums made it; "" where the page knows none.
        y: its output, `(*spatial, channels)` or `(n,)`, float32.
        inputs: numbers of the nodes that it is fed with.
        options: geometry and hyper-parameters.
        arrays: weights and statistics.
    """

    path: str
    name: str
    code: str
    kind: str
    y: Host
    inputs: list[int] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Host] = field(default_factory=dict)


def explain(
    trainer: Trainer, image: Any, classes: Sequence[str], title: str, picture: Image | None = None,
    done: Sequence[str] = (),
) -> str:  # fmt: skip
    """The page, HTML that needs nothing else.

    Args:
        trainer: whose network it is.
        image: `(H, W, C)`, prepared.
        classes: their names, in the order of the network's outputs.
        title: the picture's name.
        picture: as it came, a Pillow image in grey or colour (`xpnn.data.picture.flat`).
        done: how it was prepared.
    """
    nodes = trace(trainer, image)
    if nodes[-1].y.shape == (len(classes),) and nodes[-1].kind != "softmax":
        shares = probabilities(nodes[-1].y).astype(np.float32)
        code = "probabilities, as the loss has them"
        nodes.append(Node("", "Softmax", code, "softmax", shares, [len(nodes) - 1]))
    described, numbers = embedded(nodes)
    data = {
        "title": title, "classes": list(classes), "done": list(done), "nodes": described,
        "picture": None if picture is None else _thumbnail(picture),
    }  # fmt: skip
    page = resources.files(__package__).joinpath("explain.html").read_text(encoding="utf-8")
    return (
        page.replace("@TITLE@", escape(title))
        .replace("@DATA@", json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"))
        .replace("@NUMBERS@", base64.b64encode(numbers.astype("<f4").tobytes()).decode())
    )


def trace(trainer: Trainer, image: Any) -> list[Node]:
    """The input and the outputs of all layers, in the order of computation, each with what it was made of.

    `Residual` and `Parallel` end in a node of their own. Inside another container, and right after it, what a layer
    was fed with is not known.
    """
    image = np.asarray(image, np.float32)
    maps = {path: y.astype(np.float32) for path, _, y in feature_maps(trainer, image)}
    weights, nodes = trainer.weights | trainer.stats, [Node("", "Input", "the picture, prepared", "input", image)]

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    def walk(layer: Layer, path: str, source: int | None) -> int | None:
        if not isinstance(layer, L.Container):
            own = path + "." if path else ""
            arrays = {k.removeprefix(own): a.astype(np.float32) for k, a in weights.items() if k.startswith(own)}
            node = Node(path, type(layer).__name__, repr(layer), "", maps[path])
            if source is not None:
                node.inputs = [source]
                node.kind, node.options = _how(layer, nodes[source].y.shape)
                node.arrays = arrays if node.kind else {}
            return add(node)
        parts = [(f"{path}.{name}" if path else name, part) for name, part in layer.parts()]
        if type(layer) is L.Sequential:
            for inner, part in parts:
                source = walk(part, inner, source)
            return source
        known = type(layer) in (L.Residual, L.Parallel)
        ends = [walk(part, inner, source if known else None) for inner, part in parts]
        if type(layer) is L.Residual and len(ends) == 1:
            ends.append(source)
        feeding = [end for end in ends if end is not None]
        if not known or len(feeding) < len(ends):
            return None
        outputs = [nodes[end].y for end in feeding]
        if type(layer) is L.Residual:
            return add(Node(path, "Sum", "body + shortcut", "sum", outputs[0] + outputs[1], feeding))
        return add(Node(path, "Side by side", "all branches", "concat", np.concatenate(outputs, axis=-1), feeding))

    walk(trainer.model, "", 0)
    return nodes


def embedded(nodes: Sequence[Node], floats: int = FLOATS) -> tuple[list[dict[str, Any]], Host]:
    """What the page knows of each node, and all numbers in one row.

    Of each map the first `shown` channels are embedded: all of them where `floats` numbers allow it, else as many as
    they do, and the earlier layers first. Weights are embedded where the input is whole, the smallest first.
    """
    shown, kept = _chosen(nodes, floats)
    row: list[Host] = []
    size = 0

    def put(array: Host) -> int:
        nonlocal size
        row.append(array.reshape(-1))
        size += array.size
        return size - array.size

    described = []
    for i, node in enumerate(nodes):
        whole = not node.arrays or i in kept
        described.append({
            "path": node.path, "name": node.name, "code": node.code, "kind": node.kind, "shape": node.y.shape,
            "inputs": node.inputs, "options": node.options, "whole": whole,
            "shown": shown[i], "at": put(node.y[..., : shown[i]]),
            "arrays": {k: put(a) for k, a in node.arrays.items()} if whole else {},
        })  # fmt: skip
    return described, np.concatenate(row)


def _chosen(nodes: Sequence[Node], floats: int) -> tuple[list[int], set[int]]:
    """How many channels of each node, and the weights of which."""
    places = [prod(node.y.shape[:-1]) for node in nodes]
    channels = [node.y.shape[-1] for node in nodes]
    weights = [sum(a.size for a in node.arrays.values()) for node in nodes]
    shown = channels
    if sum(p * c for p, c in zip(places, channels, strict=True)) + sum(weights) > floats:
        for limit in (64, 32, 16, 8, 4, 2, 1, 0):
            shown = [c if p == 1 and limit else min(c, limit) for p, c in zip(places, channels, strict=True)]
            left = floats - sum(p * s for p, s in zip(places, shown, strict=True))
            if left >= floats // 2:
                break
        for i, p in enumerate(places):
            if p * (channels[i] - shown[i]) <= left // 2:  # the other half is for weights
                left -= p * (channels[i] - shown[i])
                shown[i] = channels[i]
    left = floats - sum(p * s for p, s in zip(places, shown, strict=True))
    kept = set()
    for i in sorted(range(len(nodes)), key=weights.__getitem__):
        whole = all(shown[j] == channels[j] for j in nodes[i].inputs) or nodes[i].kind == "batch_norm"
        if whole and weights[i] <= left:
            kept.add(i)
            left -= weights[i]
    return shown, kept


def _how(layer: Layer, in_shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """The page's kind of a layer that is fed with `in_shape`, and the options of its sum; "" where it has none."""
    name = type(layer).__name__
    if L.REGISTRY.get(name) is not type(layer):
        return "", {}  # a layer of somebody's own, whatever it derives from
    spatial = in_shape[:-1]
    if isinstance(layer, ConvTranspose):
        w = transposed_window(
            spatial, layer.kernel, layer.stride, layer.padding, layer.output_padding, layer.dilation
        )  # fmt: skip
        return "conv_transpose", _geometry(w) | {"groups": layer.groups}
    if isinstance(layer, Conv):
        w = window("conv", spatial, layer.kernel, layer.stride, layer.padding, layer.dilation)
        return "conv", _geometry(w) | {"groups": layer.groups}
    if isinstance(layer, MaxPool):
        w = pool_window(
            "pool", spatial, layer.window, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
        )  # fmt: skip
        if isinstance(layer, AvgPool):
            return "avg_pool", _geometry(w) | {"countPadding": layer.count_include_pad}
        return "max_pool", _geometry(w)
    if isinstance(layer, Activation) and name in _FUNCTIONS:
        return "function", {"op": layer.op, **vars(layer)}
    if name in _SAME:
        return "same", {"text": _SAME[name]}
    return _PLAIN.get(name, ""), {k: v for k, v in vars(layer).items() if k in ("epsilon", "groups", "mean", "std")}


def _geometry(w: Window) -> dict[str, Any]:
    before, after = zip(*w.pads, strict=True)
    return {
        "n": w.n, "size": w.size, "stride": w.stride, "dilation": w.dilation, "before": before, "after": after,
        "out": w.out,
    }  # fmt: skip


def _thumbnail(picture: Image) -> str:
    """At most 320 pixels of a side, as a data URI."""
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail((320, 320))
    small.save(file, "PNG" if small.width * small.height < 20_000 else "JPEG", quality=85)
    kind = "png" if file.getvalue().startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
