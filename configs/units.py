"""What a configuration may say of tokens and of images: fields of the one mean nothing for the other."""

from __future__ import annotations

from configs.errors import InputError
from configs.images import ImageModel
from configs.learning import Data
from configs.optimisation import Optim
from configs.precision import TABLE
from configs.running import Averages, Batch, Eval, Measures, Parallel
from configs.section import Section, nearest_multiples
from configs.transformer import Model


def check_pair(model: Section, data: Section) -> None:
    """InputError where a network for the one shall learn from the other."""
    if isinstance(model, Model) != isinstance(data, Data):
        ours, theirs = ("tokens", "images") if isinstance(model, Model) else ("images", "tokens")
        raise InputError(
            f"model.kind {model.kind} learns from {ours}, and data.kind is {theirs}; "  # type: ignore[attr-defined]
            f"set data.kind {ours}, or a model for {theirs}"
        )


def check_tokens(model: Model, batch: Batch, evaluation: Eval, measures: Measures, parallel: Parallel) -> None:
    """InputError where the fields of a run on tokens do not fit each other."""
    _refuse(batch, ("images_per_step",), "tokens")
    _refuse(evaluation, ("images", "train_images"), "tokens")
    if measures.every is not None:
        raise InputError(
            "measures.every: measures are of classifiers of images, and data.kind is tokens; leave the section out (probes measure "
            "a run on tokens: log.probe_every, log.noise_scale)"
        )
    tokens, length = batch.tokens_per_step, model.seq_len
    if tokens is None:
        raise InputError("batch.tokens_per_step is required")
    if tokens % length:
        below, above = nearest_multiples(tokens, length)
        raise InputError(
            f"batch.tokens_per_step {tokens} is not a multiple of model.seq_len {length}; nearest: {below or above} or {above}"
        )
    if model.dropout and batch.micro_batch is None:
        raise InputError("model.dropout needs batch.micro_batch: the masks are drawn per micro-batch")
    if model.dropout and parallel.compile:
        raise InputError("parallel.compile with model.dropout: compiled blocks draw other masks; leave one of them out")


def check_images(
    model: ImageModel, batch: Batch, evaluation: Eval, parallel: Parallel, optim: Optim, precision: str
) -> None:
    """InputError where the fields of a run on images do not fit each other."""
    _refuse(batch, ("tokens_per_step",), "images")
    _refuse(evaluation, ("tokens", "final_tokens"), "images")
    _refuse(optim, ("z_loss",), "images")
    if batch.images_per_step is None:
        raise InputError("batch.images_per_step is required where data.kind is images")
    for name, what in (("compile", "compiled blocks"), ("recompute", "recomputed blocks")):
        if getattr(parallel, name):
            raise InputError(f"parallel.{name}: networks for images have no {what}; leave it out")
    # Running statistics and normalisation are float32, and so are the weights that they belong to.
    if TABLE[precision].weights != "float32":
        kept = ", ".join(name for name, dtypes in TABLE.items() if dtypes.weights == "float32")
        raise InputError(f"precision {precision}: networks for images have float32 weights; use one of {kept}")
    if optim.algorithm == "muon" and model.kind != "mlp":
        raise InputError(
            f"optim.algorithm muon is for matrices, and a {model.kind} has convolutions, of four dimensions; "
            "use sgd or adam, or an mlp"
        )
    if model.batchnorm != "none" and batch.micro_batch is None:
        raise InputError(
            "batch.micro_batch is required with batch normalisation: its statistics are those of a micro-batch, so it changes "
            f"what is computed; set it to {batch.images_per_step} on one device, or to a divisor of it"
        )
    if model.batchnorm != "none" and batch.micro_batch == 1:
        raise InputError(
            "batch.micro_batch 1 with batch normalisation: one image has no variance; set it to 2 or more, or model.batchnorm "
            "none"
        )


def check_measures(measures: Measures, averages: Averages) -> None:
    """InputError where averages shall be measured that are not kept."""
    if measures.averages and not averages.ema:
        raise InputError(
            "measures.averages without averages.ema: there is no average; set it, or leave measures.averages out"
        )


def _refuse(section: Section, names: tuple[str, ...], unit: str) -> None:
    """InputError for a field that is given and means nothing."""
    for name in names:
        if getattr(section, name) != type(section).model_fields[name].default:
            where = {Batch: "batch", Eval: "eval", Optim: "optim"}[type(section)]
            raise InputError(f"{where}.{name} does nothing where data.kind is {unit}; leave it out")
