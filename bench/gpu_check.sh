#!/usr/bin/env bash
# Everything that CI cannot show, on a machine with an NVIDIA GPU: `make gpu-check`. It uses the machine's own Python,
# torch and nvcc, installs nothing, needs no network, and takes under ten minutes.
#   bench/gpu_check.sh [build] [tests] [sanitize] [speed] [train]     some of its parts, in this order; none: all
# Results: $OUT, where logs.tar.gz then holds the logs; or bench/results/<GPU>. $BUDGET: seconds in all.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
parts=" ${*:-build tests sanitize speed train} "
for part in $parts; do
  case $part in
    build | tests | sanitize | speed | train) ;;
    *) echo "gpu-check: a part must be build, tests, sanitize, speed or train, got $part" >&2; exit 2 ;;
  esac
done
has() { [[ $parts == *" $1 "* ]]; }

gpu=$($PYTHON -c 'import torch; p = torch.cuda.get_device_properties(0)
print(p.name.replace(" ", "-").lower(), f"{p.major}{p.minor}")') ||
  { echo "gpu-check: torch must see a CUDA GPU" >&2; exit 1; }
read -r name arch <<<"$gpu"
$PYTHON -c 'import cmake, matplotlib, ninja, pybind11, pytest, pytest_benchmark' ||
  { echo "gpu-check: $PYTHON must have cmake, matplotlib, ninja, pybind11, pytest and pytest-benchmark" >&2; exit 1; }
out=${OUT:-bench/results/$name}
logs=build/gpu-check
[ -z "${OUT:-}" ] || logs=$(mktemp -d)/logs
mkdir -p "$out" "$logs"
summary=$logs/summary.txt
: >"$summary"
failed=0
budget=${BUDGET:-570}  # a step gets what is left of it at most

# After every step: whoever is stopped in the middle has what came before.
pack() { [ -z "${OUT:-}" ] || tar -czf "$out/logs.tar.gz" -C "$(dirname "$logs")" logs; }

why() {  # why NAME: a failed step's reasons, a line each; its last lines where it says none
  grep -hE '^(FAILED|ERROR) |^Fatal Python error|^[0-9]+ (failed|passed)|^========= (ERROR SUMMARY|Invalid|Race|Uninit)' \
    "$logs/$1.log" | cut -c1-300 | head -n 40 || tail -n 15 "$logs/$1.log" | cut -c1-300
}

run() {  # run NAME SECONDS COMMAND...: runs it under a time limit, keeps its output, says how it went
  local title=$1 limit=$2 start=$SECONDS code
  shift 2
  (( limit <= budget - SECONDS )) || limit=$((budget - SECONDS))
  if (( limit < 5 )); then
    echo "gpu-check: $title: NOT RUN, out of time" | tee -a "$summary"
    return 1
  fi
  # SIGINT first: pytest then still writes what it has measured.
  timeout -s INT -k 10 "$limit" "$@" >"$logs/$title.log" 2>&1
  code=$?
  if [ $code = 0 ]; then
    echo "gpu-check: $title: passed in $((SECONDS - start)) s: $(tail -n 1 "$logs/$title.log" | cut -c1-120)" |
      tee -a "$summary"
  else
    # At once: other steps may say how they went meanwhile.
    echo "gpu-check: $title: FAILED (exit $code) after $((SECONDS - start)) s
$(why "$title")" | tee -a "$summary"
    return 1
  fi
}

step() { run "$@" || failed=1; pack; }  # and goes on when it fails

beside=()
begin() { run "$@" & beside+=($!); }  # a step beside the others that have begun
finish() {
  local pid
  for pid in "${beside[@]}"; do wait "$pid" || failed=1; done
  beside=()
  pack
}

gpu_tests() {  # gpu_tests NAME WORKERS EXPRESSION
  local workers=()
  ! "$PYTHON" -c 'import xdist' 2>/dev/null || workers=(-n "$2" --dist worksteal)
  # shellcheck disable=SC2046  # a word for each file with a test for a GPU
  begin "$1" 240 env OMP_NUM_THREADS=1 COLUMNS=250 "$PYTHON" -m pytest -m gpu -q -p no:benchmark -rfE \
    --durations=15 "${workers[@]}" -k "$3" $(grep -lE 'mark\.gpu|gpu_helpers|from test_ops' -r tests --include='test_*.py')
}

if has build; then
  step build 120 env MTKERNELS_CUDA=1 MTKERNELS_CUDA_ARCHS="$arch" "$PYTHON" setup.py build_ext --inplace
  [ $failed = 0 ] || exit 1
fi
"$PYTHON" -m mtkernels | tee "$logs/environment.txt"
if has tests; then
  # Native and Triton apart: a kernel that hangs or leaves the device broken takes the tests of its own backend along.
  # Triton compiles each kernel that it is asked for, on one core for seconds, and so gets most of the workers.
  cores=$(nproc)
  gpu_tests tests-triton $((cores > 3 ? cores * 5 / 8 : 1)) triton
  gpu_tests tests-native $((cores > 3 ? cores - cores * 5 / 8 : 1)) "not triton"
  finish
fi
if has sanitize; then
  sanitizer=(compute-sanitizer --error-exitcode 9)
  for tool in memcheck racecheck synccheck; do
    begin "sanitizer-$tool" 150 "${sanitizer[@]}" --tool "$tool" --kernel-regex kns=mtk "$PYTHON" tests/sanitize_gpu.py
  done
  # initcheck has to see torch's kernels too: they write the inputs.
  begin sanitizer-initcheck 150 "${sanitizer[@]}" --tool initcheck "$PYTHON" tests/sanitize_gpu.py
  finish
fi
# What is fast or slow, alone.
if has speed; then
  step launches 40 "$PYTHON" bench/launches.py --large
  cat "$logs/launches.log"
  # Time, share of the copy bandwidth, host time: of all cases, the largest models and WeightEMA's features too. About
  # fifty groups; torch.compile takes seconds for each of its candidates, and that is most of the time.
  step bench 240 "$PYTHON" -m pytest bench -q --bench-large --bench-seconds 0.5 --benchmark-json="$out/results.json"
  step report 15 "$PYTHON" bench/report.py "$out/results.json" --out "$out"
  cat "$out/results.md" 2>/dev/null | head -90
fi
if has train; then
  step end-to-end 110 "$PYTHON" bench/end_to_end.py --steps 700  # shake-shake 26: trained, stopped, resumed, read back
  tail -n 4 "$logs/end-to-end.log"
  step train-step 60 "$PYTHON" bench/train_step.py --device cuda
  cat "$logs/train-step.log"
  step training 90 "$PYTHON" bench/training.py --device cuda --precision bf16 --channels-last --cuda-graph --steps 40 \
    --rounds 2 --preset cifar10-4000-shakeshake-1gpu cifar10-4000-shakeshake-1gpu:convnet13
  cat "$logs/training.log"
fi
pack
echo "gpu-check: $name: summary; $([ -z "${OUT:-}" ] && echo "logs: $logs" || echo "logs: $out/logs.tar.gz")"
cat "$summary"
exit $failed
