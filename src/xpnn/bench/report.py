"""What is said of it: the table, the record, the plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpnn.bench.measure import Ratio, Result, Side

COLOURS = {"xpnn": "#d1495b", "torch": "#8d99ae", "jax": "#3f7d9c", "loops": "#c9b458", "xpnn jax": "#e8a0a8"}


def table(results: Sequence[Result], peak: float) -> str:
    """A line for each side."""
    rows = [("network", "batch", "mode", "side", "images/s", "spread", "of peak", "ratio")]
    for result in results:
        work, head = result.work, (result.work.model_name, str(result.work.batch), result.work.mode)
        for side in result.sides:
            said = ", ".join(_said(r) for r in result.ratios if r.ours == side.name)
            speed, spread = f"{1 / side.seconds:,.0f}", f"{side.spread / side.seconds:.1%}"
            rows.append((*head, side.name, speed, spread, f"{work.flops / side.seconds / peak:.1%}", said))
            head = ("", "", "")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {"batch", "images/s", "spread", "of peak"}
    lines = [
        "  ".join(
            text.rjust(width) if name in right else text.ljust(width)
            for text, width, name in zip(row, widths, rows[0], strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def record(results: Sequence[Result], peak: float) -> list[dict[str, Any]]:
    """All that was measured, as JSON values; seconds are those of a step in each round."""
    return [
        {
            "model": result.work.model_name,
            "image": list(result.work.in_shape),
            "batch": result.work.batch,
            "mode": result.work.mode,
            "flops_per_image": result.work.flops,
            "others": result.others,
            "sides": [
                {
                    "name": side.name,
                    "images_per_step": side.images,
                    "seconds": side.times,
                    "median": side.seconds * side.images,
                    "spread": side.spread * side.images,
                    "images_per_second": 1 / side.seconds,
                    "share_of_peak": result.work.flops / side.seconds / peak,
                }
                for side in result.sides
            ],
            "ratios": [{"ours": r.ours, "theirs": r.theirs, "ratio": r.value, "why": r.why} for r in result.ratios],
        }
        for result in results
    ]


def plot(results: Sequence[Result], path: Path, title: str) -> None:
    """Bars of images/s, ours and the best setting of each peer; a panel, with its own scale, for each network."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        panels.setdefault((result.work.model_name, result.work.mode), []).append(result)
    bars = [sum(len(_shown(result)) + 1 for result in panel) for panel in panels.values()]
    figure = Figure(figsize=(9, 0.8 + sum(0.24 * n + 0.3 for n in bars)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": bars})[:, 0]
    for ax, ((model, mode), panel) in zip(axes, panels.items(), strict=True):
        at, ticks = 0.0, []
        for result in panel:
            shown = _shown(result)
            ticks.append((at + (len(shown) - 1) / 2, f"batch {result.work.batch}"))
            for side in shown:
                kind = "xpnn jax" if side.name == "xpnn jax" and side is not shown[0] else side.peer
                bar = ax.barh(at, 1 / side.seconds, 0.85, color=COLOURS[kind])
                said = ", ".join(_said(r) for r in result.ratios if r.ours == side.name)
                ax.bar_label(bar, [f"{side.name}  {1 / side.seconds:,.0f}   {said}".rstrip()], padding=4, fontsize=8)
                at += 1
            at += 0.6
        ax.set_title(f"{model}, {mode}", loc="left", fontsize=9, fontweight="bold")
        ax.set_yticks(*zip(*ticks, strict=True), fontsize=8)
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
        ax.set_xlim(0, max(1 / side.seconds for result in panel for side in result.sides) * 1.6)  # room for the words
        ax.invert_yaxis()
    figure.savefig(path, dpi=150)


def _shown(result: Result) -> list[Side]:
    return [side for side in result.sides if side.peer == "xpnn"] + [result.best(peer) for peer in result.peers]


def _said(ratio: Ratio) -> str:
    if ratio.value is None:
        return f"≈ {ratio.theirs} ({ratio.short})"
    digits = 0 if ratio.value >= 100 else 2
    return f"{ratio.value:,.{digits}f} × {ratio.theirs}"
