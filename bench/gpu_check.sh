#!/usr/bin/env bash
# Everything that CI cannot show, on a machine with an NVIDIA GPU: `make gpu-check`. It uses the machine's own Python, torch
# and nvcc, installs nothing, needs no network, and takes under ten minutes. Results: $OUT, or bench/results/<GPU>.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
gpu=$($PYTHON -c 'import torch; p = torch.cuda.get_device_properties(0); print(p.name.replace(" ", "-").lower(), f"{p.major}{p.minor}")') ||
  { echo "gpu-check: torch must see a CUDA GPU" >&2; exit 1; }
read -r name arch <<<"$gpu"
out=${OUT:-bench/results/$name}
mkdir -p "$out"
failed=0
$PYTHON -c 'import cmake, matplotlib, ninja, pybind11, pytest, pytest_benchmark' ||
  { echo "gpu-check: $PYTHON must have cmake, matplotlib, ninja, pybind11, pytest and pytest-benchmark" >&2; exit 1; }

budget=570  # seconds in all; a step gets what is left of it at most

step() {  # step NAME SECONDS COMMAND...: runs it under a time limit, keeps its output, goes on when it fails
  local title=$1 limit=$2 start=$SECONDS code
  shift 2
  (( limit <= budget - SECONDS )) || limit=$((budget - SECONDS))
  if (( limit < 5 )); then
    echo "gpu-check: $title: NOT RUN, out of time"
    failed=1
    return
  fi
  # SIGINT first: pytest then still writes what it has measured.
  timeout -s INT -k 10 "$limit" "$@" >"$out/$title.log" 2>&1
  code=$?
  if [ $code = 0 ]; then
    echo "gpu-check: $title: passed in $((SECONDS - start)) s"
  else
    echo "gpu-check: $title: FAILED (exit $code) after $((SECONDS - start)) s"
    tail -n 25 "$out/$title.log"
    failed=1
  fi
}

step build 120 env MTKERNELS_CUDA=1 MTKERNELS_CUDA_ARCHS="$arch" "$PYTHON" setup.py build_ext --inplace
[ $failed = 0 ] || exit 1
"$PYTHON" -m mtkernels | tee "$out/environment.txt"
step tests 120 "$PYTHON" -m pytest -m gpu -q tests
step launches 60 "$PYTHON" bench/launches.py --large
cat "$out/launches.log"
# Time, share of the copy bandwidth, host time: of all cases, the largest models and WeightEMA's features too.
step bench 200 "$PYTHON" -m pytest bench -q --bench-large --bench-seconds 1 --benchmark-json="$out/results.json"
step report 30 "$PYTHON" bench/report.py "$out/results.json" --out "$out"
for tool in memcheck racecheck synccheck; do
  step "sanitizer-$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-regex kns=mtk \
    "$PYTHON" tests/sanitize_gpu.py
done
# initcheck has to see torch's kernels too: they write the inputs.
step sanitizer-initcheck 45 compute-sanitizer --tool initcheck --error-exitcode 9 "$PYTHON" tests/sanitize_gpu.py
cat "$out/results.md" 2>/dev/null | head -90
exit $failed
