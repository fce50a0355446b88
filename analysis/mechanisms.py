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

from analysis.claims import table_of_claims
from analysis.command import Options, Result
from analysis.compare import ended
from analysis.endpoint import Endpoint, endpoint_of
from analysis.figures import Figure, Line, Panel
from analysis.grouped import Grouped, Read, diverged_lines, grouped, mean_line, probed, trunks_of
from analysis.layer_rates import layer_rate, norm_of, normalised, spread
from analysis.optimisers import ERROR, name_of_cell, table_of_optimisers
from analysis.pairing import Group, by_seed
from analysis.runs import Run
from analysis.statistics import Interval, interval

LAYERS = 4  # so many are drawn, from the first to the last
GAP = "test error minus training error"
JACOBIAN, NEWTON, FISHER = "measure/input_jacobian_norm", "measure/gauss_newton_norm", "measure/fisher_norm"

LayerRead = Callable[[Run, str], pd.Series]


def analyse(runs: list[Run], options: Options) -> Result:
    trunks = trunks_of(runs)
    begun = _told_briefly(grouped(trunks, options))
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
    table, claims, across, more = table_of_optimisers(begun.groups, endpoint, options)
    if not images:
        notes.append(endpoint.note)
    tables = {
        "Optimisers × {none, L2, decay}": table,
        "Minus the same optimiser without decay": table_of_claims(claims),
        "The same between settings": table_of_claims(across),
        "Measures": _measures(begun.groups),
    }
    findings = [claim.sentence for claim in claims + across]
    return Result(
        "mechanisms", "Three mechanisms of weight decay", findings, figures, tables, notes + more, claims + across
    )


def _told_briefly(begun: Grouped) -> Grouped:
    """With each group under its optimiser, form, η and λ: all fields in which optimisers differ would fill a legend. Where two
    groups are one by these, all keep their names."""
    # only if every group keeps a name of its own
    names = {group.name: name_of_cell(group) for group in begun.groups}
    if len(set(names.values())) < len(names):
        return begun
    groups = [replace(group, name=names[group.name]) for group in begun.groups]
    return replace(begun, groups=groups, looks={names[name]: look for name, look in begun.looks.items()})


def _measures(groups: list[Group]) -> pd.DataFrame:
    """A row a group: what the figures draw, as one number a run, its mean and interval over the seeds of runs that ended."""
    # the rate is what a run has gone through, the rest is where it has come to
    reads: dict[str, tuple[Read, Callable[[pd.Series], float]]] = {
        "η/‖w_l‖² (Adam: η/‖w_l‖), mean of the run": (_over_layers(layer_rate), _mean),
        "input Jacobian at the end": (_column(JACOBIAN), _last),
        "Gauss-Newton norm at the end": (_column(NEWTON), _last),
        "Fisher norm at the end": (_column(FISHER), _last),
        f"{GAP} at the end": (gap, _last),
        "λ_d·‖w_l‖² at the end": (_over_layers(layer_damping), _last),
    }
    rows = []
    for group in groups:
        row: dict[str, object] = {"": group.name}
        for words, (read, to_one) in reads.items():
            value = interval(by_seed([(r, to_one(c)) for r in ended(group) if len(c := read(r))]).values())
            row[words] = _few_digits(value) if value.n else None
        rows.append(row)
    table = pd.DataFrame(rows).dropna(axis=1, how="all")
    # names alone say nothing: runs on tokens have none of these
    return table if table.shape[1] > 1 else pd.DataFrame()


def _mean(curve: pd.Series) -> float:
    return float(curve.mean())


def _last(curve: pd.Series) -> float:
    return float(curve.iloc[-1])


def _few_digits(value: Interval) -> str:
    """Three digits: norms span many powers of ten."""
    bounds = f" [{value.low:.3g}, {value.high:.3g}]" if np.isfinite(value.low) else ""
    return f"{value.mean:.3g}{bounds}"


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
