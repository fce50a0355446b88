"""Tables of what was measured: aims, the training loop, what each means gains, ranks, GPUs."""

from __future__ import annotations

from typing import Any

from benchmarks.cost_tables import estimate
from benchmarks.markdown import read_result, read_results, table
from benchmarks.means import MEANS

MIXED, SINGLE = "train_step-gpt124m_wd0.1-bf16-mixed-cpu.json", "train_step-gpt124m_wd0.1-fp32-cpu.json"
MICRO = "train_step-gpt_micro-fp32-cpu.json"
AIMS = [  # what, result file, key, at least
    ("124M, `bf16-mixed`: over nanoGPT's loop, compiled", MIXED, "ratio_to_peer", 1.3),
    ("124M, `bf16-mixed`: of the matmul rate", MIXED, "fraction_of_matmul", 0.6),
    ("124M, `fp32`: over nanoGPT's loop, compiled", SINGLE, "ratio_to_peer", 1.15),
    ("124M, `fp32`: of the matmul rate", SINGLE, "fraction_of_matmul", 0.85),
    ("micro model, 256 wide: over nanoGPT's loop, compiled", MICRO, "ratio_to_peer", 1.5),
    ("DeepSpeed, data, logging: of the bare loop", MIXED, "ratio", 0.97),
    (
        "the same on images, ResNet18 of width 16: of a plain loop",
        "images_step-resnet18-16-fp32-cpu.json",
        "ratio",
        0.97,
    ),
    ("the same on images, MLP of width 512: of a plain loop", "images_step-mlp-512-fp32-cpu.json", "ratio", 0.97),
]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _most(key: str, result: dict[str, Any]) -> float | None:
    """What a ratio is where an update takes no longer than its FLOPs at the matmul rate; None where that bounds nothing."""
    if key == "ratio_to_peer":
        return float(result[key] / result["fraction_of_matmul"])
    return 1.0 if key == "fraction_of_matmul" else None


def aims() -> str:
    """What was aimed at beside what was measured."""
    rows = []
    for what, name, key, aim in AIMS:
        result = read_result(name)
        rows.append([what, f"{aim:g} or more", f"{result[key]:.2f}", _ratio(_most(key, result)), f"`{name}`"])
    for name, result in read_results("ranks-*.json").items():
        best = max(ratio for case, ratio in result["ratio_to_one_rank"].items() if "1 rank" not in case)
        rows.append(["two ranks on two cores, of one", "0.9 or more", f"{best:.2f}", "", f"`{name}`"])
    for name, result in read_results("memory-*.json").items():
        cases = result["cases"].items()
        ratios = [sum(estimate(result["command"], case)) / taken["measured_bytes"] for case, taken in cases]
        between = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append(["the plan's memory over measured", "0.9 to 1.1", between, "", f"`{name}`"])
    return table(["what", "aim", "measured", "at most", "result file"], rows)


def loop() -> str:
    """Every measured configuration."""
    rows = []
    for name, result in read_results("train_step-*.json").items():
        device = result["device"] if result["device"] != "cpu" else f"{result['threads']} cores"
        rates = [f"{result['tokens_per_s']['train.py']:,.0f}", f"{result['flop_per_s'] / 1e9:,.0f}"]
        ratios = [_ratio(result.get(key)) for key in ("ratio", "ratio_to_peer", "fraction_of_matmul")]
        rows.append([f"`{name}`", device, *rates, *ratios, f"{result['probe_cost']:.1%}"])
    columns = ["device", "tokens/s", "GFLOP/s", "/ bare loop", "/ peer", "/ matmul", "probes"]
    return table(["result file", *columns], rows)


def images() -> str:
    """Every network for images that was measured."""
    rows = []
    for name, result in read_results("images_step-*.json").items():
        device = result["device"] if result["device"] != "cpu" else f"{result['threads']} cores"
        rates, rounds = result["images_per_s"], result["ratio_by_round"]
        ratios = [
            f"{result['ratio']:.3f}",
            f"{min(rounds):.3f} to {max(rounds):.3f}",
            f"{result['ratio_of_means']:.3f}",
        ]
        rows.append([f"`{name}`", device, f"{rates['train.py']:,.0f}", f"{rates['plain']:,.0f}", *ratios])
    columns = ["device", "images/s", "plain loop", "ratio", "by round", "of means"]
    return table(["result file", *columns], rows)


def shares() -> str:
    """Where the time of an update goes."""
    rows = []
    for name, result in (read_results("train_step-*.json") | read_results("images_step-*.json")).items():
        parts = [f"{part} {value:.1%}" for part, value in result["share_of_time"].items() if value >= 0.0005]
        rows.append([f"`{name}`", ", ".join(parts)])
    return table(["result file", "shares of an update"], rows)


def means() -> str:
    """What each means gains or costs."""
    rows = []
    for name, result in read_results("means-*.json").items():
        for key, ratio in result["time_over_shipped"].items():
            if key != "shipped":
                updates, memory = len(result["seconds"][key]), result["memory_over_shipped"][key]
                rows.append([MEANS[key], f"`{name}`", updates, f"× {ratio:.2f}", f"× {memory:.2f}"])
    return table(["change", "result file", "updates", "time", "memory"], rows)


def ranks() -> str:
    """Several ranks on one machine against one."""
    rows = [
        [case, f"`{name}`", f"{ratio:.2f}"]
        for name, result in read_results("ranks-*.json").items()
        for case, ratio in result["ratio_to_one_rank"].items()
    ]
    return table(["case", "result file", "ratio"], rows)


def gpus() -> str:
    """What `benchmarks/gpu.sh` has left; one row that says so where it has not been run."""
    rows = [[f"`{name}`", result.get("device", "")] for name, result in read_results("gpu*.json").items()]
    return table(["result file", "device"], rows or [["none yet", ""]])
