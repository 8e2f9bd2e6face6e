#!/usr/bin/env bash
# Makes an environment for DeepSparse 1.8.0, its last release, which needs Python 3.8 to 3.11, onnx < 1.15 and numpy < 2.
#
#     tools/make_deepsparse_env.sh [FOLDER]       # default: .deepsparse in the project's folder
#
# onnx-obc finds .deepsparse in the working folder and in the project's; another FOLDER it is told of by
# ONNX_OBC_DEEPSPARSE=FOLDER. What is there is made anew only if it does not work.
set -euo pipefail
folder="${1:-$(cd "$(dirname "$0")/.." && pwd)/.deepsparse}"

if [ -x "$folder/bin/python" ] && "$folder/bin/python" -c 'import deepsparse' > /dev/null 2>&1; then
    echo "$folder is there already"
    exit 0
fi
for python in python3.11 python3.10 python3.9 python3.8 python3; do
    if "$python" -c 'import sys; sys.exit(not (3, 8) <= sys.version_info[:2] <= (3, 11))' 2> /dev/null; then
        "$python" -m venv --clear "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
            'deepsparse==1.8.0' 'onnx>=1.5,<1.15' 'numpy<2' 'setuptools<80'
        "$folder/bin/python" -c 'import deepsparse; print("deepsparse", deepsparse.__version__)'
        exit 0
    fi
done
echo "no Python from 3.8 to 3.11 was found, which DeepSparse needs; install one, e.g. python3.11" >&2
exit 1
