"""Softmax and cross-entropy in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import loss as standard
from xpnn.ops._array import floats
from xpnn_numpy.fast._compiled import Host, compiled, plain, takes
from xpnn_numpy.kernels import loss as numpys

if TYPE_CHECKING:
    from xpnn.ops import Ops


def softmax_cross_entropy(
    ops: Ops,
    logits: Host,
    labels: Host,
    class_weights: Host | None = None,
    *,
    label_smoothing: float = 0.0,
    ignored_label: int | None = None,
) -> standard.Result:
    """See `xpnn.ops.softmax_cross_entropy`; with weights, smoothing or ignored labels it is the standard body."""
    if class_weights is not None or label_smoothing or ignored_label is not None or not takes(logits):
        return numpys.softmax_cross_entropy(
            ops, logits, labels, class_weights, label_smoothing=label_smoothing, ignored_label=ignored_label
        )
    floats("softmax_cross_entropy", x=logits)
    standard.check_labels("softmax_cross_entropy", logits, labels)
    rows = plain(logits).reshape(-1, logits.shape[-1])
    dlogits, hit = np.empty_like(rows), plain(labels.astype(np.int64, copy=False)).reshape(-1)
    loss = _cross_entropy(rows, hit, dlogits)

    def backward(dy: Host | float) -> tuple[Host, None, None]:
        return (dlogits * dy).reshape(logits.shape), None, None

    return np.asarray(loss, logits.dtype), backward


@compiled
def _cross_entropy(logits: Host, labels: Host, dlogits: Host) -> float:
    """The loss, summed in 64 bits; its gradient goes to `dlogits`."""
    loss = 0.0
    for i in range(len(logits)):
        row, probabilities = logits[i], dlogits[i]
        largest, total = row.max(), 0.0
        for j in range(len(row)):
            probabilities[j] = np.exp(row[j] - largest)
            total += probabilities[j]
        for j in range(len(row)):
            probabilities[j] /= total
        label = labels[i]
        if 0 <= label < len(row):
            loss += np.log(total) - (row[label] - largest)
            probabilities[label] -= 1
        else:  # one out of range adds nothing
            probabilities[:] = 0
    return loss
