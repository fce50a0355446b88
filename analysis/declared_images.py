"""P1's claims of the over-training regime, on runs on images, by the rules that were declared for the small sweeps.

    python -m analysis declared_images docs/study/records/small_sphere docs/study/records/small_flows

What is claimed and how it is judged was written before the runs (docs/study/images.md). Holm's correction is over the comparisons
of a claim. A claim has parts: it holds where all of them hold, and in part where some do. Of several comparisons in one part, as
one for each λ, any does. Errors are fractions of the test images, all of them read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.branches import families
from analysis.command import Options, Result
from analysis.compare import ended, is_ended
from analysis.endpoint import Endpoint, FineTuned
from analysis.hypotheses import holm
from analysis.levels import rate_of
from analysis.pairing import Group, by_rest, by_seed, group_by_length
from analysis.products import by_product, ranks, relation
from analysis.runs import LAMBDA, RATE, Run
from analysis.statistics import Interval, interval
from analysis.verdict import Test
from configs.errors import InputError

POINTS, KIND, IMAGES = "schedule.points", "schedule.kind", "data.train_images"
ERROR = Endpoint("val/error", "test error at the end", "", "")
TRAINING = Endpoint("train_eval/loss", "training cross-entropy", "", "nats")
AVERAGE = "_ema_0.999"  # P1's
SAME = 0.005  # of the test error: half a percentage point, what P1's own figures can be read to
LATE = 0.5  # of a run: the checkpoints from here on are those that average and fine-tuning are judged at
Branches = dict[tuple[str, int], Run]


@dataclass(frozen=True)
class Part:
    """`words`: what must be. `tests`: comparison → test; any of them does."""

    words: str
    tests: dict[str, Test]


@dataclass(frozen=True)
class Claim:
    words: str
    where: str
    parts: list[Part]

    def rows(self) -> Iterator[dict[str, object]]:
        """A row a comparison, with the verdict of its part and of the claim."""
        tests = [test for part in self.parts for test in part.tests.values()]
        # over all comparisons of the claim, in one order with the parts
        adjusted = iter(holm([test.p for test in tests]))
        judged = [[(name, test, p) for (name, test), p in zip(part.tests.items(), adjusted)] for part in self.parts]  # noqa: B905
        verdicts = [_any_of([test.verdict(p) for _, test, p in tried]) for tried in judged]
        for part, tried, verdict in zip(self.parts, judged, verdicts, strict=True):
            for name, test, p in tried:
                yield {
                    "claim": self.words,
                    "runs": self.where,
                    "part": part.words,
                    "comparison": name,
                    "n": test.n,
                    "difference": "; ".join(difference.text() for difference, _ in test.parts)
                    + (f", margin {test.margin:g}" if test.margin is not None else ""),
                    "p after Holm": f"{p:.2g}",
                    "verdict of the part": verdict,
                    "verdict": _all_of(verdicts),
                }


def analyse(runs: list[Run], options: Options) -> Result:
    # branches are read through the trunk that they began at
    _, branches, notes = families(runs) if any(run.origin for run in runs) else ([], {}, [])
    trunks = [run for run in runs if run.origin is None and len(run.column(ERROR.column))]
    groups, mixed = group_by_length(trunks) if trunks else ([], [])
    claims = [claim for find in CLAIMS for claim in find(groups, branches)]
    if not claims:
        raise InputError(
            f"none of the claims on images can be read of these {len(trunks)} runs: a claim needs all η and λ of its sweep "
            "(docs/images.md has the sweeps)"
        )
    table = pd.DataFrame([row for claim in claims for row in claim.rows()])
    told = table.drop_duplicates(["claim", "runs"])
    findings = [f"{row['claim']} ({row['runs']}): {row['verdict']}." for _, row in told.iterrows()]
    return Result("declared_images", "P1's claims on images", findings, [], {"Claims": table}, notes + mixed)


def _any_of(verdicts: list[str]) -> str:
    """Of one part: one comparison that holds is enough, and it does not hold where none of them does."""
    if "holds" in verdicts:
        return "holds"
    return verdicts[0] if len(set(verdicts)) == 1 else "undecided"


def _all_of(verdicts: list[str]) -> str:
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "holds in part" if "holds" in verdicts else "does not hold" if "does not hold" in verdicts else "undecided"


def _label(group: Group) -> str:
    return f"η = {rate_of(group):g}, λ = {group.decay:g}"


def _network(group: Group) -> str:
    return str(group.runs[0].fields.get("model.kind"))


def corners(groups: list[Group], branches: Branches) -> Iterator[Claim]:
    """A large η with decay ends lower than the three other corners of large and small η, with and without decay."""
    for members in by_rest(groups, (LAMBDA, RATE, POINTS, KIND)).values():
        rates, decays = {rate_of(g) for g in members}, {g.decay for g in members}
        # two by two, and an η that falls; the grid and the flows have more, or hold η
        in_phases = any(g.runs[0].fields.get(KIND) == "multistep" for g in members)
        if len(members) != 4 or len(rates) != 2 or len(decays) != 2 or 0 not in decays or not in_phases:
            continue
        best = next(g for g in members if rate_of(g) == max(rates) and g.decay)
        parts = [
            Part(f"below {_label(other)}", {"": Test(((ERROR.difference(best, other), -1),))})
            for other in members
            if other is not best
        ]
        yield Claim(f"a large η with decay ({_label(best)}) has the lowest test error", _network(best), parts)


def sphere(groups: list[Group], branches: Branches) -> Iterator[Claim]:
    """Fine-tuned test error over η is a U, and the training loss that a large η holds rises with η."""
    for members in by_rest([g for g in groups if g.runs[0].rule == "sphere"], (RATE,)).values():
        # the trunk's own end is the level that its η held
        tuned = FineTuned(ERROR.column, "", "", "", _of(members, branches))
        found, held = by_product(members, tuned), relation(members, TRAINING, 1)
        if found is None or held is None:
            continue
        u = Part("the fine-tuned test error is a U over η", {"ends minus lowest": _u(*found)})
        rises = Part("training cross-entropy before it rises with η", {"Spearman's ρ": Test(((held.rho, 1),))})
        yield Claim("on the sphere the test error is a U over η", _network(members[0]), [u, rises])


def _u(products: np.ndarray, values: np.ndarray) -> Test:
    """Both ends above the lowest of the means, which the same seeds have chosen. `values`: a row a seed, a column a product."""
    lowest = values[:, values.mean(axis=0).argmin()]
    return Test(tuple((interval(values[:, end] - lowest), 1) for end in (0, -1)))


def flows(groups: list[Group], branches: Branches) -> Iterator[Claim]:
    """Average and fine-tuning lie below the iterate, over the later half of runs with decay."""
    for members in by_rest([g for g in groups if g.runs[0].rule != "sphere"], (LAMBDA, RATE)).values():
        own = _of(members, branches)
        decayed = [g for g in members if g.decay and any(path == str(run.path) for run in g.runs for path, _ in own)]
        averages = _averages(decayed)
        if len(decayed) < 2 or not averages:
            continue
        readings = {"the average": ERROR.column + averages[-1], "fine-tuning": None}
        # a seed's gap is the mean over the η: the noise of all of them is what is asked about
        parts = [
            Part(f"{way} lies below the iterate", {"": Test(((_mean([_gap(g, own, column) for g in decayed]), -1),))})
            for way, column in readings.items()
        ]
        yield Claim("average and fine-tuning show what the iterate's noise hides", _network(decayed[0]), parts)


def _of(members: list[Group], branches: Branches) -> Branches:
    paths = {str(run.path) for group in members for run in group.runs}
    return {key: branch for key, branch in branches.items() if key[0] in paths}


def _averages(members: list[Group]) -> list[str]:
    """What stands behind the column's name of each average of weights, the longest last."""
    before = f"{ERROR.column}_"
    return sorted(
        {str(c)[len(before) - 1 :] for g in members for run in g.runs for c in run.metrics if str(c).startswith(before)}
    )


def _gap(group: Group, branches: Branches, column: str | None) -> dict[str, float]:
    """Seeds → the column, or without one the branch's end, minus the iterate's error: mean over the branched checkpoints of the
    run's later half. A run that lacks one of them is no seed."""
    gaps = []
    for run in ended(group):
        iterate, differences = run.column(ERROR.column), []
        for (path, step), branch in branches.items():
            if path == str(run.path) and step >= LATE * run.last_step:
                # a branch that has not ended has not annealed, and its error would be too high
                end = ERROR.of(branch) if is_ended(branch) else np.nan
                other = end if column is None else run.column(column).get(step, np.nan)
                differences.append(other - iterate.get(step, np.nan))
        gaps.append((run, float(np.mean(differences)) if differences else float("nan")))
    return by_seed(gaps)


def _mean(gaps: list[dict[str, float]]) -> Interval:
    """Over the seeds that every cell has."""
    return interval(float(np.mean([gap[seed] for gap in gaps])) for seed in gaps[0] if all(seed in gap for gap in gaps))


def grid(groups: list[Group], branches: Branches) -> Iterator[Claim]:
    """Over η × λ: what rises and falls with ηλ, where the average's test error is lowest, and whether ηλ alone decides."""
    for members in by_rest(groups, (LAMBDA, RATE)).values():
        averaged = Endpoint(ERROR.column + AVERAGE, "", "", "")
        found = by_product(members, averaged)
        if found is None or len({rate_of(g) for g in members}) < 3 or any(g.runs[0].rule == "sphere" for g in members):
            continue
        # what the noise of the iterate makes is the iterate's, what it hides the average's
        expected = {
            "training cross-entropy rises with ηλ": (TRAINING.column, 1),
            "noise scale rises with ηλ": ("measure/noise_scale", 1),
            "Jacobian norm of the average falls with ηλ": ("measure/jacobian_norm" + AVERAGE, -1),
        }
        related = {
            words: (relation(members, Endpoint(column, "", ""), side), side)
            for words, (column, side) in expected.items()
        }
        parts = [
            Part(words, {"Spearman's ρ": Test(((one.rho, side),))})
            for words, (one, side) in related.items()
            if one is not None
        ]
        parts.append(Part("the average's test error is lowest inside", {"ends minus lowest": _u(*found)}))
        along = "largest minus smallest η at one ηλ, mean over ηλ"
        parts.append(
            Part("ηλ alone decides the average's test error", {along: Test(((_along(members, averaged), 0),), SAME)})
        )
        yield Claim("ηλ decides, and the best lies inside", _network(members[0]), parts)


def _along(members: list[Group], endpoint: Endpoint) -> Interval:
    """The measurement at the largest η minus that at the smallest, on every line of equal ηλ with two cells or more; their mean."""
    cells = sorted((g for g in members if g.decay > 0 and endpoint.seed_losses(g)), key=rate_of)
    places = ranks(np.array([rate_of(group) * group.decay for group in cells]))
    # cells are in order of η: a line's last has the largest
    lines = [[group for group, at in zip(cells, places, strict=True) if at == place] for place in set(places)]
    gaps = [_minus(line[-1], line[0], endpoint) for line in lines if len(line) > 1]
    return _mean(gaps) if gaps else interval([])


def _minus(one: Group, other: Group, endpoint: Endpoint) -> dict[str, float]:
    """Seeds → the difference of the two at their ends."""
    ours, theirs = endpoint.seed_losses(one), endpoint.seed_losses(other)
    return {seed: loss - theirs[seed] for seed, loss in ours.items() if seed in theirs}


def passes(groups: list[Group], branches: Branches) -> Iterator[Claim]:
    """At one number of updates, decay lowers the test error both in many passes over few images and in one over many."""
    # without the field a run has all images, and is one of no series of sizes
    for members in by_rest([g for g in groups if g.runs[0].fields.get(IMAGES)], (LAMBDA, IMAGES)).values():
        sizes = sorted({int(g.runs[0].fields[IMAGES]) for g in members})
        plain = {int(g.runs[0].fields[IMAGES]): g for g in members if not g.decay}
        # the sizes between say how the gain moves, and decide nothing
        if len(sizes) < 2 or not {sizes[0], sizes[-1]} <= set(plain):
            continue
        parts = [
            Part(f"decay helps with {size:,} images", _over_decays(members, plain[size], size))
            for size in (sizes[0], sizes[-1])
        ]
        yield Claim("decay helps in many passes and in one", _network(members[0]), parts)


def _over_decays(members: list[Group], plain: Group, size: int) -> dict[str, Test]:
    decayed = [g for g in members if g.decay and g.runs[0].fields.get(IMAGES) == size]
    return {f"λ = {g.decay:g} minus 0": Test(((ERROR.difference(g, plain), -1),)) for g in decayed}


CLAIMS: tuple[Callable[[list[Group], Branches], Iterator[Claim]], ...] = (corners, sphere, flows, grid, passes)
