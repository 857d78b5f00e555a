"""Principle 4: the core knows no backend, imports no extra, and looks no backend up before the first use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xpnn

ROOT = Path(xpnn.__file__).parent
LIBRARIES = {"cupy", "cupyx", "torch", "jax", "jaxlib", "array_api_strict"}
EXTRAS = LIBRARIES | {"rich", "matplotlib", "pooch", "platformdirs", "PIL", "onnx", "mpi4py", "numba", "sklearn"}


def imported(tree):
    """The dotted names that a module imports, wherever in it, by statement or by function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def of_a_backend(name):
    parts = name.split(".")
    return parts[0] in LIBRARIES or parts[0].startswith("xpnn_") or (
        parts[0] == "array_api_compat" and bool(LIBRARIES & set(parts))
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn", True),
        ("def f():\n    from cupy.cuda import runtime", True),
        ("from array_api_compat import torch", True),
        ("import array_api_compat.cupy as xp", True),
        ("import importlib\nimportlib.import_module('jax.numpy')", True),
        ("__import__('xpnn_numpy')", True),
        ("from xpnn_torch import TorchBackend", True),
        ("import array_api_compat.numpy\nfrom xpnn.ops import conv\nimport numpy\nfrom . import torch", False),
    ],
)
def test_the_walk_sees_imports(source, found):
    assert any(map(of_a_backend, imported(ast.parse(source)))) == found


def test_no_module_of_the_core_imports_a_backend():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 20
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in imported(ast.parse(file.read_text(encoding="utf-8")))
        if of_a_backend(name)
    }
    assert not found


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_importing_imports_no_extra_and_looks_nothing_up():
    result = run(
        "import importlib.metadata, sys\n"
        "def lookup(*args, **kwargs): raise SystemExit('entry points were looked up')\n"
        "importlib.metadata.entry_points = lookup\n"
        "import xpnn, xpnn.layers, xpnn.ops, xpnn.backend\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        f"bad = sorted(r for r in roots if r in {EXTRAS!r} or r.startswith('xpnn_'))\n"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    assert result.returncode == 0, result.stderr


def test_auto_imports_no_library_that_it_does_not_choose():
    result = run(
        "import sys, xpnn.backend\n"
        "backend = xpnn.backend.get('auto')\n"
        f"bad = sorted({LIBRARIES - {'cupy', 'cupyx'}!r} & set(sys.modules))\n"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    assert result.returncode == 0, result.stderr
