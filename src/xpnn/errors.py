"""The errors of xpnn: each message says what came, what was expected and what to do."""

from __future__ import annotations


class ShapeError(ValueError):
    """Shapes, sizes or dtypes that do not fit together; `where` leads from the model down to the layer."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.where = where

    def within(self, part: str) -> ShapeError:
        """The same error, seen from one level further out, e.g. `layer 3 (Conv2D(32, 3))`."""
        return type(self)(self.message, f"{part}, {self.where}" if self.where else part)


class MixedBackendsError(ShapeError, TypeError):
    """Arrays of two backends met in one call."""


class BackendError(RuntimeError):
    """A backend is unknown or cannot be used here; the message carries the remedy."""


class NonFiniteError(ArithmeticError):
    """Training met a value that is not finite (NaN or infinity)."""


class FileFormatError(ValueError):
    """A file that xpnn cannot read: cut short, of another format, or made for another model."""
