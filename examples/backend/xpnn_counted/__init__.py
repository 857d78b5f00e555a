"""A backend in a package of its own: NumPy's arrays, one faster op, and a count of the bytes that come in.

pip install -e examples/backend
xpnn train --backend counted
pytest --pyargs xpnn.conformance --backend counted
"""

import array_api_compat.numpy as xp
import numpy as np

from xpnn.backend import Backend
from xpnn.errors import BackendError
from xpnn.ops._array import floats


def relu(ops, x):
    """`max(x, 0)`; the signature is that of the standard body, `ops` first."""
    floats("relu", x=x)  # says what is wrong with arrays that do not fit
    y = np.maximum(x, 0)
    return y, lambda dy, *, input_gradient=True: (dy * (y > 0) if input_gradient else None,)


class CountedBackend(Backend):
    name = "counted"
    kernels = {"relu": relu}  # noqa: RUF012
    bytes_in = 0

    def __init__(self, device=None):
        super().__init__(device)
        if device not in (None, "cpu"):
            raise BackendError(f"counted has the device 'cpu' only, not {device!r}")
        self.xp, self.device = xp, "cpu"

    def _place(self, x):
        self.bytes_in += x.nbytes
        return x

    def describe(self):
        return super().describe() | {"bytes_in": self.bytes_in}
