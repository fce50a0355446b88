"""Whether an average of the weights predicts as an ensemble of snapshots does: the total variation between the two.

    python -m weights.snapshots RUN --of 300,400,500                        ema of averages.ema's longest horizon, newest checkpoint
    python -m weights.snapshots RUN@500 --of 300,400,500 --weights ema_0.99
    python -m weights.snapshots RUN --of 300,400,500 --weights weights      the iterate instead

Prints one JSON object, over the validation images of the run's evaluations. P1 (arXiv 2310.04415) lets the average stand for the
stationary mean of SGD; the mean of the snapshots' probabilities is that mean in another sense, and the two need not agree:

    total_variation                   mean over images of ½·Σ_k |p_k − q_k|, from 0 to 1; `…_error`: its standard error over images
    loss, error                       cross-entropy (nats) and error of the average; `ensemble_…` of the ensemble
    snapshots                         step, loss and error of each, and its total variation to the average

Float32, batch normalisation by its running statistics; those of an average are estimated anew. A loss that is not finite, of a
probability that has come to 0, is null.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import InputError
from configs.schema import RunConfig
from data.any_manifest import AnyManifest
from data.image_manifest import ImageManifest
from record.metrics import encode_row
from weights.evaluate import parse_steps
from weights.frozen import Batches, Frozen, freeze
from weights.on_images import image_batches, to_evaluate
from weights.predictions import ensemble, probabilities, score, total_variation
from weights.read import Chosen, choose, choose_device, choose_in, config_with_data


def compare(address: str, steps: list[int], kind: str | None, data: Path | None) -> dict[str, object]:
    """What `main` prints. InputError for what has no such predictions."""
    chosen = choose(address)
    config, manifest = config_with_data(chosen.run, data)
    if not isinstance(manifest, ImageManifest):
        raise InputError(
            f"{config.name} is a run on tokens; the predictions of a classifier of images are compared here"
        )
    kind = kind or _longest(config)
    # all that is named is found before anything is computed
    snapshots = [Chosen(chosen.run, [path], []) for path in choose_in(chosen.run, None, steps).paths]
    batches = _validation(config, manifest)
    average = probabilities(_network(chosen, kind, config, manifest), batches)
    # one network at a time in memory; probabilities are small
    found = [probabilities(_network(each, "weights", config, manifest), batches) for each in snapshots]
    together = ensemble(found)
    apart, one, many = total_variation(average, together), score(average, batches), score(together, batches)
    return {
        "run": str(chosen.run.path),
        "step": chosen.steps[0],
        "weights": kind,
        "images": len(average),
        "total_variation": apart.mean().item(),
        "total_variation_error": (apart.std() / len(apart) ** 0.5).item(),
        "loss": one.loss,
        "error": one.error,
        "ensemble_loss": many.loss,
        "ensemble_error": many.error,
        "snapshots": [
            encode_row(
                {
                    "step": step,
                    **asdict(score(p, batches)),
                    "total_variation": total_variation(p, average).mean().item(),
                }
            )
            for step, p in zip(steps, found, strict=True)
        ],
        "left_out": [{"checkpoint": str(path), "why": why} for path, why in chosen.left_out],
    }


def _longest(config: RunConfig) -> str:
    """The average that looks back farthest."""
    if not config.averages.ema:
        raise InputError(
            f"{config.name} has no average (averages.ema); choose --weights weights to compare the iterate with the ensemble"
        )
    return f"ema_{max(config.averages.ema)!r}"


def _validation(config: RunConfig, manifest: AnyManifest) -> Batches:
    """Read once: every snapshot is asked about the same images. What fills up the last batch is no image."""
    batches = image_batches(config, manifest, "val")
    halves = ((batch.inputs[: batch.counted], batch.targets[: batch.counted]) for batch in batches)
    return [(torch.from_numpy(inputs.copy()), torch.from_numpy(targets.copy())) for inputs, targets in halves]


def _network(chosen: Chosen, kind: str, config: RunConfig, manifest: AnyManifest) -> Frozen:
    weights: dict[str, Tensor] = {**chosen.tensors(kind), **chosen.buffers()}
    return freeze(to_evaluate(config, manifest, weights, kind != "weights", choose_device()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m weights.snapshots", description="An average's predictions against those of an ensemble."
    )
    parser.add_argument("run", help="run folder, or FOLDER@STEP, of the average")
    parser.add_argument("--of", required=True, metavar="STEP,STEP,…", help="the snapshots: checkpoints of this run")
    parser.add_argument("--weights", metavar="KIND", help="ema_0.99, or weights; default: the longest average")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the run's data lies now; other data is refused")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        result = compare(args.run, parse_steps(args.of, "--of"), args.weights, args.data)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(encode_row(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
