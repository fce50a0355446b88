"""What is known of a configuration's λ before it is run, and what finished runs say.

    python -m analysis advise configs/gpt124m_wd0.1.json
    python -m analysis advise configs/quickstart.json configs/sweeps/small_wd_precision.json

Every line names its source. The power law was fitted with μP and a decay of the learning rate to zero (2505.13738):
advice, not truth.
"""

from __future__ import annotations

import argparse

import pandas as pd

from analysis import best_decay
from analysis.claims import survival
from analysis.command import Options, Result, add_runs, load_runs, options_of, root_of, show
from analysis.compare import TRAIN, lost, paired_final
from analysis.due import dues, provisional
from analysis.equilibria import equilibrium_rows
from analysis.pairing import baseline_of, group_runs
from analysis.published import P1, paper
from analysis.runs import LAMBDA, Run
from configs import equilibrium
from configs.cautions import cautions
from configs.cost import n_parameters
from configs.decay_laws import LAWS, OWN_SCALE, SCALES, decoupled_per_decay, product_acts
from configs.equilibrium import why_no_e_folds as why
from configs.errors import InputError
from configs.load import load_config
from configs.plan import Plan, make_plan
from configs.prepared import DataSummary, ImageSummary, read_summary
from configs.schedule import decay_sum, lr_sum
from configs.schema import RunConfig
from record.run import FINISHED

NEAR = 1.1  # how far, as a factor, a finished run may be from the configuration and still be evidence for it
LAW = paper("2505.13738")["power_law"]


def power_law(config: RunConfig) -> tuple[float, float]:
    """(τ_opt in fractions of the run, λ_opt = B/(η·τ_opt·D)); N all parameters, D the run's tokens, B tokens a step, η the peak."""
    batch = config.units_per_step
    # D counts tokens read, N all parameters, as the paper counts them
    tokens = config.schedule.steps * batch
    tau = LAW["coefficient"] * (tokens / n_parameters(config.model)) ** LAW["exponent"]
    return tau, batch / (config.optim.lr * tau * tokens)


def _law() -> str:
    factor, power = LAW["coefficient"], f"{LAW['exponent']:g}".replace("-", "−")
    return f"power law of 2505.13738, fitted with μP and decay to zero: τ = {factor:g}·(D/N)^{power}"


def analyse(config: RunConfig, runs: list[Run], options: Options) -> Result:
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
        told, said = _by_power_law(config, worth)
        rows, findings = rows + told, findings + said
    elif worth is not None:
        notes.append(
            f"algorithm {optim.algorithm}: the power law is of AdamW, and is left out; "
            f"{SCALES.get(optim.algorithm, OWN_SCALE)}"
        )
    findings += [f"Warning: {text}." for text in cautions(config, summary, plan.groups)]
    if runs:
        findings += _from_runs(config, runs, options, notes)
    table = pd.DataFrame(rows, columns=["what", "value", "source"])
    return Result("advise", f"λ for {config.name}", findings, [], {"Known beforehand": table}, notes)


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


def _by_power_law(config: RunConfig, worth: float) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The power law's λ, as this rule writes it."""
    fraction, best = power_law(config)
    parameters = n_parameters(config.model)
    ratio = config.schedule.steps * config.units_per_step / parameters
    # the law was fitted with decoupled decay
    own = "" if worth == 1 else f", which is {best:.3g} of decoupled decay"
    row = (f"λ by the power law, D/N = {ratio:.3g}", f"{best / worth:.3g} (τ = {fraction:.3g} of the run)", _law())
    # other laws count N without the embeddings: the number says which is meant
    said = (
        f"The power law would give λ = {best / worth:.3g}{own} (N: all {parameters:,} parameters, embeddings included); "
        f"this configuration has {config.optim.weight_decay:g}."
    )
    return [row], [said]


def _sums(config: RunConfig, total: float) -> list[tuple[str, str, str]]:
    """Rows on `total`, the run's Ση, and on what it makes of λ: nothing where Σηλ is no number of e-folds."""
    optim = config.optim
    carried = equilibrium.e_folds(1.0, optim.decay_rule, optim.algorithm, optim.momentum)
    if carried is None:
        return [("Ση over the run", f"{total:.4g} (no λ·Ση: {why(optim.decay_rule, optim.algorithm)})", "the schedule")]
    # 1 for decoupled decay, 1/(1 − μ) where momentum carries it on
    name, folds = "Σηλ" if carried == 1.0 else "Σηλ/(1 − μ)", decay_sum(config, config.schedule.steps) * carried
    # of λ = 1: what the rule and optim.decay_schedule make of λ over the run is in it
    one = decay_sum(config, config.schedule.steps, weight_decay=1.0) * carried
    sums = paper(P1)["decay_sums"]["sums"]
    same = ", ".join(f"{target / one:.3g} (as its {decay})" for decay, target in sums.items())
    return [
        (f"Ση, {name} over the run", f"{total:.4g}, {folds:.4g}", "the schedule"),
        ("λ with the λ·Ση of the published runs", same, "P1, 2310.04415: 124M parameters, 3.3 B tokens"),
    ]


def _from_runs(config: RunConfig, runs: list[Run], options: Options, notes: list[str]) -> list[str]:
    """What finished runs say: the paired rule against the smallest λ, and the best λ."""
    # a branch or a matched run differs from the others in more than λ
    done = [run for run in runs if run.state in FINISHED and run.origin is None and run.reference is None]
    if len(done) < len(runs):
        notes.append(
            f"{len(runs) - len(done)} runs are unfinished, branches or matched runs, and say nothing of λ here"
        )
    # λ of another rule is another thing, and another algorithm has its own best
    ours = config.optim.decay_rule, config.optim.algorithm
    alike = [run for run in done if (run.rule, run.algorithm) == ours]
    if len(alike) < len(done):
        notes.append(
            f"{len(done) - len(alike)} runs are of another rule or algorithm than {' with '.join(ours)}, and say nothing of its λ"
        )
    done = alike
    if not done:
        return []
    groups, more = group_runs(done, options.by)
    notes += more
    # the best λ of another experiment is no evidence for this one: it is shown, under a name that says so
    others = _unlike(config, done)
    notes += others
    name = "Runs of another setting" if others else "Runs"
    findings = []
    for group in groups:
        base = baseline_of(group, groups)
        paired = paired_final(group, base, TRAIN)
        if group is not base and paired.interval.n:
            gone = f" ({condition})" if (condition := survival(lost(group, base))) else ""
            text = f"training loss at step {paired.place}: {paired.interval.text()}: {paired.verdict()}{gone}."
            findings.append(f"{name}: {group.name} minus {base.name}, {text}")
    # an optimum needs several λ
    if LAMBDA in groups[0].fields:
        findings += [f"{name}: {text}" for text in best_decay.analyse(done, options).findings]
    return findings


def _unlike(config: RunConfig, runs: list[Run]) -> list[str]:
    """How finished runs differ from the configuration in what the best λ is known to depend on; empty if they do not.

    Sizes must be equal; horizon, steps, warm-up and η may differ by NEAR, less than a neighbour in any grid of them.
    """
    steps, batch = config.schedule.steps, config.units_per_step
    ours = {
        "parameters": float(n_parameters(config.model)),
        "tokens per parameter": steps * batch / n_parameters(config.model),
        "steps": float(steps),
        "warm-up steps": float(config.schedule.warmup_steps),
        "peak η": config.optim.lr,
    }
    sentences = []
    for what, mine in ours.items():
        # a plan may be missing, or damaged: then nothing is known
        theirs = {_of_run(run, what) for run in runs}
        near = 1.0 if what == "parameters" else NEAR
        if None in theirs or any(not mine / near <= value <= mine * near for value in theirs if value is not None):
            shown = (
                " and ".join(f"{value:,.6g}" for value in sorted(v for v in theirs if v is not None))
                or "an unknown number"
            )
            sentences.append(f"these runs have {shown} {what}, the configuration {mine:,.6g}")
    return sentences


def _of_run(run: Run, what: str) -> float | None:
    derived = {"parameters": run.n_parameters, "tokens per parameter": run.tokens_per_parameter}
    names = {"steps": "schedule.steps", "warm-up steps": "schedule.warmup_steps", "peak η": "optim.lr"}
    value = derived[what] if what in derived else run.fields.get(names[what])
    return float(value) if isinstance(value, int | float) else None


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="JSON configuration")
    add_runs(parser, "*")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a field, as of train.py")


def act(args: argparse.Namespace) -> int:
    config, _ = load_config(args.config, args.set)
    root = root_of(args)
    runs, notes = load_runs(args.runs, root) if args.runs else ([], [])
    show(provisional(analyse(config, runs, options_of(args)), dues(args.runs, root, runs)), notes, args.out)
    return 0
