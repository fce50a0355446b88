"""Sections of a configuration that say how it is learned: the data and the schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from configs.echo import shown
from configs.errors import InputError
from configs.section import PATH, Section, setting


class Data(Section):
    kind: Literal["tokens"] = setting("tokens", "text as tokens; images have a section of their own")
    path: str = setting(
        ...,
        "folder made by `python -m data.prepare`; the identity takes the data's digest instead",
        operational=True,
        max_length=PATH,
    )
    order: Literal["windows", "documents"] = setting("windows", "permuted windows, or shuffled documents read through")
    train_tokens: int | None = setting(None, "use only the first N tokens of the training split", ge=1)
    cross_document_attention: bool = setting(
        True, "a token sees earlier documents of its window (P1); false: only its own"
    )
    verify: bool | Literal["before"] = setting(
        True,
        "compare every shard's SHA-256 with the manifest: true beside training, and a run on damaged data ends as failed; "
        "before: ahead of the first step; false: never",
        operational=True,
    )
    epochs: int = setting(1, "passes over the data, each in its own order; 1 is one-pass training", ge=1)
    skip_steps: tuple[tuple[int, int], ...] = setting(
        (), "[first, last] steps, in order, whose windows are left out: later steps read on behind them"
    )

    @model_validator(mode="after")
    def _ranges_in_order(self) -> Data:
        ends = [0, *(step for span in self.skip_steps for step in span)]
        rising = all(ends[i] < ends[i + 1] if i % 2 == 0 else ends[i] <= ends[i + 1] for i in range(len(ends) - 1))
        if not rising:
            raise InputError(
                f"skip_steps {shown(self.skip_steps)}: expected [first, last] pairs that start at 1 or "
                "later, rise and do not overlap, for example [[10, 12], [40, 40]]"
            )
        return self


class Match(Section):
    """Follow another run. `take` rate, its effective learning rate (P1): η′_t = η_t·‖w_t‖/R_t, R_t the reference's recorded ‖w_t‖.

    A run with λ > 0 decays by η′_t·λ_t: the factor is on η, and so on the decay. `take` norms (P2): once in a while each layer is
    scaled to the norm that the reference's had after the same step, w ← w·R/‖w‖, and η stays.
    """

    reference: str = setting(
        ...,
        "run folder; the identity takes the digest of its norms instead",
        operational=True,
        min_length=1,
        max_length=PATH,
    )
    take: Literal["rate", "norms"] = setting(
        "rate", "the effective learning rate, by a factor on η; or the norms of layers, by scaling weights (P2)"
    )
    layers: Literal["followed", "normalised", "matrices"] = setting(
        "followed",
        "of take norms: layers whose outputs pass through one normalisation alone, so that scaling changes no output; those that "
        "write into a residual stream too; or every matrix, the last layer's too",
    )
    every: int | None = setting(
        None, "of take norms: updates from one scaling to the next; null: an epoch, of a run on images", ge=1
    )
    own: str | None = setting(
        None,
        "run folder whose recorded norms stand for ‖w_t‖ (open loop); null: this run's live norm (closed loop)",
        operational=True,
        max_length=PATH,
    )
    norm: Literal["weights/norm", "weights/norm_decayed"] = setting("weights/norm", "which norm; not for scope tensor")
    scope: Literal["model", "tensor"] = setting(
        "model", "one factor for all, or each tensor's own (the recorded runs need log.tensor_norms)"
    )

    @model_validator(mode="after")
    def _fields_of_what_is_taken(self) -> Match:
        idle = ("own", "norm", "scope") if self.take == "norms" else ("layers", "every")
        for name in idle:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(f"{name} does nothing with take {self.take}; leave it out")
        return self

    @property
    def sets_rate(self) -> bool:
        """Whether η is multiplied by a factor."""
        return self.take == "rate"

    @model_validator(mode="after")
    def _norm_of_the_scope(self) -> Match:
        if self.scope == "tensor" and self.norm != "weights/norm":
            raise InputError("scope tensor takes each tensor's own norm; leave norm out")
        return self


class Schedule(Section):
    kind: Literal["cosine", "linear", "constant", "wsd", "piecewise", "multistep"] = setting(
        "cosine",
        "shape after the warm-up; multistep: constant, and other constants from given steps on (P1's two phases)",
    )
    warmup_steps: int = setting(0, "updates of linear warm-up", ge=0)
    steps: int = setting(
        ...,
        "updates of the run, exactly",
        because="a plan goes through every update, and each has its row in metrics.jsonl",
        ge=1,
        le=10_000_000,
    )
    final_lr_fraction: float = setting(
        0.1, "what the decay reaches at its end, as a fraction of the peak; cosine, linear, wsd", ge=0, le=1
    )
    horizon: int | None = setting(
        None, "cosine and linear: the step at which the decay would end; null: steps (P1's slower decay has more)", ge=1
    )
    cooldown_fraction: float | None = setting(
        None, "wsd: the share of the steps over which it decays; null: 0.2", gt=0, le=1
    )
    cooldown_shape: Literal["linear", "cosine", "one_minus_sqrt"] | None = setting(None, "wsd; null: linear")
    match: Match | None = setting(None, "follow another run: its effective learning rate, or the norms of its layers")
    points: tuple[tuple[int, float], ...] | None = setting(
        None,
        "[step, fraction of the peak], or the name of a JSON file of them; piecewise: straight lines between; multistep: that "
        "fraction from that step on",
        because="they are part of the run's identity, and joined by lines",
        max_length=20_000,
    )

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> Schedule:
        if self.warmup_steps > self.steps:
            raise InputError(f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}")
        cooldown = (self.cooldown_fraction or 0.2) * self.steps
        if self.kind == "wsd" and self.warmup_steps + cooldown > self.steps:
            raise InputError(
                f"warmup_steps {self.warmup_steps} and a cool-down of {cooldown:g} steps do not fit in {self.steps} steps"
            )
        if self.horizon is not None and self.horizon < self.steps:
            raise InputError(f"horizon {self.horizon} lies before the run's end; set it to steps {self.steps} or more")
        used = {
            "cosine": {"final_lr_fraction", "horizon"},
            "linear": {"final_lr_fraction", "horizon"},
            "constant": set(),
            "wsd": {"final_lr_fraction", "cooldown_fraction", "cooldown_shape"},
            "piecewise": {"points"},
            "multistep": {"points"},
        }
        for name in sorted(set.union(*used.values()) - used[self.kind]):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(f"a {self.kind} schedule has no {name}; leave it out")
        if self.kind == "piecewise":
            _check_points(self.points or (), self.steps, self.warmup_steps)
        if self.kind == "multistep":
            _check_phases(self.points or (), self.steps, self.warmup_steps)
        return self


def _check_points(points: tuple[tuple[int, float], ...], steps: int, warmup: int) -> None:
    places = [step for step, _ in points]
    if warmup:
        raise InputError("a piecewise schedule has its warm-up in its points; leave warmup_steps out")
    if places != sorted(set(places)) or not places or places[0] != 1 or places[-1] < steps:
        raise InputError(f"points must rise from step 1 to step {steps} or beyond; their steps are {places[:8]}")
    if any(not 0 < fraction <= 1 for _, fraction in points[:-1]) or not 0 <= points[-1][1] <= 1:
        raise InputError("points: fractions of the peak lie in (0, 1]; the last may be 0 if it lies past the end")
    if points[-1][1] == 0 and places[-1] <= steps:
        raise InputError(
            f"points: step {places[-1]} would have no learning rate; put 0 past the end, at step {steps + 1}"
        )


def _check_phases(points: tuple[tuple[int, float], ...], steps: int, warmup: int) -> None:
    if not points:
        raise InputError(
            f"a multistep schedule needs points, for example [[{max(warmup, steps // 2) + 1}, 0.1]]: from that step on a tenth of "
            "the peak; without any the kind is constant"
        )
    before = warmup
    for step, fraction in points:
        if not before < step <= steps:
            after = f"the warm-up's {warmup} steps" if before == warmup else f"step {before}"
            raise InputError(
                f"points: [{step}, {fraction:g}] must lie after {after}, and at step {steps} at the latest; points of a multistep "
                "schedule rise"
            )
        if not 0 < fraction <= 1:
            raise InputError(f"points: [{step}, {fraction:g}]: fractions of the peak lie in (0, 1]")
        before = step
