"""The validation loss of a run's checkpoints, or of the average of several, after the fact.

    python -m engine.evaluate RUN[@STEP]
    python -m engine.evaluate RUN --average 800,1000,1200
    python -m engine.evaluate RUN --data DIR      where the run's data lies now

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

from configs.errors import InputError
from configs.load import read_json, validate, with_absolute_data
from configs.precision import TABLE
from configs.schema import RunConfig
from data.loader import eval_batches
from data.manifest import read_manifest
from engine import checkpoint
from engine.network import build_model
from engine.precision import set_matmul_precision
from record.checkpoints import find, parse_address, step_of
from record.run import RunFolder


def average(paths: list[Path], kind: str = "weights", verified: bool = False) -> dict[str, torch.Tensor]:
    """The mean of one kind over checkpoints, summed in float64, float32. InputError if one is damaged or lacks it.

    `verified`: as of engine.checkpoint.read.
    """
    total: dict[str, torch.Tensor] = {}
    for path in paths:
        for name, tensor in checkpoint.read(path, kind, verified).items():
            total[name] = total.get(name, 0) + tensor.double()
    return {name: (tensor / len(paths)).float() for name, tensor in total.items()}


def with_data(folder: RunFolder, data: Path | None) -> RunConfig:
    """The run's configuration, over its data where that lies now. InputError if it is not there, or is other data."""
    config = validate(read_json(folder.config), str(folder.config))
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(data)})})
    config = with_absolute_data(config)
    manifest = read_manifest(config.data.path)
    if manifest is None:
        named = "" if data is not None else f", which {folder.config} names"
        raise InputError(f"no prepared data in {config.data.path}{named}; say with --data DIR where it lies now")
    folder.check_data(manifest.digest, config.data.path)
    return config


@torch.no_grad()
def validation_loss(config: RunConfig, weights: dict[str, torch.Tensor], device: torch.device) -> float:
    """Mean loss of these weights over the run's validation windows (nats)."""
    manifest = read_manifest(config.data.path)
    assert manifest is not None, "with_data has read it"
    set_matmul_precision(config.precision, device)
    model = build_model(config, manifest.eot, device).eval()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the weights are not those of the run's model: {error}") from None
    model.to(device, getattr(torch, TABLE[config.precision].weights))
    total, count = 0.0, 0
    for batch in eval_batches(config.data.path, manifest, config, config.batch.micro_batch or 1, 0, 1):
        total += model(torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets).to(device)).item()
        count += batch.counted
    return total / count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.evaluate", description="Validation loss of checkpoints.")
    parser.add_argument("run", help="run folder, or FOLDER@STEP")
    parser.add_argument("--average", metavar="STEP,STEP,…", help="of the mean of these checkpoints' weights")
    parser.add_argument("--weights", default="weights", metavar="KIND", help="an average instead: ema_0.99")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the run's data lies now; other data is refused")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        run, step = parse_address(args.run)
        if args.average and (step is not None or not args.average.replace(",", "").isdecimal()):
            raise InputError(f"--average {args.average}: expected steps with commas between, and a run without @STEP")
        texts = args.average.split(",") if args.average else []
        if not all(texts) or len(set(map(int, texts))) < len(texts):
            raise InputError(f"--average {args.average}: expected different steps, one comma between two")
        folder, left_out = RunFolder(run).checkpoints, []
        paths = [find(folder, int(text)) for text in texts]
        if not paths:
            path, left_out = checkpoint.find_sound(folder, step)
            paths = [path]
        config = with_data(RunFolder(run), args.data)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loss = validation_loss(config, average(paths, args.weights, verified=not texts), device)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {"run": str(run), "steps": [step_of(path) for path in paths], "weights": args.weights, "val/loss": loss}
    print(json.dumps(found | {"left_out": [{"checkpoint": str(path), "why": why} for path, why in left_out]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
