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
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from configs.errors import InputError
from configs.images import ImageData
from configs.schema import RunConfig
from configs.windows import epoch_images
from data import image_loader
from data.any_manifest import AnyManifest
from data.image_manifest import ImageManifest
from data.loader import EvalBatch, eval_batches
from data.manifest import Manifest
from model.classifier import Classifier
from model.gpt import GPT
from record.checkpoints import parse_address
from weights.read import build_loaded, choose, choose_device, config_with_data


@torch.no_grad()
def validation_means(
    config: RunConfig, manifest: AnyManifest, weights: dict[str, Tensor], averaged: bool, device: torch.device
) -> dict[str, float]:
    """Over the run's validation data: `val/loss`, in nats per token or image, and of images `val/error`.

    `averaged`: as `to_evaluate`.
    """
    model = to_evaluate(config, manifest, weights, averaged, device)
    totals, count = torch.zeros(len(model.measured), dtype=torch.float64), 0
    for batch in _validation(config, manifest):
        inputs, targets = (torch.from_numpy(half).to(device) for half in (batch.inputs, batch.targets))  # (b, …) each
        by_target = len(model.measured) > 1
        found = model(inputs, targets, by_target=True).sum(0) if by_target else model(inputs, targets)
        totals += found.double().cpu()
        count += batch.counted
    return {f"val/{name}": total / count for name, total in zip(model.measured, totals.tolist(), strict=True)}


@torch.no_grad()
def to_evaluate(
    config: RunConfig, manifest: AnyManifest, weights: dict[str, Tensor], averaged: bool, device: torch.device
) -> GPT | Classifier:
    """As read.build_loaded. `averaged`: the weights were never trained, so that running statistics of batch normalisation are
    estimated anew, in a pass over the training images."""
    model = build_loaded(config, manifest, weights, device)
    if averaged and isinstance(model, Classifier) and model.statistics.layers:
        passes = image_batches(config, manifest, "train")
        model.re_estimate(torch.from_numpy(batch.inputs).to(device) for batch in passes)
    return model


def _validation(config: RunConfig, manifest: AnyManifest) -> Iterable[EvalBatch]:
    """Of one rank this is the share of every rank: all windows, or all images."""
    if isinstance(manifest, Manifest):
        return eval_batches(config.data.path, manifest, config, config.batch.micro_batch or 1, 0, 1)
    return image_batches(config, manifest, "val")


def image_batches(config: RunConfig, manifest: AnyManifest, split: Literal["train", "val"]) -> Iterable[EvalBatch]:
    """The images of a run's evaluations, or of the pass in which an average's statistics are estimated."""
    assert isinstance(manifest, ImageManifest)
    assert isinstance(config.data, ImageData)
    subset, count = None, config.eval.images
    if split == "train":
        subset, count = config.data.train_images, epoch_images(config, manifest.train.images)
    micro_batch = config.batch.micro_batch or min(config.examples_per_step, 256)
    return image_loader.eval_batches(config.data.path, manifest, micro_batch, 0, 1, count, split, subset=subset)


def parse_steps(text: str, option: str = "--average") -> list[int]:
    """The steps of `--average 800,1000,1200`. InputError if they are not different steps with one comma between two."""
    parts = text.split(",")
    if not text.replace(",", "").isdecimal() or max(map(len, parts)) > 15:
        raise InputError(f"{option} {text}: expected steps with commas between")
    if not all(parts) or len(set(map(int, parts))) < len(parts):
        raise InputError(f"{option} {text}: expected different steps, one comma between two")
    return [int(part) for part in parts]


def evaluate(address: str, average: str | None, kind: str, data: Path | None) -> dict[str, object]:
    """What `main` prints, of its options. InputError for what cannot be evaluated."""
    if average is not None and parse_address(address)[1] is not None:
        raise InputError(f"--average {average}: expected a run without @STEP, found {address}")
    chosen = choose(address, parse_steps(average) if average is not None else ())
    config, manifest = config_with_data(chosen.run, data)
    averaged = kind != "weights" or len(chosen.paths) > 1
    weights = {**chosen.tensors(kind), **chosen.buffers()}
    return {
        "run": str(chosen.run.path),
        "steps": chosen.steps,
        "weights": kind,
        **validation_means(config, manifest, weights, averaged, choose_device()),
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
