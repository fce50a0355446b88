"""Writes docs/scaling.md: memory, communication and device-hours from configs/cost.py and the committed results.

python -m benchmarks.scaling
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.memory import CASES, name_of, settings_of
from benchmarks.outcome import RESULTS
from configs import cost
from configs.load import load_config, merge, validate
from configs.plan import GIB, make_plan
from configs.schema import RunConfig
from configs.sweep import all_cells, expand

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "scaling.md"
RANKS = (8, 16, 32, 64)
RATES = (100, 300, 450)  # TFLOP/s
MODELS = {
    "124M": ("gpt124m_wd0.1.json", []),
    "774M": ("gpt774m.json", []),
    "1.5B": ("gpt774m.json", ["model.n_layer=48", "model.n_head=25", "model.n_embd=1600"]),
}
EXPERIMENTS = [
    ("λ × precision, cosine: training loss crosses in the last quarter", "wd_precision", "wd_precision"),
    ("tiny-learning-rate branches: bias and variance", "tiny_lr", "tiny_lr"),
    ("constant learning rate, and branches of it", "constant_lr", "constant_lr"),
    ("effective learning rate of the λ runs at λ = 0", "matched_lr", "matched_lr"),
    ("bfloat16: what diverges (small: a ladder of learning rates, not the longer context)", "bfloat16", "ladder"),
    ("generalisation gap, larger model", "774m", "larger"),
    ("L2 penalty in the loss", "l2_loss", "l2_loss"),
    ("SGD with momentum", "sgd", "sgd"),
    ("decay on every parameter", "decay_all", "decay_all"),
    ("slower learning-rate decay at λ = 0", "slow_decay", "slow_decay"),
]
HEAD = """\
# Scale on paper

Written by `python -m benchmarks.scaling` from the formulas of `configs/cost.py` and the result files it names; a test
compares. For any configuration, `python train.py --config CONFIG --dry-run --ranks N` prints the same numbers.
"""


def row(*cells: object) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def configs_of(sweep: str) -> list[RunConfig]:
    """The runs of a shipped sweep."""
    stages = expand(ROOT / "configs" / "sweeps" / f"{sweep}.json", Path("runs"), lambda _: None)[1]
    return [cell.config for cell in all_cells(stages)]


def config_of(model: str, stage: int) -> RunConfig:
    file, settings = MODELS[model]
    fixed = [f"parallel.zero_stage={stage}", "batch.micro_batch=4", "precision=bf16-mixed"]
    return load_config(ROOT / "configs" / file, settings + fixed)[0]


def scale() -> str:
    """Per model and stage: memory of a device and what it sends in an update."""
    lines = [
        "## Memory and communication of one device",
        "",
        "`bf16-mixed`, context 256, 65,536 tokens per update, micro-batch 4. Memory: weights, gradients, moments and the",
        "activations of one micro-batch, in GiB. Sent: GiB per rank and update, ring algorithms, float32 gradients; a stage",
        "that communicates in every micro-step sends less on more ranks, which take fewer of them.",
        "",
        row("model", "ZeRO", *(f"memory, {n}" for n in RANKS), *(f"sent, {n}" for n in RANKS)),
        "|---" * (2 + 2 * len(RANKS)) + "|",
    ]
    for model in MODELS:
        for stage in range(4):
            plans = [make_plan(config_of(model, stage), ranks, None) for ranks in RANKS]
            memory = [f"{(plan.state_bytes + plan.activation_bytes) / GIB:.2f}" for plan in plans]
            sent = [f"{plan.communication_bytes / GIB:.2f}" for plan in plans]
            lines.append(row(model, stage, *memory, *sent))
    return "\n".join(lines)


def study() -> str:
    """The λ × precision study in device-hours."""
    sweep = configs_of("p1_wd_precision")
    runs = [(f"the study, {len(sweep)} runs (p1_wd_precision.json)", sweep)]
    runs += [(f"one run at {model}", [config_of(model, 1)]) for model in MODELS]
    lines = [
        "## What the study costs",
        "",
        "Training FLOPs over a sustained rate: 6 per matmul weight and token, and attention's. The rate of your device is the",
        "matmul rate it reaches in training, a fraction of its peak; `benchmarks/gpu.sh` measures it.",
        "",
        row("", "FLOPs", *(f"device-hours at {rate} TFLOP/s" for rate in RATES)).replace("|  |", "| |", 1),
        "|---" * (2 + len(RATES)) + "|",
    ]
    for name, configs in runs:
        hours = [sum(cost.device_hours(config, rate * 1e12) for config in configs) for rate in RATES]
        flops = sum(cost.device_hours(config, 1.0) for config in configs) * 3600
        lines.append(row(name, f"{flops:.2g}", *(f"{h:,.0f}" for h in hours)))
    measured = json.loads((RESULTS / "train_step-gpt124m_wd0.1-bf16-mixed-cpu.json").read_text())
    config = config_of("124M", 1)
    rate = measured["tokens_per_s"]["train.py"]
    days = config.schedule.steps * config.batch.tokens_per_step / rate / 86400
    lines += [
        "",
        f"The one device measured so far is a CPU of {measured['threads']} cores: {rate:,.0f} tokens/s in `bf16-mixed` "
        f"({rate * cost.flops_per_token(config.model) / 1e12:.2f} TFLOP/s),",
        f"{days:,.0f} days for one run at 124M. (`benchmarks/results/train_step-gpt124m_wd0.1-bf16-mixed-cpu.json`)",
    ]
    return "\n".join(lines)


def check() -> str:
    """The plan's estimate of memory beside what a real run took."""
    measured = json.loads((RESULTS / "memory-gpt124m_wd0.1-cpu.json").read_text())
    lines = [
        "## The estimate against measured memory",
        "",
        f"`{measured['command']}`: real runs at 124M, context 256,",
        "on CPU; rank 0's peak during the updates less that of the same run with next to no model.",
        "Measured with every tensor mapped by itself (`MALLOC_MMAP_THRESHOLD_`): what is in use. A heap keeps what is freed, and",
        "holds more: the last column, as `train.py` runs. (`benchmarks/results/memory-gpt124m_wd0.1-cpu.json`)",
        "",
        "| case | state, GiB | activations, GiB | measured, GiB | estimate / measured | heap / measured |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in measured["cases"].items():
        state, activations = estimate(name)
        sizes = [f"{size / GIB:.2f}" for size in (state, activations, case["measured_bytes"])]
        heap = f"{case['heap_bytes'] / case['measured_bytes']:.2f}" if case.get("heap_bytes") else ""
        lines.append(row(name, *sizes, f"{(state + activations) / case['measured_bytes']:.2f}", heap))
    return "\n".join(lines)


def estimate(case: str) -> tuple[int, int]:
    """The plan's bytes of state and of activations for a case of the memory benchmark."""
    ((precision, stage, ranks, micro_batch),) = (known for known in CASES if name_of(*known) == case)
    config, given = load_config(ROOT / "configs" / "gpt124m_wd0.1.json")
    settings = settings_of(precision, stage, ranks, micro_batch, config.model.seq_len)
    plan = make_plan(validate(merge(given, settings), case), ranks, None)
    return plan.state_bytes, plan.activation_bytes


def experiments() -> str:
    """The README's table of P1's experiments: files and cost, at P1's scale and small."""
    measured = json.loads((RESULTS / "train_step-quickstart-fp32-cpu.json").read_text())
    model = load_config(ROOT / "configs" / "quickstart.json")[0].model
    small_rate = measured["tokens_per_s"]["train.py"] * cost.flops_per_token(model)
    lines = [
        "| experiment | sweep at the paper's scale | runs, device-hours | small sweep | runs, minutes |",
        "|---|---|---|---|---|",
    ]
    for name, large, small in EXPERIMENTS:
        cells = []
        for file, rate, per_hour in ((f"p1_{large}", 1e14, 1), (f"small_{small}", small_rate, 60)):
            configs = configs_of(file)
            hours = sum(cost.device_hours(config, rate) for config in configs)
            cells += [f"`{file}.json`", f"{len(configs)}, {hours * per_hour:,.0f}"]
        lines.append(row(name, *cells))
    return "\n".join(lines)


def render() -> str:
    return "\n\n".join([HEAD.rstrip(), scale(), study(), check()]) + "\n"


if __name__ == "__main__":
    DOC.write_text(render())
    print(experiments())
    sys.exit(0)
