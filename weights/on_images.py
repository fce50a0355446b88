"""What a network for images costs over its run's images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from configs.images import ImageData
from configs.schema import RunConfig
from configs.windows import epoch_images
from data import image_loader
from data.any_manifest import AnyManifest
from data.image_manifest import ImageManifest
from data.loader import EvalBatch
from model.classifier import Classifier
from model.gpt import GPT
from weights.read import build_loaded


@torch.no_grad()
def validation_means(
    config: RunConfig, manifest: AnyManifest, weights: dict[str, Tensor], averaged: bool, device: torch.device
) -> dict[str, object]:
    """Over the run's validation images: `val/loss`, in nats, and `val/error`. `averaged`: as `to_evaluate`."""
    model = to_evaluate(config, manifest, weights, averaged, device)
    totals, count = torch.zeros(len(model.measured), dtype=torch.float64), 0
    for batch in image_batches(config, manifest, "val"):
        inputs, targets = (torch.from_numpy(half).to(device) for half in (batch.inputs, batch.targets))  # (b, …) each
        totals += model(inputs, targets, by_target=True).sum(0).double().cpu()
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


def image_batches(config: RunConfig, manifest: AnyManifest, split: Literal["train", "val"]) -> Iterable[EvalBatch]:
    """The images of a run's evaluations, or of the pass in which an average's statistics are estimated."""
    assert isinstance(manifest, ImageManifest)
    assert isinstance(config.data, ImageData)
    subset, count = None, config.eval.images
    if split == "train":
        subset, count = config.data.train_images, epoch_images(config, manifest.train.images)
    micro_batch = config.batch.micro_batch or min(config.examples_per_step, 256)
    return image_loader.eval_batches(
        config.data.path, manifest, micro_batch, 0, 1, count, split, subset=subset, mixed=split == "train"
    )
