#!/usr/bin/env bash
# All that is to be known of the CuPy backend on a machine with a GPU, offline, in under ten minutes:
#     benchmarks/gpu.sh [FOLDER]
# leaves in FOLDER (default benchmarks/results): backends.json, digits.json, mnist.json (where XPNN_DATA is set),
# step-gpu.json and suite.txt. A part that fails does not stop the others; the exit status tells of it.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH="src:backends${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
failed=0
part() {
    printf '\n== %s\n' "$1"
    shift
    "$@" || { failed=1; printf '!! failed: %s\n' "$*"; }
}
save() { # save FILE COMMAND…: standard output goes to the file
    local file=$1
    shift
    timeout 120 "$@" > "$out/$file" && cat "$out/$file"
}
xpnn=("$python" -c 'import sys; from xpnn.cli import main; sys.exit(main())')

part "backends" save backends.json "${xpnn[@]}" backends --json
part "digits" save digits.json "${xpnn[@]}" train --backend cupy --json --target-accuracy 0.97
[ -n "${XPNN_DATA:-}" ] && part "mnist" save mnist.json "${xpnn[@]}" train --backend cupy --dataset mnist --epochs 1 --json
part "step" timeout 150 "$python" benchmarks/step.py --backend cupy --json "$out/step-gpu.json"
part "suite" bash -c "set -o pipefail; timeout 280 $python -m pytest -q --backend cupy | tee '$out/suite.txt'"
exit $failed
