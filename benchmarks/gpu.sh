#!/usr/bin/env bash
# Everything there is to prove and measure on one GPU, without network, into one results file:
#     benchmarks/gpu.sh [RESULTS.json]
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results/gpu.json}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

failed=0
"$python" -m pytest -m gpu -q --junitxml "$work/tests.xml" || failed=1
bench() { "$python" -m benchmarks.train_step --out "$work/$1.json" "${@:2}" 2>"$work/$1.log" || { failed=1; tail "$work/$1.log"; }; }
bench micro --config configs/gpt_micro.json --steps 50
bench gpt124m-bf16-mixed --config configs/gpt124m_ctx1024.json --set batch.memory_gib=48
bench gpt124m-bf16-mixed-deterministic --config configs/gpt124m_ctx1024.json --set batch.memory_gib=48 --set parallel.deterministic=true
bench gpt124m-fp32 --config configs/gpt124m_ctx1024.json --set precision=fp32 --set batch.memory_gib=48 --steps 6 --rounds 2
"$python" -m benchmarks.checkpoint --config configs/gpt124m_ctx1024.json --out "$work/checkpoint.json" || failed=1

"$python" - "$work" "$results" "$failed" <<'PY'
import json, pathlib, sys
from xml.etree import ElementTree

work, results, failed = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3] != "0"
tests = work / "tests.xml"
suite = ElementTree.parse(tests).getroot().find("testsuite").attrib if tests.exists() else {}
found = {"command": "benchmarks/gpu.sh", "failed": failed, "tests": {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")}}
found |= {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
results.parent.mkdir(parents=True, exist_ok=True)
results.write_text(json.dumps(found, indent=1) + "\n")
PY
echo "$results"
exit "$failed"
