"""What comparing the data with its hashes beside training costs: updates with data.verify's thread at work, and without.

    python -m benchmarks.hashing --config configs/quickstart.json

Pairs of blocks of updates in one process, one with the thread and one without, in turn first: `ratio` is the median over the
pairs of their time with over their time without. On a shared machine single blocks differ by more than the cost: read the spread.
The thread reads one file again and again, which the machine keeps in memory: from a slow disk it takes longer, and less of
a core. `seconds_per_gb` is what a run loses in all for each GB of its data, `bytes_per_s_alone` the thread's rate where nothing
trains. `load_average` says how busy the machine was with other work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.made import write_data
from benchmarks.outcome import RESULTS, write_result
from configs.load import load_config, merge, validate
from configs.plan import make_plan
from data.loader import Prefetcher
from data.manifest import Manifest
from data.verify import Hashing
from engine.launch import start_world
from engine.supply import open_data
from engine.training import Training, begin
from engine.update import update
from record.recorder import Recorder
from record.run import RunFolder

FILE_TOKENS = 1 << 25  # 64 MiB
TIMES = 10_000  # how often the thread may read the file: more than any block lasts


def long_data(folder: Path) -> Manifest:
    """A file that is named very often, so that the thread has work for every block."""
    manifest = write_data(folder, (FILE_TOKENS, 1), (2, 1))
    return manifest.model_copy(
        update={"train": manifest.train.model_copy(update={"shards": manifest.train.shards * TIMES})}
    )


def block(training: Training, batches: Prefetcher, updates: int) -> float:
    """Seconds of so many updates."""
    began = time.perf_counter()
    for _ in range(updates):
        update(training, batches)
    return time.perf_counter() - began


def beside(training: Training, batches: Prefetcher, updates: int, hashing: Hashing) -> tuple[float, int]:
    """The same with the thread at work; and how many bytes it hashed."""
    hashing.start()
    seconds = block(training, batches, updates)
    at_work, hashed = not hashing.wait(0), hashing.hashed
    hashing.stop()
    if hashing.problem or not at_work:
        raise SystemExit(f"the thread ended before its block: {hashing.problem or 'too little to hash'}")
    return seconds, hashed


def alone(folder: Path, manifest: Manifest) -> float:
    """Bytes per second of the thread where nothing trains."""
    hashing = Hashing(folder, manifest)
    hashing.start()
    hashing.wait(2)
    hashed = hashing.hashed
    hashing.stop()
    return hashed / 2


def measure(training: Training, batches: Prefetcher, folder: Path, pairs: int, updates: int) -> dict[str, Any]:
    manifest = long_data(folder)
    rate = alone(folder, manifest)
    block(training, batches, updates)  # warms up
    times: list[tuple[float, float]] = []
    hashed, seconds = 0, 0.0
    for index in range(pairs):
        # Which of the two comes first takes turns, so that a machine that slows down slows both.
        plain = block(training, batches, updates) if index % 2 else 0.0
        hashing_s, found = beside(training, batches, updates, Hashing(folder, manifest))
        plain = plain or block(training, batches, updates)
        times.append((hashing_s, plain))
        hashed, seconds = hashed + found, seconds + hashing_s
    ratios = sorted(with_thread / plain for with_thread, plain in times)
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quarters[0], quarters[2]],
        "ratio_range": [ratios[0], ratios[-1]],
        "pairs": pairs,
        "updates_per_block": updates,
        "update_s_without": statistics.median(plain for _, plain in times) / updates,
        "bytes_per_s_alone": rate,
        "bytes_per_s_beside": hashed / seconds,
        # null where blocks were so short that the thread had no turn in them
        "seconds_per_gb": (1 - 1 / statistics.median(ratios)) / (hashed / seconds) * 1e9 if hashed else None,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hashing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--updates", type=int, default=25, help="updates of a block")
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    steps = args.updates * (2 * args.pairs + 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, given = load_config(args.config, args.set)
        changed = {
            "data": {"path": str(folder / "data"), "train_tokens": None, "verify": False},
            "schedule": {"steps": steps, "warmup_steps": 0},
            "eval": {"every": None, "tokens": 1},
            "checkpoint": {"every": None},
            "log": {"probe_every": None},
        }
        config = validate(merge(given, changed), args.config)
        tokens = config.batch.tokens_per_step * steps + 1
        manifest = write_data(folder / "data", (tokens, tokens // 512 + 1), (2 * config.model.seq_len, 1))
        plan = make_plan(config, 1, manifest.summary())
        world = start_world("hashing", 600, config.parallel.threads_per_rank)
        data, run = open_data(config, manifest, plan, world), RunFolder(folder / "run")
        training = begin(config, plan, run, world, data, Recorder(None, None, plan.units))
        batches = training.batches()
        result = measure(training, batches, folder / "hashed", args.pairs, args.updates)
        batches.close()
    print(
        f"{result['ratio']:.3f} of the time without ({result['ratio_quartiles'][0]:.3f} to {result['ratio_quartiles'][1]:.3f}), "
        + (f"{result['seconds_per_gb']:.2f} s a GB" if result["seconds_per_gb"] is not None else "nothing was hashed")
    )
    name = f"hashing-{Path(args.config).stem}-{config.precision}-{result['threads']}-threads.json"
    write_result(args.out or RESULTS / name, "hashing", {**result, "precision": config.precision})
    return 0


if __name__ == "__main__":
    sys.exit(main())
