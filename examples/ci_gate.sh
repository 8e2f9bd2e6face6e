#!/usr/bin/env bash
# A step of an export pipeline: compress what was exported, and fail where quality falls. onnx-obc returns 3 then, leaves the
# file as small.onnx.rejected, and its report says what was reached and what to try.
#
#     MODEL=model.onnx CALIB=calib.npz EVAL=test.npz examples/ci_gate.sh FOLDER [options, such as --weights int2]
set -euo pipefail
here=$(cd "$(dirname "$0")/../models" && pwd)
folder=${1:-$(mktemp -d)}
shift || true
onnx-obc "${MODEL:-$here/digits.onnx}" "$folder/small.onnx" --calib "${CALIB:-$here/digits_calibration.npz}" \
    --min-quality "${GATE:-agreement=98%}" --report "$folder/report.json" --html "$folder/report.html" "$@"
