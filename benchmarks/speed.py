"""Writes docs/speed.md from the committed results.

python -m benchmarks.speed
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.means import MEANS
from benchmarks.outcome import RESULTS
from benchmarks.scaling import ROOT, estimate, row
from configs import cost
from configs.load import load_config
from configs.plan import GIB

DOC = ROOT / "docs" / "speed.md"
HEAD = """\
# Speed

Written by `python -m benchmarks.speed` from the result files it names, each with the command that made it; a test compares.
Machines differ and drift: what counts are the ratios, each of figures from one run. Measure yours with
`python -m benchmarks.train_step --config CONFIG`, add `--peer COMMAND` for another trainer beside it, and look into an
update with `train.py --profile 3`.
"""
TARGETS = [  # what, result file, key, at least
    (
        "124M, `bf16-mixed`: over nanoGPT's loop, compiled",
        "train_step-gpt124m_wd0.1-bf16-mixed-cpu",
        "ratio_to_peer",
        1.3,
    ),
    ("124M, `bf16-mixed`: of the matmul rate", "train_step-gpt124m_wd0.1-bf16-mixed-cpu", "fraction_of_matmul", 0.6),
    ("124M, `fp32`: over nanoGPT's loop, compiled", "train_step-gpt124m_wd0.1-fp32-cpu", "ratio_to_peer", 1.15),
    ("124M, `fp32`: of the matmul rate", "train_step-gpt124m_wd0.1-fp32-cpu", "fraction_of_matmul", 0.85),
    ("micro model, 256 wide: over nanoGPT's loop, compiled", "train_step-gpt_micro-fp32-cpu", "ratio_to_peer", 1.5),
    ("DeepSpeed, data, logging: of the bare loop", "train_step-gpt124m_wd0.1-bf16-mixed-cpu", "ratio", 0.97),
]
KEPT = """\
## Kept

- **The loss in chunks, with its gradient** (`model/loss.py`). The head's product, the softmax and the gradients of both are
  made for a chunk of tokens while its logits are at hand; on a CPU the softmax in pieces that stay in the cache. Nothing is
  computed twice, and the logits of a micro-batch never exist whole (their memory: below).
- **Freed memory kept** (`engine/memory.py`). By default glibc maps every large tensor anew, and the kernel zeroes its pages.
- **Float32 products by oneDNN on a CPU** (`model/linear.py`), where torch calls MKL. The gain is that of an AMD
  processor; Intel's were not measured. The gradient of a weight stays with MKL: oneDNN was slower at it in narrow models.
- **`parallel.compile`**, each block by itself: on CUDA by default, where a compiler is found; on a CPU it costs its compilation at
  every start, for what the table says. Parameters keep their names, and it works at every ZeRO stage (blocks are gathered whole
  at stage 3). One graph for the whole model would not: DeepSpeed's hooks lie between the blocks.
- **`parallel.recompute`**, activations of one block at a time: for memory, at the price of a second forward pass.
- **The largest micro-batch that fits** (the plan's choice): weights are cast and gradients accumulated once per micro-step.
- Fused AdamW on CPU and GPU; gradient norms once an update, by one kernel call per list; no all-reduce of DeepSpeed's where a
  rank is alone; batches read ahead in a thread, and copied to a GPU once an update from pinned memory.
"""
REJECTED = """\
## Rejected

- **Casting weights once per step, not per micro-step.** The line "micro-batch of a quarter" has four times the casts and
  accumulations: a third of what it costs is the most there is to save, and a second copy of the weights is one more thing to
  keep right.
- **Huge pages** for tensors (`THP_MEM_ALLOC_ENABLE=1`): what the table says of time, against memory aligned to 2 MiB.
- **Attention by two products in bfloat16** on a CPU: faster there, but the scores are rounded to bfloat16 before the softmax,
  and then `bf16-mixed` would mean another experiment than on a GPU.
- **A library's fused loss** (Liger): Triton only, while the chunked loss is 40 lines and the same on CPU and GPU. Not measured.
- **No synchronisation between log steps**: each update is checked for non-finite values before it is applied, which is one
  synchronisation an update; all its other figures come with it.
- **DeepSpeed's compiled all-reduce for CPUs**: only its inference calls it (`inference_all_reduce`); training would compile it
  for a minute at the first start and never use it.
- **More threads than cores over ranks**: threads of one rank then wait for the other's (`parallel.threads_per_rank`).
- **Padding the vocabulary**: 50,304 is a multiple of 128 already.

Left until a GPU has been measured: CUDA graphs, other attention backends than the one `scaled_dot_product_attention` chooses, the
overlap of reduction with the backward pass (DeepSpeed's `overlap_comm` can be set under `deepspeed`).
"""


def read(pattern: str) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))}


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def targets() -> str:
    """What was aimed at beside what was measured."""
    lines = ["## Aims", "", row("what", "aim", "measured", "at most", "result file"), "|---" * 5 + "|"]
    for what, name, key, aim in TARGETS:
        found = json.loads((RESULTS / f"{name}.json").read_text())
        most = {
            "ratio_to_peer": found.get("ratio_to_peer", 0) / found["fraction_of_matmul"],
            "fraction_of_matmul": 1.0,
        }.get(key)
        lines.append(row(what, f"{aim:g} or more", f"{found[key]:.2f}", _ratio(most), f"`{name}.json`"))
    for name, found in read("ranks-*.json").items():
        best = max(ratio for case, ratio in found["ratio_to_one_rank"].items() if "1 rank" not in case)
        lines.append(row("two ranks on two cores, of one", "0.9 or more", f"{best:.2f}", "", f"`{name}`"))
    for name, found in read("memory-*.json").items():
        ratios = [sum(estimate(case)) / seen["measured_bytes"] for case, seen in found["cases"].items()]
        between = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(row("the plan's memory over measured", "0.9 to 1.1", between, "", f"`{name}`"))
    lines += [
        "",
        "The aims were set on a machine whose bfloat16 matmuls are four times as fast as float32 (AMX). Where a result file's",
        "`matmul_flop_per_s` is lower, matmuls take more of an update, and no loop can be much ahead of another: at most by what",
        "the column says, where an update would take no longer than its FLOPs at the matmul rate.",
    ]
    return "\n".join(lines)


def training() -> str:
    """Every measured configuration, and where its updates' time goes."""
    lines = [
        "## train.py's loop",
        "",
        "Tokens per second, data, logging and norms included. GFLOP/s: 6 per matmul weight and token, and 12·L·d·T for attention.",
        "Bare loop: the same model and optimiser without DeepSpeed, data order and metrics. Matmul: the product the model uses at",
        "its own shapes, weighted, in the same process. Peer: nanoGPT's model and loop, compiled, said again in",
        "`benchmarks/peer.py`, at the fastest micro-batch of those tried; nanoGPT itself prints what `--peer` reads, too.",
        "",
        row("result file", "device", "tokens/s", "GFLOP/s", "/ bare loop", "/ peer", "/ matmul", "probes"),
        "|---" * 8 + "|",
    ]
    shares = ["", "Shares of an update:", ""]
    for name, found in read("train_step-*.json").items():
        device = found["device"] if found["device"] != "cpu" else f"{found['threads']} cores"
        rate, share = found["tokens_per_s"]["train.py"], found["share_of_time"]
        ratios = [_ratio(found.get(key)) for key in ("ratio", "ratio_to_peer", "fraction_of_matmul")]
        probes = f"{found['probe_cost']:.1%}"
        lines.append(row(f"`{name}`", device, f"{rate:,.0f}", f"{found['flop_per_s'] / 1e9:,.0f}", *ratios, probes))
        parts = ", ".join(f"{part} {value:.1%}" for part, value in share.items() if value >= 0.0005)
        shares.append(f"- `{name}`: {parts}")
    return "\n".join(lines + shares)


def means() -> str:
    """What each means gains."""
    lines = [
        "## Means",
        "",
        "Time of an update and peak memory, over those of the loop as shipped: medians of a few updates (their number is given),",
        "each means in a process of its own. Run again, times of unchanged code differ by several per cent.",
        "",
        row("change", "result file", "updates", "time", "memory"),
        "|---" * 5 + "|",
    ]
    for name, found in read("means-*.json").items():
        for key, ratio in found["time_over_shipped"].items():
            if key != "shipped":
                updates, memory = len(found["seconds"][key]), found["memory_over_shipped"][key]
                lines.append(row(MEANS[key], f"`{name}`", updates, f"× {ratio:.2f}", f"× {memory:.2f}"))
    return "\n".join(lines)


def ranks() -> str:
    lines = [
        "## Ranks on one machine",
        "",
        "Tokens per second over those of one rank with all cores.",
        "",
        row("case", "result file", "ratio"),
        "|---|---|---|",
    ]
    for name, found in read("ranks-*.json").items():
        for case, ratio in found["ratio_to_one_rank"].items():
            lines.append(row(case, f"`{name}`", f"{ratio:.2f}"))
    return "\n".join(lines)


def logits() -> str:
    """What the chunked loss spares, by arithmetic."""
    lines = [
        "## Memory of the logits",
        "",
        "GPT-2's vocabulary at context 1024, `bf16-mixed`, GiB by arithmetic: whole are the bfloat16 logits, their float32 copy,",
        "the log-softmax and its gradient; in chunks one chunk's logits (2,668 tokens at most) and the head's gradient.",
        "",
        row("micro-batch", "whole", "in chunks"),
        "|---|---|---|",
    ]
    model = load_config(ROOT / "configs" / "gpt124m_ctx1024.json")[0].model
    for micro_batch in (1, 4, 16, 64):
        tokens = micro_batch * model.seq_len
        whole = tokens * model.vocab_size * (2 + 4 + 4 + 4)
        chunk = min(tokens * model.vocab_size, cost.LOGITS_AT_ONCE) * 2 + model.vocab_size * model.n_embd * 6
        lines.append(row(micro_batch, f"{whole / GIB:.2f}", f"{chunk / GIB:.2f}"))
    return "\n".join(lines)


def gpu() -> str:
    found = read("gpu*.json")
    said = ", ".join(f"`benchmarks/results/{name}`" for name in found) or "none has been measured yet"
    return f"## GPUs\n\n`benchmarks/gpu.sh` proves and measures everything on one GPU in under nine minutes: {said}."


def render() -> str:
    parts = [HEAD.rstrip(), targets(), training(), means(), KEPT.rstrip(), REJECTED.rstrip(), ranks(), logits(), gpu()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    DOC.write_text(render())
    sys.exit(0)
