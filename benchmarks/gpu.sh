#!/usr/bin/env bash
# All that is to be known of the CuPy backend on a machine with a GPU, offline, in under ten minutes:
#     pip install -e ".[train,test,torch,cuda13]" && benchmarks/gpu.sh [FOLDER]
# leaves in FOLDER (default benchmarks/results) parity and bench as JSON, the parity page, and what each part printed.
# MNIST takes part where XPNN_DATA is set. A part that fails does not stop the others; the exit status tells of it.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
# JAX would take three quarters of the GPU's memory in each process, and numba compile kernels for NumPy's side
export JAX_PLATFORMS=cpu XPNN_KERNELS=plain PYTHONUNBUFFERED=1
failed=0
part() { # part NAME SECONDS COMMAND…
    local name=$1 seconds=$2 begun=$SECONDS
    shift 2
    printf '\n== %s\n' "$name"
    timeout "$seconds" "$@" 2>&1 | tee "$out/gpu-$name.txt" || { failed=1; printf '!! failed: %s\n' "$*"; }
    printf '%s took %s s\n' "$name" $((SECONDS - begun))
}
part backends 30 xpnn backends --json
part bench 100 xpnn bench --backend cupy --models article small-cnn lenet5 resnet20 --batches 32 128 512 \
    --seconds 0.1 --json "$out/gpu-bench.json" # first: the suite leaves a load that slows PyTorch's launches
part digits 60 xpnn train --backend cupy --no-pictures --out "$out/run-digits" --target-accuracy 0.97
[ -n "${XPNN_DATA:-}" ] && part mnist 60 xpnn train --dataset mnist --backend cupy --no-pictures --out "$out/run-mnist"
part parity 90 xpnn parity tiny-cnn --cases "*" --steps 30 --backends numpy,cupy \
    --json "$out/gpu-parity.json" --html "$out/gpu-parity.html"
part suite 240 python3 -m pytest -q -n 12 --dist worksteal --backend cupy -p no:cacheprovider
exit $failed
