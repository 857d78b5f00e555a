"""Packages of strangers: a `.dist-info` and a module on the path, the way pip would leave them."""

import textwrap
from pathlib import Path


def install(folder: Path, module: str, source: str, **groups: dict[str, str]) -> None:
    """Put a distribution with one module and its entry points into a folder."""
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = []
    for group, points in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
