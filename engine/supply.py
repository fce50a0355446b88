"""What a run reads, opened: the batches of its updates, and on this rank its fixed evaluations and what probes look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.images import ImageData
from configs.plan import Plan
from configs.schema import RunConfig
from configs.windows import epoch_images, final_windows, image_epochs, windows_in
from data import image_loader
from data.any_manifest import AnyManifest
from data.augment import Augment
from data.image_loader import TrainImages
from data.image_manifest import ImageManifest
from data.loader import EvalBatch, StepBatch, TrainData, eval_batches, probe_batch, step_batches
from data.manifest import Manifest
from data.verify import verify_split
from engine.dtypes import set_matmul_precision
from engine.guard import DataGuard
from engine.launch import World


@dataclass(frozen=True)
class OpenData:
    """A run's prepared data, opened.

    `batches(step, digest)`: those of the updates from `step` on, with the order's digest before it.
    `final`: the batches evaluated at the run's end; without eval.final_tokens the list `validation` itself. `final_examples`: how
    many they hold.
    `val_examples`: of the whole split. Of images, `train_eval`: training images without augmentation (eval.train_images), and
    `estimation()`: the pass in which an average's running statistics are estimated. `described`: what a start records of the data.
    """

    manifest: AnyManifest
    start_digest: str
    batches: Callable[[int, str], Iterator[StepBatch]]
    validation: list[EvalBatch]
    final: list[EvalBatch]
    final_examples: int
    val_examples: int
    train_eval: list[EvalBatch]
    estimation: Callable[[], Iterator[EvalBatch]]
    probe: EvalBatch
    guard: DataGuard
    described: dict[str, Any]


def open_data(config: RunConfig, manifest: AnyManifest, plan: Plan, world: World) -> OpenData:
    """Open a run's data; writes nothing. InputError if it is damaged, or the device lacks the precision."""
    # Before any product: TF32 is a switch of the process.
    set_matmul_precision(config.precision, world.device)
    if config.data.verify == "before" and world.rank == 0:
        for split in (manifest.train, manifest.val):
            verify_split(Path(config.data.path), split)
    guard = DataGuard(config, manifest, world.rank)
    if isinstance(manifest, ImageManifest):
        return _open_images(config, manifest, plan, world, guard)
    return _open_tokens(config, manifest, plan, world, guard)


def _open_tokens(config: RunConfig, manifest: Manifest, plan: Plan, world: World, guard: DataGuard) -> OpenData:
    """Of a run on tokens: windows of them."""
    train = TrainData(config.data.path, manifest, config, plan.first_window)
    share = (config.data.path, manifest, config, plan.micro_batch, world.rank, world.ranks)
    validation = final = eval_batches(*share)
    # Read at the start too: damage is told before the run, and not after it.
    final_examples = final_windows(config, manifest.val.tokens)
    if config.eval.final_tokens is not None:
        final = eval_batches(*share, final_examples)
    return OpenData(
        manifest=manifest,
        start_digest=train.start_digest,
        batches=lambda step, digest: step_batches(train, step, digest, plan.micro_batch, world.rank, world.ranks),
        validation=validation,
        final=final,
        final_examples=final_examples,
        val_examples=windows_in(manifest.val.tokens, config.gpt.seq_len),
        train_eval=[],
        estimation=lambda: iter(()),
        probe=probe_batch(*share),
        guard=guard,
        described=manifest.described(),
    )


def _open_images(config: RunConfig, manifest: ImageManifest, plan: Plan, world: World, guard: DataGuard) -> OpenData:
    """Of a run on images: the same validation images each time, and those of the training split that eval.train_images asks."""
    data, evaluation, path = config.data, config.eval, config.data.path
    assert isinstance(data, ImageData)
    subset = data.train_images or manifest.train.images
    # A plan counts the images that are read. The order's places count those too that are left over at the end of each epoch.
    read = epoch_images(config, manifest.train.images)
    passes, place = divmod(plan.first_window, read)
    train = TrainImages(
        path,
        manifest,
        config.examples_per_step,
        config.seeds.data,
        image_epochs(config, manifest.train.images, plan.first_window),
        Augment(data.crop, data.flip, data.cutout),
        passes * subset + place,
        subset,
    )

    def batches(
        split: Literal["train", "val"], count: int | None, within: int | None = None, mixed: bool = False
    ) -> Iterator[EvalBatch]:
        share = (plan.micro_batch, world.rank, world.ranks)
        return image_loader.eval_batches(path, manifest, *share, count, split, subset=within, mixed=mixed)

    validation = list(batches("val", evaluation.images))
    looked_at = min(plan.micro_batch * world.ranks, evaluation.images or manifest.val.images)
    return OpenData(
        manifest=manifest,
        start_digest=train.start_digest,
        batches=lambda step, digest: image_loader.step_batches(
            train, step, digest, plan.micro_batch, world.rank, world.ranks, plan.steps
        ),
        validation=validation,
        final=validation,
        final_examples=evaluation.images or manifest.val.images,
        val_examples=manifest.val.images,
        train_eval=list(batches("train", evaluation.train_images, subset)) if evaluation.train_images else [],
        estimation=lambda: batches("train", read, subset, mixed=True),
        probe=next(batches("val", looked_at)),
        guard=guard,
        described=manifest.described(),
    )
