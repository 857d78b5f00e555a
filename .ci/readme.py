"""Run every command of a README as its reader would: `python .ci/readme.py README.md FOLDER`.

A fenced block ```` ```sh NAME ```` runs in the virtual environment NAME, which is made, empty, on first use below
FOLDER; a block ```` ```python NAME ```` is run as a script there. Other blocks only show something. They run in a copy
of the README's folder, so that nothing is in the way of a second time.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

readme, folder = Path(sys.argv[1]), Path(sys.argv[2])
blocks = re.findall(r"^```(sh|python) (\w+)\n(.*?)^```$", readme.read_text(encoding="utf-8"), re.M | re.S)
if not blocks:
    sys.exit(f"{readme} has no command to run")
checkout = folder / "checkout"
shutil.copytree(readme.parent, checkout, ignore=shutil.ignore_patterns(".git", ".venv", "runs"))
for language, name, text in blocks:
    home = folder / name
    if not home.exists():
        venv.create(home, with_pip=True)
    print(f"--- {language} in {name}\n{text}", end="", flush=True)
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(home)}
    command = (
        ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [str(home / "bin" / "python"), "-c", text]
    )
    subprocess.run(command, env=environment, check=True, cwd=checkout)
