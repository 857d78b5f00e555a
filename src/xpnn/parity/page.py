"""The report as one page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Any

from xpnn import page as frame

DECADES = 3
"""What a bar shows on each side of the bound."""

_STYLE = """
.same { color: var(--good); } .differs { color: var(--bad); }
.bar { display: inline-block; position: relative; width: 5rem; height: .7rem; vertical-align: middle;
  background: linear-gradient(var(--soft), var(--soft)) 50% 0 / 1px 100% no-repeat; }
.bar i { position: absolute; left: 0; top: .1rem; bottom: .1rem; background: var(--bar); }
.bar.bad i { background: var(--bad); }
.r { display: inline-block; min-width: 3.6rem; text-align: right; padding-right: .5rem; }
svg { width: 100%; }
"""


def page(record: Mapping[str, Any]) -> str:
    """The page of a record of `xpnn parity`."""
    verdict, parts = record["verdict"], [f'<h1 class="{record["verdict"]}">{escape(record["said"])}</h1>']
    if record["faults"]:
        parts.append("<ul>" + "".join(f'<li class="differs">{escape(f)}</li>' for f in record["faults"]) + "</ul>")
    parts += [
        "<h2>What was compared</h2>",
        frame.facts({n: {k: v for k, v in m.items() if k != "name"} for n, m in record["machine"].items()}),
    ]
    noticed = ", ".join(f"{k} in {v['refused']} of {v['of']} cases" for k, v in record["noticed"].items())
    parts.append(f'<p class="note">Made to compute with coarse factors, NumPy was refused: {escape(noticed)}.</p>')
    for kind, section in (("layers", _layers), ("drift", _drift), ("training", _training)):
        if kind in record:
            parts += [f"<h2>{escape(record[kind]['title'])}</h2>", section(record[kind])]
    if record["rows"]:
        parts += ["<h2>Ops and layers</h2>", _legend(record["dtype"]), _rows(record["rows"], record["sides"])]
    parts.append(f'<p class="note">xpnn parity, {escape(record["date"])}</p>')
    return frame.page(f"xpnn parity: {', '.join(record['machine'])}: {verdict}", parts, _STYLE)


def _legend(dtype: str) -> str:
    return (
        '<p class="note">Each side is held against float64 on NumPy. The number is the error of the worst element in '
        f"units of rounding of {escape(dtype)}, relative to the sum that made it; the bar is its logarithm, and its "
        f"middle line the bound, min(4·√n, 32) for n terms ({DECADES} decades to each side). Where nothing is rounded, "
        "results are equal (=) or not (≠). A star marks a backend's own kernels.</p>"
    )


def _rows(rows: Iterable[Mapping[str, Any]], sides: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(side)}</th>" for side in sides)
    body = "".join(
        f'<tr><td>{escape(row["case"])}</td><td class="n">{_terms(row)}</td>'
        + "".join(f"<td>{_cell(row['sides'].get(side))}</td>" for side in sides)
        + f'<td class="{row["verdict"]}">{row["verdict"]}</td></tr>'
        for row in rows
    )
    return (
        f'<div class="wide"><table><tr><th>case</th><th class="n">n</th>{head}<th>verdict</th></tr>{body}</table></div>'
    )


def _terms(row: Mapping[str, Any]) -> str:
    return (
        "exact" if row["class"] == "exact" else f"{max(f['terms'] for found in row['sides'].values() for f in found):,}"
    )


def _cell(found: Sequence[Mapping[str, Any]] | None) -> str:
    if not found:
        return "–"
    fault = any(f["fault"] for f in found)
    rated = [f for f in found if f["terms"] and f["ratio"] is not None]
    if not rated:
        return _equal(not fault)
    worst = max(rated, key=lambda f: f["ratio"] / f["bound"])
    said = "; ".join(f"{f['name']} {f['fault'] or format(f['ratio'] or 0, '.2g')}" for f in found)
    return _bar(worst["ratio"], worst["bound"], fault, said)


def _equal(same: bool) -> str:
    return f'<span class="{"same" if same else "differs"}">{"=" if same else "≠"}</span>'


def _bar(ratio: float | None, bound: float, fault: bool, said: str) -> str:
    """A number and the logarithm of its share of the bound; None is infinite."""
    share = max(10.0**DECADES if ratio is None else ratio / bound, 10.0**-DECADES)
    width = 100.0 if fault and share <= 1 else min(100.0, 50 * (1 + log10(share) / DECADES))
    text = "∞" if ratio is None else f"{ratio:.2g}"
    return (
        f'<span class="r">{text}</span><span class="bar{" bad" if fault else ""}" title="{escape(said)}">'
        f'<i style="width:{width:.0f}%"></i></span>'
    )


def _layers(found: Mapping[str, Any]) -> str:
    """A row for each array of each layer, in the order of computation."""
    head = "".join(f"<th>{escape(side)}: alone</th><th>in the network</th>" for side in found["sides"])
    rows = []
    for q in found["quantities"]:
        cells = []
        for r in q["readings"]:
            own = r["fault"] == "own"
            alone = _bar(r["own"], q["bound"], own, r["reason"] or "") if q["bound"] else _equal(not own)
            cells.append(f"<td>{alone}</td><td>{_bar(r['whole'], found['factor'], r['fault'] == 'inherited', '')}</td>")
        shape = "×".join(map(str, q["shape"])) or "1"
        rows.append(
            f"<tr><td>{escape(q['path'])} {escape(q['layer'])}</td><td>{escape(q['name'])}</td><td>{shape}</td>"
            + "".join(cells)
            + "</tr>"
        )
    note = (
        "Alone: a layer fed with what float64 feeds it, as a case is. In the network: fed with the errors of those "
        f"before it, in units of how far the last bit of the inputs moves the result; at most {found['factor']:g}."
    )
    return (
        f'<p class="{_class(found)}">{escape(found["verdict"])}</p><p class="note">{note}</p><div class="wide"><table>'
        f"<tr><th>layer</th><th>array</th><th>shape</th>{head}</tr>{''.join(rows)}</table></div>"
    )


def _drift(found: Mapping[str, Any]) -> str:
    """Over the steps: how far loss and weights are apart, and how far the last bit drives them."""
    both, alone = " and ".join(found["sides"]), f"{found['sides'][0]} and itself, inputs moved by the last bit"
    plots = "".join(
        f"<figure>{_plot({both: [s[key] for s in found['steps']], alone: [s[f'{key}_drift'] for s in found['steps']]})}"
        f"<figcaption>{text}</figcaption></figure>"
        for key, text in (
            ("loss", "The loss, relative to itself."),
            ("weights", "The weights, relative to their norm."),
        )
    )
    return (
        f'<p class="{_class(found)}">{escape(found["verdict"])}</p><p class="note">How far they are apart.</p>{plots}'
    )


def _plot(curves: Mapping[str, Sequence[float | None]]) -> str:
    """Positive numbers over steps on a logarithmic axis."""
    there = [v for values in curves.values() for v in values if v]
    low, high = (floor(log10(min(there))), ceil(log10(max(there)))) if there else (-8, -7)
    high, count = max(high, low + 1), max(len(values) for values in curves.values())

    def x(i: int) -> float:
        return 70 + 620 * i / max(count - 1, 1)

    def y(v: float) -> float:
        return 20 + 200 * (high - log10(v)) / (high - low)

    parts = []
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(
            f'<line x1="70" x2="690" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>'
            f'<text x="62" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>'
        )
    for i in sorted({0, count // 2, count - 1}):
        parts.append(f'<text x="{x(i):.1f}" y="240" text-anchor="middle">step {i + 1}</text>')
    for (name, values), (colour, dash), line in zip(
        curves.items(), [("var(--bad)", ""), ("var(--good)", "6 4")], (262, 282), strict=True
    ):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values) if v)
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'
        parts.append(f'<polyline points="{points}" {stroke}/><line x1="70" x2="100" y1="{line}" y2="{line}" {stroke}/>')
        parts.append(f'<text x="108" y="{line + 4}">{escape(name)}</text>')
    return f'<svg viewBox="0 0 720 294" role="img" font-size="12" fill="currentColor">{"".join(parts)}</svg>'


def _training(found: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(side)}</th>{''.join(f'<td class=n>{a:.2%}</td>' for a in accuracies)}</tr>"
        for side, accuracies in zip(found["sides"], found["accuracies"], strict=True)
    )
    head = "".join(f'<th class="n">seed {i}</th>' for i in range(len(found["accuracies"][0])))
    return (
        f'<p class="{_class(found)}">{escape(found["verdict"])}</p>'
        f'<div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div>'
    )


def _class(found: Mapping[str, Any]) -> str:
    return "same" if found["passed"] else "differs"
