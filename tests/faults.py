"""Backends with one fault: NumPy by the standard bodies, one of which is spoilt."""

from functools import wraps

from xpnn_numpy import NumPyBackend

from xpnn.backend import Backend
from xpnn.ops import Ops


class Plain(NumPyBackend):
    """The standard bodies and the plain executor, whatever the environment says."""

    name = "plain"
    kernels = {}  # noqa: RUF012

    def executor(self, *args, **kwargs):
        return Backend.executor(self, *args, **kwargs)


class Faulty(Plain):
    name = "faulty"


def faulty(op, spoil, when=lambda *arrays: True):
    """A backend whose `op` gives `spoil(y, backward, *arrays)` where `when(*arrays)`, and else what it should."""
    body = vars(Ops)[op]

    @wraps(body)
    def kernel(ops, *arrays, **options):
        y, backward = body(ops, *arrays, **options)
        return spoil(y, backward, *arrays) if when(*arrays) else (y, backward)

    backend = Faulty()
    backend.ops = Ops({op: kernel}, backend.column_bytes)
    return backend
