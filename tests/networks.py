"""Random networks: a seed draws an architecture, all of whose layers have a derivative where the data lie."""

import numpy as np

from xpnn import layers as L


def random_network(seed, spatial=2):
    """A network of some layers and the shape of its samples."""
    rng = np.random.default_rng(seed)
    in_shape = (*(int(n) for n in rng.integers(5, 8, spatial)), int(rng.integers(1, 4)))
    layers, shape = [], in_shape
    for _ in range(rng.integers(3, 7)):
        layer = _block(rng, shape, depth=0)
        layers.append(layer)
        shape = layer.shape(shape)
    layers.append(L.GlobalAvgPool() if rng.random() < 0.3 else L.Flatten())
    layers.append(L.Dense(int(rng.integers(1, 5))))
    return L.Sequential(layers), in_shape


def _block(rng, shape, depth):
    kinds = [_conv, _conv, _pool, _norm, _activation, _dropout]
    if depth < 2:
        kinds += [_residual, _parallel, _sequential]
    return kinds[rng.integers(len(kinds))](rng, shape, depth)


def _layer_of(name, shape):
    return getattr(L, f"{name}{len(shape) - 1}D")


def _some(rng, least, most):
    return int(rng.integers(least, most + 1))


def _conv(rng, shape, depth):
    *sizes, c = shape
    groups = c if rng.random() < 0.3 else 1
    channels = groups * _some(rng, 1, 2)
    bias = bool(rng.random() < 0.7)
    if rng.random() < 0.3 and max(sizes) < 5:
        padding = _some(rng, 0, 1) if min(sizes) > 1 else 0
        stride = _some(rng, 1, 2)
        return _layer_of("ConvTranspose", shape)(channels, 2, stride, padding, groups=groups, bias=bias)
    kernel = tuple(_some(rng, 1, min(n, 3)) for n in sizes)
    padding = ("valid", "same", 1)[rng.integers(3)]
    dilation = _some(rng, 1, 2) if all(2 * k - 1 <= n for k, n in zip(kernel, sizes, strict=True)) else 1
    return _layer_of("Conv", shape)(channels, kernel, _some(rng, 1, 2), padding, dilation, groups, bias)


def _pool(rng, shape, depth):
    window = tuple(_some(rng, 1, min(n, 3)) for n in shape[:-1])
    stride = _some(rng, 1, 2)
    if rng.random() < 0.5:  # padded, its forward writes in place, which PyTorch cannot differentiate
        return _layer_of("MaxPool", shape)(window, stride)
    padding, ceil_mode, count = "same" if rng.random() < 0.5 else 0, *(bool(b) for b in rng.random(2) < 0.5)
    return _layer_of("AvgPool", shape)(window, stride, padding, ceil_mode=ceil_mode, count_include_pad=count)


def _norm(rng, shape, depth):
    kinds = [L.BatchNorm(), L.GroupNorm(1)] + [L.LayerNorm(epsilon=0.1)] * (shape[-1] > 1)  # one channel alone is 0
    return kinds[rng.integers(len(kinds))]


def _activation(rng, shape, depth):
    kinds = [L.ReLU, L.LeakyReLU, L.ELU, L.GELU, L.SiLU, L.Sigmoid, L.Tanh] + [L.Softmax] * (shape[-1] > 1)
    return kinds[rng.integers(len(kinds))]()


def _dropout(rng, shape, depth):
    return L.Dropout(0.3)


def _residual(rng, shape, depth):
    body = L.Sequential([_layer_of("Conv", shape)(shape[-1], 3, padding="same"), _activation(rng, shape, depth)])
    if rng.random() < 0.5:
        return L.Residual(body)
    channels = _some(rng, 1, 3)
    conv = _layer_of("Conv", shape)
    return L.Residual(L.Sequential([body, conv(channels, 1, stride=2)]), conv(channels, 1, stride=2, bias=False))


def _parallel(rng, shape, depth):
    branches = []
    for _ in range(_some(rng, 1, 3)):
        if rng.random() < 0.5:
            branches.append(_layer_of("Conv", shape)(_some(rng, 1, 2), _some(rng, 1, 3), padding="same"))
        else:
            branches.append(_layer_of("AvgPool", shape)(3, stride=1, padding=1))
    return L.Parallel(*branches)


def _sequential(rng, shape, depth):
    first = _block(rng, shape, depth + 1)
    return L.Sequential([first, _block(rng, first.shape(shape), depth + 1)])
