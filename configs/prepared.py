"""What a plan knows of prepared data, and whether that data is enough for a configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.images import ImageData, ImageModel
from configs.schema import Data, RunConfig
from configs.windows import epoch_images, eval_windows, image_epochs, train_windows, windows_read

FEWEST_DOCUMENTS = 16  # below it data.order documents is refused


@dataclass(frozen=True)
class DataSummary:
    """What a plan needs to know of prepared data (from its manifest)."""

    digest: str
    vocab_size: int
    train_tokens: int
    val_tokens: int
    train_documents: int | None = None  # None: not known
    ends_known: bool = True  # whether documents' ends can be seen in the tokens
    tokenizer: dict[str, Any] | None = None  # as the manifest describes it; None: not known


@dataclass(frozen=True)
class ImageSummary:
    """What a plan needs to know of prepared images (from their manifest). `shape`: channels, height, width."""

    digest: str
    shape: tuple[int, int, int]
    classes: int
    train_images: int
    val_images: int


Prepared = DataSummary | ImageSummary


def read_summary(folder: str | Path) -> Prepared | None:
    """What the manifest of prepared data says, taken at its word (data/manifest.py checks it); None where there is none."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        train = manifest["train"]
        if manifest.get("kind") == "images":
            channels, height, width = manifest["shape"]
            counts = train["images"], manifest["val"]["images"]
            return ImageSummary(manifest["digest"], (channels, height, width), len(manifest["classes"]), *counts)
        return DataSummary(
            manifest["digest"],
            manifest["vocab_size"],
            train["tokens"],
            manifest["val"]["tokens"],
            train.get("documents"),
            ends_known(manifest.get("format", 1), manifest.get("eot"), manifest.get("tokenizer", {})),
            manifest.get("tokenizer"),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a manifest of prepared data ({error!r}); prepare the data again") from None


def ends_known(manifest_format: int, eot: int | None, tokenizer: dict[str, Any]) -> bool:
    """Whether the end of a document can be seen in the tokens of prepared data.

    Adopted data of format 1 whose tokenizer is unknown has an ordinary token as its end of text: it says nothing.
    """
    return eot is not None and not (manifest_format == 1 and tokenizer.get("kind") == "unknown")


def check_prepared(config: RunConfig, data: Prepared, first_window: int) -> None:
    """InputError if a run of `config` that begins at `first_window` of the order cannot be trained on this data."""
    if isinstance(data, ImageSummary) == isinstance(config.data, Data):
        what = "images" if isinstance(data, ImageSummary) else "tokens"
        raise InputError(
            f"the data in {config.data.path} is of {what}, and data.kind is {config.data.kind}; name other data, or set "
            f"data.kind {what} and a model for them"
        )
    if isinstance(data, ImageSummary):
        _check_images(config, data, first_window)
    else:
        _check_tokens(config, data, first_window)


def examples_available(config: RunConfig, data: Prepared, first: int = 0) -> int:
    """Windows or images of all passes over the training split that a run may take, if it begins at `first` of its order."""
    if isinstance(data, ImageSummary):
        return epoch_images(config, data.train_images) * image_epochs(config, data.train_images, first)
    return train_windows(config, data.train_tokens) * config.text.epochs


def _check_images(config: RunConfig, data: ImageSummary, first: int) -> None:
    """InputError where the images are of another kind than the network is for, or too few."""
    model, path = config.model, config.data.path
    assert isinstance(model, ImageModel)
    assert isinstance(config.data, ImageData)
    wanted = (model.channels, model.image_size, model.image_size)
    if data.shape != wanted:
        raise InputError(
            f"the images in {path} are of {' × '.join(map(str, data.shape))} (channels, height, width), and the network is for "
            f"{' × '.join(map(str, wanted))}; set model.channels and model.image_size"
        )
    if data.classes != model.classes:
        raise InputError(
            f"the images in {path} are of {data.classes} classes, model.classes is {model.classes}; set it to {data.classes}"
        )
    trained = config.data.train_images or data.train_images
    for name, asked, there, what in (
        ("data.train_images", config.data.train_images, data.train_images, "training"),
        ("measures.images", config.measures.images if config.measures.every else None, trained, "training"),
        ("eval.train_images", config.eval.train_images, trained, "training"),
        ("eval.images", config.eval.images, data.val_images, "validation"),
    ):
        if asked is not None and asked > there:
            raise InputError(f"{name} {asked} exceeds the {there} {what} images in {path}; set it to at most {there}")
    if epoch_images(config, data.train_images) == 0:
        raise InputError(
            f"batch.images_per_step {config.examples_per_step} is more than the {trained} training images of "
            f"{path}: an epoch has no whole batch; set it to at most {trained}"
        )
    needed, available = windows_read(config, config.schedule.steps, first), examples_available(config, data, first)
    if config.data.epochs is not None and needed > available:
        steps = epoch_images(config, data.train_images) // config.examples_per_step
        raise InputError(
            f"schedule.steps {config.schedule.steps} need more than data.epochs {config.data.epochs} of {steps} steps each; at "
            f"most {max(0, available - first) // config.examples_per_step} steps, or more epochs (null: as many as needed)"
        )


def _check_tokens(config: RunConfig, data: DataSummary, first_window: int) -> None:
    """InputError where the tokens are of another kind than the model is for, or too few."""
    if not data.ends_known:
        _check_needs_no_ends(config)
    if data.train_documents is not None:
        check_documents(config, data.train_documents, data.train_tokens)
    if data.vocab_size > config.gpt.vocab_size:
        raise InputError(
            f"the data in {config.data.path} has a vocabulary of {data.vocab_size}, model.vocab_size is {config.gpt.vocab_size}; "
            f"set model.vocab_size to at least {data.vocab_size}"
        )
    if (config.text.train_tokens or 0) > data.train_tokens:
        raise InputError(
            f"data.train_tokens {config.text.train_tokens} exceeds the {data.train_tokens} training tokens in {config.data.path}"
        )
    _check_enough(config, data, first_window)


def _check_needs_no_ends(config: RunConfig) -> None:
    """InputError where the tokens do not say where a document ends, and the configuration needs it."""
    if not config.text.cross_document_attention:
        raise InputError(
            f"data.cross_document_attention false needs tokens that say where a document ends, and those in {config.data.path} "
            "do not (no end-of-text token); leave it true, or prepare the text again with data.prepare"
        )
    if config.text.order == "documents":
        raise InputError(
            f"data.order documents needs the ends of documents, and the tokens in {config.data.path} do not say where they are "
            "(no end-of-text token); use data.order windows (the default), or prepare the text again with data.prepare"
        )


def check_documents(config: RunConfig, documents: int, tokens: int) -> None:
    """InputError where data.order documents would shuffle too few: whole documents move, so most neighbours stay."""
    if config.text.order == "documents" and documents < FEWEST_DOCUMENTS:
        limit = " within data.train_tokens" if config.text.train_tokens else ""
        raise InputError(
            f"data.order documents shuffles whole documents, and the training split in {config.data.path} has {documents} of "
            f"{tokens // max(documents, 1):,} tokens on average{limit}: that is hardly a shuffle; use data.order windows "
            f"(the default), or data of {FEWEST_DOCUMENTS} documents or more"
        )


def _check_enough(config: RunConfig, data: DataSummary, first_window: int) -> None:
    """InputError where the training split has too few windows for the steps, or the validation split not one."""
    windows = examples_available(config, data) - first_window
    needed = windows_read(config, config.schedule.steps)
    if needed > windows:
        left = max(0, windows)
        beyond = " beyond what the trunk read" if first_window else ""
        raise InputError(
            f"schedule.steps {config.schedule.steps} need {needed} windows of {config.gpt.seq_len} tokens, the data in "
            f"{config.data.path} has {left}{beyond}; at most {left // config.examples_per_step} steps, or more data, "
            "or data.epochs"
        )
    if eval_windows(config, data.val_tokens) < 1:
        raise InputError(
            f"the validation split in {config.data.path} has {data.val_tokens} tokens, less than one window of "
            f"{config.gpt.seq_len + 1}; prepare it with a larger --val-fraction"
        )
