#!/bin/sh
# Check, measure and train on a GPU in so many minutes, without a network and with torch and numpy alone:
#   NPN_DATA=folder OUT=folder benchmarks/gpu.sh 8 [options of benchmarks/gpu.py]
set -eu
minutes=${1:?usage: benchmarks/gpu.sh MINUTES [--leg dense] [--from FOLDER] ...}
shift
cd "$(dirname "$0")/.."
PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
PYTHONUNBUFFERED=1
export PYTHONPATH PYTHONUNBUFFERED
python=${PYTHON:-$(command -v python3 || command -v python)}
exec "$python" benchmarks/gpu.py --minutes "$minutes" ${OUT:+--out "$OUT"} "$@"
