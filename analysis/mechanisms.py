"""P2's three mechanisms of weight decay, a figure each; optimisers × {none, L2, decay}.

    python -m analysis mechanisms 'runs/small_mechanisms/*/' --out runs/mechanisms

P2 is arXiv 1810.12281. Mechanism 1 is η/‖w_l‖² of the layers that a normalisation follows (log.tensor_norms); 2 the norm of the
input-output Jacobian, the Gauss-Newton norm and the gap; 3 the effective damping λ_d·‖w_l‖² of K-FAC with the Fisher and the
Gauss-Newton norm, overall and by layer (measures.every), and of Adam ε·‖w‖ and its share (log.probe_every).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.arms import is_pilot
from analysis.claims import Claim, difference_claim, table_of_claims
from analysis.command import Options, Result
from analysis.compare import lost
from analysis.endpoint import Endpoint, endpoint_of, lowest
from analysis.figures import Figure, Line, Panel
from analysis.grouped import Grouped, Read, diverged_lines, grouped, mean_line, probed, trunks_of
from analysis.layer_rates import layer_rate, norm_of, normalised, spread
from analysis.pairing import Group
from analysis.published import paper
from analysis.runs import RATE, SEEDS, Run, field_name, shown
from analysis.statistics import interval

P2 = "1810.12281"
LAYERS = 4  # so many are drawn, from the first to the last
ERROR, GAP = "val/error", "test error minus training error"
JACOBIAN, NEWTON, FISHER = "measure/input_jacobian_norm", "measure/gauss_newton_norm", "measure/fisher_norm"
METRICS = {"fisher": "K-FAC-F", "fisher_empirical": "K-FAC, empirical Fisher", "gauss_newton": "K-FAC-G"}
FORMS = {"l2_coupled": "L2", "l2_loss": "L2, in the loss", "decoupled": "decay"}
OWN = ("optim.", "schedule.", SEEDS)  # what belongs to an optimiser's arm, and makes no other setting
WORDS = "better than without", "worse than without"

LayerRead = Callable[[Run, str], pd.Series]


def analyse(runs: list[Run], options: Options) -> Result:
    trunks = trunks_of(runs)
    begun = grouped(trunks, options)
    notes = list(begun.notes)
    figures = [_rates(begun, trunks, options), _jacobians(begun, trunks, options), _damping(begun, trunks, options)]
    figures.append(_epsilon(begun, trunks, options))
    if any(run.algorithm == "kfac" for run in trunks):
        notes.append(
            "no η/‖w_l‖² of K-FAC: its step grows with ‖w_l‖ by itself, and what a norm changes is the damping"
        )
    # on images the error, as P2 has it; of tokens the loss that all of them have
    images = all(ERROR in run.metrics for run in trunks)
    endpoint = Endpoint(ERROR, "test error at the end", "", "") if images else endpoint_of(begun.groups)
    table, claims, more = _optimisers(begun.groups, endpoint, options)
    if not images:
        notes.append(endpoint.note)
    tables = {
        "Optimisers × {none, L2, decay}": table,
        "Minus the same optimiser without decay": table_of_claims(claims),
    }
    findings = [claim.sentence for claim in claims]
    return Result("mechanisms", "Three mechanisms of weight decay", findings, figures, tables, notes + more, claims)


def _panel(begun: Grouped, options: Options, label: str, read: Read, title: str = "", log: bool = True) -> Panel:
    lines: list[Line] = []
    # diverged runs by themselves, as everywhere
    for group in begun.groups:
        for draw in (mean_line, diverged_lines):
            lines += draw(group, begun.looks[group.name], options, read)
    return Panel(options.xlabel, label, lines, title, ylog=log)


def _figure(name: str, caption: str, panels: list[Panel]) -> Figure:
    return Figure(name, caption, [panel for panel in panels if panel.lines])


def _layers(trunks: list[Run]) -> list[str]:
    """The layers of all runs' models together, by name, first to last."""
    return list(dict.fromkeys(name for run in trunks for name in normalised(run)))


def _over_layers(read: LayerRead) -> Read:
    """The geometric mean over a run's normalised layers: one layer that is ten times as large must not be all of it."""

    def mean(run: Run) -> pd.Series:
        curves = [curve for name in normalised(run) if len(curve := read(run, name))]
        return np.exp(np.log(pd.concat(curves, axis=1)).mean(axis=1)) if curves else pd.Series(dtype=float)

    return mean


def _by_layer(begun: Grouped, trunks: list[Run], options: Options, label: str, read: LayerRead) -> list[Panel]:
    """The mean over layers, then some layers by themselves."""
    panels = [_panel(begun, options, label, _over_layers(read), "geometric mean over layers")]
    for name in spread(_layers(trunks), LAYERS):
        panels.append(_panel(begun, options, label, lambda run, n=name: read(run, n), name))  # type: ignore[misc]
    return panels


def _rates(begun: Grouped, trunks: list[Run], options: Options) -> Figure:
    # of several optimisers the axes differ by a power of ‖w_l‖: compare within one of them
    panels = _by_layer(begun, trunks, options, "η/‖w_l‖² (Adam: η/‖w_l‖)", layer_rate)
    caption = (
        "Mechanism 1: the effective learning rate of layers that a normalisation follows. Without decay P2 has it fall."
    )
    return _figure("mechanism_1", caption, panels)


def _jacobians(begun: Grouped, trunks: list[Run], options: Options) -> Figure:
    # the gap is of errors, and may be zero: no logarithm
    panels = [
        _panel(begun, options, "norm of the input-output Jacobian", _column(JACOBIAN)),
        _panel(begun, options, "Gauss-Newton norm", _column(NEWTON)),
        _panel(begun, options, GAP, gap, log=False),
    ]
    caption = "Mechanism 2: decay and the Jacobian of the outputs by the inputs. P2 has both norms smaller with decay."
    return _figure("mechanism_2", caption, panels)


def _damping(begun: Grouped, trunks: list[Run], options: Options) -> Figure:
    # ‖w_l‖⁻² of the curvature makes λ_d count for more where the layer is large
    panels = _by_layer(begun, trunks, options, "λ_d·‖w_l‖²", layer_damping)
    # layers as the measures name them, which need not be tensors
    measured = [
        column for run in trunks for column in map(str, run.metrics) if column.startswith((FISHER + "@", NEWTON + "@"))
    ]
    layers = spread(list(dict.fromkeys(column.partition("@")[2] for column in measured)), LAYERS)
    # Fisher and Gauss-Newton norm of one layer stand side by side
    for place in ["", *(f"@{layer}" for layer in layers)]:
        for column, label in ((FISHER, "Fisher norm"), (NEWTON, "Gauss-Newton norm")):
            panels.append(_panel(begun, options, label, _column(column + place), place[1:]))
    caption = "Mechanism 3: K-FAC's effective damping, and the Fisher norm beside the Gauss-Newton norm."
    return _figure("mechanism_3", caption, panels)


def _epsilon(begun: Grouped, trunks: list[Run], options: Options) -> Figure:
    # the columns are Adam's alone: probes of others are not read, as they are large
    adam = [run for run in trunks if run.algorithm == "adam"]
    start = "probe/adam_epsilon/kind:"
    kinds = list(
        dict.fromkeys(c.removeprefix(start) for run in adam for c in map(str, run.probes) if c.startswith(start))
    )
    panels = [
        _panel(begun, options, label, probed(f"probe/{quantity}/kind:{kind}"), kind)
        for quantity, label in (("adam_epsilon", "ε·‖w‖"), ("adam_damping", "mean of ε/(√v + ε)"))
        for kind in kinds
    ]
    caption = (
        "Mechanism 3 of Adam, by analogy: ε damps as ε·‖w‖ where only the direction of w counts; its share in the step."
    )
    return _figure("mechanism_3_adam", caption, panels)


def _column(name: str) -> Read:
    return lambda run: run.column(name)


def gap(run: Run) -> pd.Series:
    """Test error minus training error, at every evaluation that has both."""
    return (run.column(ERROR) - run.column("train_eval/error")).dropna()


def layer_damping(run: Run, name: str) -> pd.Series:
    """λ_d·‖w_l‖²; empty for a run that is not K-FAC's."""
    # λ_d as configured: it does not change over a run
    damping = run.fields.get("optim.kfac.damping")
    if run.algorithm != "kfac" or damping is None:
        return pd.Series(dtype=float)
    return float(damping) * norm_of(run, name) ** 2


def optimiser_of(run: Run) -> str:
    """As P2 calls it."""
    if run.algorithm == "kfac":
        return METRICS.get(str(run.fields.get("optim.kfac.metric", "fisher")), "K-FAC")
    return {"sgd": "SGD", "adam": "Adam"}.get(run.algorithm, run.algorithm)


def form_of(run: Run) -> str:
    """none, L2 or decay; another rule by its own name."""
    return FORMS.get(run.rule, run.rule) if run.decay else "none"


def _setting(group: Group) -> str:
    # an optimiser has its own η, λ and schedule: they make no other setting
    names = [name for name in group.fields if not name.startswith(OWN)]
    return ", ".join(f"{field_name(name)} = {shown(group.fields[name])}" for name in names)


def _optimisers(
    groups: list[Group], endpoint: Endpoint, options: Options
) -> tuple[pd.DataFrame, list[Claim], list[str]]:
    """A row a cell: its value at the end, and its difference to the same optimiser's lowest cell without decay in one setting.

    A pilot's seeds chose η and λ, and enter neither.
    """
    # what a pilot chose must not be judged on the seeds that chose it
    kept = [
        Group(g.name, g.fields, runs)
        for g in groups
        if (runs := [r for r in g.runs if not is_pilot(r, options.pilot_from)])
    ]
    rows, claims, notes = [], [], []
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
        row: dict[str, object] = {"setting": _setting(group), "optimiser": optimiser_of(run), "form": form_of(run)}
        row |= {"η": run.fields.get(RATE), "λ": run.decay, "seeds": ends.n}
        row["test accuracy" if accuracy else endpoint.words] = shown_end.text().lstrip("+") if ends.n else None
        # both sides may have several η: the lowest of the cells without decay
        plain = [g for g in kept if g.decay == 0 and _arm(g) == _arm(group)]
        base = lowest(plain, endpoint) if group.decay else None
        if base is not None:
            difference = endpoint.difference(group, base[0])
            name = f"{row['optimiser']} with {row['form']} (η = {row['η']:g}, λ = {run.decay:g})"
            name += f", {row['setting']}" if row["setting"] else ""
            gone = lost(group, base[0])
            claim = difference_claim(name, endpoint.words, difference, WORDS, lost=gone)
            # how many seeds would tell a difference is counted in nats: an error has none
            claims.append(replace(claim, advice="", seeds_needed=None) if accuracy else claim)
            row["verdict"] = claims[-1].verdict
        if (printed := published(run)) is not None:
            row["P2 on CIFAR-10, second-hand"] = f"{printed:.4f}"
        rows.append(row)
    # several cells of one optimiser and form: the table shows all, and chooses none
    return pd.DataFrame(rows), claims, notes


def _arm(group: Group) -> tuple[str, str]:
    return optimiser_of(group.runs[0]), _setting(group)


def published(run: Run) -> float | None:
    """P2's test accuracy of the same network on CIFAR-10 by the same optimiser, without decay or with; None where there is none.

    P2's tables name one number with decay: it stands beside decay, and of SGD, where the two coincide, beside L2 too.
    """
    get = run.fields.get
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
