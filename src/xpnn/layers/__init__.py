"""Layers: descriptions that say which op, with which shapes and which initial weights.

`REGISTRY` holds them by name; files store a model by these names.
"""

from xpnn.layers.activation import (
    ELU,
    GELU,
    Dropout,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from xpnn.layers.base import Draw, Layer, Run
from xpnn.layers.check import check_layer
from xpnn.layers.containers import Container, Parallel, Residual, Sequential
from xpnn.layers.conv import Conv1D, Conv2D, Conv3D, ConvTranspose1D, ConvTranspose2D, ConvTranspose3D
from xpnn.layers.dense import Dense, Flatten, Reshape
from xpnn.layers.norm import BatchNorm, GroupNorm, LayerNorm
from xpnn.layers.normalize import Normalize
from xpnn.layers.pool import (
    AvgPool1D,
    AvgPool2D,
    AvgPool3D,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
)

REGISTRY: dict[str, type[Layer]] = {
    cls.__name__: cls
    for cls in (
        Conv1D, Conv2D, Conv3D, ConvTranspose1D, ConvTranspose2D, ConvTranspose3D,
        MaxPool1D, MaxPool2D, MaxPool3D, AvgPool1D, AvgPool2D, AvgPool3D, GlobalAvgPool, GlobalMaxPool,
        Dense, Flatten, Reshape, Normalize, BatchNorm, LayerNorm, GroupNorm, Dropout,
        ReLU, LeakyReLU, ELU, GELU, SiLU, Sigmoid, Tanh, Softmax, LogSoftmax,
        Sequential, Residual, Parallel,
    )
}  # fmt: skip

__all__ = [
    "ELU", "GELU", "REGISTRY", "AvgPool1D", "AvgPool2D", "AvgPool3D", "BatchNorm", "Container", "Conv1D", "Conv2D",
    "Conv3D", "ConvTranspose1D", "ConvTranspose2D", "ConvTranspose3D", "Dense", "Draw", "Dropout", "Flatten",
    "GlobalAvgPool", "GlobalMaxPool", "GroupNorm", "Layer", "LayerNorm", "LeakyReLU", "LogSoftmax", "MaxPool1D",
    "MaxPool2D", "MaxPool3D", "Normalize", "Parallel", "ReLU", "Reshape", "Residual", "Run", "Sequential", "SiLU",
    "Sigmoid", "Softmax", "Tanh", "check_layer",
]  # fmt: skip
