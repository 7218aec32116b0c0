#!/bin/bash
# All that needs an NVIDIA GPU, in one call: builds for the GPU at hand, tests, checks memory, measures.
#
#   benchmarks/gpu.sh [FOLDER]    results and logs; default benchmarks/results/gpu-<date>
#   PYTHON=python3                the interpreter that has a CUDA build of torch
#   STEPS="build tests ..."       only these; default all, in the order below, the most valuable first
#   LIMIT=240                     seconds a step may take; all steps that begin take at most 21 times as much
#
# No step stops the others, but for a build that fails: without kernels there is nothing to see. summary.txt has a
# line for each; the exit code is 1 where one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
FOLDER=${1:-benchmarks/results/gpu-$(date +%F)}
LIMIT=${LIMIT:-240}
ALL="machine imports build selftest graph memcheck racecheck tests quick high counters infer train operators model crossover profile initcheck synccheck compiled peers"
STEPS=${STEPS:-$ALL}
for step in $STEPS; do
    [[ " $ALL " == *" $step "* ]] || { echo "gpu.sh: no step '$step'; there are: $ALL" >&2; exit 2; }
done
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo "gpu.sh: the torch of $PYTHON sees no GPU (set PYTHON=)" >&2; exit 2; }
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
mkdir -p "$FOLDER"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
: >"$FOLDER/log.txt"
: >"$FOLDER/summary.txt"
failed=0

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv &&
        nvcc --version | grep release &&
        "$PYTHON" -c 'import platform, torch; print("python", platform.python_version(), "torch", torch.__version__)' &&
        { git rev-parse HEAD 2>/dev/null || echo "no git here"; }
}

# What is missing is named before any time is spent; only the first line is needed for the operators.
imports() {
    "$PYTHON" - <<'CHECK'
import importlib.util
import sys

missing = [
    name
    for name in ("torch", "numpy", "pytest", "ninja", "setuptools", "hypothesis",
                 "cv2", "h5py", "hdf5plugin", "jsonargparse", "docstring_parser", "safetensors", "tqdm", "yaml")
    if importlib.util.find_spec(name) is None
]
print("missing:", ", ".join(missing) or "nothing")
sys.exit(bool(missing))
CHECK
}

build() {
    local code
    code=$("$PYTHON" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())') &&
        FLOWFUSE_EXTENSION=1 FLOWFUSE_CUDA=1 FLOWFUSE_CUDA_ARCHITECTURES=$code \
            "$PYTHON" setup.py build_ext --inplace
}

selftest() { "$PYTHON" -m flowfuse.ops; }
tests() {
    "$PYTHON" -c 'from flowfuse.ops import build_info; assert "cuda" in build_info()["devices"], "no CUDA kernels here"' &&
        "$PYTHON" -m pytest -q --tb=short --maxfail=40 $("$PYTHON" -c 'import xdist; print("-n 4")' 2>/dev/null) \
            tests/test_gpu.py tests/ops/test_ops_voxelize.py tests/ops/test_ops_warp_events.py tests/ops/test_fake_cuda.py
}

# Estimates by CUDA graphs: the same as without, in any stream and thread, never waiting; how fast they are, beside eager ones.
graph() {
    "$PYTHON" -m pytest -q --tb=short --maxfail=10 tests/estimator/test_graphs.py tests/estimator/test_running.py &&
        "$PYTHON" benchmarks/model.py --device cuda --no-compiled --only "640 x 480 estimate bfloat16" \
            --json "$FOLDER/graph.json" --markdown "$FOLDER/graph.md"
}

# Small sizes against eager peers first; then the sizes of the targets. Both write what they have after every row.
quick() {
    "$PYTHON" benchmarks/operators.py --device cuda --quick --no-compiled-peers --json "$FOLDER/operators-quick.json"
}
# float32 look-ups by tensor cores, beside peers that torch multiplies with as few digits.
high() {
    "$PYTHON" - --device cuda --quick --no-compiled-peers --only correlation --json "$FOLDER/high.json" <<'RUN'
import runpy
import sys

import torch

torch.set_float32_matmul_precision("high")
sys.path.insert(0, "benchmarks")
sys.argv[0] = "benchmarks/operators.py"
runpy.run_path(sys.argv[0], run_name="__main__")
RUN
}
# Occupancy, cache hits and bytes of our kernels: how the first-level cache serves look-ups, above all.
counters() {
    ncu --clock-control none --set basic --section MemoryWorkloadAnalysis --section WarpStateStats \
        -k 'regex:look_up|read_volume|read_stored|gather_f|tap_gradients|centre_gradients|gradients|window_fields|upsample|mask_gradient|add_events|vote' \
        --launch-skip 20 --launch-count 60 "$PYTHON" benchmarks/operators.py --device cuda --quick --no-compiled-peers \
        >"$FOLDER/counters.txt"
}
operators() {
    "$PYTHON" benchmarks/operators.py --device cuda --no-compiled-peers --json "$FOLDER/operators.json" \
        --markdown "$FOLDER/operators.md"
}
# Again beside the peers under torch.compile, which take minutes to compile.
peers() {
    "$PYTHON" benchmarks/operators.py --device cuda --json "$FOLDER/peers.json" --markdown "$FOLDER/peers.md"
}
crossover() {
    "$PYTHON" benchmarks/operators.py --device cuda --crossover --markdown "$FOLDER/crossover.md"
}

# Whole estimates against E-RAFT: eager and in a CUDA graph, then by operation, at last compiled.
model() {
    "$PYTHON" benchmarks/model.py --device cuda --no-compiled --json "$FOLDER/model.json" --markdown "$FOLDER/model.md"
}
profile() {
    "$PYTHON" benchmarks/model.py --device cuda --profile >"$FOLDER/profile.txt"
}
compiled() {
    "$PYTHON" benchmarks/model.py --device cuda --only compiled --json "$FOLDER/compiled.json" \
        --markdown "$FOLDER/compiled.md"
}

infer() {
    "$PYTHON" -m flowfuse.infer flowfuse/sample -o "$SCRATCH/sample" --device cuda &&
        "$PYTHON" -m flowfuse.infer flowfuse/sample -o "$SCRATCH/sample-bf16" --device cuda --precision bf16
}

train() {
    "$PYTHON" -m flowfuse.train --config small --device cuda --bf16 --steps 30 --scenes 16 --cache "$SCRATCH/pool" \
        --validation-scenes 4 --output "$SCRATCH/run"
}

# Without torch's cache every tensor is an allocation of its own, whose bounds the tool knows.
sanitizer() {
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 --tool "$@" "$PYTHON" -m flowfuse.ops
}
ours() { sanitizer "$1" --kernel-regex kns=flowfuse; }
memcheck() { ours memcheck; }
racecheck() { ours racecheck; }
synccheck() { ours synccheck; }
# Of all kernels: what those of torch write, and ours read, would look as if nobody had written it.
initcheck() { sanitizer initcheck; }

export -f machine imports build selftest graph tests quick high counters operators crossover model profile compiled peers infer train sanitizer ours memcheck racecheck initcheck synccheck
export PYTHON FOLDER SCRATCH

for step in $STEPS; do
    echo "== $step" | tee -a "$FOLDER/log.txt"
    begin=$SECONDS
    # INT: pytest then tells what has failed so far. -k: a hung program does not take the other steps' time.
    timeout -s INT -k 20 "$LIMIT" bash -c "set -uo pipefail; $step" 2>&1 | tee -a "$FOLDER/log.txt" | tail -n 25
    code=${PIPESTATUS[0]}
    ((code == 0)) || failed=1
    echo "$step: $([[ $code == 0 ]] && echo ok || echo "FAILED ($code)"), $((SECONDS - begin)) s" |
        tee -a "$FOLDER/summary.txt"
    if [[ $step == build && $code != 0 ]]; then
        echo "no kernels: the steps after this one are left out" | tee -a "$FOLDER/summary.txt"
        break
    fi
done
exit "$failed"
