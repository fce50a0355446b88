"""The validation loss of a run's checkpoints, or of the average of several, after the fact.

    python -m weights.evaluate RUN[@STEP]
    python -m weights.evaluate RUN --average 800,1000,1200
    python -m weights.evaluate RUN --data DIR      where the run's data lies now

One process and one device; the fixed validation windows and the precision of the run. Prints one JSON object. Without @STEP
the newest sound checkpoint is evaluated; newer ones that are damaged or set aside are named, and listed under `left_out`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import InputError
from configs.schema import RunConfig
from data.loader import eval_batches
from data.manifest import Manifest
from record.checkpoints import parse_address
from weights.read import build_loaded, choose, choose_device, config_with_data


@torch.no_grad()
def validation_loss(config: RunConfig, manifest: Manifest, weights: dict[str, Tensor], device: torch.device) -> float:
    """Mean loss of these weights over the run's validation windows, in nats per token."""
    model = build_loaded(config, manifest.eot, weights, device)
    total, count = 0.0, 0
    # Of one rank, this is the share of every rank: all windows.
    for batch in eval_batches(config.data.path, manifest, config, config.batch.micro_batch or 1, 0, 1):
        inputs, targets = (torch.from_numpy(ids).to(device) for ids in (batch.inputs, batch.targets))  # (b, T) each
        total += model(inputs, targets).item()
        count += batch.counted
    return total / count


def parse_steps(text: str) -> list[int]:
    """The steps of `--average 800,1000,1200`. InputError if they are not different steps with one comma between two."""
    parts = text.split(",")
    if not text.replace(",", "").isdecimal() or max(map(len, parts)) > 15:
        raise InputError(f"--average {text}: expected steps with commas between")
    if not all(parts) or len(set(map(int, parts))) < len(parts):
        raise InputError(f"--average {text}: expected different steps, one comma between two")
    return [int(part) for part in parts]


def evaluate(address: str, average: str | None, kind: str, data: Path | None) -> dict[str, object]:
    """What `main` prints, of its options. InputError for what cannot be evaluated."""
    if average is not None and parse_address(address)[1] is not None:
        raise InputError(f"--average {average}: expected a run without @STEP, found {address}")
    chosen = choose(address, parse_steps(average) if average is not None else ())
    config, manifest = config_with_data(chosen.run, data)
    loss = validation_loss(config, manifest, chosen.tensors(kind), choose_device())
    return {
        "run": str(chosen.run.path),
        "steps": chosen.steps,
        "weights": kind,
        "val/loss": loss,
        "left_out": [{"checkpoint": str(path), "why": why} for path, why in chosen.left_out],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m weights.evaluate", description="Validation loss of checkpoints.")
    parser.add_argument("run", help="run folder, or FOLDER@STEP")
    parser.add_argument("--average", metavar="STEP,STEP,…", help="of the mean of these checkpoints' weights")
    parser.add_argument("--weights", default="weights", metavar="KIND", help="an average instead: ema_0.99")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the run's data lies now; other data is refused")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        result = evaluate(args.run, args.average, args.weights, args.data)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
