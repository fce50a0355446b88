"""The table of docs/rules.md, from what the decay rules say of themselves (optim/rules/)."""

from __future__ import annotations

from benchmarks.markdown import table
from configs.precision import TABLE
from optim.rules import RULES, Rule

COLUMNS = ("rule", "law", "λ", "algorithms", "ZeRO stages", "precisions")


def rules() -> str:
    """One row a rule: its law, and what it works with."""
    return table(COLUMNS, [_row(name, Rule(module)) for name, module in RULES.items()])


def _row(name: str, rule: Rule) -> tuple[str, ...]:
    # Only masters in bfloat16 set limits: what is moved beside the step would round back.
    refused = [p for p, dtypes in TABLE.items() if dtypes.masters == "bfloat16" and not rule.rounds_once]
    return (
        f"`{name}`",
        rule.about.replace("|", "\\|").replace("*", "\\*"),
        "yes" if rule.uses_decay else "none",
        ", ".join(rule.algorithms) if rule.algorithms is not None else "all",
        ", ".join(map(str, rule.stages)),
        f"all but {', '.join(refused)}" if refused else "all",
    )
