"""The plan of a run: everything derived from its configuration, its data and the number of ranks, before step 1."""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs import cost, relations
from configs.cadence import most_at_once
from configs.cautions import cautions
from configs.errors import InputError
from configs.groups import Group, main_group, sized_groups
from configs.identity import experiment, run_id
from configs.precision import TABLE
from configs.schedule import decay_sum, lr_of_updates, lr_sum, peak_decay
from configs.schema import RunConfig
from configs.tensors import tensor_table

GIB = 1 << 30
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


def read_summary(folder: str | Path) -> DataSummary | None:
    """What the manifest of prepared data says, taken at its word (data/manifest.py checks it); None where there is none."""
    path = Path(folder) / "manifest.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        train = known["train"]
        return DataSummary(
            known["digest"],
            known["vocab_size"],
            train["tokens"],
            known["val"]["tokens"],
            train.get("documents"),
            ends_known(known.get("format", 1), known.get("eot"), known.get("tokenizer", {})),
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


@dataclass(frozen=True)
class Origin:
    """What a plan needs to know of the checkpoint a branch starts from (from its manifest). `reference`: RUN@STEP."""

    reference: str
    digest: str
    step: int
    windows: int  # how far in its order it has read
    experiment: dict[str, Any]
    data_path: str | None = None  # where its run's data lay; None: not known


@dataclass(frozen=True)
class Reference:
    """Recorded norms before each update, by tensor ("" for the whole model), that schedule.match follows."""

    digest: str
    reference: dict[str, list[float]]
    own: dict[str, list[float]] | None  # None: the live norms

    def factor(self, t: int, live: dict[str, float], name: str = "") -> float:
        """‖w_t‖/R_t of update t (0-based)."""
        mine = self.own[name][t] if self.own is not None else live[name]
        return mine / self.reference[name][t]


@dataclass(frozen=True)
class Plan:
    experiment: dict[str, Any] | None  # None: the data is not prepared yet, or a branch's origin is not there yet
    run_id: str | None
    ranks: int
    sequences_per_step: int
    micro_batch: int
    micro_steps: int  # forward passes per rank and update: the derived accumulation
    steps: int
    tokens: int
    tokens_available: int | None
    first_window: int  # where in the order the run begins: after what a branch's trunk has read
    n_parameters: int
    groups: dict[str, Group]
    flops_per_token: int
    state_bytes: int
    activation_bytes: int  # or cost.passing_bytes, where that is more
    communication_bytes: int  # sent by a rank in one update
    checkpoint_bytes: int
    checkpoints: int
    lr_sum: float | None  # the mean over parameters where they differ; None: it follows from the run's live norms
    decay_sum: float | None
    origin: Origin | None = None
    reference: Reference | None = None
    cautions: tuple[str, ...] = ()  # what is legal and hardly meant

    def as_dict(self) -> dict[str, Any]:
        known = replace(self, reference=None)
        return {**asdict(known), "reference": self.reference.digest if self.reference else None}


def windows_in(tokens: int, seq_len: int) -> int:
    """Windows of seq_len targets that a stream holds: neighbours share one token, the tail is dropped."""
    return max(0, (tokens - 1) // seq_len)


def train_windows(config: RunConfig, tokens: int) -> int:
    """Windows of one epoch of a training split of `tokens` tokens, after data.train_tokens."""
    if config.data.train_tokens is not None:
        tokens = min(tokens, config.data.train_tokens)
    return windows_in(tokens, config.model.seq_len)


def eval_windows(config: RunConfig, tokens: int) -> int:
    """Validation windows: as many as eval.tokens asks and the split holds."""
    return min(max(1, config.eval.tokens // config.model.seq_len), windows_in(tokens, config.model.seq_len))


def order_batch(config: RunConfig, t: int) -> int:
    """Which global batch of the data order update t reads (both from 0): t, and past the ranges of data.skip_steps."""
    for first, last in config.data.skip_steps:
        if t >= first - 1:
            t += last - first + 1
    return t


def make_plan(
    config: RunConfig,
    ranks: int,
    data: DataSummary | None,
    origin: Origin | None = None,
    reference: Reference | None = None,
) -> Plan:
    """Derive the plan; InputError where the batch does not divide, the data does not suffice, or a branch does not fit."""
    first_window = relations.first_window(config, data, origin) if origin else 0
    if data is not None:
        _check_data(config, data, first_window)
    micro_batch = _micro_batch(config, ranks)
    if config.log.noise_scale and config.sequences_per_step == micro_batch:
        raise InputError(
            f"log.noise_scale compares micro-batches with the whole batch, and here one is the other ({micro_batch} sequences); "
            "set batch.micro_batch to a smaller divisor, use more ranks, or switch it off"
        )
    known = (origin is not None or config.branch is None) and (reference is not None or config.schedule.match is None)
    digests = (origin.digest if origin else None, reference.digest if reference else None)
    asked = experiment(config, data.digest, *digests) if data and known else None
    factors = _factors(config, reference)
    groups = sized_groups(tensor_table(config.model), config.optim)
    main_decay = groups[main_group(groups)].weight_decay
    rates = lr_of_updates(config)
    _check_decay(config, rates, max(group.weight_decay for group in groups.values()))
    available = train_windows(config, data.train_tokens) * config.model.seq_len * config.data.epochs if data else None
    micro_steps = config.sequences_per_step // ranks // micro_batch
    return Plan(
        experiment=asked,
        run_id=run_id(asked) if asked is not None else None,
        ranks=ranks,
        sequences_per_step=config.sequences_per_step,
        micro_batch=micro_batch,
        micro_steps=micro_steps,
        steps=config.schedule.steps,
        tokens=config.schedule.steps * config.batch.tokens_per_step,
        tokens_available=available,
        first_window=first_window,
        n_parameters=cost.n_parameters(config.model),
        groups=groups,
        flops_per_token=cost.flops_per_token(config.model),
        state_bytes=cost.state_bytes(config, ranks),
        activation_bytes=max(cost.activation_bytes(config, micro_batch), cost.passing_bytes(config, ranks)),
        communication_bytes=cost.communication_bytes(config, ranks, micro_steps),
        checkpoint_bytes=cost.checkpoint_bytes(config),
        checkpoints=most_at_once(config.checkpoint, config.schedule.steps),
        lr_sum=lr_sum(config, factors, rates) if factors is not None else None,
        decay_sum=decay_sum(config, config.schedule.steps, factors, main_decay, rates) if factors is not None else None,
        origin=origin,
        reference=reference,
        cautions=cautions(config, data),
    )


def _check_decay(config: RunConfig, rates: array[float], largest: float) -> None:
    """InputError where a decay would be lost, or would turn weights over: 1 − η_t·λ_t must stay above zero."""
    if config.optim.decay_rule == "l2_loss" and TABLE[config.precision].accumulation == "bfloat16":
        raise InputError(
            f"optim.decay_rule l2_loss under precision {config.precision}: 2λw would be added to a bfloat16 gradient, and is "
            "rounded away where it is below 1/512 of it; use decay_rule l2_coupled with twice the λ (added in float32, after "
            "clipping), or precision bf16-master, whose gradients are summed in float32"
        )
    if config.optim.decay_rule != "decoupled" or largest == 0:
        return
    peak = peak_decay(config, rates)
    if peak * largest >= 1:
        raise InputError(
            f"λ = {largest:g} at a learning rate that reaches {peak:g}: 1 − η·λ would not stay above zero; λ below {1 / peak:g}"
        )


def _factors(config: RunConfig, reference: Reference | None) -> list[float] | None:
    """What the learning rate of each update is multiplied by, as far as it is known before the run; empty for by nothing."""
    if config.schedule.match is None:
        return []
    if reference is None or reference.own is None:
        return None
    tensors = tensor_table(config.model)
    sizes = {name: tensors[name].size if name else 1 for name in reference.reference}
    return [
        sum(reference.factor(t, {}, name) * size for name, size in sizes.items()) / sum(sizes.values())
        for t in range(config.schedule.steps)
    ]


def _micro_batch(config: RunConfig, ranks: int) -> int:
    sequences, length = config.sequences_per_step, config.model.seq_len
    if sequences % ranks:
        below, above = sequences // ranks * ranks * length, (sequences // ranks + 1) * ranks * length
        raise InputError(
            f"batch.tokens_per_step {config.batch.tokens_per_step} is {sequences} sequences of {length}, which {ranks} ranks "
            f"cannot share equally; nearest: {below or above} or {above}"
        )
    share = sequences // ranks
    smaller = [n for n in range(1, math.isqrt(share) + 1) if share % n == 0]  # each has a partner, share / n
    divisors = sorted({*smaller, *(share // n for n in smaller)})
    asked = config.batch.micro_batch
    if asked is None:
        bound = config.batch.memory_gib * GIB
        return max((n for n in divisors if cost.activation_bytes(config, n) <= bound), default=1)
    if asked not in divisors:
        below, above = (
            max((n for n in divisors if n < asked), default=1),
            min((n for n in divisors if n > asked), default=share),
        )
        raise InputError(
            f"batch.micro_batch {asked} does not divide the {share} sequences of a rank and step "
            f"(tokens_per_step {config.batch.tokens_per_step} / seq_len {length} / {ranks} ranks); nearest: {below} or {above}"
        )
    return asked


def check_documents(config: RunConfig, documents: int, tokens: int) -> None:
    """InputError where data.order documents would shuffle too few: whole documents move, so most neighbours stay."""
    if config.data.order == "documents" and documents < FEWEST_DOCUMENTS:
        limit = " within data.train_tokens" if config.data.train_tokens else ""
        raise InputError(
            f"data.order documents shuffles whole documents, and the training split in {config.data.path} has {documents} of "
            f"{tokens // max(documents, 1):,} tokens on average{limit}: that is hardly a shuffle; use data.order windows "
            f"(the default), or data of {FEWEST_DOCUMENTS} documents or more"
        )


def _check_data(config: RunConfig, data: DataSummary, first_window: int) -> None:
    if not data.ends_known and not config.data.cross_document_attention:
        raise InputError(
            f"data.cross_document_attention false needs tokens that say where a document ends, and those in {config.data.path} "
            "do not (no end-of-text token); leave it true, or prepare the text again with data.prepare"
        )
    if not data.ends_known and config.data.order == "documents":
        raise InputError(
            f"data.order documents needs the ends of documents, and the tokens in {config.data.path} do not say where they are "
            "(no end-of-text token); use data.order windows (the default), or prepare the text again with data.prepare"
        )
    if data.train_documents is not None:
        check_documents(config, data.train_documents, data.train_tokens)
    if data.vocab_size > config.model.vocab_size:
        raise InputError(
            f"the data in {config.data.path} has a vocabulary of {data.vocab_size}, model.vocab_size is {config.model.vocab_size}; "
            f"set model.vocab_size to at least {data.vocab_size}"
        )
    if (config.data.train_tokens or 0) > data.train_tokens:
        raise InputError(
            f"data.train_tokens {config.data.train_tokens} exceeds the {data.train_tokens} training tokens in {config.data.path}"
        )
    windows = train_windows(config, data.train_tokens) * config.data.epochs - first_window
    needed = (order_batch(config, config.schedule.steps - 1) + 1) * config.sequences_per_step
    if needed > windows:
        left = max(0, windows)
        beyond = " beyond what the trunk read" if first_window else ""
        raise InputError(
            f"schedule.steps {config.schedule.steps} need {needed} windows of {config.model.seq_len} tokens, the data in "
            f"{config.data.path} has {left}{beyond}; at most {left // config.sequences_per_step} steps, or more data, "
            "or data.epochs"
        )
    if eval_windows(config, data.val_tokens) < 1:
        raise InputError(
            f"the validation split in {config.data.path} has {data.val_tokens} tokens, less than one window of "
            f"{config.model.seq_len + 1}; prepare it with a larger --val-fraction"
        )
