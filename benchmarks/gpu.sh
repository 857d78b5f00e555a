#!/usr/bin/env bash
# All that is to be known of the CuPy backend on a machine with a GPU, offline, in under ten minutes:
#     benchmarks/gpu.sh [FOLDER]
# leaves in FOLDER (default benchmarks/results): backends.json, digits.json, mnist.json (where XPNN_DATA is set),
# parity-gpu.json and parity-gpu.html, bench-gpu.json and suite.txt. A part that fails does not stop the others; the exit status tells of it.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
python=${PYTHON:-python3}
failed=0
if ! "$python" -c 'import sys; from xpnn import backend; sys.exit("cupy" not in backend.names())'; then
    # xpnn is not installed here: backends are found by their entry points, so lend it the metadata of an install
    lent=$(mktemp -d)
    trap 'rm -rf "$lent"' EXIT
    "$python" - "$lent" <<'EOF'
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
folder = Path(sys.argv[1], f"xpnn-{project['version']}.dist-info")
folder.mkdir()
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: xpnn\nVersion: {project['version']}\n")
points = project["entry-points"]["xpnn.backends"].items()
(folder / "entry_points.txt").write_text("[xpnn.backends]\n" + "".join(f"{k} = {v}\n" for k, v in points))
EOF
    export PYTHONPATH="$lent:$PYTHONPATH"
fi
part() {
    printf '\n== %s\n' "$1"
    shift
    "$@" || { failed=1; printf '!! failed: %s\n' "$*"; }
}
save() { # save SECONDS FILE COMMAND…: standard output goes to the file
    local seconds=$1 file=$2
    shift 2
    timeout "$seconds" "$@" > "$out/$file" && cat "$out/$file"
}
xpnn=("$python" -c 'import sys; from xpnn.cli import main; sys.exit(main())')

part "backends" save 30 backends.json "${xpnn[@]}" backends --json
part "digits" save 60 digits.json "${xpnn[@]}" train --backend cupy --no-pictures --out "$out/run-digits" --json --target-accuracy 0.97
[ -n "${XPNN_DATA:-}" ] && part "mnist" save 60 mnist.json "${xpnn[@]}" train --backend cupy --no-pictures --out "$out/run-mnist" --dataset mnist --epochs 1 --json
part "parity" timeout 120 "${xpnn[@]}" parity tiny-cnn --cases "*" --steps 30 --backends numpy,cupy --json "$out/parity-gpu.json" --html "$out/parity-gpu.html"
part "bench" timeout 120 "${xpnn[@]}" bench --backend cupy --models article small-cnn lenet5 resnet20 --json "$out/bench-gpu.json"
part "suite" bash -c "set -o pipefail; timeout 200 \"\$0\" -m pytest -q --backend cupy | tee \"\$1\"" "$python" "$out/suite.txt"
exit $failed
