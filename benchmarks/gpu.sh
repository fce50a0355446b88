#!/usr/bin/env bash
# Everything there is to prove and measure on one GPU, without network, in under nine minutes, into one results file:
#     [PEER='python nanoGPT/train.py …'] benchmarks/gpu.sh [RESULTS.json]
# Each part has a limit of its own, 520 s in all; one that fails or overruns is named in the file with its last lines, and
# the rest goes on. PEER: another trainer of the 124M model at 65,536 tokens an update; by default benchmarks/peer.py.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results/gpu.json}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"' || exit 2

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
timeout 400 "$python" -m data.prepare --source python-source --packages --vocab-size 8192 --workers 4 --out "$work/data" >"$work/data.log" 2>&1 &
data=$!

large=(--config configs/gpt124m_ctx1024.json --set batch.memory_gib=48)
small=(--set batch.tokens_per_step=65536)
part tests 130 "$python" -m pytest -m gpu -q --junitxml "$work/tests.xml"
peer=${PEER:-"$python -m benchmarks.peer --seq-len 1024 --micro-batch 32 --micro-steps 2 --updates 12 --compile"}
step gpt124m-bf16-mixed 120 "${large[@]}" "${small[@]}" --steps 12 --rounds 1 --peer "$peer"
step gpt124m-bf16-mixed-deterministic 30 "${large[@]}" "${small[@]}" --set parallel.deterministic=true --steps 8 --rounds 1
step gpt124m-fp32 30 "${large[@]}" "${small[@]}" --set precision=fp32 --steps 4 --rounds 1
step gpt774m-bf16-mixed 55 --config configs/gpt774m.json --set batch.memory_gib=48 "${small[@]}" --steps 6 --rounds 1
step micro 15 --config configs/gpt_micro.json --steps 20 --rounds 1
part checkpoint 15 "$python" -m benchmarks.checkpoint_times --config configs/gpt124m_ctx1024.json --rounds 1 --out "$work/checkpoint.json"
part means 45 "$python" -m benchmarks.means "${large[@]}" "${small[@]}" --means eager whole --rounds 1 --out "$work/means.json"

wait $data
echo "data $? $SECONDS" | tee -a "$work/parts"
for decay in 0 0.1; do
    part "wd$decay" 40 "$python" train.py --config configs/gpt124m_ctx1024.json --set data.path="$work/data" --set data.epochs=1 \
        --set optim.weight_decay=$decay "${small[@]}" --set batch.memory_gib=48 --set schedule.steps=150 \
        --set schedule.warmup_steps=15 --set eval.every=50 --run-dir "$work/run$decay"
done

"$python" - "$work" "$results" <<'PY'
import json, pathlib, sys
from xml.etree import ElementTree
from record.metrics import read_metrics

work, results = map(pathlib.Path, sys.argv[1:])
parts = {name: {"exit_code": int(code), "seconds": int(s)} for name, code, s in map(str.split, (work / "parts").read_text().splitlines())}
for name, part in parts.items():
    if part["exit_code"]:
        part["said"] = (work / f"{name}.log").read_text(errors="replace").splitlines()[-20:]
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
