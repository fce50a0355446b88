"""What was trained: the facts about some runs that a reader needs in half a year, each with every value that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from analysis.runs import Run, differing_fields, field_name

MOST = 4  # values of a fact that are listed; of more only how many there are


def facts(runs: list[Run]) -> list[tuple[str, str]]:
    """(what, how it was), in the order of the questions: data, model, training, code, machine, and in what the runs differ.

    Branches go on from what their trunks have learned: beside trunks they are counted, and are no trainings of their own.
    """
    trunks = [run for run in runs if run.origin is None] or runs
    rows = [(what, _values([of(run) for run in trunks])) for what, of in FACTS.items()]
    if len(trunks) < len(runs):
        ends = sorted({int(run.fields.get("schedule.steps") or 0) for run in runs if run not in trunks})
        updates = f"{ends[0]:,}" + (f" to {ends[-1]:,}" if len(ends) > 1 else "")
        rows.append(("branches", f"{len(runs) - len(trunks)}, of {updates} updates, from checkpoints of these"))
    differing = ", ".join(field_name(name) for name in differing_fields(runs)) or "nothing"
    return [row for row in rows if row[1]] + [("the runs differ in", differing)]


def _values(values: list[str]) -> str:
    """Each once, the most frequent first; what no run has recorded is left out, what some have not is said."""
    counts = {value: values.count(value) for value in values if value}
    if not counts:
        return ""
    ordered = sorted(counts, key=lambda value: -counts[value])
    text = " · ".join(ordered[:MOST]) + (f" · and {len(ordered) - MOST} others" if len(ordered) > MOST else "")
    missing = len(values) - sum(counts.values())
    return text + (f" ({missing} of {len(values)} runs did not record it)" if missing else "")


def _start(run: Run) -> dict[str, Any]:
    # what a run was finished by is what its end says
    return run.starts[-1] if run.starts else {}


def _data(run: Run) -> str:
    data, digest = run.data, run.fields.get("data.digest")
    # an older version recorded the digest alone
    if not data:
        return f"digest {str(digest)[:12]}" if digest else ""
    if "train_images" in data:
        size = f"{data['train_images']:,} training and {data.get('val_images', 0):,} validation images"
        shape = " × ".join(map(str, data.get("shape", ())))
        wrong = f", {data['wrong_labels']:,} training labels wrong on purpose" if data.get("wrong_labels") else ""
        what = f"{size} of {data.get('classes')} classes, {shape}{wrong}"
        return f"{data.get('source')}, {what}, digest {str(data.get('digest'))[:12]}"
    numbers = {name: value for name, value in data.items() if isinstance(value, int)}
    split = "{train_tokens:,} training and {val_tokens:,} validation tokens in {train_documents:,} and {val_documents:,} documents"
    needed = {"train_tokens", "val_tokens", "train_documents", "val_documents"}
    size = f", {split.format(**numbers)}" if needed <= set(numbers) else ""
    return f"{data.get('source')}{size}, tokenizer {data.get('tokenizer')}, digest {str(data.get('digest'))[:12]}"


def _model(run: Run) -> str:
    parameters = f", {run.n_parameters:,} parameters" if run.n_parameters else ""
    if run.unit == "images":
        kind, width, norm = (run.fields.get(f"model.{name}") for name in ("kind", "width", "batchnorm"))
        return f"{kind} of width {width}, batch normalisation {norm}{parameters}"
    names = ("n_layer", "n_embd", "n_head", "seq_len", "vocab_size")
    layers, width, heads, context, vocabulary = (run.fields.get(f"model.{name}") for name in names)
    return f"{layers} layers of width {width}, {heads} heads, context {context}, vocabulary {vocabulary}{parameters}"


def _length(run: Run) -> str:
    unit = run.unit
    steps, batch = run.fields.get("schedule.steps"), run.fields.get(f"batch.{unit}_per_step")
    if not isinstance(steps, int) or not isinstance(batch, int):
        return ""
    horizon = f", {run.tokens_per_parameter:,.3g} tokens per parameter" if run.tokens_per_parameter else ""
    epoch = run.plan.get("steps_per_epoch")
    epochs = f", {steps / epoch:.4g} epochs" if isinstance(epoch, int) and epoch > 0 else ""
    return f"{steps:,} updates of {batch:,} {unit}{horizon}{epochs}"


def _rule(run: Run) -> str:
    fields = run.fields
    rule, schedule = fields.get("optim.decay_rule", "decoupled"), fields.get("schedule.kind", "cosine")
    warmup = fields.get("schedule.warmup_steps", 0)
    return f"{fields.get('optim.algorithm', 'adam')}, decay {rule}; {schedule} with {warmup} updates of warm-up"


def _code(run: Run) -> str:
    revision, plus, changes = str(_start(run).get("revision") or "").partition("+")
    return revision[:12] + plus + changes


def _machine(run: Run) -> str:
    start = _start(run)
    if not start.get("device"):
        return ""
    return f"{start['device']}, {start.get('ranks')} rank(s) of {start.get('threads_per_rank')} thread(s), {start.get('machine')}"


def _versions(run: Run) -> str:
    packages, python = _start(run).get("packages") or {}, _start(run).get("python")
    kept = [f"{name} {packages[name]}" for name in ("torch", "deepspeed") if packages.get(name)]
    return ", ".join([*kept, *([f"Python {python}"] if python else [])])


FACTS: dict[str, Callable[[Run], str]] = {
    "data": _data,
    "model": _model,
    "length": _length,
    "optimiser": _rule,
    "precision": lambda run: str(run.fields.get("precision", "")),
    "code": _code,
    "machine": _machine,
    "versions": _versions,
}
