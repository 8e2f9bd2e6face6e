#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the tests marked `gpu`, the GPU benchmark with ResNet-50's shapes, rows of a layer
# of 14,336 columns, a whole run with --device auto, and a database built by a process for each GPU and by one alone.
#
#     bash tools/gpu_all.sh [folder of wheels]     # $OUT: where the figures go, by default gpu-results
#
# Needs torch with CUDA, numba, onnx, onnxruntime and pytest; what else is missing is taken from the folder of wheels, made
# before with `pip download --dest wheels pydantic cyclopts rich onnx_ir onnxscript safetensors psutil threadpoolctl tokenizers onnx2torch`.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results}
mkdir -p "$out"
if [ -n "${1:-}" ]; then
    python -m pip install --quiet --no-index --find-links "$1" --no-deps "$1"/*.whl || true # those that are there stay
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python - <<'PYTHON' | tee "$out/card.txt" || exit 1
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("no GPU that torch can use")
print(torch.cuda.get_device_name(0), "torch", torch.__version__, "CUDA", torch.version.cuda)
PYTHON
status=0
python -m pytest -q -m gpu 2>&1 | tee "$out/tests.txt" || status=1
python -m benchmarks.speed.solver_gpu 2>&1 | tee "$out/solver_gpu.txt" || status=1
cp benchmarks/results/solver_gpu*.md "$out" 2>/dev/null
python -m onnx_obc.cli.main models/digits.onnx "$out/digits.onnx" --calib models/digits_calibration.npz --device auto \
    --report "$out/digits.json" 2>&1 | tee "$out/run.txt" || status=1
if python -c "import onnx2torch" 2>/dev/null; then
    python -m onnx_obc.cli.main models/digits.onnx "$out/trained.onnx" --calib models/digits_calibration.npz --weights int2 \
        --effort best --device auto --report "$out/trained.json" 2>&1 | tee "$out/trained.txt" || status=1
else
    echo "onnx2torch is not there: --effort best is not run" | tee "$out/trained.txt"
fi
# A layer of 4096 × 14336 takes 4096 times a row's milliseconds; so many rows are in lockstep as fit the memory.
python -m benchmarks.speed.solver_gpu --columns 14336 --rows 32 --no-network --json "$out/large.jsonl" 2>&1 |
    tee "$out/large.txt" || status=1
build=(python -m onnx_obc.cli.main build models/digits.onnx --calib models/digits_calibration.npz --levels gpu --device cuda)
for workers in 1 auto; do # auto: as many processes as there are GPUs
    { time "${build[@]}" "$out/db-$workers" --workers $workers; } 2>&1 | tee "$out/db-$workers.txt" || status=1
done
diff -rq "$out/db-1" "$out/db-auto" | tee "$out/db-same.txt" || status=1 # empty: the same bytes
exit $status
