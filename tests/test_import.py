"""What `import xpnn` brings in: NumPy, the two array API packages, and nothing else."""

import json
import subprocess
import sys

CODE = """
import importlib.metadata, json, sys
def refuse(*args, **options): raise AssertionError("backends are looked up before the first use")
importlib.metadata.entry_points = refuse
before = set(sys.modules)
import xpnn, xpnn.cli, xpnn.naive, xpnn.parity
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_import_brings_no_extra_and_looks_up_no_backend():
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    brought = {name for name in json.loads(done.stdout) if name not in sys.stdlib_module_names and "cython" not in name}
    assert brought == {"xpnn", "numpy", "array_api_compat", "array_api_extra"}
