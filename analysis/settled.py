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

ARRIVED = 3.0  # e-folds: e^-3 = 5 % of the way is left
LATE = 0.1  # the equilibrium is read off this last fraction of the probes


def equilibrium(groups: list[Group], kinds: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """(one row a group that has arrived and a kind: measured over predicted; findings, which name the groups on the way)."""
    rows, on_the_way = [], []
    for group in groups:
        ratios = [row for kind in kinds if (row := _ratios(group, kind))]
        # a group without decay, or of another rule than AdamW's, has no prediction
        if not ratios:
            continue
        seen = e_folds(group)
        if seen > ARRIVED:
            rows += [{"run": group.name, "Σηλ": round(seen, 3), **row} for row in ratios]
        else:
            on_the_way.append(f"{group.name} ({seen:.2f} e-folds of {ARRIVED:g})")
    table = pd.DataFrame(rows)
    findings = [_summary(table)] if rows else []
    if on_the_way:
        findings.append(f"Equilibrium not reached, so not compared: {'; '.join(on_the_way)}.")
    return table, findings


def e_folds(group: Group) -> float:
    """Σηλ that the group's sound runs have seen: the mean over them; 0 where none has recorded it."""
    sums = [run.column("optim/decay_sum") for run in sound(group)]
    return float(np.mean([one.iloc[-1] for one in sums if len(one)] or [0.0]))


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
        if np.isnan(values).all():
            return None
        row[f"{quantity} measured/predicted"] = round(float(np.nanmean(values)), 3)
    return row


def _summary(table: pd.DataFrame) -> str:
    # by the ratio's distance from one
    worst = table.iloc[int((table["rotation measured/predicted"] - 1).abs().argmax())]
    middle = table["rotation measured/predicted"].median()
    return (
        f"Over the last tenth of the probes rotation is {middle:.2f} of the prediction (median over {len(table)} "
        f"kinds and runs), farthest {worst['rotation measured/predicted']:.2f} ({worst['run']}, {worst['kind']}). The "
        f"prediction holds for pure noise at a constant learning rate; compared are runs with λΣη above {ARRIVED:g}."
    )
