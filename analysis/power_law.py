"""The power law for the time scale of the decay (2505.13738) on one configuration: what it asks, by which N, and where it is
refused.

N is all parameters here. Others count the blocks alone, and say so or not; so both are shown, each under its name.
"""

from __future__ import annotations

from analysis.outside_tables import Case, places
from analysis.published import paper
from configs.cost import n_parameters
from configs.schedule import lr_fraction
from configs.schema import Model, RunConfig
from configs.tensors import tensor_table

LAW = paper("2505.13738")["power_law"]
OUTSIDE_BLOCKS = ("embedding", "position", "head", "head_scale")  # kinds of tensors that belong to no block
SHORTEST = 1.0  # tokens per parameter: below, a run ends in the phase in which decay only costs


def block_parameters(model: Model) -> int:
    """N without embeddings and head, as Marin and others count it."""
    return sum(tensor.size for tensor in tensor_table(model).values() if tensor.kind not in OUTSIDE_BLOCKS)


def power_law(config: RunConfig, parameters: int | None = None) -> tuple[float, float]:
    """(τ_opt in fractions of the run, λ_opt = B/(η·τ_opt·D)); D the run's tokens, B tokens a step, η the peak.

    `parameters`: N; None: all of the model's.
    """
    batch = config.units_per_step
    # D counts tokens read
    tokens = config.schedule.steps * batch
    # the law is of τ; λ follows from it at this η and this length
    tau = LAW["coefficient"] * (tokens / (parameters or n_parameters(config.model))) ** LAW["exponent"]
    return tau, batch / (config.optim.lr * tau * tokens)


def why_refused(config: RunConfig) -> str:
    """The reason why the law is not applied to a run; empty where it is."""
    schedule = config.schedule
    # whatever its kind is called: a rate that ends at its peak was never cooled down
    if schedule.match is None and lr_fraction(schedule, schedule.steps - 1) >= 1:
        return (
            "the learning rate never falls, and the law was fitted with a decay to zero. Without a cool-down a larger λ "
            f"was worse: {_told('T5')}"
        )
    # by all parameters: with the blocks' alone the bound would depend on the vocabulary
    ratio = schedule.steps * config.units_per_step / n_parameters(config.model)
    if ratio < SHORTEST:
        return (
            f"the run reads {ratio:.2g} tokens per parameter, and below {SHORTEST:g} the law does not hold. Such a run ends in the "
            f"phase in which decay costs loss: {_told('T7')}"
        )
    return ""


def _told(table: str) -> str:
    """The losses of a table's one case, in a line."""
    # read from the data, so that a number that is mended there is mended here
    (case,) = (place.case for place in places() if place.table.table == table)
    return f"{case.name}, {_losses(case)} ({table})"


def _losses(case: Case) -> str:
    return ", ".join(f"λ = {row.weight_decay:g}: {row.value}" for row in case.rows)


def by_power_law(config: RunConfig, worth: float) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The power law's λ, as a rule writes it of which one λ is `worth` so much of decoupled decay: rows, and sentences."""
    if reason := why_refused(config):
        return [], [f"The power law is not applied: {reason}."]
    everything, blocks = n_parameters(config.model), block_parameters(config.gpt)
    # both: sources differ in which they mean, and the two λ by as much as neighbours in a grid
    tokens, rows = config.schedule.steps * config.units_per_step, []
    for n, which in ((everything, ""), (blocks, " of the blocks alone")):
        fraction, best = power_law(config, n)
        what = f"λ by the power law, D/N = {tokens / n:.3g}{which}"
        rows.append((what, f"{best / worth:.3g} (τ = {fraction:.3g} of the run)", _law()))
    # in decoupled decay's λ first, then as the rule writes it
    best, other = power_law(config)[1], power_law(config, blocks)[1] / worth
    # the law was fitted with decoupled decay
    own = "" if worth == 1 else f", which is {best:.3g} of decoupled decay"
    # laws differ in what N counts: the number says which is meant
    said = (
        f"The power law would give λ = {best / worth:.3g}{own} (N: all {everything:,} parameters, embeddings included), or "
        f"{other:.3g} (N: the {blocks:,} of the blocks alone); this configuration has {config.optim.weight_decay:g}."
    )
    return rows, [said]


def _law() -> str:
    factor, power = LAW["coefficient"], f"{LAW['exponent']:g}".replace("-", "−")
    return f"power law of 2505.13738, fitted with μP and decay to zero: τ = {factor:g}·(D/N)^{power}"
