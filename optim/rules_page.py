"""`python -m optim.rules_page`: fill the table of docs/rules.md from what the rules say of themselves; a test compares it."""

from __future__ import annotations

from pathlib import Path

from configs.precision import TABLE
from optim.rules import RULES, Rule

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rules.md"
BEGIN, END = "<!-- rules: python -m optim.rules_page -->", "<!-- end of rules -->"


def rules_table() -> str:
    """One row a rule: its law, and what it works with."""
    rows = ["| rule | law | λ | algorithms | ZeRO stages | precisions |", "|---|---|---|---|---|---|"]
    for name, module in RULES.items():
        rule = Rule(module)
        algorithms = ", ".join(rule.algorithms) if rule.algorithms is not None else "all"
        # Only masters in bfloat16 set limits: what is moved beside the step would round back.
        where = [p for p, dtypes in TABLE.items() if rule.rounds_once or dtypes.masters != "bfloat16"]
        precisions = "all" if len(where) == len(TABLE) else "all but " + ", ".join(p for p in TABLE if p not in where)
        stages = ", ".join(map(str, rule.stages))
        law = rule.about.replace("|", "\\|").replace("*", "\\*")
        rows.append(
            f"| `{name}` | {law} | {'yes' if rule.uses_decay else 'none'} | {algorithms} | {stages} | {precisions} |"
        )
    return "\n".join(rows)


def filled(page: str) -> str:
    """The page with the table of today between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} has lost its markers")
    return f"{before}{BEGIN}\n\n{rules_table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
