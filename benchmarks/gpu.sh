#!/usr/bin/env bash
# Times the rows of `benchmarks speed` on a machine with one GPU, with SmolLM2 where JAXSIM_SMOLLM2 names its file and in
# bfloat16 as the float to beat. At most eight minutes; installs nothing. The record goes to gpu/results in OUT, or
# in out/. On a CPU, in the shortest form: benchmarks/gpu.sh --runs 5 --size 64 --array 16 --tokens 4 --seconds 60
set -euo pipefail
cd "$(dirname "$0")/.."
export JAXSIM_BENCHMARKS="${OUT:-$PWD/out}/gpu" PYTHONPATH="$PWD"
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import jax; print("jax", jax.__version__, jax.devices())'
timeout 480 "$PYTHON" -m benchmarks speed --seconds 400 \
  --only training deployed products writing integers interpreters 'first calls' groups pruning "$@"
