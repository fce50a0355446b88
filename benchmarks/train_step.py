"""Tokens per second of train.py's own loop against a bare PyTorch loop, in one run.

    python -m benchmarks.train_step --config configs/gpt_micro.json
    python -m benchmarks.train_step --config configs/gpt124m_wd0.1.json --set precision=fp32 --set batch.tokens_per_step=1024

The bare loop has the same model, precision, micro-batch, accumulation, clipping and fused AdamW, its tokens already in
memory, and no DeepSpeed, data order, metrics or norms. Both are timed in alternating rounds; the figure is the ratio
of the medians over steps. Also measured: the seconds from launching `python train.py` to the beginning of its first update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import train
from configs.load import load_config, merge, validate
from configs.plan import Plan, make_plan
from configs.schema import Log, RunConfig
from data.manifest import Manifest
from engine.launch import World, start_world
from engine.precision import set_matmul_precision
from engine.session import Session, build_model
from record.environment import environment
from record.metrics import MetricsLog
from record.recorder import Recorder
from record.run import RunFolder
from tests.synthetic import write_synthetic

RESULTS = Path(__file__).parent / "results"
WARM_UP = 2  # steps of each round that are not counted


class Clock(Recorder):
    """Notes when each update's row is added: once a step, near its end."""

    times: list[float]

    def add(self, step: int, row: dict[str, Any]) -> None:
        super().add(step, row)
        if "train/loss" in row:
            self.times.append(time.perf_counter())


class NeverStop:
    reason, pending = "", False


def loop_seconds(config: RunConfig, manifest: Manifest, plan: Plan, world: World, folder: Path) -> list[float]:
    """Seconds of each step of train.train, from one step's row to the next's: all of it, logging included."""
    run = RunFolder(folder)
    run.create(config.model_dump(mode="json"), {}, plan.experiment or {}, plan.as_dict())
    session, clock = Session(config, manifest, plan, run, world), Clock(MetricsLog(run.metrics), None, plan.tokens)
    clock.times = []
    session.start(clock)
    train.train(session, NeverStop())  # type: ignore[arg-type]
    return [b - a for a, b in pairwise(clock.times)][WARM_UP:]


def bare_seconds(config: RunConfig, plan: Plan, world: World) -> list[float]:
    """Seconds of each step of a bare loop."""
    model = build_model(config, 0, world.device)
    model.init_weights(0)
    model.to(world.device)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.optim.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=config.optim.betas, fused=True)
    tokens = torch.randint(0, 64, (plan.micro_steps, plan.micro_batch, config.model.seq_len + 1), device=world.device)
    times = []
    for _ in range(config.schedule.steps):
        times.append(time.perf_counter())
        for micro in tokens:
            loss = model(micro[:, :-1], micro[:, 1:]) / config.batch.tokens_per_step
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    return [b - a for a, b in pairwise(times)][WARM_UP:]


def launch_seconds(config: RunConfig, folder: Path) -> float:
    """From starting `python train.py` to row 0 on disk: all is set up and validated, the first update begins."""
    (folder / "launch.json").write_text(
        config.model_copy(update={"log": config.log.model_copy(update={"every": 1})}).model_dump_json()
    )
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "train.py", "--config", str(folder / "launch.json"), "--run-dir", str(folder / "launch")],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    metrics = folder / "launch" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 0,' in metrics.read_text()):
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    process.terminate()
    process.wait()
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, given = load_config(args.config, args.set)
        given = merge(
            given,
            {
                "data": {"path": str(folder / "data")},
                "schedule": {"steps": args.steps, "warmup_steps": 0},
                "eval": {"every": None, "tokens": 1},
                "checkpoint": {"every": None},
                "log": {"probe_every": args.steps},  # the last step of a round
            },
        )
        config = validate(given, args.config)
        tokens = config.batch.tokens_per_step * args.steps + 1
        manifest = write_synthetic(folder / "data", tokens, 2 * config.model.seq_len)
        plan = make_plan(config, 1, manifest.summary())
        if config.precision in ("bf16-master", "bf16-true"):
            raise SystemExit(f"the bare loop has no equivalent of {config.precision}: use fp32, tf32 or bf16-mixed")
        parallel = config.parallel
        world = start_world("benchmark", 600, parallel.threads_per_rank, parallel.deterministic)
        set_matmul_precision(config.precision, world.device)
        ours, bare, probed = [], [], []
        for index in range(args.rounds):
            bare += bare_seconds(config, plan, world)
            *plain, with_probe = loop_seconds(config, manifest, plan, world, folder / f"run{index}")
            ours += plain
            probed.append(with_probe)
        launch = launch_seconds(config, folder)
    rates = {
        name: config.batch.tokens_per_step / statistics.median(times)
        for name, times in (("train.py", ours), ("bare", bare))
    }
    result: dict[str, Any] = {
        "command": "python -m benchmarks.train_step " + " ".join(sys.argv[1:]),
        "tokens_per_s": rates,
        "ratio": rates["train.py"] / rates["bare"],
        "launch_to_first_step_s": launch,
        # What a probe adds to its step, spread over the steps between probes at the default cadence, as a fraction of them.
        "probe_cost": (statistics.median(probed) / statistics.median(ours) - 1) / (Log().probe_every or 1),
        "steps_timed": len(ours),
        "tokens_per_step": config.batch.tokens_per_step,
        "micro_batch": plan.micro_batch,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        **environment(),
    }
    path = args.out or RESULTS / f"train_step-{Path(args.config).stem}-{config.precision}-{world.device.type}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"train.py {rates['train.py']:,.0f} tokens/s, bare loop {rates['bare']:,.0f}: ratio {result['ratio']:.3f}; "
        f"probes {result['probe_cost']:.2%} at the default cadence; launch to first step {launch:.1f} s; {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
