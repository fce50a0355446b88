"""Images per second of train.py's own loop against a plain PyTorch loop of the same network.

    python -m data.prepare_images --source mnist5k --label-noise 0.2 --out data/prepared/mnist5k-noise
    python -m benchmarks.images_step --steps 8 --rounds 4
    python -m benchmarks.images_step --set model.kind=mlp --set model.width=512 --steps 300 --rounds 6

The plain loop is image_update_seconds of benchmarks/bare.py: torch's SGD over images that lie in memory. train.py's has prepared
images, its order and loader, and DeepSpeed at stage 0 on one rank. Each round measures both, the one that begins alternates, and
the ratio is of the medians over the updates of all rounds; how far the rounds lie apart is beside it. Images are those of one
epoch at most, and nothing is augmented or probed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare import image_update_seconds
from benchmarks.outcome import RESULTS, write_result
from benchmarks.spans import Spans
from benchmarks.train_step import WARM_UP, Bench
from configs.load import load_config, merge, validate
from configs.plan import make_plan
from configs.schema import RunConfig
from data.any_manifest import manifest_of
from data.image_manifest import ImageManifest
from engine.dtypes import set_matmul_precision
from engine.launch import device_name, start_world
from engine.memory import keep_freed_memory


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.images_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="configs/mnist5k_resnet18.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=8, help="updates of a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    if args.steps < WARM_UP + 2:
        parser.error(f"--steps takes {WARM_UP + 2} or more: the first {WARM_UP} warm up")
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(args.config, args.set, args.steps, Path(temporary))
        result = measure(bench, args.rounds)
    network, precision = bench.config.model, bench.config.precision
    name = f"images_step-{network.kind}-{network.width}-{precision}-{bench.world.device.type}.json"
    print(render(result))
    write_result(args.out or RESULTS / name, "images_step", result)
    return 0


def prepare(path: str, changes: list[str], steps: int, folder: Path) -> Bench:
    """The configuration as it is measured, on one rank of this machine."""
    first, given = load_config(path, changes)
    if first.unit != "images":
        raise SystemExit(f"{path} trains on {first.unit}: python -m benchmarks.train_step measures it")
    manifest = manifest_of(first)
    if not isinstance(manifest, ImageManifest):
        raise SystemExit(f"{first.data.path} holds no prepared images: python -m data.prepare_images makes them")
    images = min(steps * first.examples_per_step, manifest.train.images)
    # An average's running statistics are estimated over all images that are read, at the start and the end of each round.
    data = {**given["data"], "train_images": images, "epochs": None, "crop": 0, "flip": False, "cutout": 0}
    measured = {
        **merge(given, {"eval": {"every": None, "images": 1}, "checkpoint": {"every": None}}),
        "data": data,
        "schedule": {"kind": "constant", "steps": steps, "warmup_steps": 0},
    }
    measured["eval"]["train_images"] = None
    measured["log"] = {**given.get("log", {}), "probe_every": None}
    config = validate(measured, path)
    _check(config)
    plan = make_plan(config, 1, manifest.summary())
    parallel = config.parallel
    world = start_world("benchmark", 600, parallel.threads_per_rank, parallel.deterministic)
    set_matmul_precision(config.precision, world.device)
    return Bench(config, manifest, plan, world, folder)


def _check(config: RunConfig) -> None:
    """SystemExit where the plain loop would train otherwise."""
    optim = config.optim
    if (optim.algorithm, optim.decay_rule, optim.decay_mask) != ("sgd", "l2_coupled", "all") or optim.decay_overrides:
        raise SystemExit("the plain loop has SGD with l2_coupled decay of all tensors: set optim so")


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """All rounds, then one with spans."""
    config, device = bench.config, bench.world.device
    assert isinstance(bench.manifest, ImageManifest)
    manifest = bench.manifest
    if device.type == "cpu":
        keep_freed_memory()  # for the plain loop too
    loops: dict[str, Callable[[int], list[float]]] = {
        "plain": lambda _: image_update_seconds(config, manifest, device, config.schedule.steps)[WARM_UP:],
        "train.py": lambda index: list(bench.loop(f"run{index}").values()),
    }
    seconds: dict[str, list[list[float]]] = {name: [] for name in loops}
    for index in range(rounds):
        # A machine that grows slower meanwhile is no one's fault.
        for name in sorted(loops, reverse=bool(index % 2)):
            seconds[name].append(loops[name](index))
    spans = Spans()
    spanned = bench.loop("spans", spans).values()
    total = sum(spans.seconds.values())
    update = {name: statistics.median(s for turn in turns for s in turn) for name, turns in seconds.items()}
    turns = zip(seconds["plain"], seconds["train.py"], strict=True)
    by_round = [statistics.median(plain) / statistics.median(ours) for plain, ours in turns]
    summed = {name: sum(s for turn in turns for s in turn) / sum(map(len, turns)) for name, turns in seconds.items()}
    return {
        "images_per_s": {name: config.examples_per_step / s for name, s in update.items()},
        "ratio": update["plain"] / update["train.py"],
        "ratio_by_round": by_round,
        "ratio_of_means": summed["plain"] / summed["train.py"],  # with what is done every few updates
        "spans_over_update": total / sum(spanned),
        "share_of_time": {name: s / total for name, s in sorted(spans.seconds.items(), key=lambda item: -item[1])},
        "seconds": seconds,
        "images_per_step": config.examples_per_step,
        "micro_batch": bench.plan.micro_batch,
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }


def render(result: dict[str, Any]) -> str:
    rates, by_round = result["images_per_s"], result["ratio_by_round"]
    return "\n".join(
        [
            f"train.py {rates['train.py']:,.0f} images/s, plain loop {rates['plain']:,.0f}: ratio {result['ratio']:.3f}, "
            f"by round {min(by_round):.3f} to {max(by_round):.3f}; of means {result['ratio_of_means']:.3f}",
            "share of an update: " + ", ".join(f"{name} {part:.1%}" for name, part in result["share_of_time"].items()),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
