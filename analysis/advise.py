"""What is known of a configuration's λ before it is run, and what finished runs say.

    python -m analysis advise configs/gpt124m_wd0.1.json
    python -m analysis advise configs/quickstart.json configs/sweeps/small_wd_precision.json
    python -m analysis advise configs/quickstart.json --to configs/gpt124m_wd0.1.json

Every line names its source. The power law was fitted with μP and a decay of the learning rate to zero (2505.13738):
advice, not truth. The published cases that are nearest stand below it, and `--to` carries a λ to a wider or longer model.
"""

from __future__ import annotations

import argparse

import pandas as pd

from analysis.carried_decay import Carried, carry
from analysis.command import Options, Result, add_runs, load_runs, options_of, root_of, show
from analysis.due import dues, provisional
from analysis.equilibria import equilibrium_rows
from analysis.evidence import Evidence, evidence_of
from analysis.nearest_cases import nearest, said_of_interior, said_of_n
from analysis.own_study import study
from analysis.power_law import by_power_law, why_refused
from analysis.published import P1, paper
from analysis.runs import Run
from configs import equilibrium
from configs.cautions import cautions
from configs.decay_laws import LAWS, OWN_SCALE, SCALES, decoupled_per_decay, product_acts
from configs.equilibrium import why_no_e_folds as why
from configs.errors import InputError
from configs.load import load_config
from configs.plan import Plan, make_plan
from configs.prepared import DataSummary, ImageSummary, read_summary
from configs.schedule import decay_sum, lr_sum
from configs.schema import RunConfig


def analyse(config: RunConfig, runs: list[Run], options: Options, to: RunConfig | None = None) -> Result:
    """`to`: a wider or longer model, which the λ of these runs, or else of `config`, is carried to."""
    if config.unit == "images":
        raise InputError(
            "advise knows laws of training on tokens in one pass; of images, repeated, none is known to hold: compare runs with "
            "`python -m analysis overtraining`"
        )
    optim = config.optim
    plan = make_plan(config, 1, None)
    summary, notes = read_summary(config.data.path), []
    assert not isinstance(summary, ImageSummary), "a configuration for tokens"
    if summary is None:
        notes.append(f"no prepared data in {config.data.path}: time scales are not given in epochs")
    total = lr_sum(config) if config.schedule.match is None else None
    if total is None:
        notes.append("the learning rate follows another run's norms: sums over it are known only from the run")
    # worth of one λ in decoupled decay's, which all that is published speaks of; None where no law says it
    worth = decoupled_per_decay(optim.decay_rule, optim.algorithm, optim.momentum, optim.lr)
    rows, findings = _named(config, worth)
    if worth is not None and optim.weight_decay > 0:
        told, said = _equilibrium(config, worth, plan, summary)
        rows, findings = rows + told, findings + said
    if total is not None:
        rows += _sums(config, total)
    if worth is not None and _is_adam(config):
        told, said = by_power_law(config, worth)
        rows, findings = rows + told, findings + said
    elif worth is not None:
        notes.append(
            f"algorithm {optim.algorithm}: the power law is of AdamW, and is left out; "
            f"{SCALES.get(optim.algorithm, OWN_SCALE)}"
        )
    tables = {"Known beforehand": pd.DataFrame(rows, columns=["what", "value", "source"])}
    if worth is not None:
        said, near = _published(config, None if total is None else _folds_of_one(config))
        findings, tables = findings + said, tables | near
    findings += [f"Warning: {text}." for text in cautions(config, summary, plan.groups)]
    evidence = evidence_of(config, runs, options) if runs else Evidence()
    findings, notes = findings + evidence.findings, notes + evidence.notes
    # last, because it speaks of another model than all that stands above
    if to is not None:
        said, carried = carry(config, to, _to_carry(config, runs, evidence))
        findings, tables = findings + said, tables | carried
    return Result("advise", f"λ for {config.name}", findings, [], tables, notes)


def _published(config: RunConfig, one: float | None) -> tuple[list[str], dict[str, pd.DataFrame]]:
    """What N counts, where interior optima lie, and the nearest published cases. `one`: e-folds of λ = 1 over the run; None where
    that is not known."""
    # Σηλ and not λ: λ of two horizons, or of two η, do not compare
    folds = None if one is None else one * config.optim.weight_decay
    near = nearest(config, folds)
    said = [said_of_n(config), said_of_interior(config, folds, one)]
    if near.empty:
        said.append(f"No published case is of {config.optim.algorithm} with decoupled decay.")
    tables = {"Nearest published cases, by tokens per parameter (D/N) and Σηλ": near}
    # the study's runs are AdamW's under a falling rate, as the power law's are
    if _is_adam(config) and not why_refused(config):
        sentence, own = study(one)
        said, tables = [*said, sentence], tables | {"This project's own study": own}
    return said, tables


def _to_carry(config: RunConfig, runs: list[Run], evidence: Evidence) -> Carried:
    """The best λ of finished runs of the configuration's own setting; without such runs the configuration's own."""
    if evidence.best is not None:
        rate, decay, count = evidence.best
        return Carried(rate, decay, f"the best of {count} finished runs of its setting")
    # runs of another setting were given, and are no evidence: said, and not passed over
    without = "no finished runs of its setting at several λ are among those given" if runs else "no runs are given"
    return Carried(config.optim.lr, config.optim.weight_decay, f"the configuration's own: {without}")


def _is_adam(config: RunConfig) -> bool:
    """Whether what is known of AdamW holds: Adam, and a rule that multiplies weights beside its step."""
    return config.optim.algorithm == "adam" and config.optim.decay_rule in equilibrium.MULTIPLIED


def _named(config: RunConfig, worth: float | None) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The rule by its name, what its λ is, and, where no law takes λ to decoupled decay's, that nothing more is said of it."""
    optim = config.optim
    eta, lam, rule, algorithm, law = (
        optim.lr,
        optim.weight_decay,
        optim.decay_rule,
        optim.algorithm,
        LAWS[optim.decay_rule],
    )
    # decoupled decay is what every line is of, and needs no word
    named = [] if rule == "decoupled" else [f"{rule}: {law.law}."]
    if not law.has_decay:
        named.append(f"{rule} has no λ: norms are held, so η/‖w‖ follows the schedule alone, and η is what to tune.")
        if lam > 0:
            named.append(f"Warning: a run of {rule} with λ = {lam:g} is refused; set optim.weight_decay 0.")
        return [("peak η", f"{eta:g}", "the configuration")], named
    rows = [("λ, peak η, ηλ", f"{lam:g}, {eta:g}, {eta * lam:.3g}", "the configuration")]
    # where η is no factor of the decay, their product says nothing
    if not product_acts(rule, algorithm):
        rows = [("λ, peak η", f"{lam:g}, {eta:g}", "the configuration")]
    if lam == 0:
        plain = "no time scale, no equilibrium; norms grow, and the effective learning rate falls with them"
        named.append(f"λ = 0: {plain}.")
    elif worth is None:
        named.append(
            f"No time scale, equilibrium or published λ is given, for those are of decoupled decay: {why(rule, algorithm)}. "
            f"Here λ is {law.decay}; runs must choose it (docs/rules-study.md)."
        )
        # the one law that holds from the first update on
        if rule == "rotational":
            angle = equilibrium.rotation(eta, lam, optim.betas[0])
            rows.append(("rotation a step, prescribed, at the peak", f"{angle:.4g} radians", "2305.17212"))
    elif rule != "decoupled":
        at = " at the peak of η" if rule == "corrected" else ""
        named.append(
            f"λ = {lam:g} is worth λ = {lam * worth:.4g} of decoupled decay{at} (it is {law.decay}); what follows is said of that."
        )
    return rows, named


def _equilibrium(
    config: RunConfig, worth: float, plan: Plan, summary: DataSummary | None
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Time scale of the decoupled decay that λ is worth, and size and rotation in the algorithm's equilibrium."""
    eta, lam, steps = config.optim.lr, config.optim.weight_decay * worth, config.schedule.steps
    tau = 1 / (eta * lam)
    passes = tau * config.units_per_step / summary.train_tokens if summary else None
    epochs = f", {passes:.3g} epochs of {summary.train_tokens:,} tokens" if summary and passes is not None else ""
    rows = [("time scale of the decay τ = 1/(ηλ) at the peak", f"{tau:,.0f} steps of {steps:,}{epochs}", "2405.13698")]
    # added to SGD's gradient, λ is what the law has; multiplied with a weight, what it is worth
    coupled = config.optim.decay_rule == "l2_coupled"
    told, none = equilibrium_rows(config, config.optim.weight_decay if coupled else lam, plan)
    never = (
        f"τ is longer than the run: λ = {config.optim.weight_decay:g} never brings the weights to their equilibrium."
    )
    return rows + told, none + ([never] if tau > steps else [])


def _sums(config: RunConfig, total: float) -> list[tuple[str, str, str]]:
    """Rows on `total`, the run's Ση, and on what it makes of λ: nothing where Σηλ is no number of e-folds."""
    optim = config.optim
    carried = equilibrium.e_folds(1.0, optim.decay_rule, optim.algorithm, optim.momentum)
    if carried is None:
        return [("Ση over the run", f"{total:.4g} (no λ·Ση: {why(optim.decay_rule, optim.algorithm)})", "the schedule")]
    # 1 for decoupled decay, 1/(1 − μ) where momentum carries it on
    name, folds = "Σηλ" if carried == 1.0 else "Σηλ/(1 − μ)", decay_sum(config, config.schedule.steps) * carried
    one, sums = _folds_of_one(config), paper(P1)["decay_sums"]["sums"]
    same = ", ".join(f"{target / one:.3g} (as its {decay})" for decay, target in sums.items()) if one else "–"
    return [
        (f"Ση, {name} over the run", f"{total:.4g}, {folds:.4g}", "the schedule"),
        ("λ with the λ·Ση of the published runs", same, "P1, 2310.04415: 124M parameters, 3.3 B tokens"),
    ]


def _folds_of_one(config: RunConfig) -> float | None:
    """E-folds of λ = 1 over the run: what the rule and optim.decay_schedule make of λ is in it. None where it is no such number."""
    optim = config.optim
    carried = equilibrium.e_folds(1.0, optim.decay_rule, optim.algorithm, optim.momentum)
    return None if carried is None else decay_sum(config, config.schedule.steps, weight_decay=1.0) * carried


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="JSON configuration")
    add_runs(parser, "*")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a field, as of train.py")
    parser.add_argument(
        "--to", metavar="CONFIG", help="a wider or longer model: the λ of RUN, or else of CONFIG, by each rule of width"
    )


def act(args: argparse.Namespace) -> int:
    config, _ = load_config(args.config, args.set)
    to = load_config(args.to)[0] if args.to else None
    root = root_of(args)
    runs, notes = load_runs(args.runs, root) if args.runs else ([], [])
    show(provisional(analyse(config, runs, options_of(args), to), dues(args.runs, root, runs)), notes, args.out)
    return 0
