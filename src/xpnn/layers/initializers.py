"""Initial weights: the variance of a layer's output should neither grow nor fade with depth.

`he` keeps it through ReLU (He et al., 2015: variance 2/fan_in), `glorot` in both directions (Glorot, Bengio,
2010: 2/(fan_in + fan_out)), `lecun` through linear layers (LeCun et al., 1998: 1/fan_in). Each comes uniform
(the default: exact on every machine) and normal. `article` is the tutorial's: normal / kernel².
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

from xpnn.errors import ShapeError
from xpnn.random import Stream

NAMES = (
    "he_uniform", "he_normal", "glorot_uniform", "glorot_normal", "lecun_uniform", "lecun_normal",
    "article", "zeros",
)  # fmt: skip


def draw(
    name: str, stream: Stream, shape: tuple[int, ...], fan_in: int, fan_out: int, kernel: tuple[int, ...] = ()
) -> Any:
    """Weights of `shape` by the initialiser `name`.

    Args:
        name: one of `NAMES`.
        stream: where the random numbers come from.
        shape: of the weights.
        fan_in, fan_out: how many inputs feed one output, and the other way round.
        kernel: spatial size of the kernel, for `article`.
    """
    check(name)
    if name == "zeros":
        return stream.uniform(shape, 0.0, 0.0)
    if name == "article":
        return stream.normal(shape, 1 / (prod(kernel) if kernel else fan_in))
    rule, _, kind = name.partition("_")
    variance = {"he": 2 / fan_in, "glorot": 2 / (fan_in + fan_out), "lecun": 1 / fan_in}[rule]
    if kind == "normal":
        return stream.normal(shape, sqrt(variance))
    limit = sqrt(3 * variance)  # a uniform number in [-a, a) has variance a²/3
    return stream.uniform(shape, -limit, limit)


def check(name: str) -> None:
    """Raise where there is no initialiser `name`."""
    if name not in NAMES:
        raise ShapeError(f"initializer={name!r}; expected one of {', '.join(NAMES)}")
