"""Tokens per second of train.py's own loop against a bare PyTorch loop, the machine's matmul rate, and another trainer.

    python -m benchmarks.train_step --config configs/gpt_micro.json
    python -m benchmarks.train_step --config configs/gpt124m_wd0.1.json --set batch.tokens_per_step=8192 \\
        --peer "python /path/to/nanoGPT/train.py … --log_interval=1"

The bare loop is that of benchmarks/bare.py. The matmul rate is that of model.linear.product at the model's own
shapes, weighted by their FLOPs. A peer is a command that prints `time <milliseconds>ms` for each update of as many tokens,
as nanoGPT does; of several (one for each micro-batch, say) the one that is fastest in a first run is the peer. Each round
measures all of them in turn; figures are medians over the updates of all rounds. Also measured: the seconds and the peak
memory of `python train.py` as a process, and where the time of an update goes.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import engine.update
import train
from benchmarks.bare import matmul_rate, update_seconds
from benchmarks.made import write_data
from benchmarks.outcome import RESULTS, write_result
from benchmarks.spans import Spans
from configs import cost
from configs.cadence import is_probed
from configs.load import load_config, merge, validate
from configs.plan import Plan, make_plan
from configs.precision import TABLE
from configs.schema import Log, RunConfig
from data.any_manifest import AnyManifest
from data.loader import Prefetcher
from engine.dtypes import set_matmul_precision
from engine.launch import World, device_name, start_world
from engine.memory import keep_freed_memory
from engine.network import is_compiled
from engine.supply import open_data
from engine.training import Training, begin
from record.metrics import MetricsLog, read_metrics
from record.recorder import Recorder
from record.run import RunFolder

WARM_UP = 2  # updates of each round that are not counted
LAUNCHED = 3  # updates of the run as a process


class Clock(Recorder):
    """Notes when each update's row is added: once a step, near its end."""

    times: list[float]

    def add(self, step: int, row: dict[str, Any]) -> None:
        super().add(step, row)
        if "train/loss" in row:
            self.times.append(time.perf_counter())


class NeverStop:
    reason, pending = "", False


class Bench:
    """One configuration on this machine."""

    def __init__(self, config: RunConfig, manifest: AnyManifest, plan: Plan, world: World, folder: Path) -> None:
        self.config, self.manifest, self.plan, self.world, self.folder = config, manifest, plan, world, folder

    def loop(self, name: str, spans: Spans | None = None) -> dict[int, float]:
        """Seconds of each step of train.train, from one step's row to the next's: all of it, logging included.

        With `spans` nothing is probed, for a probe is none of an update's parts.
        """
        config = self.config
        if spans is not None:
            config = config.model_copy(update={"log": config.log.model_copy(update={"probe_every": None})})
        run = RunFolder(self.folder / name)
        run.create(config.model_dump(mode="json"), {}, self.plan.experiment or {}, self.plan.as_dict())
        data = open_data(config, self.manifest, self.plan, self.world)
        clock = Clock(MetricsLog(run.metrics), None, self.plan.units)
        clock.times = []
        training = begin(config, self.plan, run, self.world, data, clock)
        if spans is not None:
            spans.watch(engine.update, "update", "rest")  # before train.train looks for it

        def after_update() -> None:
            if spans is not None and len(clock.times) == WARM_UP:
                spans.seconds.clear()
                _watch(spans, training)
            if spans is not None and len(clock.times) == config.schedule.steps:
                spans.stop()

        train.train(training, NeverStop(), after_update)  # type: ignore[arg-type]
        gc.collect()  # a compiled model is in a cycle
        seconds = {step: b - a for step, (a, b) in enumerate(pairwise(clock.times), 2)}
        return {step: s for step, s in seconds.items() if step > WARM_UP}

    def launched(self) -> dict[str, float]:
        """Of `python train.py`: seconds to row 0 on disk, when the first update begins; peak memory of its updates, bytes."""
        given = self.config.model_dump(mode="json")
        given["schedule"]["steps"], given["log"] = LAUNCHED, {"every": 1}
        (self.folder / "launch.json").write_text(json.dumps(given))
        run = self.folder / "launch"
        command = ["train.py", "--config", str(self.folder / "launch.json"), "--run-dir", str(run)]
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        metrics = run / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"step": 0,' in metrics.read_text()):
            time.sleep(0.05)
        seconds = time.perf_counter() - begun
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"train.py failed:\n{said[-2000:]}")
        peak = max(row.get("perf/peak_memory_bytes", 0) for row in read_metrics(metrics)[0])
        before = (RunFolder(run).last_start() or {})["memory_before_bytes"]
        figures = {"launch_to_first_step_s": seconds, "peak_memory_bytes": peak}
        if self.world.device.type == "cuda":  # on a CPU the heap keeps what is freed: benchmarks.memory_estimate
            estimate = self.plan.state_bytes + self.plan.activation_bytes
            figures["estimate_over_measured"] = estimate / (peak - before)
        return figures


def _watch(spans: Spans, training: Training) -> None:
    """Name what an update does."""
    spans.watch(Prefetcher, "__next__", "data")
    spans.watch(training.engine.ds, "forward", "forward")
    spans.watch(training.engine.ds, "backward", "backward")
    spans.watch(training.engine.ds, "step", "optimiser")
    spans.watch(training.engine.fragments, "square_norms", "norms")
    spans.watch(training.engine.statistics, "move", "statistics")
    spans.watch(training.engine, "average", "averages")
    spans.watch(training, "measure_norms", "logging")
    spans.watch(training.recorder, "add", "logging")
    spans.watch(training.recorder, "flush", "logging")
    for name in ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "broadcast", "reduce"):
        spans.watch(dist, name, "communication")


def peer_seconds(command: str) -> list[float]:
    """Seconds of each update that another trainer prints."""
    ended = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    times = [float(ms) / 1000 for ms in re.findall(r"time\s+([\d.]+)\s*ms", ended.stdout)][WARM_UP:]
    if ended.returncode or not times:
        raise SystemExit(
            f"--peer ended with exit code {ended.returncode} and {len(times)} updates after the first {WARM_UP}; expected "
            f"lines with `time <milliseconds>ms`, one an update:\n{(ended.stdout + ended.stderr)[-2000:]}"
        )
    return times


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=10, help="updates of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer",
        metavar="COMMAND",
        action="append",
        default=[],
        help="another trainer, run in every round; of several the fastest",
    )
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    if args.steps < WARM_UP + 2:
        parser.error(f"--steps takes {WARM_UP + 2} or more: the first {WARM_UP} warm up, the last is probed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, given = load_config(args.config, args.set)
        given = merge(
            given,
            {
                "data": {"path": str(folder / "data"), "train_tokens": None},
                "schedule": {"steps": args.steps, "warmup_steps": 0},
                "eval": {"every": None, "tokens": 1},
                "checkpoint": {"every": None},
                "log": {"probe_every": args.steps},  # the last step of a round
            },
        )
        config = validate(given, args.config)
        if TABLE[config.precision].weights == "bfloat16":
            raise SystemExit(f"the bare loop has no equivalent of {config.precision}: use fp32, tf32 or bf16-mixed")
        tokens = config.batch.tokens_per_step * args.steps + 1
        manifest = write_data(folder / "data", (tokens, tokens // 512 + 1), (2 * config.model.seq_len, 1))
        plan = make_plan(config, 1, manifest.summary())
        parallel = config.parallel
        world = start_world("benchmark", 600, parallel.threads_per_rank, parallel.deterministic)
        set_matmul_precision(config.precision, world.device)
        bench = Bench(config, manifest, plan, world, folder)
        result = measure(bench, args.rounds, args.peer)
    path = args.out or RESULTS / f"train_step-{Path(args.config).stem}-{config.precision}-{world.device.type}.json"
    print(render(result))
    write_result(path, "train_step", result)
    return 0


def measure(bench: Bench, rounds: int, peers: list[str]) -> dict[str, Any]:
    """All rounds, then one with spans, then a run as a process."""
    config, plan = bench.config, bench.plan
    tried = {peer: statistics.median(peer_seconds(peer)) for peer in peers} if len(peers) > 1 else {}
    peer = min(tried or peers, key=lambda peer: tried.get(peer, 0.0), default=None)
    device = bench.world.device
    if device.type == "cpu":
        keep_freed_memory()  # for the bare loop too
    seconds: dict[str, list[float]] = {"train.py": [], "bare": [], **({"peer": []} if peer else {})}
    probed, matmul = [], []
    for index in range(rounds):
        matmul.append(matmul_rate(config, plan.micro_batch, device))
        bare = update_seconds(config, bench.manifest.eot, device, plan.micro_batch, config.schedule.steps)
        seconds["bare"] += bare[WARM_UP:]
        # The median is of updates without a probe; what a probe adds is said beside it.
        for step, s in bench.loop(f"run{index}").items():
            (probed if is_probed(config.log, step) else seconds["train.py"]).append(s)
        if peer:
            seconds["peer"] += peer_seconds(peer)
    spans = Spans()
    spanned = bench.loop("spans", spans).values()
    total = sum(spans.seconds.values())
    update = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {name: config.batch.tokens_per_step / s for name, s in update.items()}
    flops = rates["train.py"] * cost.flops_per_token(config.model)
    # What a probe adds to its step, spread over the steps between probes at the default cadence, as a fraction of them.
    probe = (statistics.median(probed) / update["train.py"] - 1) / (Log().probe_every or 1)
    return {
        "tokens_per_s": rates,
        "ratio": rates["train.py"] / rates["bare"],
        **({"ratio_to_peer": rates["train.py"] / rates["peer"], "peer": peer, "peers_tried_s": tried} if peer else {}),
        "flop_per_s": flops,
        "matmul_flop_per_s": statistics.median(matmul),
        "fraction_of_matmul": flops / statistics.median(matmul),
        "mfu": cost.mfu(flops, device_name(device), config.precision, 1),
        "spans_over_update": total / sum(spanned),
        "share_of_time": {name: s / total for name, s in sorted(spans.seconds.items(), key=lambda item: -item[1])},
        "probe_cost": probe,
        **bench.launched(),
        "seconds": seconds,
        "tokens_per_step": config.batch.tokens_per_step,
        "micro_batch": plan.micro_batch,
        "precision": config.precision,
        "compiled": is_compiled(config, device),
        "recompute": config.parallel.recompute,
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }


def render(result: dict[str, Any]) -> str:
    rates = result["tokens_per_s"]
    lines = [
        f"train.py {rates['train.py']:,.0f} tokens/s, bare loop {rates['bare']:,.0f}: ratio {result['ratio']:.3f}; "
        f"probes {result['probe_cost']:.2%} at the default cadence",
        f"{result['flop_per_s'] / 1e9:,.0f} GFLOP/s (6 per matmul weight and token, 12·L·d·T for attention), "
        f"{result['fraction_of_matmul']:.3f} of the matmul rate {result['matmul_flop_per_s'] / 1e9:,.0f}",
        "share of an update: " + ", ".join(f"{name} {share:.1%}" for name, share in result["share_of_time"].items()),
        f"peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB; "
        f"launch to first update {result['launch_to_first_step_s']:.1f} s",
    ]
    if "peer" in rates:
        lines.insert(1, f"peer {rates['peer']:,.0f} tokens/s: train.py has {result['ratio_to_peer']:.3f} of it")
    if "estimate_over_measured" in result:
        lines.append(f"the plan's estimate of memory over the measured peak {result['estimate_over_measured']:.3f}")
    if result["mfu"] is not None:
        lines.append(f"MFU {result['mfu']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
