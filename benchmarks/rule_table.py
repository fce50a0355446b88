"""The tables of docs/rules.md: of every decay rule and algorithm its law, and what it works with, as a run would be refused."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from benchmarks.markdown import table
from configs.errors import InputError
from configs.load import validate
from configs.plan import make_plan
from configs.precision import TABLE
from optim.algorithms import ALGORITHMS
from optim.rules import RULES, Rule

RULE_COLUMNS = ("rule", "law", "λ", "algorithms", "precisions")
ALGORITHM_COLUMNS = ("algorithm", "ZeRO stages in fp32", "precisions, at some stage")
STAGES = (0, 1, 2, 3)
EVERY = [*ALGORITHMS, "torch.optim.NAdam"]  # one of torch's stands for all


def rules() -> str:
    """One row a rule: its law, and what it works with at some ZeRO stage; every rule does at each stage that its algorithm has."""
    return table(RULE_COLUMNS, [_rule(name, Rule(module)) for name, module in RULES.items()])


def algorithms() -> str:
    """One row an algorithm: the stages and precisions that it has with a rule that suits it."""
    return table(ALGORITHM_COLUMNS, [_algorithm(name) for name in EVERY])


def _rule(name: str, rule: Rule) -> tuple[str, ...]:
    suits = [algorithm for algorithm in EVERY if any(works(name, algorithm, "fp32", stage) for stage in STAGES)]
    precisions = [p for p in TABLE if any(works(name, algorithm, p, s) for algorithm in suits for s in STAGES)]
    return (
        f"`{name}`",
        rule.about.replace("|", "\\|").replace("*", "\\*"),
        "yes" if rule.uses_decay else "none",
        _said(suits, EVERY),
        _said(precisions, TABLE),
    )


def _algorithm(name: str) -> tuple[str, ...]:
    stages = [s for s in STAGES if any(works(rule, name, "fp32", s) for rule in RULES)]
    precisions = [p for p in TABLE if any(works(rule, name, p, s) for rule in RULES for s in STAGES)]
    return (f"`{name}`", ", ".join(map(str, stages)), _said(precisions, TABLE))


def _said(names: list[str], every: Iterable[str]) -> str:
    lacking = [name for name in every if name not in names]
    if not lacking:
        return "all"
    return f"all but {', '.join(lacking)}" if len(lacking) <= len(names) else ", ".join(names)


@cache
def works(rule: str, algorithm: str, precision: str, stage: int) -> bool:
    """Whether a run of these would not be refused before it starts."""
    given = {
        "name": "table",
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 16, "seq_len": 16, "vocab_size": 64},
        "data": {"path": "none"},
        "batch": {"tokens_per_step": 64},
        "schedule": {"kind": "constant", "warmup_steps": 0, "steps": 10},
        "optim": {"algorithm": algorithm, "decay_rule": rule, "lr": 1e-3, "weight_decay": 0.0},
        "precision": precision,
        "parallel": {"zero_stage": stage},
    }
    try:
        make_plan(validate(given, "table"), 1, None)
    except InputError:
        return False
    return True
