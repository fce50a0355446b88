"""The five primary claims of the study's plan, by their declared rules, Holm-corrected.

    python -m analysis declared docs/study/records/study_s48 docs/study/records/study_constant

The plan is docs/study/plan.md. They compare Σ = λ·Ση of 1.65, the paper's λ = 0.1, with no decay at the same η. A claim whose runs
are not there counts in the correction as one that shows nothing, so that a verdict given early can only get better. They are
primary only for the plan's main setting. For runs of one other setting the same rules are applied, and a note says so.
"""

from __future__ import annotations

import math

import pandas as pd

from analysis.arms import is_pilot
from analysis.bias_variance import decompose
from analysis.branches import families
from analysis.claims import Claim
from analysis.command import Options, Result
from analysis.compare import VALIDATION, WHOLE, is_ended, paired_final, paired_midrun, same_windows, sound
from analysis.endpoint import Endpoint
from analysis.hypotheses import holm
from analysis.matched_curve import same_curve
from analysis.pairing import STEPS, Group, group_runs
from analysis.runs import FOLLOWS, LAMBDA, RATE, SEEDS, Run, differing_fields
from analysis.settled import e_folds_of
from analysis.statistics import Interval, interval
from analysis.verdict import Comparison
from configs.errors import InputError

SIGMA, NEAR = 1.65, 0.02  # e-folds, and how far off a λ of three digits may be
PLACE = 0.6  # of the run: the branches that are judged
DIGEST = "cf37c9649fe3"  # of the plan's main data, its beginning
MAIN: dict[str, object] = {  # what the runs of S48 on Python have beside that and defaults
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_embd": 64,
    "model.seq_len": 64,
    "model.vocab_size": 1024,
    "model.init_std": 0.06928203230275509,
    "batch.tokens_per_step": 2048,
    "schedule.steps": 4000,
    "schedule.warmup_steps": 200,
    "eval.tokens": 131072,
    "eval.final_tokens": "all",
}
FREE = (LAMBDA, RATE, SEEDS, "schedule.kind", "schedule.match", "averages", FOLLOWS)  # what the claims' runs differ in
PLANNED = {"1a": 8, "1b": 8, "2": 8, "3": 5, "4": 8}  # planned, with what the plan's deviations say
NAMES = {
    "1a": "λ > 0 is behind in mid-run",
    "1b": "λ > 0 is ahead at the end",
    "2": "decay leaves more variance and less bias",
    "3": "λ = 0 at the effective learning rate of λ > 0 gives its curve",
    "4": "at a constant rate λ > 0 is worse before, better after a branch",
}
ENDPOINTS = {
    "1a": "validation loss at 45 %, Σ = 1.65 minus 0",
    "1b": "validation loss at the end, Σ = 1.65 minus 0",
    "2": "branch end minus trunk at 60 %, Σ = 1.65 minus 0",
    "3": "largest smoothed distance of training losses after the first 10 %",
    "4": "validation loss at 60 %, and over the whole split at its branch's end, Σ = 1.65 minus 0",
}


def analyse(runs: list[Run], options: Options) -> Result:
    trunks, branches, notes = families(runs)
    trunks += [run for run in runs if run.origin is None and run not in trunks]
    trunks, is_main, left_out = _of_one_setting(trunks, options.pilot_from)
    notes += left_out
    tests: dict[str, Comparison] = {}
    refused: dict[str, Claim] = {}
    cosine = [run for run in trunks if run.fields.get("schedule.kind") == "cosine"]
    groups = group_runs(cosine)[0]
    if pair := _pair([group for group in groups if group.runs[0].reference is None]):
        plain, decayed = pair
        tests |= _of_cosine(decayed, plain, branches)
    for group in groups:
        claim = same_curve(group, cosine, groups) if _is_closed_loop(group.runs[0]) else None
        # without a margin it was refused: pairs are on their way, or too few, or there is nothing to explain
        if claim is not None and claim.margin is None:
            refused["3"] = claim
        elif claim is not None and claim.margin is not None:
            tests["3"] = Comparison(((claim.interval, 0),), claim.margin)
    if pair := _pair(group_runs([run for run in trunks if run.fields.get("schedule.kind") == "constant"])[0]):
        before, after = _at_branches(*pair[::-1], branches, "loss"), _branch_ends(*pair[::-1], branches)
        if before.n and after.n:
            tests["4"] = Comparison(((before, 1), (after, -1)))
    if not tests:
        raise InputError(
            f"none of the plan's claims can be read: no runs of Σ = λ·Ση = 0 and {SIGMA} at one η are among these; "
            "configs/sweeps/study_s48.json has them"
        )
    table = _table(tests, refused)
    findings = [f"{row['claim']}: {row['difference']}: {row['verdict']}." for _, row in table.iterrows() if row["n"]]
    notes.append(f"Holm's correction is over {len(NAMES)} claims; those that have not run count as showing nothing")
    if not is_main:
        notes.append(
            "none of these is a run of the plan's main setting, S48 on Python: its rules, and no primary claim of it"
        )
    seeds = {key: test.n for key, test in tests.items()} | {key: claim.interval.n for key, claim in refused.items()}
    few = [f"{key} has {n} of {PLANNED[key]}" for key, n in seeds.items() if n < PLANNED[key]]
    if is_main and few:
        notes.append(f"fewer seeds than the plan has: {', '.join(few)}")
    title = "The plan's primary claims" if is_main else "The plan's rules, on other runs"
    return Result("declared", title, findings, [], {"Claims": table}, notes)


def _of_one_setting(trunks: list[Run], pilot_from: int) -> tuple[list[Run], bool, list[str]]:
    """The runs that are judged: of the plan's main setting, where there are any, without pilots. Whether they are of it; and notes.
    InputError where there are none of it, and the others are of several settings."""
    trunks = [run for run in trunks if run.fields.get("schedule.kind") in ("cosine", "constant")]
    kept = [run for run in trunks if not is_pilot(run, pilot_from)]
    gone = len(trunks) - len(kept)
    notes = [f"{gone} runs of a pilot's seeds ({pilot_from} and above) enter no claim"] if gone else []
    main = [run for run in kept if _is_main(run)]
    if main:
        others = len(kept) - len(main)
        return main, True, [*notes, *([f"{others} runs of other settings are left out"] if others else [])]
    # at a constant rate the number of updates is no part of the experiment, and may be another than the cosine's
    differing = [name for name in differing_fields(kept) if not name.startswith(FREE) and name != STEPS]
    lengths = {run.fields[STEPS] for run in kept if run.fields.get("schedule.kind") == "cosine"}
    differing += [STEPS] if len(lengths) > 1 else []
    if differing:
        raise InputError(
            f"these runs are of several settings: they differ in {', '.join(differing)}. The claims are read off one; give "
            "the runs of one"
        )
    return kept, False, notes


def _is_main(run: Run) -> bool:
    # all that makes it another experiment than one of defaults is in `varied`
    beside = [name for name in run.varied if name not in (*MAIN, "data.digest") and not name.startswith(FREE)]
    digest = str(run.fields.get("data.digest"))
    return not beside and digest.startswith(DIGEST) and all(run.fields.get(n) == value for n, value in MAIN.items())


def _is_closed_loop(run: Run) -> bool:
    """As claim 3 names it: by the norm of the whole model, and the run's own live norm."""
    scope = run.fields.get("schedule.match.scope") or "model"
    taken = run.fields.get("schedule.match.take") or "rate"
    return run.fields.get("schedule.match.own") is None and scope == "model" and taken != "norms"


def _pair(groups: list[Group]) -> tuple[Group, Group] | None:
    """The groups of Σ = 0 and Σ = SIGMA of one length, at the η of most runs without decay."""
    plain = sorted((g for g in groups if g.decay == 0), key=lambda g: -len(g.runs))
    for base in plain:
        for group in groups:
            folds = e_folds_of(group.runs[0])
            same = all(group.runs[0].fields.get(name) == base.runs[0].fields.get(name) for name in (RATE, STEPS))
            if group.decay and same and folds is not None and abs(folds / SIGMA - 1) < NEAR:
                return base, group
    return None


def _of_cosine(decayed: Group, plain: Group, branches: dict[tuple[str, int], Run]) -> dict[str, Comparison]:
    """Claims 1a, 1b and 2, those of them whose runs are there."""
    tests = {}
    if (middle := paired_midrun(decayed, plain, VALIDATION)) is not None:
        tests["1a"] = Comparison(((middle.interval, 1),))
    end = paired_final(decayed, plain, VALIDATION)
    if not end.refused:
        tests["1b"] = Comparison(((end.interval, -1),))
    # the branch minus the trunk, and not the other way
    contrast = _at_branches(decayed, plain, branches, "variance", -1)
    if contrast.n:
        tests["2"] = Comparison(((contrast, -1),))
    return tests


def _at_branches(
    decayed: Group, plain: Group, branches: dict[tuple[str, int], Run], part: str, sign: int = 1
) -> Interval:
    """`decayed` minus `plain` in a part of the loss at the checkpoint of PLACE, times `sign`, in pairs of seeds."""
    table = decompose([decayed, plain], branches)
    if table.empty:
        return interval([])
    table = table[(table["step"] / table["steps"] - PLACE).abs() < 1e-9]
    ours, theirs = (table[table["group"] == g.name].set_index("seeds")[part] for g in (decayed, plain))
    return interval((sign * (ours - theirs)).dropna())


def _branch_ends(decayed: Group, plain: Group, branches: dict[tuple[str, int], Run]) -> Interval:
    """`decayed` minus `plain` where the branches of PLACE end, in pairs of seeds: over the whole split, with the documents' error,
    where all have it."""
    ends: list[dict[str, Run]] = []
    for group in (decayed, plain):
        own = ((run, branches.get((str(run.path), round(PLACE * run.fields[STEPS])))) for run in sound(group))
        ends.append({run.seeds: branch for run, branch in own if branch is not None and is_ended(branch)})
    pairs = [{ends[0][seed]: 1.0, ends[1][seed]: -1.0} for seed in ends[0] if seed in ends[1]]
    if not pairs:
        return interval([])
    used = [run for pair in pairs for run in pair]
    whole = all(len(run.column(WHOLE)) for run in used) and same_windows(used, WHOLE)
    return Endpoint(WHOLE if whole else VALIDATION, "", "").contrast(pairs)


def _table(tests: dict[str, Comparison], refused: dict[str, Claim]) -> pd.DataFrame:
    """A row a claim. What was refused a verdict counts in the correction as one that shows nothing, and says why."""
    adjusted = holm([tests[key].p if key in tests else 1.0 for key in NAMES])
    rows = []
    for key, p in zip(NAMES, adjusted, strict=True):
        row: dict[str, object] = {"claim": f"{key}: {NAMES[key]}", "endpoint": ENDPOINTS[key], "n": 0}
        if (test := tests.get(key)) is None and (claim := refused.get(key)) is not None:
            rows.append(row | {"n": claim.interval.n, "difference": claim.interval.text(), "verdict": claim.verdict})
            continue
        if test is None:
            rows.append(row | {"verdict": "not run"})
            continue
        row |= {"n": test.n, "difference": "; ".join(difference.text() for difference, _ in test.differences)}
        if test.margin is not None:
            row["difference"] = f"{row['difference']}, margin {test.margin:.4f}"
        told = {"p": f"{test.p:.2g}", "p after Holm": f"{p:.2g}"} if math.isfinite(p) else {}
        rows.append(row | told | {"verdict": test.verdict(p)})
    return pd.DataFrame(rows)
