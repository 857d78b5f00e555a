"""Callbacks: small objects that are told of the moments of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpnn.train.trainer import Fit


class Callback:
    """Base of all callbacks: every moment does nothing. `fit` tells how far training is."""

    def on_begin(self, fit: Fit) -> None:
        """Before the first epoch."""

    def on_step(self, fit: Fit) -> None:
        """After a step; `fit.means()` waits for the device, so ask for it seldom."""

    def on_epoch(self, fit: Fit, record: dict[str, Any]) -> None:
        """After an epoch and its validation."""

    def on_end(self, fit: Fit) -> None:
        """After the last epoch, and also where training stops with an error."""
