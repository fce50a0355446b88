"""Whether seeds disagree about the run itself, and not about λ: then a difference between λ is mostly how each repairs a bad run.

Seeds of a small setting whose start is sound end within a standard deviation of 0.01 nats of each other (0.0096 and 0.0120
at λ = 0 and 0.15, three seeds each); the same setting with a start that collapses ended with 0.164 and 0.115, and λ looked
as if it helped by 0.11 nats. The line is drawn between, at three times the sound value: of settings with a true deviation of
0.012, three seeds cross it once in 500, two seeds once in 80; of those with 0.115, three seeds stay below it once in 15.
"""

from __future__ import annotations

import numpy as np

from analysis.compare import TRAIN, VALIDATION, ended, loss_of
from analysis.gate import LAST, UPDATES
from analysis.pairing import Group, by_seed
from analysis.runs import Run
from analysis.statistics import seed_count

SPREAD = 0.03  # nats: the standard deviation over seeds of the loss at the end, of one group, above which it is said


def disagreements(groups: list[Group]) -> list[str]:
    """A sentence for every group whose seeds end too far apart to read its differences as λ's."""
    sentences = []
    for group in groups:
        runs = ended(group)
        # one kind of loss for all runs of a group: the two differ by more than seeds do
        evaluated = all(len(run.column(VALIDATION).loc[1:]) for run in runs)
        ends = by_seed([(run, loss_of(run, evaluated)) for run in runs])
        losses = np.array([loss for loss in ends.values() if np.isfinite(loss)])
        # one seed cannot disagree
        if len(losses) < 2 or (deviation := float(losses.std(ddof=1))) <= SPREAD:
            continue
        sentences.append(
            f"Seeds differ by {np.ptp(losses):.3f} nats at {group.name} ({'validation' if evaluated else 'training'} loss at the "
            f"end, standard deviation {deviation:.3f} over {seed_count(len(losses))}, in sound small runs 0.01): look at the start "
            f"(gradient norms, loss at step {UPDATES}; python -m analysis gate) before reading any difference{_start(runs)}."
        )
    return sentences


def _start(runs: list[Run]) -> str:
    """What the runs' first updates show, as far as they were recorded."""
    losses = [run.column(TRAIN).loc[1:UPDATES] for run in runs]
    norms = [run.column("optim/grad_norm").loc[1:UPDATES] for run in runs]
    text = ""
    # runs that log rarely have no start to look at
    if all(len(loss) == UPDATES for loss in losses):
        means = [float(loss.iloc[-LAST:].mean()) for loss in losses]
        text += f"; in updates {UPDATES - LAST + 1}–{UPDATES} they differ by {np.ptp(means):.3f} already"
    if any(len(norm) for norm in norms):
        text += f"; the largest gradient norm up to there is {max(norm.max() for norm in norms if len(norm)):.1f}"
    return text
