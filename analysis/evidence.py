"""What finished runs say of a configuration's λ: the paired rule against the smallest λ, and the best λ; and whether they are of
its setting at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis import best_decay
from analysis.arms import alone, values_of
from analysis.claims import survival
from analysis.command import Options
from analysis.compare import TRAIN, lost, paired_final
from analysis.endpoint import endpoint_of, lowest
from analysis.pairing import Group, baseline_of, group_runs
from analysis.runs import LAMBDA, Run
from configs.cost import n_parameters
from configs.schema import RunConfig
from record.run import FINISHED

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
    # its setting decides too whether a λ may be carried from it
    others = _unlike(config, done)
    notes += others
    name = "Runs of another setting" if others else "Runs"
    findings = []
    for group in groups:
        base = baseline_of(group, groups)
        paired = paired_final(group, base, TRAIN)
        if group is not base and paired.interval.n:
            gone = f" ({condition})" if (condition := survival(lost(group, base))) else ""
            text = f"training loss at step {paired.place}: {paired.interval.text()}: {paired.verdict()}{gone}."
            findings.append(f"{name}: {group.name} minus {base.name}, {text}")
    # an optimum needs several λ
    if LAMBDA in groups[0].fields:
        findings += [f"{name}: {text}" for text in best_decay.analyse(done, options).findings]
    return Evidence(findings, notes, None if others else _best(groups))


def _best(groups: list[Group]) -> tuple[float, float, int] | None:
    """(η, λ, how many runs there are) of the lowest mean loss at the end; None where one λ alone was run, or nothing has ended."""
    # one λ alone is no choice among several
    chosen = lowest(groups, endpoint_of(groups)) if len({group.decay for group in groups}) > 1 else None
    return None if chosen is None else (*values_of(chosen[0]), sum(len(group.runs) for group in groups))


def _unlike(config: RunConfig, runs: list[Run]) -> list[str]:
    """How finished runs differ from the configuration in what the best λ is known to depend on; empty if they do not.

    Sizes must be equal; horizon, steps, warm-up and η may differ by NEAR, less than a neighbour in any grid of them.
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
            shown = (
                " and ".join(f"{value:,.6g}" for value in sorted(v for v in theirs if v is not None))
                or "an unknown number"
            )
            sentences.append(f"these runs have {shown} {what}, the configuration {mine:,.6g}")
    return sentences


def _of_run(run: Run, what: str) -> float | None:
    derived = {"parameters": run.n_parameters, "tokens per parameter": run.tokens_per_parameter}
    names = {"steps": "schedule.steps", "warm-up steps": "schedule.warmup_steps", "peak η": "optim.lr"}
    value = derived[what] if what in derived else run.fields.get(names[what])
    return float(value) if isinstance(value, int | float) else None
