#!/usr/bin/env bash
# Everything there is to prove and measure on one GPU, without network, in under nine minutes, into one results file:
#     [PEER='python nanoGPT/train.py …'] benchmarks/gpu.sh [RESULTS.json]
# Each part has a limit of its own; one that fails or overruns is named in the file, and the rest goes on.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results/gpu.json}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

part() { # NAME SECONDS COMMAND…
    local name=$1 limit=$2 begun=$SECONDS
    shift 2
    timeout --kill-after=5 "$limit" "$@" >"$work/$name.log" 2>&1
    local code=$?
    echo "$name $code $((SECONDS - begun))" | tee -a "$work/parts"
    [ $code = 0 ] || tail -n 20 "$work/$name.log"
}
step() { part "$1" "$2" "$python" -m benchmarks.train_step --out "$work/$1.json" "${@:3}"; }

# The corpus is made on the CPU meanwhile: the sources of all installed packages.
"$python" -m data.prepare --source python-source --packages --vocab-size 8192 --out "$work/data" >"$work/data.log" 2>&1 &
data=$!

large=(--config configs/gpt124m_ctx1024.json --set batch.memory_gib=48)
part tests 170 "$python" -m pytest -m gpu -q --junitxml "$work/tests.xml"
step gpt124m-bf16-mixed 75 "${large[@]}" --steps 8 ${PEER:+--peer "$PEER"}
step gpt124m-bf16-mixed-deterministic 45 "${large[@]}" --set parallel.deterministic=true --steps 6 --rounds 2
step gpt124m-fp32 45 "${large[@]}" --set precision=fp32 --steps 4 --rounds 1
step gpt774m-bf16-mixed 60 --config configs/gpt774m.json --set batch.memory_gib=48 --steps 5 --rounds 1
step micro 25 --config configs/gpt_micro.json --steps 30 --rounds 2
part checkpoint 25 "$python" -m benchmarks.checkpoint --config configs/gpt124m_ctx1024.json --out "$work/checkpoint.json"
part means 45 "$python" -m benchmarks.means "${large[@]}" --set batch.tokens_per_step=65536 --means eager whole recompute --rounds 1 --out "$work/means.json"

wait $data || echo "data 1 0" >>"$work/parts"
for decay in 0 0.1; do
    part "wd$decay" 45 "$python" train.py --config configs/gpt124m_ctx1024.json --set data.path="$work/data" --set data.epochs=1 \
        --set optim.weight_decay=$decay --set batch.tokens_per_step=65536 --set batch.memory_gib=48 --set schedule.steps=200 \
        --set schedule.warmup_steps=20 --set eval.every=50 --run-dir "$work/run$decay"
done

"$python" - "$work" "$results" <<'PY'
import json, pathlib, sys
from xml.etree import ElementTree
from record.metrics import read_metrics

work, results = map(pathlib.Path, sys.argv[1:])
parts = {name: {"exit_code": int(code), "seconds": int(s)} for name, code, s in map(str.split, (work / "parts").read_text().splitlines())}
tests = work / "tests.xml"
suite = ElementTree.parse(tests).getroot().find("testsuite").attrib if tests.exists() else {}
found = {"command": "benchmarks/gpu.sh", "parts": parts, "tests": {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")}}
found |= {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
for decay in ("0", "0.1"):
    if (metrics := work / f"run{decay}" / "metrics.jsonl").exists():
        rows = read_metrics(metrics)[0]
        found[f"val_loss_wd{decay}"] = {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}
results.parent.mkdir(parents=True, exist_ok=True)
results.write_text(json.dumps(found, indent=1) + "\n")
sys.exit(any(part["exit_code"] for part in parts.values()))
PY
code=$?
echo "$results"
exit $code
