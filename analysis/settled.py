"""Where rotation and size of the weights stand against the equilibrium that λ takes them to: for runs that had the time to arrive.

From its start a run nears its equilibrium as e^(−Σηλ). A run that has seen fewer than three e-folds is on the way, and a ratio
to the prediction would say only how far it has come.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.compare import sound
from analysis.grouped import probed
from analysis.pairing import Group
from analysis.runs import Run
from configs.equilibrium import e_folds, why_no_e_folds

ARRIVED = 3.0  # e-folds: e^-3 = 5 % of the way is left
LATE = 0.1  # the equilibrium is read off this last fraction of the probes


def equilibrium(groups: list[Group], kinds: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """(one row a group that has arrived and a kind: measured over predicted; findings, which name the groups on the way)."""
    rows, on_the_way, without = [], [], []
    for group in groups:
        ratios = [row for kind in kinds if (row := _ratios(group, kind))]
        # a group without decay, or of a rule or algorithm whose law needs more than η and λ, has no prediction
        if not ratios:
            without += [name for name in [_no_prediction(group)] if name]
            continue
        seen = seen_by(group)
        if seen > ARRIVED:
            rows += [{"run": group.name, "Σηλ": round(seen, 3), **row} for row in ratios]
        else:
            on_the_way.append(f"{group.name} ({seen:.2f} e-folds of {ARRIVED:g})")
    table = pd.DataFrame(rows)
    findings = [_summary(table)] if rows else []
    if on_the_way:
        findings.append(f"Equilibrium not reached, so not compared: {'; '.join(on_the_way)}.")
    if without:
        findings.append(f"No equilibrium is predicted, so none compared: {'; '.join(without)}.")
    return table, findings


def _no_prediction(group: Group) -> str:
    """The group's name and why, if it decays and was probed; else nothing is missed."""
    runs = [run for run in sound(group) if run.decay and any("probe/rotation/" in str(one) for one in run.probes)]
    if not runs:
        return ""
    rule, algorithm, _ = _rule(runs[0])
    return f"{group.name} ({rule} with {algorithm}; docs/rules.md has what is known of each)"


def seen_by(group: Group) -> float:
    """E-folds of decay that the group's sound runs have seen: the mean over them; 0 where none has recorded any."""
    return float(np.mean([folds for run in sound(group) if (folds := e_folds_of(run)) is not None] or [0.0]))


def e_folds_of(run: Run) -> float | None:
    """E-folds of decay that a run has seen; None where it recorded no sum, or its sum is no such number."""
    total = run.column("optim/decay_sum")
    return e_folds(float(total.iloc[-1]), *_rule(run)) if len(total) else None


def notes_on_e_folds(runs: list[Run]) -> list[str]:
    """Where a column of e-folds has another number than Σηλ, or none: once for each reason."""
    notes: dict[str, int] = {}
    for run in runs:
        rule, algorithm, momentum = _rule(run)
        folds = e_folds(1.0, rule, algorithm, momentum)
        if folds is None and run.decay:
            text = f"no Σηλ is given: {why_no_e_folds(rule, algorithm)}, and a sum of ηλ says nothing of how much weights decay"
        elif folds is not None and folds != 1.0 and run.decay:
            text = (
                f"Σηλ is divided by 1 − μ, μ = {momentum:g}: the momentum carries on what {rule} adds to the gradient"
            )
        else:
            continue
        notes[text] = notes.get(text, 0) + 1
    return [f"{count} runs: {text}" for text, count in notes.items()]


def _rule(run: Run) -> tuple[str, str, float]:
    momentum = run.fields.get("optim.momentum")
    return run.rule, run.algorithm, 0.9 if momentum is None else float(momentum)


def predicted(run: Run, quantity: str, kind: str) -> pd.Series:
    """The predicted rotation or RMS of a kind: the mean over its tensors that decay."""
    prefix = f"probe/predicted_{quantity}/"
    # tensors of a kind that do not decay (some λ is 0) have no prediction
    columns = [column for name, its in run.kinds.items() if its == kind and (column := prefix + name) in run.probes]
    return run.probes[columns].mean(axis=1).dropna() if columns else pd.Series(dtype=float)


def _ratios(group: Group, kind: str) -> dict[str, object] | None:
    row: dict[str, object] = {"kind": kind}
    for quantity in ("rotation", "rms"):
        values = []
        for run in sound(group):
            measured, expected = probed(f"probe/{quantity}/kind:{kind}")(run), predicted(run, quantity, kind)
            # step by step, before the mean: both fall with the learning rate
            ratio = (measured / expected).dropna()
            values.append(float(ratio.iloc[-max(1, round(len(ratio) * LATE)) :].mean()) if len(ratio) else float("nan"))
        # SGD has a prediction of its rotation alone
        if np.isnan(values).all():
            continue
        row[f"{quantity} measured/predicted"] = round(float(np.nanmean(values)), 3)
    return row if "rotation measured/predicted" in row else None


def _summary(table: pd.DataFrame) -> str:
    # by the ratio's distance from one
    worst = table.iloc[int((table["rotation measured/predicted"] - 1).abs().argmax())]
    middle = table["rotation measured/predicted"].median()
    return (
        f"Over the last tenth of the probes rotation is {middle:.2f} of the prediction (median over {len(table)} "
        f"kinds and runs), farthest {worst['rotation measured/predicted']:.2f} ({worst['run']}, {worst['kind']}). The "
        f"prediction holds for pure noise at a constant learning rate; compared are runs with λΣη above {ARRIVED:g}."
    )
