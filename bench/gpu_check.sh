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

run() {  # run NAME SECONDS COMMAND...: runs it under a time limit, keeps its output, says how it went
  local title=$1 limit=$2 start=$SECONDS code
  shift 2
  (( limit <= budget - SECONDS )) || limit=$((budget - SECONDS))
  if (( limit < 5 )); then
    echo "gpu-check: $title: NOT RUN, out of time"
    return 1
  fi
  # SIGINT first: pytest then still writes what it has measured.
  timeout -s INT -k 10 "$limit" "$@" >"$out/$title.log" 2>&1
  code=$?
  if [ $code = 0 ]; then
    echo "gpu-check: $title: passed in $((SECONDS - start)) s"
  else
    echo "gpu-check: $title: FAILED (exit $code) after $((SECONDS - start)) s"
    tail -n 25 "$out/$title.log"
    return 1
  fi
}

step() { run "$@" || failed=1; }  # and goes on when it fails

beside=()
begin() { run "$@" & beside+=($!); }  # a step beside the others that have begun
finish() {
  local pid
  for pid in "${beside[@]}"; do wait "$pid" || failed=1; done
  beside=()
}

step build 120 env MTKERNELS_CUDA=1 MTKERNELS_CUDA_ARCHS="$arch" "$PYTHON" setup.py build_ext --inplace
[ $failed = 0 ] || exit 1
"$PYTHON" -m mtkernels | tee "$out/environment.txt"
# What is right or wrong, side by side: most of it is one CPU core's work each, and Triton compiles each kernel that it
# is asked for, of which every loss has some dozens.
sanitizer=(compute-sanitizer --error-exitcode 9)
for tool in memcheck racecheck synccheck; do
  begin "sanitizer-$tool" 150 "${sanitizer[@]}" --tool "$tool" --kernel-regex kns=mtk "$PYTHON" tests/sanitize_gpu.py
done
# initcheck has to see torch's kernels too: they write the inputs.
begin sanitizer-initcheck 150 "${sanitizer[@]}" --tool initcheck "$PYTHON" tests/sanitize_gpu.py
losses='softmax_mse softmax_kl softmax_reverse_kl softmax_js softmax_cross_entropy logit_mse'
for op in $losses; do begin "tests-triton-$op" 150 "$PYTHON" -m pytest -m gpu -q tests -k "triton and $op"; done
begin tests-triton 150 "$PYTHON" -m pytest -m gpu -q tests -k "triton and not (${losses// / or })"
begin tests 150 "$PYTHON" -m pytest -m gpu -q tests -k "not triton"
finish
# What is fast or slow, alone.
step launches 40 "$PYTHON" bench/launches.py --large
cat "$out/launches.log"
step train-step 60 "$PYTHON" bench/train_step.py --device cuda  # shake-shake 26, part by part
cat "$out/train-step.log"
# Time, share of the copy bandwidth, host time: of all cases, the largest models and WeightEMA's features too. About fifty
# groups; torch.compile takes seconds for each of its candidates, and that is most of the time.
step bench 240 "$PYTHON" -m pytest bench -q --bench-large --bench-seconds 0.5 --benchmark-json="$out/results.json"
step report 15 "$PYTHON" bench/report.py "$out/results.json" --out "$out"
cat "$out/results.md" 2>/dev/null | head -90
exit $failed
