"""Every op against `torch.nn.functional`, values and autograd's gradients, in float64 with PyTorch's defaults."""

import math

import numpy as np
import pytest

from xpnn import layers as L
from xpnn import ops, parity
from xpnn.layers import Run
from xpnn.parity import OPS
from xpnn.random import Stream

torch = pytest.importorskip("torch")
F = torch.nn.functional


def first(x):
    """Channels first."""
    return torch.movedim(x, -1, 1)


def last(x):
    return torch.movedim(x, 1, -1)


def pads(padding):
    """(before, after) pairs in the order of `F.pad`: the last axis first."""
    return [p for pair in reversed(padding) for p in pair]


def conv(x, weight, bias, *, padding="valid", stride=1, dilation=1, groups=1):
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        x, padding = last(F.pad(first(x), pads(padding))), 0
    f = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    return last(f(first(x), first(weight), bias, stride=stride, padding=padding, dilation=dilation, groups=groups))


def single_taps(kernel, axes, channels):
    """The kernels of a convolution whose responses are the inputs under its taps."""
    size = (kernel,) * axes if isinstance(kernel, int) else kernel
    columns = math.prod(size) * channels
    return torch.eye(columns, dtype=torch.float64).reshape(columns, *size, channels)


def col2im(columns, *, spatial, kernel, stride=1, padding=None, dilation=1):
    axes = len(spatial)
    around = padding or ((0, 0),) * axes
    size = (kernel,) * axes if isinstance(kernel, int) else kernel
    weight = single_taps(kernel, axes, columns.shape[-1] // math.prod(size))
    y = conv_transpose(columns, weight, None, stride=stride, dilation=dilation)
    padded = [n + a + b for n, (a, b) in zip(spatial, around, strict=True)]
    y = F.pad(y, (0, 0, *(m for n, out in zip(padded[::-1], y.shape[-2:0:-1], strict=True) for m in (0, n - out))))
    return y[(slice(None), *(slice(a, a + n) for n, (a, _) in zip(spatial, around, strict=True)))]


def conv_relu(x, weight, bias, shortcut, **options):
    y = conv(x, weight, bias, **options)
    return F.relu(y if shortcut is None else y + shortcut)


def conv_pool(x, weight, bias, *, pool, relu=False, **options):
    y = max_pool(conv(x, weight, bias, **options), window=pool)
    return F.relu(y) if relu else y


def conv_avg_pool(x, weight, bias, *, pool, activation, **options):
    return avg_pool(getattr(torch, activation)(conv(x, weight, bias, **options)), window=pool)


def conv_transpose(x, weight, bias, *, padding=0, **options):
    f = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.ndim - 3]
    cut = None
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        cut, padding = padding, 0
    y = last(f(first(x), first(weight), bias, padding=padding, **options))
    if cut:
        y = y[(slice(None), *(slice(a, n - b) for n, (a, b) in zip(y.shape[1:-1], cut, strict=True)), slice(None))]
    return y


def max_pool(x, *, window, stride=None, padding=0, dilation=1, ceil_mode=False):
    f = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    return last(f(first(x), window, stride, padding, dilation, ceil_mode))


def avg_pool(x, *, window, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    f = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    return last(f(first(x), window, stride, padding, ceil_mode, count_include_pad))


def batch_norm(x, scale, bias, mean, var, *, training, momentum=0.1, epsilon=1e-5, relu=False):
    mean, var = mean.clone(), var.clone()
    y = last(F.batch_norm(first(x), mean, var, scale, bias, training, momentum, epsilon))
    return F.relu(y) if relu else y, mean, var


def cross_entropy(logits, labels, class_weights, *, label_smoothing=0.0, ignored_label=-100):
    return F.cross_entropy(
        first(logits),
        labels.long(),
        class_weights,
        reduction="sum",
        label_smoothing=label_smoothing,
        ignore_index=ignored_label,
    )


def nll(log_probabilities, labels, class_weights, *, ignored_label=-100):
    return F.nll_loss(
        first(log_probabilities).contiguous(), labels.long(), class_weights, reduction="sum", ignore_index=ignored_label
    )


THEIRS = {
    "matmul": torch.matmul,
    "total": lambda x, *, axis, keepdims=False: torch.sum(x, axis, keepdim=keepdims),
    "im2col": lambda x, *, kernel, **options: conv(x, single_taps(kernel, x.ndim - 2, x.shape[-1]), None, **options),
    "col2im": col2im,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "conv_relu": conv_relu,
    "conv_pool": conv_pool,
    "conv_avg_pool": conv_avg_pool,
    "dense": F.linear,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "global_max_pool": lambda x: torch.amax(x, tuple(range(1, x.ndim - 1))),
    "global_avg_pool": lambda x: torch.mean(x, tuple(range(1, x.ndim - 1))),
    "batch_norm": batch_norm,
    "layer_norm": lambda x, scale, bias, *, epsilon=1e-5: F.layer_norm(x, x.shape[-1:], scale, bias, epsilon),
    "group_norm": lambda x, scale, bias, *, groups, epsilon=1e-5: last(
        F.group_norm(first(x), groups, scale, bias, epsilon)
    ),
    "add": lambda a, b, *, relu=False: F.relu(a + b) if relu else a + b,
    "relu": F.relu,
    "leaky_relu": lambda x, *, slope=0.01: F.leaky_relu(x, slope),
    "elu": F.elu,
    "gelu": F.gelu,
    "sigmoid": F.sigmoid,
    "silu": F.silu,
    "tanh": F.tanh,
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "softmax_cross_entropy": cross_entropy,
    "nll": nll,
    "mse": lambda x, target: F.mse_loss(x, target, reduction="sum"),
    "huber": lambda x, target, *, delta=1.0: F.huber_loss(x, target, reduction="sum", delta=delta),
    "binary_cross_entropy": lambda x, target: F.binary_cross_entropy_with_logits(x, target, reduction="sum"),
}


def has_counterpart(case):
    """PyTorch pads pools by one number an axis and by half the undilated window, and dilates no mean."""
    if case.subject not in THEIRS or case.name.endswith("labels-out-of-range"):
        return False
    padding, stride = case.options.get("padding", 0), case.options.get("stride", 1)
    if case.subject in ("conv", "conv_relu", "conv_pool", "conv_avg_pool"):
        return padding != "same" or stride == 1
    if case.subject == "avg_pool" and "dilation" in case.options:
        return False
    if case.subject in ("max_pool", "avg_pool"):
        return isinstance(padding, int) and 2 * padding <= np.min(case.options["window"])
    return padding != "same"


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", [c for c in OPS if has_counterpart(c)], ids=repr)
def test_op(case):
    expected = parity.expected(case)
    arrays = {k: None if a is None else torch.tensor(a) for k, a in case.arrays().items()}
    inputs = {k: a for k, a in arrays.items() if f"d{k}" in expected.values}
    for a in inputs.values():
        a.requires_grad_()
    y = THEIRS[case.subject](*arrays.values(), **case.options)
    if case.subject == "batch_norm":
        y, mean, var = y
        np.testing.assert_allclose(expected.values["running_mean"], mean.numpy(), rtol=1e-12)
        np.testing.assert_allclose(expected.values["running_var"], var.numpy(), rtol=1e-12)
    assert_close(expected.values["y"], y)
    if not inputs or (case.subject == "global_max_pool" and not case.smooth):  # amax shares a tie out
        return
    y.backward(torch.tensor(expected.dy))
    for name, a in inputs.items():
        assert_close(expected.values[f"d{name}"], a.grad)


def assert_close(found, theirs):
    theirs = theirs.detach().numpy()
    assert found.shape == theirs.shape
    np.testing.assert_allclose(found, theirs, rtol=1e-11, atol=1e-12 * max(1, np.abs(theirs).max(initial=0)))


def test_which_have_none():
    left_out = [case for case in OPS if not has_counterpart(case)]
    assert {case.subject for case in left_out} == {
        "avg_pool",
        "conv",
        "conv_transpose",
        "dropout",
        "max_pool",
        "softmax_cross_entropy",
    }
    assert len(left_out) < 20


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (L.BatchNorm(), torch.nn.BatchNorm2d(4)),
        (L.GroupNorm(2), torch.nn.GroupNorm(2, 4)),
        (L.ReLU(), torch.nn.ReLU()),
        (L.LeakyReLU(), torch.nn.LeakyReLU()),
        (L.ELU(), torch.nn.ELU()),
        (L.GELU(), torch.nn.GELU()),
        (L.GELU("tanh"), torch.nn.GELU("tanh")),
        (L.SiLU(), torch.nn.SiLU()),
        (L.Sigmoid(), torch.nn.Sigmoid()),
        (L.Tanh(), torch.nn.Tanh()),
        (L.Softmax(), torch.nn.Softmax(1)),
        (L.LogSoftmax(), torch.nn.LogSoftmax(1)),
        (L.MaxPool2D(2), torch.nn.MaxPool2d(2)),
        (L.MaxPool2D(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1)),
        (L.AvgPool2D(2), torch.nn.AvgPool2d(2)),
        (L.AvgPool2D(3, 2, 1), torch.nn.AvgPool2d(3, 2, 1)),
    ],
    ids=repr,
)
def test_defaults_are_pytorchs(ours, theirs):
    x = Stream(0, "x").normal((3, 5, 5, 4))
    weights, stats = ours.init(x.shape[1:], Stream(0, "weights"))
    y, new, _ = ours.apply(weights, stats, x, Run(ops.standard, training=True))
    assert_close(y, last(theirs.double()(first(torch.tensor(x)))))
    for name, a in new.items():
        assert_close(a, getattr(theirs, name))
    if new:
        y, _, _ = ours.apply(weights, new, x, Run(ops.standard))
        assert_close(y, last(theirs.eval()(first(torch.tensor(x)))))
