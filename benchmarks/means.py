"""What each means to speed gains or costs: a bare loop with it changed, against the loop as shipped, in one run.

    python -m benchmarks.means --config configs/gpt124m_wd0.1.json --set batch.tokens_per_step=2048

Each means is measured in a process of its own, all of them in turn in every round: seconds of an update (medians over
rounds) and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import model.gpt
import model.linear
from benchmarks.bare import update_seconds
from benchmarks.outcome import RESULTS, write_result
from configs.load import load_config
from configs.plan import make_plan
from configs.schema import RunConfig
from engine.dtypes import set_matmul_precision
from engine.launch import device_name, start_world
from engine.memory import forget_peak, keep_freed_memory, peak_bytes

WARM_UP = 2  # updates that are not counted
MEANS = {
    "shipped": "",
    "malloc": "memory mapped anew for every tensor, as glibc does by default (CPU)",
    "huge": "huge pages for large tensors beside it, THP_MEM_ALLOC_ENABLE=1 (CPU)",
    "whole": "logits whole, torch's cross_entropy",
    "compile": "parallel.compile, where it is not the default",
    "eager": "no parallel.compile, where it is the default",
    "recompute": "parallel.recompute",
    "quarter": "micro-batch of a quarter, four micro-steps",
    "unfused": "AdamW tensor by tensor, not fused",
    "mkl": "products of weights by torch's own F.linear, MKL's (CPU, float32)",
    "products": "attention by two products in the matmul dtype, scores rounded before the softmax",
}


def whole_logits(x: Tensor, head: Tensor, targets: Tensor, z_loss: float, dtype: Any, compiled: bool) -> Tensor:
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        logits = F.linear(x, head)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool, enable_gqa: bool
) -> Tensor:
    later = torch.full(q.shape[-2:-1] * 2, -math.inf, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(later, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=1 / math.sqrt(q.shape[-1]))
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(q.shape)


def measured(config: RunConfig, means: str, updates: int) -> dict[str, Any]:
    """Seconds of each counted update of the bare loop with this means, and the peak of memory."""
    world = start_world("means", 600, config.parallel.threads_per_rank)
    set_matmul_precision(config.precision, world.device)
    changed = {"compile": {"compile": True}, "eager": {"compile": False}, "recompute": {"recompute": True}}.get(
        means, {}
    )
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update=changed)})
    if means == "whole":
        model.gpt.cross_entropy_sum = whole_logits  # type: ignore[assignment]
    if means == "mkl":
        model.linear.ONEDNN = False
    if means == "products":
        model.gpt.F.scaled_dot_product_attention = by_products  # type: ignore[attr-defined]
    if world.device.type == "cpu" and means != "malloc":
        keep_freed_memory()
    plan = make_plan(config, 1, None)
    pieces = min(config.examples_per_step, (4 if means == "quarter" else 1) * plan.micro_steps)
    forget_peak(world.device)
    micro_batch = config.examples_per_step // pieces
    seconds = update_seconds(config, 0, world.device, micro_batch, updates + WARM_UP, means != "unfused")
    peak, device = peak_bytes(world.device), device_name(world.device)
    return {"seconds": seconds[WARM_UP:], "peak_bytes": peak, "device": device}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.means", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--updates", type=int, default=3, help="counted updates of each means in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--means", nargs="+", choices=MEANS, help="default: all that the device has")
    parser.add_argument("--out", type=Path, help="results file")
    parser.add_argument("--child", choices=MEANS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    config, _ = load_config(args.config, args.set)
    if args.child:
        print(json.dumps(measured(config, args.child, args.updates)))
        return 0
    gpu = torch.cuda.is_available()
    left_out = {"malloc", "huge", "compile"} if gpu else {"eager"}
    if gpu or config.precision != "fp32":
        left_out.add("mkl")
    chosen = list(dict.fromkeys(["shipped", *(args.means or (set(MEANS) - left_out))]))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sorted(chosen, key=list(MEANS).index)}
    for _ in range(args.rounds):
        for name, results in runs.items():
            command = [sys.executable, "-m", "benchmarks.means", *sys.argv[1:], "--child", name]
            env = os.environ | ({"THP_MEM_ALLOC_ENABLE": "1"} if name == "huge" else {})
            said = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if said.returncode:
                raise SystemExit(f"{name} failed:\n{said.stderr[-2000:]}")
            results.append(json.loads(said.stdout.splitlines()[-1]))
    median = {n: statistics.median(s for run in results for s in run["seconds"]) for n, results in runs.items()}
    peak = {n: max(run["peak_bytes"] for run in results) for n, results in runs.items()}
    result = {
        "tokens_per_s": {n: config.batch.tokens_per_step / s for n, s in median.items()},
        "time_over_shipped": {n: s / median["shipped"] for n, s in median.items()},
        "memory_over_shipped": {n: bytes_ / peak["shipped"] for n, bytes_ in peak.items()},
        "peak_bytes": peak,
        "seconds": {n: [s for run in results for s in run["seconds"]] for n, results in runs.items()},
        "precision": config.precision,
        "device": runs["shipped"][0]["device"],
    }
    kind = "cuda" if gpu else "cpu"
    path = args.out or RESULTS / f"means-{Path(args.config).stem}-{config.precision}-{kind}.json"
    for name, ratio in result["time_over_shipped"].items():
        print(f"{name:10} time × {ratio:.3f}, memory × {result['memory_over_shipped'][name]:.3f}  {MEANS[name]}")
    write_result(path, "means", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
