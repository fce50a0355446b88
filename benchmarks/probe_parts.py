"""What a probe costs, part by part, over an update without one: every second update is probed, in one run.

    python -m benchmarks.probe_parts --config configs/gpt_micro.json

On a CPU time is that of the process, which other processes on the machine leave nearly as it is; on CUDA it is the clock's, with
the device waited for. A share is over the updates between two probes at the default cadence.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import engine.attention_logits
import engine.probes
from benchmarks.made import write_data
from benchmarks.outcome import RESULTS, write_result
from benchmarks.spans import Spans
from configs.load import load_config, merge, validate
from configs.plan import make_plan
from configs.schema import Log, RunConfig
from data.manifest import Manifest
from engine.dtypes import set_matmul_precision
from engine.launch import device_name, start_world
from engine.memory import keep_freed_memory
from engine.norm_change import NormChange
from engine.supply import open_data
from engine.training import Training, begin
from engine.update import update
from record.recorder import Recorder
from record.run import RunFolder

WARM_UP = 2  # updates that are not counted, the second probed
STABILITY = ("attention logits", "singular values", "changed weights", "parts of the norm")


class Times(Spans):
    """The process's own time where there is no device to wait for."""

    @staticmethod
    def now() -> float:
        return Spans.now() if torch.cuda.is_available() else time.process_time()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.probe_parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=5, help="updates without a probe, and as many with one")
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    steps = WARM_UP + 2 * args.pairs
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, given = load_config(args.config, args.set)
        data = {"path": str(folder / "data"), "train_tokens": None}
        given = merge(given, {"data": data, "schedule": {"steps": steps, "warmup_steps": 0}, "log": {"probe_every": 2}})
        config = validate(given, args.config)
        tokens, length = config.units_per_step * steps + 1, config.gpt.seq_len
        manifest = write_data(folder / "data", (tokens, tokens // 512 + 1), (64 * length, 8))
        result = measure(config, manifest, folder, steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("\n".join(f"{name:<20} {share:.3%}" for name, share in result["share_at_default_cadence"].items()))
    write_result(
        args.out or RESULTS / f"probe_parts-{Path(args.config).stem}-{config.precision}-{device}.json",
        "probe_parts",
        result,
    )
    return 0


def measure(config: RunConfig, manifest: Manifest, folder: Path, steps: int) -> dict[str, Any]:
    """Medians over the updates after the first two."""
    plan = make_plan(config, 1, manifest.summary())
    world = start_world("benchmark", 600, config.parallel.threads_per_rank, config.parallel.deterministic)
    set_matmul_precision(config.precision, world.device)
    if world.device.type == "cpu":
        keep_freed_memory()
    supply = open_data(config, manifest, plan, world)
    recorder = Recorder(None, None, config.units_per_step)
    training = begin(config, plan, RunFolder(folder / "run"), world, supply, recorder)
    seconds, parts = _timed(training, steps)
    plain, probed = statistics.median(seconds[0]), statistics.median(seconds[1])
    found = {name: statistics.median(part.get(name, 0.0) for part in parts) for name in STABILITY}
    every = plain * (Log().probe_every or 1)
    shares = {name: s / every for name, s in found.items()}
    return {
        "update_s": plain,
        "part_s": found,
        "share_at_default_cadence": {**shares, "these": sum(shares.values()), "whole probe": (probed - plain) / every},
        "micro_batch": plan.micro_batch,
        "tokens_per_step": config.units_per_step,
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "device": device_name(world.device),
    }


def _timed(training: Training, steps: int) -> tuple[tuple[list[float], list[float]], list[dict[str, float]]]:
    """Seconds of updates without and with a probe, and of each of these its parts'."""
    spans = Times()
    spans.watch(engine.attention_logits, "largest_score", STABILITY[0])
    spans.watch(engine.probes, "spectral_columns", STABILITY[1])
    spans.watch(engine.probes.Probe, "_changed", STABILITY[2])
    for name in ("decayed", "stepped", "parts"):
        spans.watch(NormChange, name, STABILITY[3])
    seconds: tuple[list[float], list[float]] = ([], [])
    parts = []
    for batch in islice(training.data.batches(0, training.data.start_digest), steps):
        spans.seconds.clear()
        begun = spans.now()
        update(training, iter([batch]))
        took = spans.now() - begun
        if batch.step >= WARM_UP:
            seconds[batch.step % 2].append(took)  # of update t + 1, which is probed where it is even
            if batch.step % 2:
                parts.append(dict(spans.seconds))
    spans.stop()
    return seconds, parts


if __name__ == "__main__":
    sys.exit(main())
