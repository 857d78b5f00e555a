"""The error function and the normal distribution function, which the array API standard leaves out.

Both rest on one smooth function, the scaled tail M(a) = exp(a²/2)·Φ(-a) for a ≥ 0. It falls slowly from 1/2,
so (a + 4)·M(a) is a short polynomial in u = a/(a + 4) - 1/2; all that is steep stays in exp(-a²/2). `erf` takes
its Taylor series where |x| < 1, and M beyond.

Source of the numbers: fitted for this file with mpmath, by the Remez exchange algorithm, for the least relative
error in M: 2**-27.0 for a in [0, 13.2] (float32) and 2**-55.5 for a in [0, 38] (float64), that is, until Φ(-a)
leaves the normal numbers.
"""

from __future__ import annotations

from math import factorial, pi, sqrt
from typing import Any

from xpnn.ops._array import Array

# fmt: off
_TAIL32 = [  # (a + 4)·M(a), the constant term first
    0.7552851354, -1.2157932245, 1.5485475312, -1.492182293, 0.966472796, -0.24094426, -0.22521493, 0.20173783,
    0.04979294, -0.0640492,
]
_TAIL64 = [
    0.7552851304157515, -1.2157932839437842, 1.5485496029688768, -1.4921748636773373, 0.9663451982508744,
    -0.2412860469241179, -0.22270031115963004, 0.20874476191055377, 0.0341361282751605, -0.1183205870095214,
    -0.0019536463806422, 0.0719760026752835, 0.002928717558193, -0.048495742754481, -0.010244992698291,
    0.03347603535567, 0.01731549321716, -0.02048323052648, -0.0202353284218, 0.0083063139988, 0.0152623375673,
    -0.0005661347189, -0.004887809872,
]
# fmt: on
_TAYLOR64 = [2 / sqrt(pi) * (-1) ** n / (factorial(n) * (2 * n + 1)) - (n == 0) for n in range(18)]  # erf(x)/x - 1
_TAYLOR32 = _TAYLOR64[:11]


def erf(xp: Any, x: Array) -> Array:
    """The error function of each element, within 2 ulp."""
    a = xp.clip(xp.abs(x), 0.0, 6.0)  # erf(6) rounds to 1
    square = a * a
    near = a + a * _polynomial(square, _TAYLOR64 if x.dtype == xp.float64 else _TAYLOR32)
    far = 1.0 - 2.0 * xp.exp(-square) * _scaled_tail(xp, sqrt(2) * a)
    return xp.copysign(xp.where(a < 1.0, near, far), x)


def normal_cdf(xp: Any, x: Array) -> Array:
    """Φ of each element, within 8 ulp: in the negative tail, too, as long as Φ is a normal number."""
    a = xp.clip(xp.abs(x), 0.0, 40.0)  # Φ(-40) rounds to 0
    # Rounding a² = 140 would move its exponential by up to 64 ulp. `high` has few bits: its square is exact.
    high = xp.floor(16.0 * a) / 16.0
    # M stands in the middle, because the compiler of JAX makes exp(p + q) of exp(p)·exp(q).
    tail = xp.exp(-0.5 * high * high) * _scaled_tail(xp, a) * xp.exp(0.5 * (high - a) * (high + a))
    return xp.where(x < 0.0, tail, 1.0 - tail)


def _scaled_tail(xp: Any, a: Array) -> Array:
    b = a + 4.0
    return _polynomial(a / b - 0.5, _TAIL64 if a.dtype == xp.float64 else _TAIL32) / b


def _polynomial(u: Array, coefficients: list[float]) -> Array:
    """Horner's rule."""
    y = u * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        y = y * u + c
    return y
