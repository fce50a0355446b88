"""What λ does to averages of the weights, and averages to each λ, at the end of runs.

    python -m analysis averages docs/study/records/study_s48

An average (averages.ema) takes the noise of the last updates out, so it may gain more from decay than the last weights, and from
more of it. No plan names it: all of it is exploratory.
"""

from __future__ import annotations

import pandas as pd

from analysis.cheap_branch import updates_of
from analysis.claims import Claim, difference_claim
from analysis.command import Options, Result
from analysis.compare import VALIDATION, ended, lost
from analysis.endpoint import Endpoint, endpoint_of
from analysis.grouped import grouped, trunks_of
from analysis.pairing import Group, baseline_of, by_seed
from analysis.runs import Run
from analysis.statistics import Interval, interval
from configs.errors import InputError

WORDS = ("lower", "higher")
COLUMNS = ("run", "reading", "seeds", "loss", "minus its last weights", "minus the smallest λ", "verdict")


def analyse(runs: list[Run], options: Options) -> Result:
    trunks = trunks_of(runs)
    begun = grouped(trunks, options)
    last = endpoint_of(begun.groups)
    readings = {"last weights": last} | {
        f"average over {updates_of(VALIDATION + kind)}": Endpoint(last.column + kind, f"{last.words}, averaged", "")
        for kind in _kinds(trunks, last.column)
    }
    if len(readings) < 2:
        raise InputError(
            f"none of these {len(trunks)} runs has evaluated an average of its weights at its end ({last.column}_ema_…); "
            "runs with averages.ema have"
        )
    # reading by reading, so that what an average changes is read down the table
    rows, claims = [], []
    for words, endpoint in readings.items():
        for group in begun.groups:
            own, base = endpoint.seed_losses(group), baseline_of(group, begun.groups)
            # a group without this average has no row, and no difference
            if not own:
                continue
            row: dict[str, object] = {"run": group.name, "reading": words, "seeds": len(own)}
            row["loss"] = round(interval(own.values()).mean, 4)
            if endpoint is not last:
                row["minus its last weights"] = _minus_last(group, endpoint, last).text()
            claim = _claim(group, base, words, endpoint, options)
            if group is not base and claim.interval.n:
                row |= {"minus the smallest λ": claim.interval.text(), "verdict": claim.verdict}
                # the last weights' own differences are loss_curves' claims
                claims += [claim] if endpoint is not last else []
            rows.append(row)
    # the first rows lack what only an average has: the order is said, and not found
    ends = pd.DataFrame(rows)
    table = {"At the end": ends[[name for name in COLUMNS if name in ends]]}
    findings = [claim.sentence for claim in claims]
    notes = [*begun.notes, last.note]
    return Result("averages", "Averages of the weights", findings, [], table, notes, claims)


def _kinds(runs: list[Run], column: str) -> list[str]:
    """What stands behind the column's name of each average, the shortest first."""
    before = f"{column}_ema_"
    found = {name.removeprefix(before) for run in runs for name in map(str, run.metrics) if name.startswith(before)}
    return [f"_ema_{one}" for one in sorted(found, key=float)]


def _minus_last(group: Group, endpoint: Endpoint, last: Endpoint) -> Interval:
    """The average's loss minus the last weights', of the same run."""
    gaps = [(run, endpoint.of(run) - last.of(run)) for run in ended(group)]
    return interval(by_seed(gaps).values())


def _claim(group: Group, base: Group, words: str, endpoint: Endpoint, options: Options) -> Claim:
    return difference_claim(
        f"{group.name} minus {base.name}, {words}",
        endpoint.words,
        endpoint.difference(group, base),
        WORDS,
        lost=lost(group, base),
        of_interest=options.of_interest,
    )
