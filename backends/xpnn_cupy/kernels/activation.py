"""Activations and sums whose backward is one launch, not one for the comparison, one for its type, …"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import cupy

from xpnn.ops import activation as standard
from xpnn.ops._array import Array, floats
from xpnn.ops.activation import Result
from xpnn_cupy.kernels._cuda import Kernel, alike, takes, width

if TYPE_CHECKING:
    from xpnn.ops import Ops

_LOOP = """
extern "C" __global__ void {name}(const Pack* a, const Pack* b, Pack* c, unsigned count) {{
    const unsigned i = thread();
    if (i >= count) return;
    const Pack p = a[i], q = b[i];
    Pack r;
    for (int w = 0; w < W; ++w) r.v[w] = {value};
    c[i] = r;
}}
"""


def _pairwise(name: str, value: str) -> Callable[[Array, Array], Array]:
    """A function of two arrays of one shape, element by element: `value`, in terms of `p.v[w]` and `q.v[w]`."""
    kernel = Kernel(name, _LOOP.format(name=name, value=value))

    def function(a: Array, b: Array) -> Array:
        a, b = cupy.ascontiguousarray(a), cupy.ascontiguousarray(b)
        c = cupy.empty(a.shape, a.dtype)
        w = width(a.size, a, b)
        kernel(a.size // w, a.dtype, w, a, b, c, a.size // w)
        return c

    return function


_rectified_sum = _pairwise("xpnn_rectified_sum", "rectified(p.v[w] + q.v[w])")
let_through = _pairwise("xpnn_let_through", "p.v[w] * T(q.v[w] > 0)")
"""Of the gradient `a` what ReLU lets through, whose output is `b`."""
_along_tanh = _pairwise("xpnn_along_tanh", "p.v[w] * (1 - q.v[w] * q.v[w])")


def add(ops: Ops, a: Array, b: Array, *, relu: bool = False) -> tuple[Array, Callable[..., tuple[Array | None, Array]]]:
    """See `xpnn.ops.add`."""
    standard.check_add(a, b)
    if not relu or not takes(a):
        return standard.add(ops, a, b, relu=relu)
    y = _rectified_sum(a, b)

    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None, Array]:
        d = let_through(alike("add", dy, y.shape, y.dtype), y)
        return (d if input_gradient else None), d

    return y, backward


def relu(ops: Ops, x: Array) -> Result:
    """See `xpnn.ops.relu`."""
    if not takes(x):
        return standard.relu(ops, x)
    y = cupy.ascontiguousarray(floats("relu", x=x).maximum(x, 0.0))
    return y, _by_output("relu", let_through, y)


def tanh(ops: Ops, x: Array) -> Result:
    """See `xpnn.ops.tanh`."""
    if not takes(x):
        return standard.tanh(ops, x)
    y = cupy.ascontiguousarray(floats("tanh", x=x).tanh(x))
    return y, _by_output("tanh", _along_tanh, y)


def _by_output(op: str, slope: Callable[[Array, Array], Array], y: Array) -> Callable[..., tuple[Array | None]]:
    def backward(dy: Array, *, input_gradient: bool = True) -> tuple[Array | None]:
        return (slope(alike(op, dy, y.shape, y.dtype), y) if input_gradient else None,)

    return backward
