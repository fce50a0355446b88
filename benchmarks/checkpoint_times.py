"""Our checkpoint format against DeepSpeed's own: seconds to save and load, bytes.

    python -m benchmarks.checkpoint_times --config configs/gpt124m_wd0.1.json --set precision=fp32

One rank, alternating, medians. Both end with the data on disk (fsync). Ours includes the hash of every file, on save
and on load, and on load the check that the forward pass sees the loaded weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.outcome import RESULTS, write_result
from configs.load import load_config
from configs.plan import make_plan
from engine import checkpoint
from engine.engine import Engine
from engine.launch import start_world
from engine.network import build_model


def timed(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def deepspeed_save(engine: Engine, folder: Path) -> None:
    engine.ds.save_checkpoint(str(folder), tag="one")
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_times", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    config, _ = load_config(args.config, args.set)
    world = start_world("checkpoint", 600, None)
    model = build_model(config, 0, world.device)
    model.init_weights(0)
    engine = Engine(model, config, make_plan(config, 1, None), world)
    times: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        for index in range(args.rounds):
            ours, theirs = Path(temporary) / f"ours{index}", Path(temporary) / f"theirs{index}"
            path = ours / "step_00000001"
            acts: list[tuple[str, Callable[[], Any]]] = [
                ("ours_save_s", lambda ours=ours: checkpoint.save(ours, 1, engine.fragments, {}, {})),
                ("deepspeed_save_s", lambda theirs=theirs: deepspeed_save(engine, theirs)),
                ("ours_load_s", lambda path=path: (checkpoint.check(path), checkpoint.load(path, engine.fragments))),
                ("deepspeed_load_s", lambda theirs=theirs: engine.ds.load_checkpoint(str(theirs), tag="one")),
            ]
            for name, act in acts:
                times.setdefault(name, []).append(timed(act))
            sizes = {"ours_bytes": size(ours), "deepspeed_bytes": size(theirs)}
            shutil.rmtree(ours)
            shutil.rmtree(theirs)
    result = {
        **{name: statistics.median(values) for name, values in times.items()},
        **sizes,
        "zero_stage": config.parallel.zero_stage,
        "precision": config.precision,
    }
    path = args.out or RESULTS / f"checkpoint-{Path(args.config).stem}-{config.precision}-{world.device.type}.json"
    print({name: value for name, value in result.items() if name.endswith(("_s", "_bytes"))})
    write_result(path, "checkpoint_times", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
