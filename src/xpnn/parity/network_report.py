"""What a comparison of networks found: each array of each layer on both sides, as verdict, table and record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from xpnn.parity.pair import FACTOR, number

LOSS = "loss"
"""In place of a layer's path."""


@dataclass(frozen=True)
class Reading:
    """What one side gave of one array."""

    side: str
    own: float
    """r of the layer alone; infinite where the array is missing or not finite."""
    whole: float
    """Its error in the network, in units of the drift."""
    fault: str | None
    """`"own"`, `"inherited"` or None."""
    index: tuple[int, ...] = ()
    """Of the worst element, in the way that found the fault."""
    got: float = 0.0
    expected: float = 0.0
    reason: str | None = None
    """What was raised, or what is wrong with the shape."""


@dataclass(frozen=True)
class Quantity:
    """One array of one layer: `y`, `dx`, `dweight`, `running_mean`, `new weight`, …"""

    path: str
    layer: str
    """The class."""
    name: str
    in_shape: tuple[int, ...]
    """Of the layer's input, with N."""
    shape: tuple[int, ...]
    bound: float
    """Of r; 0 where results must be equal."""
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class NetworkReport:
    """What `compare_network` found; quantities in the order in which they are computed."""

    sides: tuple[str, str]
    dtype: str
    quantities: tuple[Quantity, ...]
    left_out: Mapping[str, tuple[int, int]]
    """Path of a layer that chooses → positions left out, and all of them."""

    @property
    def passed(self) -> bool:
        """Whether nothing is past its bound."""
        return self.first is None

    @property
    def first(self) -> tuple[Quantity, Reading] | None:
        """The first array past its bound, in the order of computation; own faults go before inherited ones."""
        return min(self.faults(), key=lambda found: found[1].fault != "own", default=None)

    def faults(self) -> list[tuple[Quantity, Reading]]:
        """All that is past its bound."""
        return [(q, r) for q in self.quantities for r in q.readings if r.fault]

    def record(self) -> dict[str, Any]:
        """All of it as JSON values; None for what is infinite."""
        return {
            "sides": list(self.sides),
            "dtype": self.dtype,
            "passed": self.passed,
            "verdict": self.verdict(),
            "factor": FACTOR,
            "left_out": {path: list(counts) for path, counts in self.left_out.items()},
            "quantities": [
                {
                    "path": q.path,
                    "layer": q.layer,
                    "name": q.name,
                    "in_shape": list(q.in_shape),
                    "shape": list(q.shape),
                    "bound": q.bound,
                    "readings": [
                        vars(r)
                        | {k: number(getattr(r, k)) for k in ("own", "whole", "got", "expected")}
                        | {"index": list(r.index)}
                        for r in q.readings
                    ],
                }
                for q in self.quantities
            ],
        }

    def verdict(self) -> str:
        """One sentence."""
        if self.first is None:
            return f"{self.sides[0]} and {self.sides[1]} agree with float64 in every layer"
        q, r = self.first
        where = f"{q.name} of {LOSS if q.path == LOSS else f'layer {q.path}'} ({q.layer}) on {r.side}"
        if r.fault == "own":
            how = r.reason or f"r = {r.own:.3g}, at most {q.bound:.3g}"
            return f"{where} is wrong by itself: {how}"
        return f"{where} strays {r.whole:.3g} times as far as the last bit of the inputs does; at most {FACTOR:g}"

    def lines(self) -> list[str]:
        """A table: for each layer and side the largest r of its arrays, and the largest error in the network."""
        head = ("y", "stats", "dx", "dweight", "update")
        lines = [
            f"{'layer':<20} {'side':<8}" + "".join(f"{h:>8}" for h in (*head, "whole")),
            f"{'':<29}{'r of the layer alone':^40}{'drifts':>8}",
        ]
        layers = dict.fromkeys((q.path, q.layer) for q in self.quantities)
        for path, layer in sorted(layers, key=lambda at: at[0] == LOSS):
            of = [(q, _kind(q.name)) for q in self.quantities if q.path == path]
            name = layer if path == LOSS else f"{path} {layer}".strip()
            for i, side in enumerate(self.sides):
                there = [(q.readings[i], kind) for q, kind in of]
                cells = [_cell([(r.own, r.fault == "own") for r, kind in there if kind == h]) for h in head]
                cells.append(_cell([(r.whole, r.whole > FACTOR) for r, _ in there]))
                lines.append(
                    f"{'' if i else _cut(name, 20):<20} {_cut(side, 8):<8}" + "".join(f"{c:>8}" for c in cells)
                )
        count, among = (sum(pair[i] for pair in self.left_out.values()) for i in (0, 1))
        lines.append(f"choices that rounding turned, left out: {count:,} of {among:,}; * past the bound")
        return [*lines, *wrap(self.verdict(), 80), *self._worst()]

    def _worst(self) -> list[str]:
        if self.first is None:
            return []
        q, r = self.first
        lines = [f"  {q.in_shape} → {q.shape}" if q.name == "y" else f"  shape {q.shape}"]
        if r.reason is None:
            lines.append(f"  worst at {list(r.index)}: got {r.got:.9g}, expected {r.expected:.9g}")
        later = {p.path for p, s in self.faults() if s.fault == "inherited"} - {q.path}
        return [*lines, *([f"  inherited by {len(later)} other layer(s)"] if later and r.fault == "own" else [])]


def _kind(name: str) -> str:
    if name in ("y", "dx"):
        return name
    if name.startswith("new "):
        return "update"
    return "stats" if name.startswith("running_") else "dweight"


def _cell(found: Sequence[tuple[float, bool]]) -> str:
    if not found:
        return ""
    worst = max(r for r, _ in found)
    digits = ".2g" if worst < 100 else ".0f" if worst < 10_000 else ".0e"
    return f"{worst:{digits}}{'*' * any(past for _, past in found)}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
