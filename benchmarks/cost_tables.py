"""Tables of what the formulas of configs/cost.py say: memory, network and device-hours of models and studies."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from benchmarks.markdown import ROOT, read_result, read_results, table
from benchmarks.memory_estimate import CASES, name_of, settings_of
from configs import cost
from configs.cost import GIB
from configs.load import load_config, merge, validate
from configs.plan import make_plan
from configs.schema import RunConfig
from configs.sweep import all_cells, expand

RANKS = (8, 16, 32, 64)
RATES = (100, 300, 450)  # TFLOP/s
MEASURED = "train_step-gpt124m_wd0.1-bf16-mixed-cpu.json"
MODELS = {
    "124M": ("gpt124m_wd0.1.json", []),
    "774M": ("gpt774m.json", []),
    "1.5B": ("gpt774m.json", ["model.n_layer=48", "model.n_head=25", "model.n_embd=1600"]),
}
EXPERIMENTS = [  # what, and the sweeps p1_… and small_… that are for it
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


def configs_of(sweep: str) -> list[RunConfig]:
    """The runs of a shipped sweep."""
    stages = expand(ROOT / "configs" / "sweeps" / f"{sweep}.json", Path("runs"), lambda _: None)[1]
    return [cell.config for cell in all_cells(stages)]


def config_of(model: str, stage: int) -> RunConfig:
    file, settings = MODELS[model]
    fixed = [f"parallel.zero_stage={stage}", "batch.micro_batch=4", "precision=bf16-mixed"]
    return load_config(ROOT / "configs" / file, settings + fixed)[0]


def device() -> str:
    """Per model and stage: memory of a device and what it sends in an update."""
    rows = []
    for model in MODELS:
        for stage in range(4):
            plans = [make_plan(config_of(model, stage), ranks, None) for ranks in RANKS]
            memory = [f"{(plan.state_bytes + plan.activation_bytes) / GIB:.2f}" for plan in plans]
            sent = [f"{plan.communication_bytes / GIB:.2f}" for plan in plans]
            rows.append([model, stage, *memory, *sent])
    return table(["model", "ZeRO", *(f"memory, {n}" for n in RANKS), *(f"sent, {n}" for n in RANKS)], rows)


def study() -> str:
    """The λ × precision study, and single runs, in device-hours."""
    sweep = configs_of("p1_wd_precision")
    runs = [(f"the study, {len(sweep)} runs (p1_wd_precision.json)", sweep)]
    runs += [(f"one run at {model}", [config_of(model, 1)]) for model in MODELS]
    rows = []
    for name, configs in runs:
        hours = [sum(cost.device_hours(config, rate * 1e12) for config in configs) for rate in RATES]
        flops = sum(cost.device_hours(config, 1.0) for config in configs) * 3600
        rows.append([name, f"{flops:.2g}", *(f"{h:,.0f}" for h in hours)])
    return table(["what", "FLOPs", *(f"device-hours at {rate} TFLOP/s" for rate in RATES)], rows)


def devices() -> str:
    """The devices that were measured: how long one run at 124M takes there."""
    result, config = read_result(MEASURED), config_of("124M", 1)
    rate = result["tokens_per_s"]["train.py"]
    days = config.schedule.steps * config.batch.tokens_per_step / rate / 86400
    flops = rate * cost.flops_per_token(config.model) / 1e12
    row = [f"CPU, {result['threads']} cores", f"{rate:,.0f}", f"{flops:.2f}", f"{days:,.0f}", f"`{MEASURED}`"]
    return table(["device", "tokens/s in `bf16-mixed`", "TFLOP/s", "days for one run at 124M", "result file"], [row])


def estimate(command: str, case: str) -> tuple[int, int]:
    """The plan's bytes of state and of activations for a case of the memory benchmark, which this command measured."""
    ((precision, stage, ranks, micro_batch),) = (settings for settings in CASES if name_of(*settings) == case)
    pairs = list(pairwise(command.split()))
    (path,) = (value for word, value in pairs if word == "--config")
    config, given = load_config(ROOT / path, [value for word, value in pairs if word == "--set"])
    settings = settings_of(precision, stage, ranks, micro_batch, config.model.seq_len)
    plan = make_plan(validate(merge(given, settings), case), ranks, None)
    return plan.state_bytes, plan.activation_bytes


def memory() -> str:
    """The plan's estimate of memory beside what a real run took."""
    rows, result = [], read_result("memory-gpt124m_wd0.1-cpu.json")
    for name, case in result["cases"].items():
        state, activations = estimate(result["command"], name)
        sizes = [f"{size / GIB:.2f}" for size in (state, activations, case["measured_bytes"])]
        heap = f"{case['heap_bytes'] / case['measured_bytes']:.2f}" if case.get("heap_bytes") else ""
        rows.append([name, *sizes, f"{(state + activations) / case['measured_bytes']:.2f}", heap])
    columns = ["state, GiB", "activations, GiB", "measured, GiB", "estimate / measured", "heap / measured"]
    return table(["case", *columns], rows)


def memory_of_shapes() -> str:
    """The same, as a ratio, of every shape and arithmetic of attention that was measured."""
    results = read_results("memory-*.json")
    ratios: dict[str, dict[str, str]] = {}
    for name, result in results.items():
        for case, taken in result["cases"].items():
            ratio = sum(estimate(result["command"], case)) / taken["measured_bytes"]
            ratios.setdefault(case, {})[name] = f"{ratio:.2f}"
    columns = [name.removeprefix("memory-").removesuffix("-cpu.json") for name in results]
    return table(["case", *columns], [[case, *(row.get(name, "") for name in results)] for case, row in ratios.items()])


def logits() -> str:
    """What the chunked loss spares, by arithmetic."""
    model = load_config(ROOT / "configs" / "gpt124m_ctx1024.json")[0].model
    rows = []
    for micro_batch in (1, 4, 16, 64):
        tokens = micro_batch * model.seq_len
        whole = tokens * model.vocab_size * (2 + 4 + 4 + 4)
        chunk = min(tokens * model.vocab_size, cost.LOGITS_AT_ONCE) * 2 + model.vocab_size * model.n_embd * 6
        rows.append([micro_batch, f"{whole / GIB:.2f}", f"{chunk / GIB:.2f}"])
    return table(["micro-batch", "whole", "in chunks"], rows)


def experiments() -> str:
    """P1's experiments: files and cost, at P1's scale and small."""
    model = load_config(ROOT / "configs" / "quickstart.json")[0].model
    measured = read_result("train_step-quickstart-fp32-cpu.json")
    small_rate = measured["tokens_per_s"]["train.py"] * cost.flops_per_token(model)
    rows = []
    for name, large, small in EXPERIMENTS:
        cells = []
        for file, rate, per_hour in ((f"p1_{large}", 1e14, 1), (f"small_{small}", small_rate, 60)):
            configs = configs_of(file)
            hours = sum(cost.device_hours(config, rate) for config in configs)
            cells += [f"`{file}.json`", f"{len(configs)}, {hours * per_hour:,.0f}"]
        rows.append([name, *cells])
    columns = ["sweep at the paper's scale", "runs, device-hours", "small sweep", "runs, minutes"]
    return table(["experiment", *columns], rows)
