"""Which runs are branches of which trunks, and at which learning rate the branches anneal."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.effective_lr import effective_lr
from analysis.runs import LAMBDA, RATE, SCALED, SEEDS, STARTS, Run, differing_fields, find_run

APART = 1.02  # a ratio of effective learning rates below this is said to be one


def families(runs: list[Run]) -> tuple[list[Run], dict[tuple[str, int], Run], list[str]]:
    """Trunks, the branch of each (trunk's folder, step), and notes. Of a checkpoint's branches that with the smallest η counts."""
    branches: dict[tuple[str, int], Run] = {}
    trunks: list[Run] = []
    notes: list[str] = []
    every = [run for run in runs if run.origin is not None]
    # branches at the same η and at the same effective η answer two questions: they are never mixed
    scaled = [run for run in every if run.fields.get(SCALED)]
    if scaled and len(scaled) < len(every):
        every = [run for run in every if run not in scaled]
        notes.append(
            f"{len(scaled)} branches have a learning rate scaled by norms, and are left out here; give them with their trunks "
            "and without the others to see them"
        )
    without_trunk = 0
    for run in every:
        path, step = run.origin or (run.path, 0)
        # a branch alone has no loss to be taken apart
        trunk = find_run(path, runs)
        if trunk is None:
            notes.append(f"{run.path.name}: its trunk {path} is not among these runs")
            without_trunk += 1
            continue
        if trunk not in trunks:
            trunks.append(trunk)
        other = branches.get((str(trunk.path), step))
        # the smaller η, the less noise is left at its end
        if other is None or run.fields[RATE] < other.fields[RATE]:
            branches[str(trunk.path), step] = run
    if len(branches) < len(every) - without_trunk:
        notes.append("checkpoints with several branches: the one with the smallest learning rate is taken")
    # where a branch starts, and by which seed, is not what it did; nor is λ where each goes on with its trunk's
    decays = {str(trunk.path): trunk.decay for trunk in trunks}
    own = (LAMBDA,) if all(branch.decay == decays[path] for (path, _), branch in branches.items()) else ()
    ignored = ("branch.", SEEDS, STARTS, "data.digest", *own)
    if unlike := [name for name in differing_fields(list(branches.values())) if not name.startswith(ignored)]:
        notes.append(f"the branches differ in {', '.join(unlike)}: their ends may not compare")
    return trunks, branches, notes


def condition_of(branches: Mapping[tuple[str, int], Run]) -> str:
    """What claims about these branches hold under."""
    return "branches of one effective learning rate" if any(b.fields.get(SCALED) for b in branches.values()) else ""


def notes_on_rates(branches: Mapping[tuple[str, int], Run]) -> list[str]:
    """How far the branches of one step and seed lie apart in η/‖w‖: the speed at which they anneal, and so a factor of its own."""
    rates: dict[tuple[int, str], list[float]] = {}
    for (_, step), branch in branches.items():
        # the first update's: from there on each branch goes its own way
        if len(series := effective_lr(branch)):
            rates.setdefault((step, branch.seeds), []).append(float(series.iloc[0]))
    ratio = max((max(values) / min(values) for values in rates.values() if len(values) > 1), default=1.0)
    told = f"at one step and seed their effective learning rates η/‖w‖ are {_apart(ratio)}"
    if scaled := sorted({branch.fields[SCALED] for branch in branches.values() if branch.fields.get(SCALED)}):
        etas = [float(lrs.iloc[0]) for branch in branches.values() if len(lrs := branch.column("optim/lr"))]
        shown = f": η from {min(etas):.3g} to {max(etas):.3g}; {told}" if etas else ""
        return [f"the branches' learning rate is scaled to the effective one of {', '.join(scaled)}{shown}"]
    if ratio > APART:
        return [f"the branches have one η, but {told}: branch.lr_by_norm_of makes branches of one η/‖w‖"]
    return []


def _apart(ratio: float) -> str:
    return f"up to {ratio:.3g} times apart" if ratio > APART else f"the same within {100 * (ratio - 1):.2g} %"
