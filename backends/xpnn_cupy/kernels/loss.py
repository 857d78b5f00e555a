"""The loss of a classifier and its gradient, in one launch: a thread takes a row of scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cupy

from xpnn.ops import loss as standard
from xpnn.ops._array import Array, floats
from xpnn_cupy.kernels._cuda import Kernel, takes

if TYPE_CHECKING:
    from xpnn.ops import Ops

CLASSES = 128  # with more of them, a row by one thread takes longer than all rows in twenty launches

# A label out of range hits no class, and adds nothing.
_ROWS = Kernel("xpnn_cross_entropy", """
extern "C" __global__ void xpnn_cross_entropy(
    const T* logits, const long long* labels, T* loss, T* slope, unsigned rows, unsigned classes
) {
    const unsigned row = thread();
    if (row >= rows) return;
    const T* z = logits + row * classes;
    const long long label = labels[row];
    const bool known = label >= 0 && label < classes;
    T most = z[0], sum = 0;
    for (unsigned k = 1; k < classes; ++k) if (z[k] > most) most = z[k];
    for (unsigned k = 0; k < classes; ++k) sum += exp(z[k] - most);
    loss[row] = (log(sum) - (z[known ? label : 0] - most)) * T(known);  // NaN stays NaN
    for (unsigned k = 0; k < classes; ++k)
        slope[row * classes + k] = (exp(z[k] - most) / sum - T(k == label)) * T(known);
}
""")  # fmt: skip


def softmax_cross_entropy(
    ops: Ops,
    logits: Array,
    labels: Array,
    class_weights: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    ignored_label: int | None = None,
) -> standard.Result:
    """See `xpnn.ops.softmax_cross_entropy`; with weights, smoothing or ignored labels it is the standard body."""
    xp = floats("softmax_cross_entropy", x=logits)
    standard.check_labels("softmax_cross_entropy", logits, labels)
    plain = class_weights is None and not label_smoothing and ignored_label is None
    if not plain or not takes(logits) or logits.shape[-1] > CLASSES:
        return standard.softmax_cross_entropy(
            ops, logits, labels, class_weights, label_smoothing=label_smoothing, ignored_label=ignored_label
        )
    logits, labels = cupy.ascontiguousarray(logits), cupy.ascontiguousarray(xp.astype(labels, xp.int64, copy=False))
    loss, slope = cupy.empty(labels.shape, logits.dtype), cupy.empty(logits.shape, logits.dtype)
    _ROWS(labels.size, logits.dtype, 1, logits, labels, loss, slope, labels.size, logits.shape[-1])
    return ops.total(loss, tuple(range(loss.ndim))), lambda dy: (slope * dy, None, None)
