"""The peer in PyTorch: its own modules, autograd and optimizer, in up to four settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from xpnn import layers as L
from xpnn.bench.measure import Side
from xpnn.bench.work import LR, MOMENTUM, Work, initial_arrays, unknown, window_of
from xpnn.layers.base import Layer, Shape
from xpnn.layers.conv import Conv
from xpnn.layers.pool import MaxPool
from xpnn.ops._window import Window
from xpnn.train.torch_layout import place_arrays


def sides(work: Work, gpu: bool, threads: int, compiled: bool) -> list[Side]:
    """PyTorch eager and channels-last, and both compiled."""
    torch.set_num_threads(threads)
    if gpu and torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # float32 on both sides; PyTorch's default is less
        torch.backends.cudnn.benchmark = True
    device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    if compiled:
        torch.compiler.reset()  # it gives up on what it has compiled eight times, and all networks count as one
    settings = [(last, fast) for fast in (False, True)[: 1 + compiled] for last in (False, True)]
    return [side(work, device, channels_last=last, compiled=fast) for last, fast in settings]


def side(work: Work, device: str = "cpu", *, channels_last: bool = False, compiled: bool = False) -> Side:
    """One setting."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = network(work.model, work.in_shape)
    net.load_state_dict(initial(work.model, work.in_shape), strict=False)  # BatchNorm counts its batches there
    net = net.to(device=device, memory_format=layout).train(work.training)
    x = torch.from_numpy(np.moveaxis(work.images, -1, 1).copy()).to(device=device, memory_format=layout)
    y = torch.from_numpy(work.labels).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
    graphs = compiled and device == "cuda"  # its own, as ours are recorded
    call = torch.compile(net, mode="reduce-overhead" if graphs else "default") if compiled else net

    def train(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(call(x), y)
            loss.backward()
            optimizer.step()
        return float(loss.item())

    def predict(count: int) -> Any:
        with torch.inference_mode():
            for _ in range(count):
                scores = call(x)
            return scores.numpy(force=True)

    name = f"torch{' channels-last' * channels_last}{' compiled' * compiled}{' as graphs' * graphs}"
    return Side(name, "torch", work.batch, train if work.training else predict)


def initial(model: Layer, in_shape: Shape, seed: int = 0) -> dict[str, Any]:
    """The weights and statistics that a trainer begins with, as PyTorch has them."""
    places = place_arrays(model, in_shape).all
    return {
        path: torch.from_numpy(np.array(places[path].to_torch(a)))
        for path, a in initial_arrays(model, in_shape, seed).items()
    }


def network(layer: Layer, in_shape: Shape) -> Any:
    """PyTorch's own modules for a layer; their parameters have the paths that ours have."""
    c = in_shape[-1]
    match layer:
        case L.Sequential():
            return nn.Sequential(*(network(part, shape) for _, part, shape in layer.placed(in_shape)))
        case L.Residual():
            return Sum(network(layer.body, in_shape), layer.shortcut and network(layer.shortcut, in_shape))
        case L.Conv2D():
            w, pads = _window(layer, in_shape)
            return nn.Conv2d(c, layer.channels, w.size, w.stride, pads, w.dilation, layer.groups, layer.bias)
        case L.AvgPool2D():
            w, pads = _window(layer, in_shape)
            return nn.AvgPool2d(w.size, w.stride, pads, layer.ceil_mode, layer.count_include_pad)
        case L.MaxPool2D():
            w, pads = _window(layer, in_shape)
            return nn.MaxPool2d(w.size, w.stride, pads, w.dilation, ceil_mode=layer.ceil_mode)
        case L.GlobalAvgPool():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case L.BatchNorm():
            return (nn.BatchNorm2d if len(in_shape) == 3 else nn.BatchNorm1d)(c, layer.epsilon, layer.momentum)
        case L.Dense():
            return nn.Linear(c, layer.units, layer.bias)
        case L.Dropout():
            return nn.Dropout(layer.rate)
        case L.Flatten() | L.ReLU() | L.Tanh():
            return getattr(nn, type(layer).__name__)()
    raise unknown(layer, "torch")


def _window(layer: Conv | MaxPool, in_shape: Shape) -> tuple[Window, tuple[int, ...]]:
    """The window and the padding that both ends have: PyTorch's modules know no other."""
    w = window_of(layer, in_shape)
    if any(before != after for before, after in w.pads):
        raise unknown(layer, "torch")
    return w, tuple(before for before, _ in w.pads)


class Sum(nn.Module):  # type: ignore[misc]
    """`body(x) + shortcut(x)`."""

    def __init__(self, body: Any, shortcut: Any) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Any) -> Any:
        """The sum."""
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))
