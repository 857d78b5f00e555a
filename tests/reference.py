"""The ops once more, in plain loops and textbook formulas over float64: independent of the code under test.

`VALUES[op]` takes the arrays and options of the op and returns its value; `layer_value` the same for a layer.
"""

from math import ceil, erf, exp, log1p, pi, sqrt, tanh

import numpy as np

from xpnn import layers as L


def axes_of(value, axes):
    return (value,) * axes if isinstance(value, int) else tuple(value)


def pairs_of(padding, n, k, s, d):
    """(before, after) for each axis."""
    if padding == "valid":
        return [(0, 0)] * len(n)
    if padding == "same":
        pairs = []
        for m, kk, ss, dd in zip(n, k, s, d, strict=True):
            needed = (ceil(m / ss) - 1) * ss + dd * (kk - 1) + 1
            missing = max(0, needed - m)
            pairs.append((missing // 2, missing - missing // 2))
        return pairs
    return [(p, p) if isinstance(p, int) else p for p in axes_of(padding, len(n))]


def under_the_window(o, t, s, d, pads):
    """Where tap `t` of output `o` reads."""
    return tuple(oo * ss - p[0] + tt * dd for oo, tt, ss, dd, p in zip(o, t, s, d, pads, strict=True))


def inside(i, n):
    return all(0 <= ii < m for ii, m in zip(i, n, strict=True))


def conv(x, weight, bias=None, *, stride=1, padding="valid", dilation=1, groups=1):
    n, k = x.shape[1:-1], weight.shape[1:-1]
    s, d = axes_of(stride, len(n)), axes_of(dilation, len(n))
    pads = pairs_of(padding, n, k, s, d)
    out = [(m + a + b - dd * (kk - 1) - 1) // ss + 1 for m, (a, b), kk, ss, dd in zip(n, pads, k, s, d, strict=True)]
    ci, co = x.shape[-1] // groups, weight.shape[0] // groups
    y = np.zeros((x.shape[0], *out, weight.shape[0]))
    for o in np.ndindex(*out):
        for t in np.ndindex(*k):
            i = under_the_window(o, t, s, d, pads)
            if not inside(i, n):
                continue
            for g in range(groups):
                one = x[(slice(None), *i, slice(g * ci, g * ci + ci))]
                y[(slice(None), *o, slice(g * co, g * co + co))] += one @ weight[(slice(g * co, g * co + co), *t)].T
    return y if bias is None else y + bias


def im2col(x, *, kernel, stride=1, padding="valid", dilation=1):
    axes = x.ndim - 2
    k, s, d = axes_of(kernel, axes), axes_of(stride, axes), axes_of(dilation, axes)
    x = np.pad(x, ((0, 0), *pairs_of(padding, x.shape[1:-1], k, s, d), (0, 0)))
    out = [(n - dd * (kk - 1) - 1) // ss + 1 for n, kk, ss, dd in zip(x.shape[1:-1], k, s, d, strict=True)]
    y = np.zeros((x.shape[0], *out, *k, x.shape[-1]))
    for o in np.ndindex(*out):
        for t in np.ndindex(*k):
            y[(slice(None), *o, *t)] = x[
                (slice(None), *(a * ss + b * dd for a, b, ss, dd in zip(o, t, s, d, strict=True)))
            ]
    return y.reshape(x.shape[0], *out, -1)


def col2im(columns, *, spatial, kernel, stride=1, padding="valid", dilation=1):
    axes = len(spatial)
    k, s, d = axes_of(kernel, axes), axes_of(stride, axes), axes_of(dilation, axes)
    pads = pairs_of(padding, spatial, k, s, d)
    parts = columns.reshape(*columns.shape[:-1], *k, -1)
    x = np.zeros((columns.shape[0], *(n + a + b for n, (a, b) in zip(spatial, pads, strict=True)), parts.shape[-1]))
    for o in np.ndindex(*columns.shape[1:-1]):
        for t in np.ndindex(*k):
            x[(slice(None), *(a * ss + b * dd for a, b, ss, dd in zip(o, t, s, d, strict=True)))] += parts[
                (slice(None), *o, *t)
            ]
    return x[(slice(None), *(slice(a, a + n) for n, (a, _) in zip(spatial, pads, strict=True)))]


def conv_transpose(x, weight, bias=None, *, stride=1, padding="valid", output_padding=0, dilation=1, groups=1):
    """Every input pours its share, one kernel large, into the output."""
    n, k = x.shape[1:-1], weight.shape[1:-1]
    s, d, extra = (axes_of(v, len(n)) for v in (stride, dilation, output_padding))
    if padding == "same":
        out = [m * ss for m, ss in zip(n, s, strict=True)]
        pads = pairs_of(padding, out, k, s, d)
    else:
        pads = pairs_of(padding, n, k, s, d)
        out = [
            (m - 1) * ss + dd * (kk - 1) + 1 + e - a - b
            for m, kk, ss, dd, e, (a, b) in zip(n, k, s, d, extra, pads, strict=True)
        ]
    ci, co = x.shape[-1] // groups, weight.shape[-1]
    y = np.zeros((x.shape[0], *out, co * groups))
    for i in np.ndindex(*n):
        for t in np.ndindex(*k):
            o = under_the_window(i, t, s, d, pads)
            if not inside(o, out):
                continue
            for g in range(groups):
                one = x[(slice(None), *i, slice(g * ci, g * ci + ci))]
                y[(slice(None), *o, slice(g * co, g * co + co))] += one @ weight[(slice(g * ci, g * ci + ci), *t)]
    return y if bias is None else y + bias


def dense(x, weight, bias=None):
    y = np.einsum("...i,oi->...o", x, weight)
    return y if bias is None else y + bias


def windows(x, window, stride, padding, dilation, ceil_mode):
    """For each output the real inputs under its window, and how many places it has with padding."""
    n = x.shape[1:-1]
    k, d = axes_of(window, len(n)), axes_of(dilation, len(n))
    s = k if stride is None else axes_of(stride, len(n))
    pads = pairs_of(padding, n, k, s, d)
    out = []
    for m, kk, ss, dd, (a, b) in zip(n, k, s, d, pads, strict=True):
        room = m + a + b - dd * (kk - 1) - 1
        size = (ceil(room / ss) if ceil_mode else room // ss) + 1
        if ceil_mode and (size - 1) * ss >= m + a:  # the last window must start on the image or before it
            size -= 1
        out.append(size)
    found = {}
    for o in np.ndindex(*out):
        read = [under_the_window(o, t, s, d, pads) for t in np.ndindex(*k)]
        padded = [i for i in read if all(ii < m + b for ii, m, (_, b) in zip(i, n, pads, strict=True))]
        found[o] = [i for i in read if inside(i, n)], len(padded)
    return out, found


def max_pool(x, *, window, stride=None, padding="valid", dilation=1, ceil_mode=False):
    out, found = windows(x, window, stride, padding, dilation, ceil_mode)
    y = np.zeros((x.shape[0], *out, x.shape[-1]))
    for o, (places, _) in found.items():
        for n in range(x.shape[0]):
            for c in range(x.shape[-1]):
                y[(n, *o, c)] = max(x[(n, *i, c)] for i in places)
    return y


def max_pool_gradient(x, dy, *, window, stride=None, padding="valid", dilation=1, ceil_mode=False):
    """All to the first maximum in row-major order."""
    dx = np.zeros_like(x)
    for o, (places, _) in windows(x, window, stride, padding, dilation, ceil_mode)[1].items():
        for n in range(x.shape[0]):
            for c in range(x.shape[-1]):
                values = [x[(n, *i, c)] for i in places]
                dx[(n, *places[values.index(max(values))], c)] += dy[(n, *o, c)]
    return dx


def avg_pool(x, *, window, stride=None, padding="valid", dilation=1, ceil_mode=False, count_include_pad=True):
    out, found = windows(x, window, stride, padding, dilation, ceil_mode)
    y = np.zeros((x.shape[0], *out, x.shape[-1]))
    for o, (places, padded) in found.items():
        total = sum(x[(slice(None), *i)] for i in places)
        y[(slice(None), *o)] = total / (padded if count_include_pad else len(places))
    return y


def batch_norm(x, scale, bias, running_mean, running_var, *, training, momentum=0.1, epsilon=1e-5, relu=False):
    if relu:
        y, *statistics = batch_norm(
            x, scale, bias, running_mean, running_var, training=training, momentum=momentum, epsilon=epsilon
        )
        return np.maximum(y, 0), *statistics
    rows = x.reshape(-1, x.shape[-1])
    if not training:
        return (x - running_mean) / np.sqrt(running_var + epsilon) * scale + bias, running_mean, running_var
    y = (x - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + epsilon) * scale + bias
    mean = (1 - momentum) * running_mean + momentum * rows.mean(axis=0)
    var = (1 - momentum) * running_var + momentum * rows.var(axis=0, ddof=1)
    return y, mean, var


def layer_norm(x, scale, bias, *, epsilon=1e-5):
    mean, var = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def group_norm(x, scale, bias, *, groups, epsilon=1e-5):
    size, y = x.shape[-1] // groups, np.zeros_like(x)
    for n in range(x.shape[0]):
        for c in range(0, x.shape[-1], size):
            part = x[n, ..., c : c + size]
            y[n, ..., c : c + size] = (part - part.mean()) / np.sqrt(part.var() + epsilon)
    return y * scale + bias


def each(f):
    return np.vectorize(f, otypes=[float])


def gelu(x, *, approximate="none"):
    if approximate == "tanh":
        return each(lambda v: v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 * v**3))))(x)
    return each(lambda v: v / 2 * (1 + erf(v / sqrt(2))))(x)


def softmax(x):
    return np.exp(log_softmax(x))


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def softmax_cross_entropy(logits, labels, class_weights=None, *, label_smoothing=0.0, ignored_label=None):
    k, loss = logits.shape[-1], 0.0
    w = np.ones(k) if class_weights is None else class_weights
    for z, label in zip(logits.reshape(-1, k), labels.reshape(-1), strict=True):
        if label == ignored_label:
            continue
        if not 0 <= label < k:
            continue
        log_p = log_softmax(z)
        loss -= (1 - label_smoothing) * w[label] * log_p[label]
        loss -= label_smoothing * sum(w[i] * log_p[i] for i in range(k)) / k
    return loss


def nll(log_probabilities, labels, class_weights=None, *, ignored_label=None):
    k = log_probabilities.shape[-1]
    w = np.ones(k) if class_weights is None else class_weights
    rows = zip(log_probabilities.reshape(-1, k), labels.reshape(-1), strict=True)
    return -sum(w[label] * row[label] for row, label in rows if label != ignored_label)


def huber(x, target, *, delta=1.0):
    errors = np.abs(x - target).reshape(-1)
    return sum(e * e / 2 if e <= delta else delta * (e - delta / 2) for e in errors)


def binary_cross_entropy(logits, target):
    def loss(z, t):  # -t·log p - (1 - t)·log(1 - p), both logarithms from the side that is small
        log_p = -log1p(exp(-z)) if z > 0 else z - log1p(exp(z))
        return -t * log_p - (1 - t) * (log_p - z)

    return sum(map(loss, logits.reshape(-1), target.reshape(-1)))


def conv_relu(x, weight, bias=None, shortcut=None, **options):
    return np.maximum(conv(x, weight, bias, **options) + (0 if shortcut is None else shortcut), 0)


def conv_pool(x, weight, bias=None, *, pool, relu=False, **options):
    y = max_pool(conv(x, weight, bias, **options), window=pool)
    return np.maximum(y, 0) if relu else y


def conv_avg_pool(x, weight, bias=None, *, pool, activation, **options):
    y = conv(x, weight, bias, **options)
    return avg_pool(np.tanh(y) if activation == "tanh" else np.maximum(y, 0), window=pool)


VALUES = {
    "matmul": lambda a, b: np.einsum("...ij,...jk->...ik", a, b),
    "total": lambda x, *, axis, keepdims=False: np.sum(x, axis=axis, keepdims=keepdims),
    "im2col": im2col,
    "col2im": col2im,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "conv_relu": conv_relu,
    "conv_pool": conv_pool,
    "conv_avg_pool": conv_avg_pool,
    "dense": dense,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "global_max_pool": lambda x: x.reshape(x.shape[0], -1, x.shape[-1]).max(axis=1),
    "global_avg_pool": lambda x: x.reshape(x.shape[0], -1, x.shape[-1]).mean(axis=1),
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "add": lambda a, b, *, relu=False: np.maximum(a + b, 0) if relu else a + b,
    "relu": each(lambda v: v if v > 0 else 0.0),
    "leaky_relu": lambda x, *, slope=0.01: each(lambda v: v if v > 0 else slope * v)(x),
    "elu": lambda x, *, alpha=1.0: each(lambda v: v if v > 0 else alpha * (exp(v) - 1))(x),
    "gelu": gelu,
    "sigmoid": each(lambda v: 1 / (1 + exp(-v))),
    "silu": each(lambda v: v / (1 + exp(-v))),
    "tanh": each(tanh),
    "softmax": softmax,
    "log_softmax": log_softmax,
    "dropout": lambda x, keep, *, rate: x * keep / (1 - rate),
    "softmax_cross_entropy": softmax_cross_entropy,
    "nll": nll,
    "mse": lambda x, target: np.sum((x - target) ** 2),
    "huber": huber,
    "binary_cross_entropy": binary_cross_entropy,
}

_LAYERS = {  # layer, without its number of axes -> op, the options that it hands on
    "Conv": ("conv", ("stride", "padding", "dilation", "groups")),
    "ConvTranspose": ("conv_transpose", ("stride", "padding", "output_padding", "dilation", "groups")),
    "Dense": ("dense", ()),
    "MaxPool": ("max_pool", ("window", "stride", "padding", "dilation", "ceil_mode")),
    "AvgPool": ("avg_pool", ("window", "stride", "padding", "dilation", "ceil_mode", "count_include_pad")),
    "GlobalMaxPool": ("global_max_pool", ()),
    "GlobalAvgPool": ("global_avg_pool", ()),
    "LayerNorm": ("layer_norm", ("epsilon",)),
    "GroupNorm": ("group_norm", ("groups", "epsilon")),
    "ReLU": ("relu", ()),
    "LeakyReLU": ("leaky_relu", ("slope",)),
    "ELU": ("elu", ("alpha",)),
    "GELU": ("gelu", ("approximate",)),
    "Sigmoid": ("sigmoid", ()),
    "SiLU": ("silu", ()),
    "Tanh": ("tanh", ()),
    "Softmax": ("softmax", ()),
    "LogSoftmax": ("log_softmax", ()),
}


def layer_value(layer, arrays, x, training, path=""):
    """The output of a layer, and its new statistics; `arrays` holds weights, statistics and masks by path."""

    def own(name):
        return arrays.get(path + name)

    def part(name, inner, x):
        return layer_value(inner, arrays, x, training, f"{path}{name}.")

    match layer:
        case L.Sequential():
            stats = {}
            for i, inner in enumerate(layer.layers):
                x, new = part(i, inner, x)
                stats |= new
            return x, stats
        case L.Residual():
            y, stats = part("body", layer.body, x)
            short, more = (x, {}) if layer.shortcut is None else part("shortcut", layer.shortcut, x)
            return y + short, stats | more
        case L.Parallel():
            found = [part(i, inner, x) for i, inner in enumerate(layer.branches)]
            return np.concatenate([y for y, _ in found], axis=-1), {k: v for _, s in found for k, v in s.items()}
        case L.BatchNorm():
            y, mean, var = batch_norm(
                x, own("weight"), own("bias"), own("running_mean"), own("running_var"),
                training=training, momentum=layer.momentum, epsilon=layer.epsilon,
            )  # fmt: skip
            return y, {f"{path}running_mean": mean, f"{path}running_var": var}
        case L.Normalize():
            return (x - np.asarray(layer.mean)) / np.asarray(layer.std), {}
        case L.Dropout():
            return (x * own("keep") / (1 - layer.rate) if training and layer.rate else x), {}
        case L.Flatten():
            return x.reshape(x.shape[0], -1), {}
        case L.Reshape():
            return x.reshape(x.shape[0], *layer.target), {}
    op, options = _LAYERS[type(layer).__name__.rstrip("123D")]
    weights = [own("weight"), own("bias")] if own("weight") is not None else []
    return VALUES[op](x, *weights, **{name: getattr(layer, name) for name in options}), {}
