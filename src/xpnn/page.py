"""The frame of the pages that xpnn writes: each one file that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

GENERATOR = '<meta name="generator" content="xpnn">'
"""By this line a page of ours is known, which may be written over."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667085; --line: #d9dee7; --paper: #fff; --good: #2a7f62;
  --bad: #c0392b; --bar: #7fb7a3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #343b48; --paper: #14171c;
  --good: #6cc5a4; --bad: #ff7b6b; --bar: #2f6f5b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 66rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .15rem .6rem .15rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } td.n, th.n { text-align: right; }
td.long { white-space: normal; min-width: 10rem; vertical-align: top; overflow-wrap: anywhere; }
p.note { color: var(--soft); max-width: 46rem; }
pre { overflow-x: auto; font-size: .85rem; }
figure { margin: 0 0 1rem; max-width: 46rem; } figcaption { color: var(--soft); font-size: .9rem; }
svg, img { max-width: 100%; height: auto; }
"""


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A page of some parts, each HTML, with a style of its own beside the common one."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n{GENERATOR}\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def facts(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of what is known of some things: a column for each, a row for each name."""
    names = dict.fromkeys(k for known in columns.values() for k, v in known.items() if v not in (None, ""))
    head = "".join(f"<th>{escape(name)}</th>" for name in columns) if any(columns) else ""
    body = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th>"
        + "".join(f'<td class="long">{escape(_text(known.get(name)))}</td>' for known in columns.values())
        + "</tr>"
        for name in names
    )
    head = head and f"<tr><th></th>{head}</tr>"
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return "yes" if value is True else "no" if value is False else str(value)
