"""The plan's memory against the memory that train.py takes, per rank, on this machine.

    python -m benchmarks.memory_estimate --config configs/gpt124m_wd0.1.json

Each case is a real run of two updates of two micro-steps under the deepspeed launcher, the second one probed.
Measured is the peak of rank 0 during the updates less that of the same run with a model of next to nothing; estimated is
the plan's state and activations. `measured_bytes` is with every tensor mapped by itself and given back when it is freed:
what is in use. `heap_bytes`, of float32 on one rank, is as train.py runs on a CPU, where freed memory is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.launched import launch
from benchmarks.made import write_data
from benchmarks.outcome import RESULTS, write_result
from configs.load import load_config, merge, validate
from record.metrics import read_metrics

CASES = [("fp32", 0, 1, 4), ("fp32", 1, 1, 4), ("fp32", 1, 2, 4), ("fp32", 2, 2, 4), ("fp32", 3, 2, 4),
         ("bf16-mixed", 0, 1, 4), ("bf16-mixed", 1, 2, 4), ("bf16-master", 1, 2, 4), ("bf16-true", 1, 1, 4),
         ("fp32", 0, 1, 16), ("bf16-mixed", 0, 1, 32)]  # fmt: skip
IN_USE = {"MALLOC_MMAP_THRESHOLD_": "131072"}
NOTHING = {"n_layer": 1, "n_head": 1, "n_kv_head": None, "n_embd": 8, "mlp_width": 8, "seq_len": 8}


def name_of(precision: str, stage: int, ranks: int, micro_batch: int) -> str:
    return f"{precision}, ZeRO {stage}, {ranks} rank(s), micro-batch {micro_batch}"


def settings_of(precision: str, stage: int, ranks: int, micro_batch: int, seq_len: int) -> dict[str, Any]:
    """What a case sets, but for its data."""
    return {
        "precision": precision,
        "parallel": {"zero_stage": stage},
        "batch": {"tokens_per_step": 2 * micro_batch * seq_len * ranks, "micro_batch": micro_batch},
        "schedule": {"steps": 2, "warmup_steps": 0},
        "eval": {"tokens": seq_len, "every": None},
        "log": {"every": 1, "probe_every": 2},
    }


def measure(given: dict[str, Any], ranks: int, work: Path) -> dict[str, float | None]:
    """Estimated and measured bytes of one case."""
    sequences = given["batch"]["tokens_per_step"] // given["model"]["seq_len"]
    nothing = {"model": NOTHING, "batch": {"tokens_per_step": sequences * NOTHING["seq_len"]}}
    base = _peak(merge(given, nothing), ranks, work / "nothing", IN_USE)[1]
    plan, peak = _peak(given, ranks, work / "live", IN_USE)
    with_heap = ranks == 1 and given["precision"] == "fp32"
    heap = _peak(given, ranks, work / "heap", {})[1] - base if with_heap else None
    return {
        "state_bytes": plan["state_bytes"],
        "activation_bytes": plan["activation_bytes"],
        "measured_bytes": peak - base,
        "heap_bytes": heap,
        "estimate_over_measured": round((plan["state_bytes"] + plan["activation_bytes"]) / (peak - base), 3),
    }


def _peak(given: dict[str, Any], ranks: int, work: Path, environ: dict[str, str]) -> tuple[dict[str, Any], int]:
    """The plan of a run, and the most that rank 0 held."""
    run = launch(given, ranks, work, environ)
    return run.read_plan(), max(row.get("perf/peak_memory_bytes", 0) for row in read_metrics(run.metrics)[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_estimate", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="only these, counted from 0")
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    config, given = load_config(args.config, args.set)
    measured = {}
    for case in [CASES[index] for index in args.cases]:
        with tempfile.TemporaryDirectory() as work:
            data = Path(work) / "data"
            settings = settings_of(*case, config.model.seq_len)
            write_data(data, (8 * settings["batch"]["tokens_per_step"] + 1, 8), (4096, 8))
            given_case = merge(merge(given, settings), {"data": {"path": str(data), "train_tokens": None}})
            validate(given_case, args.config)
            name = name_of(*case)
            measured[name] = measure(given_case, case[2], Path(work))
            print(name, measured[name], flush=True)
    out = args.out or RESULTS / f"memory-{Path(args.config).stem}-cpu.json"
    write_result(out, "memory_estimate", {"cases": measured})
    return 0


if __name__ == "__main__":
    sys.exit(main())
