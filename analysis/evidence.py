"""What finished runs say of a configuration's λ: the paired rule against the smallest λ, and the best λ; and whether they are of
its setting at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from analysis import best_decay
from analysis.arms import alone, values_of
from analysis.claims import survival
from analysis.command import Options
from analysis.compare import TRAIN, VALIDATION, lost, paired_final
from analysis.endpoint import endpoint_of, lowest
from analysis.pairing import Group, baseline_of, group_runs
from analysis.runs import Run, field_name, flatten, shown
from configs.cost import n_parameters
from configs.errors import InputError
from configs.prepared import read_summary
from configs.schema import RunConfig
from record.run import FINISHED

SAME = (
    "data.order", "precision", "schedule.kind", "schedule.horizon", "schedule.final_lr_fraction",
    "schedule.cooldown_fraction", "model.kind", "model.init_std", "optim.betas", "optim.momentum", "optim.decay_mask",
)  # fmt: skip
WORDS = {"data.order": "order of data", "schedule.kind": "schedule", "model.kind": "a model of kind"}
NEAR = 1.1  # how far, as a factor, a finished run may be from the configuration and still be evidence for it


@dataclass(frozen=True)
class Evidence:
    """`best`: (η, λ, how many runs) of the lowest loss at the end, where the runs are of the configuration's own setting and have
    several λ."""

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    best: tuple[float, float, int] | None = None


def evidence_of(config: RunConfig, runs: list[Run], options: Options) -> Evidence:
    """What finished runs say: the paired rule against the smallest λ, and the best λ."""
    notes: list[str] = []
    # a branch or a matched run differs from the others in more than λ
    done = [run for run in alone(runs) if run.state in FINISHED]
    if len(done) < len(runs):
        notes.append(
            f"{len(runs) - len(done)} runs are unfinished, branches or matched runs, and say nothing of λ here"
        )
    # λ of another rule is another thing, and another algorithm has its own best
    ours = config.optim.decay_rule, config.optim.algorithm
    alike = [run for run in done if (run.rule, run.algorithm) == ours]
    if len(alike) < len(done):
        notes.append(
            f"{len(done) - len(alike)} runs are of another rule or algorithm than {' with '.join(ours)}, and say nothing of its λ"
        )
    done = alike
    if not done:
        return Evidence([], notes)
    groups, more = group_runs(done, options.by)
    notes += more
    # the best λ of another experiment is no evidence for this one: it is shown, under a name that says so
    digest = _digest_of(config)
    unlike = [_unlike(config, digest, group.runs) for group in groups]
    notes += dict.fromkeys(sentence for sentences in unlike for sentence in sentences)
    if digest is None:
        notes.append("the configuration's data is not prepared here: whether these runs read the same is not known")
    own = [group for group, differs in zip(groups, unlike, strict=True) if not differs]
    others = [group for group, differs in zip(groups, unlike, strict=True) if differs]
    findings = _told("Runs", own, options) + _told("Runs of another setting", others, options)
    return Evidence(findings, notes, _best(own))


def _told(name: str, groups: list[Group], options: Options) -> list[str]:
    """Each λ against the smallest, by validation at the end where all have it, and the best λ."""
    findings = []
    for group in groups:
        base = baseline_of(group, groups)
        if group is base:
            continue
        paired, words = paired_final(group, base, VALIDATION), "validation loss"
        if not paired.interval.n:
            paired, words = paired_final(group, base, TRAIN), "training loss"
        if paired.interval.n:
            gone = f" ({condition})" if (condition := survival(lost(group, base))) else ""
            over = f" {paired.over}" if paired.over else ""
            text = f"{words}{over} at step {paired.place}: {paired.interval.text()}: {paired.verdict()}{gone}."
            findings.append(f"{name}: {group.name} minus {base.name}, {text}")
    # an optimum needs several λ
    if len({group.decay for group in groups}) > 1:
        runs = [run for group in groups for run in group.runs]
        findings += [f"{name}: {text}" for text in best_decay.analyse(runs, options).findings]
    return findings


def _best(groups: list[Group]) -> tuple[float, float, int] | None:
    """(η, λ, how many runs there are) of the lowest mean loss at the end; None where one λ alone was run, or nothing has ended."""
    # one λ alone is no choice among several
    chosen = lowest(groups, endpoint_of(groups)) if len({group.decay for group in groups}) > 1 else None
    return None if chosen is None else (*values_of(chosen[0]), sum(len(group.runs) for group in groups))


def _digest_of(config: RunConfig) -> str | None:
    """Of the configuration's data; None where it is not prepared here."""
    try:
        data = read_summary(config.data.path)
    except InputError:
        return None
    return data.digest if data else None


def _unlike(config: RunConfig, digest: str | None, runs: list[Run]) -> list[str]:
    """How finished runs differ from the configuration in what the best λ is known to depend on, or may; empty if they do not.

    Sizes must be equal; horizon, steps, warm-up and η may differ by NEAR, less than a neighbour in any grid of them. What else is
    compared must be the same, as far as the runs recorded it.
    """
    steps, batch = config.schedule.steps, config.units_per_step
    ours = {
        "parameters": float(n_parameters(config.model)),
        "tokens per parameter": steps * batch / n_parameters(config.model),
        "steps": float(steps),
        "warm-up steps": float(config.schedule.warmup_steps),
        "peak η": config.optim.lr,
    }
    sentences = []
    for what, mine in ours.items():
        # a plan may be missing, or damaged: then nothing is known
        theirs = {_of_run(run, what) for run in runs}
        near = 1.0 if what == "parameters" else NEAR
        if None in theirs or any(not mine / near <= value <= mine * near for value in theirs if value is not None):
            known = " and ".join(f"{value:,.6g}" for value in sorted(v for v in theirs if v is not None))
            sentences.append(f"these runs have {known or 'an unknown number'} {what}, the configuration {mine:,.6g}")
    given = flatten(config.model_dump(mode="json"))
    asked = {WORDS.get(name, field_name(name)): (given.get(name), name) for name in SAME}
    # data is told by its digest; where it is not prepared, by its folder's name
    asked["data"] = (digest, "data.digest") if digest else (Path(config.data.path).name, "data.path")
    for what, (own, name) in asked.items():
        found = {shown(run.fields[name]) for run in runs if run.fields.get(name) is not None}
        if found - {shown(own)}:
            sentences.append(f"these runs have {what} {', '.join(sorted(found))}, the configuration {shown(own)}")
    return sentences


def _of_run(run: Run, what: str) -> float | None:
    derived = {"parameters": run.n_parameters, "tokens per parameter": run.tokens_per_parameter}
    names = {"steps": "schedule.steps", "warm-up steps": "schedule.warmup_steps", "peak η": "optim.lr"}
    value = derived[what] if what in derived else run.fields.get(names[what])
    return float(value) if isinstance(value, int | float) else None
