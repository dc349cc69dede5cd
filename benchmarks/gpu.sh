#!/usr/bin/env bash
# Every figure that needs a GPU, in parts of at most eight minutes each on one GPU of the H200's class.
#
#   benchmarks/gpu.sh [PART ...]     tests scoring-1b scoring-8b training-8b trl prefixes noise search; all by default,
#                                    noise and search where NOISE_DATA is given
#
# OUT       folder for the figures (default: gpu-figures), one .md and one .json a part
#           (a .md and a .log for each file of tests/gpu)
# PYTHON    interpreter that has torch, transformers, peft and this package's source on its path (default: python)
# POOL      data file whose rows are measured (default: the shipped demo pool)
# TOKENIZER folder of a tokenizer, for the part trl
# DATA_DIR  folder of the benchmarks' data, for the part prefixes
# NOISE_DATA, NOISE_CELLS, NOISE_MODEL  for the parts noise and search: the folder of benchmarks.noise --data, its cells
#           (default: those of 500 rows) and model. A cell that the limit stops goes on at the next call, with the same OUT.
# DEVICE=cpu tries the script itself, on tiny models; its figures mean nothing.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}"
PYTHON=${PYTHON:-python} OUT=${OUT:-gpu-figures} DEVICE=${DEVICE:-cuda} LIMIT=${LIMIT:-480}
POOL=${POOL:-src/tokenclean/data/demo_pool.jsonl}
if [ "$DEVICE" = cpu ]; then
  SMALL=tiny LARGE=tiny ROWS=6 STEP_ROWS=3 REPEATS=1 PREFIXES=(--questions 2 --tasks hellaswag)
  TRL_MODEL=()  # SmolLM2: no tiny model has a tokenizer
else
  SMALL=1b LARGE=8b ROWS=300 STEP_ROWS=96 REPEATS=5 PREFIXES=(--questions 200)
  TRL_MODEL=(--random-model 8b --tokenizer "${TOKENIZER:-}")
fi
mkdir -p "$OUT"
failed=()

part() { # NAME COMMAND...: runs it within the limit, keeps what it printed
  local name=$1
  shift
  echo "== $name: $*"
  if ! timeout "$LIMIT" "$@" >"$OUT/$name.md" 2>"$OUT/$name.log"; then
    failed+=("$name")
    tail -n 5 "$OUT/$name.log"
  fi
  cat "$OUT/$name.md"
}

bench() { # NAME BENCHMARK OPTION...
  local name=$1 benchmark=$2
  shift 2
  part "$name" "$PYTHON" -m "benchmarks.$benchmark" --device "$DEVICE" --repeats "$REPEATS" --pool "$POOL" \
    --markdown --json "$OUT/$name.json" --allow-busy "$@"
}

run() {
  case $1 in
    tests) # each file by itself, so that one that does not end leaves the others their figures, and where it was
      for file in tests/gpu/test_*.py; do
        LIMIT=$((LIMIT / 3)) part "$(basename "$file" .py)" "$PYTHON" -m pytest -q -p no:cacheprovider "$file" \
          --durations=5 -o faulthandler_timeout=100
      done ;;
    scoring-1b) bench scoring-1b scoring --random-model "$SMALL" --rows "$ROWS" --precisions safe fast --compile on --without-memory ;;
    scoring-8b) bench scoring-8b scoring --random-model "$LARGE" --rows "$ROWS" --precisions fast --compile off --without-memory ;;
    training-8b) bench training-8b training --random-model "$LARGE" --rows "$STEP_ROWS" --precisions mixed --rank 64 --without-memory ;;
    trl) bench trl training "${TRL_MODEL[@]}" --trl --without-memory --rows "$STEP_ROWS" --precisions mixed --rank 64 ;;
    prefixes) part prefixes "$PYTHON" -m benchmarks.evaluation --device "$DEVICE" --data-dir "${DATA_DIR:-}" \
      "${PREFIXES[@]}" --markdown --json "$OUT/prefixes.json" --allow-busy ;;
    noise | search) part "$1" "$PYTHON" -m "benchmarks.$1" --data "${NOISE_DATA:?}" --cells "${NOISE_CELLS:-*-500-*}" \
      --model "${NOISE_MODEL:-demo}" --set "model.device=$DEVICE" --output "$OUT/$1" --markdown --json "$OUT/$1.json" ;;
    *) echo "no part $1; see the head of benchmarks/gpu.sh" >&2; exit 2 ;;
  esac
}

for name in "${@:-tests scoring-1b scoring-8b training-8b trl prefixes ${NOISE_DATA:+noise search}}"; do
  for one in $name; do run "$one"; done
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed or beyond $LIMIT s: ${failed[*]} (see $OUT/*.log)"
  exit 1
fi
