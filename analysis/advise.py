"""What is known of a configuration's λ before it is run, and what finished runs say.

    python -m analysis advise configs/gpt124m_wd0.1.json
    python -m analysis advise configs/quickstart.json configs/sweeps/small_wd_precision.json

Every line names its source. The power law was fitted with μP and a decay of the learning rate to zero (2505.13738):
advice, not truth.
"""

from __future__ import annotations

import argparse
import math

import pandas as pd

from analysis import best_decay
from analysis.claims import survival
from analysis.command import Options, Result, add_runs, load_runs, options_of, root_of, show
from analysis.compare import TRAIN, lost, paired_final
from analysis.due import dues, provisional
from analysis.pairing import baseline_of, group_runs
from analysis.published import P1, paper
from analysis.runs import LAMBDA, Run
from configs import equilibrium
from configs.cautions import cautions
from configs.cost import n_parameters
from configs.load import load_config
from configs.plan import make_plan
from configs.prepared import read_summary
from configs.schedule import decay_sum, lr_sum
from configs.schema import RunConfig
from record.run import FINISHED

NEAR = 1.1  # how far, as a factor, a finished run may be from the configuration and still be evidence for it
LAW = paper("2505.13738")["power_law"]


def power_law(config: RunConfig) -> tuple[float, float]:
    """(τ_opt in fractions of the run, λ_opt = B/(η·τ_opt·D)); N all parameters, D the run's tokens, B tokens a step, η the peak."""
    batch = config.batch.tokens_per_step
    # D counts tokens read, N all parameters, as the paper counts them
    tokens = config.schedule.steps * batch
    tau = LAW["coefficient"] * (tokens / n_parameters(config.model)) ** LAW["exponent"]
    return tau, batch / (config.optim.lr * tau * tokens)


def _law() -> str:
    factor, power = LAW["coefficient"], f"{LAW['exponent']:g}".replace("-", "−")
    return f"power law of 2505.13738, fitted with μP and decay to zero: τ = {factor:g}·(D/N)^{power}"


def analyse(config: RunConfig, runs: list[Run], options: Options) -> Result:
    eta, lam, steps = config.optim.lr, config.optim.weight_decay, config.schedule.steps
    plan = make_plan(config, 1, None)
    summary, notes, findings = read_summary(config.data.path), [], []
    if summary is None:
        notes.append(f"no prepared data in {config.data.path}: time scales are not given in epochs")
    total = lr_sum(config) if config.schedule.match is None else None
    if total is None:
        notes.append("the learning rate follows another run's norms: sums over it are known only from the run")
    rows: list[tuple[str, str, str]] = [("λ, peak η, ηλ", f"{lam:g}, {eta:g}, {eta * lam:.3g}", "the configuration")]
    adamw = config.optim.algorithm == "adam" and config.optim.decay_rule == "decoupled"
    if config.optim.decay_rule != "decoupled":
        notes.append(
            f"decay_rule {config.optim.decay_rule!r}: time scales, equilibria and laws are of decoupled decay, and are left out"
        )
    if lam > 0 and config.optim.decay_rule == "decoupled":
        tau = 1 / (eta * lam)
        passes = tau * config.batch.tokens_per_step / summary.train_tokens if summary else None
        epochs = f", {passes:.3g} epochs of {summary.train_tokens:,} tokens" if summary and passes is not None else ""
        rows.append(
            ("time scale of the decay τ = 1/(ηλ) at the peak", f"{tau:,.0f} steps of {steps:,}{epochs}", "2405.13698")
        )
        if adamw:
            b1 = config.optim.betas[0]
            rms, decayed = (
                equilibrium.rms(eta, lam),
                sum(g.parameters for g in plan.groups.values() if g.weight_decay == lam),
            )
            norm = rms * math.sqrt(decayed)
            rows.append(("RMS, norm of decayed weights under noise √(η/2λ)", f"{rms:.4g}, {norm:.4g}", "2305.17212"))
            angle = equilibrium.rotation(eta, lam, b1)
            rows.append(("rotation a step √(2ηλ(1−β₁)/(1+β₁))", f"{angle:.4g} radians", "2305.17212"))
            if tau > steps:
                findings.append(f"τ is longer than the run: λ = {lam:g} never brings the weights to their equilibrium.")
    elif lam == 0:
        findings.append(
            "λ = 0: no time scale, no equilibrium; norms grow, and the effective learning rate falls with them."
        )
    if total is not None:
        rows += _sums(config, total)
    if adamw:
        fraction, best = power_law(config)
        ratio = config.schedule.steps * config.batch.tokens_per_step / n_parameters(config.model)
        rows.append((f"λ by the power law, D/N = {ratio:.3g}", f"{best:.3g} (τ = {fraction:.3g} of the run)", _law()))
        # other laws count N without the embeddings: the number says which is meant
        findings.append(
            f"The power law would give λ = {best:.3g} (N: all {n_parameters(config.model):,} parameters, embeddings included); "
            f"this configuration has {lam:g}."
        )
    findings += [f"Warning: {text}." for text in cautions(config, summary, plan.groups)]
    if runs:
        findings += _from_runs(config, runs, options, notes)
    table = pd.DataFrame(rows, columns=["what", "value", "source"])
    return Result("advise", f"λ for {config.name}", findings, [], {"Known beforehand": table}, notes)


def _sums(config: RunConfig, total: float) -> list[tuple[str, str, str]]:
    """Rows on `total`, the run's Ση, and on what it makes of λ: nothing where Σηλ is no number of e-folds."""
    optim = config.optim
    carried = equilibrium.e_folds(1.0, optim.decay_rule, optim.algorithm, optim.momentum)
    if carried is None:
        why = equilibrium.why_no_e_folds(optim.decay_rule, optim.algorithm)
        return [("Ση over the run", f"{total:.4g} (no λ·Ση: {why})", "the schedule")]
    # 1 for decoupled decay, 1/(1 − μ) where momentum carries it on
    name, folds = "Σηλ" if carried == 1.0 else "Σηλ/(1 − μ)", decay_sum(config, config.schedule.steps) * carried
    sums = paper(P1)["decay_sums"]["sums"]
    same = ", ".join(f"{target / total / carried:.3g} (as its {decay})" for decay, target in sums.items())
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
    steps, batch = config.schedule.steps, config.batch.tokens_per_step
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
