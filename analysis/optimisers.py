"""Optimisers × {none, L2, decay}: how each cell is called, where it ends, and how far from the same optimiser without decay.

As P2 (arXiv 1810.12281) sets them side by side. analysis/mechanisms.py draws what the cells measure.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from analysis.arms import without_pilots
from analysis.claims import Claim, difference_claim
from analysis.command import Options
from analysis.compare import lost
from analysis.endpoint import Endpoint, lowest
from analysis.pairing import Group, in_order
from analysis.published import paper
from analysis.runs import FOLLOWS, RATE, SEEDS, Run, field_name, shown
from analysis.statistics import interval

P2 = "1810.12281"
METRICS = {"fisher": "K-FAC-F", "fisher_empirical": "K-FAC, empirical Fisher", "gauss_newton": "K-FAC-G"}
FORMS = {"l2_coupled": "L2", "l2_loss": "L2, in the loss", "decoupled": "decay"}
MASK = "optim.decay_mask"
OWN = ("optim.", "schedule.", SEEDS)  # what belongs to an optimiser's arm, and makes no other setting
WORDS = "better than without", "worse than without"
ACROSS = "gains more", "gains less"
ERROR = "val/error"


def optimiser_of(run: Run) -> str:
    """As P2 calls it."""
    if run.algorithm == "kfac":
        return METRICS.get(str(run.fields.get("optim.kfac.metric", "fisher")), "K-FAC")
    return {"sgd": "SGD", "adam": "Adam"}.get(run.algorithm, run.algorithm)


def form_of(run: Run) -> str:
    """none, L2 or decay; another rule by its own name."""
    return FORMS.get(run.rule, run.rule) if run.decay else "none"


def _form(group: Group) -> str:
    """With the tensors that decay, where the groups differ in them, and the run whose layer norms are taken."""
    run, form = group.runs[0], form_of(group.runs[0])
    # a run without decay has a mask too, which does nothing
    if MASK in group.fields and run.decay:
        form += f" on {group.fields[MASK]}"
    # the fields name only what differs from the run that is followed
    return form + (f", layer norms of the run of {_leader(run)} {_how_often(run)}" if _follows(run) else "")


def _how_often(run: Run) -> str:
    every = run.fields.get("schedule.match.every")
    return "each epoch" if every is None else "each update" if every == 1 else f"every {every} updates"


def _follows(run: Run) -> bool:
    return run.reference is not None


def _leader(run: Run) -> str:
    """The followed run in words: what it is, where it differs from this one."""
    return str(run.fields.get(FOLLOWS) or "another kind")


def _setting(group: Group) -> str:
    return ", ".join(f"{field_name(name)} = {shown(group.fields[name])}" for name in _settled(group))


def _settled(group: Group) -> list[str]:
    # an optimiser has its own η, λ and schedule: they make no other setting, nor do norms that are taken
    return [name for name in group.fields if not name.startswith(OWN) and name != FOLLOWS]


def _place(group: Group) -> list[tuple[int, float, str]]:
    """Sorts groups by their setting: the smaller batch first."""
    return [in_order(group.fields[name]) for name in _settled(group)]


def table_of_optimisers(
    groups: list[Group], endpoint: Endpoint, options: Options
) -> tuple[pd.DataFrame, list[Claim], list[Claim], list[str]]:
    """A row a cell: its value at the end, and its difference to the same optimiser's lowest cell without decay in one setting.

    Returns (table, the differences, what they differ between settings, notes). A pilot's seeds chose η and λ, and enter none.
    """
    # what a pilot chose must not be judged on the seeds that chose it
    kept = without_pilots(groups, options.pilot_from)
    rows, claims, notes, compared = [], list[Claim](), list[str](), list[tuple[Group, Group, Claim]]()
    if len(kept) < len(groups):
        notes.append(
            f"{len(groups) - len(kept)} cells of seeds from {options.pilot_from} up are a pilot's, and in no row"
        )
    for group in kept:
        run = group.runs[0]
        ends = interval(endpoint.seed_losses(group).values())
        accuracy = endpoint.column == ERROR
        # a mean of errors in one row, as the accuracy that P2 prints
        shown_end = interval([1 - v if accuracy else v for v in endpoint.seed_losses(group).values()])
        row: dict[str, object] = {"setting": _setting(group), "optimiser": optimiser_of(run), "form": _form(group)}
        row |= {"η": run.fields.get(RATE), "λ": run.decay, "seeds": ends.n}
        row["test accuracy" if accuracy else endpoint.words] = shown_end.text().lstrip("+") if ends.n else None
        # a run that takes norms is compared as one that decays is; of several η the lowest of the cells without decay counts
        plain = [g for g in kept if g.decay == 0 and _arm(g) == _arm(group) and not _follows(g.runs[0])]
        base = lowest(plain, endpoint) if group.decay or _follows(run) else None
        if base is not None:
            difference = endpoint.difference(group, base[0])
            gone = lost(group, base[0])
            claim = difference_claim(name_of_cell(group), endpoint.words, difference, WORDS, lost=gone)
            # how many seeds would tell a difference is counted in nats: an error has none
            claims.append(replace(claim, advice="", seeds_needed=None) if accuracy else claim)
            row["verdict"] = claims[-1].verdict
            compared.append((group, base[0], claim))
        if (printed := published(run)) is not None:
            row["P2 on CIFAR-10, second-hand"] = f"{printed:.4f}"
        rows.append(row)
    # several cells of one optimiser and form: the table shows all, and chooses none
    return pd.DataFrame(rows), claims, _across_settings(compared, endpoint), notes


def _across_settings(compared: list[tuple[Group, Group, Claim]], endpoint: Endpoint) -> list[Claim]:
    """Whether a form gains as much in another setting, such as a larger batch: the difference to no decay there minus that in the
    first setting, by the same seeds. Of optimisers and forms that every setting has once."""
    cells: dict[tuple[str, str], dict[str, list[tuple[Group, Group, Claim]]]] = {}
    for group, base, claim in compared:
        arm = cells.setdefault((optimiser_of(group.runs[0]), _form(group)), {})
        arm.setdefault(_setting(group), []).append((group, base, claim))
    claims = []
    for (optimiser, form), settings in cells.items():
        if len(settings) < 2 or any(len(members) > 1 for members in settings.values()):
            continue
        # whatever the order of their λ
        (first, ((group, base, plain),)), *others = sorted(settings.items(), key=lambda item: _place(item[1][0][0]))
        begun = _changes(group, base, endpoint)
        for setting, ((group, base, claim),) in others:
            changes = _changes(group, base, endpoint)
            difference = interval(changes[seeds] - begun[seeds] for seeds in changes if seeds in begun)
            if endpoint.whole:  # as of two draws of documents, which is wider than of one
                difference = difference.with_documents(math.hypot(plain.interval.documents, claim.interval.documents))
            name = f"{optimiser}, {form} minus none: with {setting} minus with {first}"
            lost_there = (*plain.lost, *claim.lost)
            across = difference_claim(name, endpoint.words, difference, ACROSS, lost=lost_there)
            claims.append(replace(across, advice="", seeds_needed=None) if endpoint.column == ERROR else across)
    return claims


def _changes(group: Group, base: Group, endpoint: Endpoint) -> dict[str, float]:
    """Seeds → `group` minus `base` at the end."""
    losses, without = endpoint.seed_losses(group), endpoint.seed_losses(base)
    return {seeds: loss - without[seeds] for seeds, loss in losses.items() if seeds in without}


def _arm(group: Group) -> tuple[str, str]:
    return optimiser_of(group.runs[0]), _setting(group)


def published(run: Run) -> float | None:
    """P2's test accuracy of the same network on CIFAR-10 by the same optimiser, without decay or with; None where there is none.

    P2's tables name one number with decay: it stands beside decay, and of SGD, where the two coincide, beside L2 too.
    """
    get = run.fields.get
    # theirs are of decay on all weights, and of norms that nobody set
    if _follows(run) or get(MASK) in ("conv", "last"):
        return None
    if (get("model.classes"), get("model.image_size"), get("model.width", 64)) != (10, 32, 64):
        return None
    augmented = "augmented" if get("data.crop") or get("data.flip") else "plain"
    # the notes have one network with augmentation, and two without
    table = paper(P2)["accuracy"]["none_and_decay"]
    pair = table.get(f"{get('model.kind')}, {get('model.batchnorm')}, {augmented}", {}).get(optimiser_of(run))
    with_decay = form_of(run) == "decay" or (run.algorithm == "sgd" and form_of(run) == "L2")
    if pair is None or not (with_decay or form_of(run) == "none"):
        return None
    return float(pair[1 if with_decay else 0])


def name_of_cell(group: Group) -> str:
    """As a legend and a claim call it."""
    run, setting, form = group.runs[0], _setting(group), _form(group)
    # of a run without decay λ is no number to tell
    values = f"η = {run.fields.get(RATE):g}" + (f", λ = {run.decay:g}" if run.decay else "")
    words = f"with {form}" if run.decay else f"without decay{form.removeprefix('none')}"
    name = f"{optimiser_of(run)} {words} ({values})"
    return f"{name}, {setting}" if setting else name
