"""Scores at tasks of lm-evaluation-harness, task by task, and what λ changed of them, in pairs.

    python -m analysis lm_eval configs/sweeps/quickstart.json --out runs/lm_eval

It reads what `python -m weights.lm_eval` wrote into the runs' folders, of each run the latest step. Beside a score stands the
harness's standard error, over the task's documents. A difference is a run minus its twin of the smallest λ, with the same seeds, at
the same step, over the same documents and prompts (by their hash). Its interval is over seeds, and says nothing of other documents.
All differences are exploratory, and none is corrected for how many there are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from analysis.claims import UNDECIDED, too_few
from analysis.command import Options, Result
from analysis.compare import sound
from analysis.grouped import grouped
from analysis.pairing import Group, baseline_of, by_seed, pairs
from analysis.runs import Run
from analysis.statistics import LEAST_SEEDS, Interval, interval
from configs.errors import InputError
from record.evaluations import Evaluation, Score


@dataclass(frozen=True, order=True)
class Question:
    """What two scores must have in common to be compared."""

    task: str
    metric: str
    filter: str
    shots: str
    weights: str
    precision: str
    documents: int
    hash: str

    @property
    def columns(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("documents", "hash")}


Answers = dict[Question, tuple[int, Score]]  # with the step


def analyse(runs: list[Run], options: Options) -> Result:
    """InputError where no run has a score."""
    answers = {id(run): latest(run.evaluations[0]) for run in runs}
    if not any(answers.values()):
        raise InputError("no run has scores at tasks; `python -m weights.lm_eval RUN --tasks …` makes some")
    # a run that was asked nothing is no gap in a table of scores
    begun = grouped([run for run in runs if answers[id(run)]], options)
    questions = sorted({question for one in answers.values() for question in one})
    scores, differences, findings, lacking = [], [], [], 0
    for question in questions:
        for group in begun.groups:
            scores += [
                _row(question, group, run, answers[id(run)]) for run in group.runs if question in answers[id(run)]
            ]
            # the scores stand first; a difference needs a group to be compared with
            base = baseline_of(group, begun.groups)
            if base is group:
                continue
            change, unlike, better = _difference(question, group, base, answers)
            lacking += unlike
            if change.n:
                verdict = _verdict(change, better)
                name = f"{group.name} minus {base.name}"
                row = {**question.columns, "comparison": name, "difference": change.text(), "verdict": verdict}
                differences.append(row)
                if change.n >= LEAST_SEEDS and change.excludes_zero:
                    findings.append(
                        f"{question.task}, {question.metric}: {name}: {change.text()}: {verdict} (exploratory)."
                    )
    tasks = len({question.task for question in questions})
    first = f"{len(scores)} score{'s' if len(scores) > 1 else ''} at {tasks} task{'s' if tasks > 1 else ''}"
    # how many would exclude zero without any effect: nothing here is corrected
    if judged := [
        row for row in differences if "no claim" not in str(row["verdict"]) and "too few" not in str(row["verdict"])
    ]:
        first += f"; {len(findings)} of {len(judged)} paired differences exclude zero, and chance alone gives 1 in 20"
    tables = {"Scores": _short(scores), "Differences in pairs of seeds": _short(differences)}
    notes = begun.notes + _unlike(questions)
    if lacking:
        notes.append(f"{lacking} pairs of scores are of different steps, and were not compared")
    return Result("lm_eval", "Tasks of lm-evaluation-harness", [f"{first}.", *findings], [], tables, notes)


def latest(evaluations: list[Evaluation]) -> Answers:
    """The score of the last step at every question; of one step the one that was made last."""
    answers: Answers = {}
    # what comes later in this order takes the place of what stood there
    for one in sorted(evaluations, key=lambda one: (one.step or 0, one.time)):
        for score in one.scores:
            shots = "" if score.shots is None else str(score.shots)
            asked = Question(
                score.task, score.metric, score.filter, shots, one.weights, one.precision, score.documents, score.hash
            )
            answers[asked] = (one.step or 0, score)
    return answers


def _row(question: Question, group: Group, run: Run, answers: Answers) -> dict[str, object]:
    step, score = answers[question]
    row: dict[str, object] = {**question.columns, "run": group.name, "seed": run.seeds, "step": step}
    return row | {"score": score.value, "standard error": score.stderr, "documents": score.documents}


def _difference(
    question: Question, group: Group, base: Group, answers: dict[int, Answers]
) -> tuple[Interval, int, bool | None]:
    """`group` minus `base`, paired by seeds; how many pairs were of two steps; and whether more is better."""
    # the score of a run that diverged says only that it did
    kept = {id(run) for one in (group, base) for run in sound(one)}
    changes, unlike, better = [], 0, None
    for run, twin in pairs(group, base):
        if not {id(run), id(twin)} <= kept or question not in answers[id(run)] or question not in answers[id(twin)]:
            continue
        (step, score), (other, its) = answers[id(run)][question], answers[id(twin)][question]
        unlike, better = unlike + (step != other), score.higher_is_better
        # of two steps the difference would be that of the training between them
        if step == other and score.value is not None and its.value is not None:
            changes.append((run, score.value - its.value))
    return interval(by_seed(changes).values()), unlike, better


def _verdict(change: Interval, better: bool | None) -> str:
    if change.n < LEAST_SEEDS:
        return too_few(change.n)
    if not change.excludes_zero:
        return UNDECIDED
    # which way is good is the task's to say
    if better is None:
        return "higher" if change.mean > 0 else "lower"
    return "better" if (change.mean > 0) == better else "worse"


def _short(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Without the columns that every score is alike in and that go without saying."""
    table = pd.DataFrame(rows)
    plain = {"filter": "none", "weights": "weights"}
    alike = [name for name in ("filter", "weights", "precision") if name in table and table[name].nunique() < 2]
    return table.drop(columns=[name for name in alike if set(table[name]) <= {plain.get(name, table[name].iloc[0])}])


def _unlike(questions: list[Question]) -> list[str]:
    """A note on each task of which the runs were asked other documents or prompts."""
    # of one number of shots: with others the prompts are meant to differ
    hashes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for question in questions:
        hashes[question.task, question.shots].add(question.hash)
    return [
        f"{task}: runs were asked {len(each)} different sets of documents or prompts; only scores at the same are compared"
        for (task, _), each in hashes.items()
        if len(each) > 1
    ]
