"""Softmax and cross-entropy in one go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpnn.ops import loss as standard
from xpnn.ops._array import floats
from xpnn.ops.sums import BLOCK
from xpnn_numpy.kernels._rows import Host
from xpnn_numpy.recording import unrecorded

if TYPE_CHECKING:
    from xpnn.ops import Ops

any_labels = unrecorded(standard.softmax_cross_entropy)


def softmax_cross_entropy(
    ops: Ops,
    logits: Host,
    labels: Host,
    class_weights: Host | None = None,
    *,
    label_smoothing: float = 0.0,
    ignored_label: int | None = None,
) -> standard.Result:
    """See `xpnn.ops.softmax_cross_entropy`.

    With weights, smoothing or labels that are ignored or out of range it is the standard body. Else a logit of -∞, at
    another class than the label's, takes nothing from the loss, where that body has no number.
    """
    if class_weights is None and not label_smoothing and ignored_label is None:
        floats("softmax_cross_entropy", x=logits)
        standard.check_labels("softmax_cross_entropy", logits, labels)
        hit = labels[..., None] == np.arange(logits.shape[-1])
        if np.count_nonzero(hit) == labels.size:
            return _looked_up(ops, logits, hit)
    return any_labels(ops, logits, labels, class_weights, label_smoothing=label_smoothing, ignored_label=ignored_label)


def _looked_up(ops: Ops, logits: Host, hit: Host) -> standard.Result:
    """Where each row has one hit."""
    along = np.add.reduce if logits.shape[-1] <= BLOCK else ops.total
    shifted = logits - np.maximum.reduce(logits, -1, keepdims=True)
    e = np.exp(shifted)
    sums = along(e, -1, keepdims=True)
    loss = np.log(sums)
    np.subtract(loss, shifted[hit].reshape(loss.shape), out=loss)

    def backward(dy: Host | float) -> tuple[Host, None, None]:
        dlogits = e / sums
        np.subtract(dlogits, hit, out=dlogits)
        return np.multiply(dlogits, dy, out=dlogits), None, None

    return ops.total(loss.reshape(-1), 0), backward
