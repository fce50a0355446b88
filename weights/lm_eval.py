"""Scores at tasks of EleutherAI's lm-evaluation-harness, of a run's weights as they are: nothing is exported.

    python -m weights.lm_eval RUN[@STEP] --tasks arc_easy,piqa
    python -m weights.lm_eval RUN --tasks mine --include DIR       tasks of one's own: DIR/*.yaml
    python -m weights.lm_eval FOLDER --tasks mine --include DIR --out scores.json     a model without a run

FOLDER has a tokenizer beside it, or --data DIR names prepared data that has.

Needs the package lm_eval (pip install lm_eval==0.4.13). Prints the harness's table and writes lm_eval/step_….json into the run's
folder (record/evaluations.py), of which `python -m analysis lm_eval` makes tables. The hub is not asked for data sets, unless
HF_HUB_OFFLINE=0 is set.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.precision import TABLE
from record.checkpoint_manifest import SUFFIX, read_manifest
from record.environment import code_revision
from record.evaluations import Evaluation, Score, write_evaluation
from record.foreign import find_foreign
from record.run import RunFolder
from weights.harness import as_harness_asks, load_tasks, manager_of, require_harness
from weights.likelihood import Likelihoods
from weights.read import choose, choose_device
from weights.source import Source, read_source, source_of

PACKAGES = ("lm_eval", "torch", "datasets", "evaluate")


def evaluated(source: Source, place: tuple[int | None, str], args: argparse.Namespace) -> tuple[Evaluation, str]:
    """What the harness finds, and its table. `place`: the step and the weights' SHA-256. InputError for what cannot be asked."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.utils import make_table

    names = list(dict.fromkeys(name.strip() for name in args.tasks.split(",") if name.strip()))
    manager = manager_of(names, args.include)
    tasks = load_tasks(manager, names)
    device, tokenizer = choose_device(), source.tokenizer()
    likelihoods = Likelihoods(source.network(device, args.precision), tokenizer.eot, args.batch, device)
    counts: Counter[str] = Counter()
    asked = as_harness_asks(likelihoods, tokenizer, counts)
    results = simple_evaluate(
        model=asked,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=args.shots,
        batch_size=args.batch,
        limit=args.limit,
    )
    scores, notes = scores_of(results)
    notes += notes_on(likelihoods, counts, scores, args.shots)
    evaluation = Evaluation(
        source=source.name,
        step=place[0],
        weights=args.weights,
        sha256=place[1],
        precision=args.precision or source.precision,
        tasks=names,
        include=None if args.include is None else str(args.include),
        limit=args.limit,
        shots=args.shots,
        batch=args.batch,
        device=device.type,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=code_revision(),
        packages={name: metadata.version(name) for name in PACKAGES},
        notes=notes,
        scores=scores,
    )
    return evaluation, make_table(results)


def notes_on(likelihoods: Likelihoods, counts: Counter[str], scores: list[Score], shots: int | None) -> list[str]:
    """What was scored in another way than plainly, or not as it was asked."""
    notes = [f"{what}: {count:,}" for what, count in counts.items()]
    if likelihoods.cut:
        notes.append(
            f"{likelihoods.cut:,} sequences were longer than the context of {likelihoods.length:,} tokens, and lost "
            f"{likelihoods.lost:,} at their left"
        )
    for task, its in {score.task: score.shots for score in scores}.items():
        if shots is not None and its not in (None, shots):
            notes.append(f"{task} has {its} shots, and not {shots}: its own file says so")
    return notes


def scores_of(results: dict[str, Any]) -> tuple[list[Score], list[str]]:
    """The harness's results as rows, and notes on what is no number."""
    from lm_eval.utils import hash_string

    def hash_of(task: str) -> str:
        """Of what was asked; of a group, of its tasks' hashes."""
        samples = results["samples"].get(task)
        if samples is None:
            return hash_string("".join(map(hash_of, results["group_subtasks"].get(task, []))))
        return hash_string("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))

    scores, notes = [], []
    for task, metrics in results["results"].items():
        shots, digest = results["n-shot"].get(task), hash_of(task)
        for name, value in metrics.items():
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            if not isinstance(value, int | float):
                notes.append(f"{metric} of {task} is no number ({value!r:.40}), and is not kept")
                continue
            score = Score(
                task=task,
                metric=metric,
                filter=filtered,
                value=_finite(value),
                stderr=_finite(metrics.get(f"{metric}_stderr,{filtered}")),
                higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
                shots=shots if isinstance(shots, int) else None,
                documents=metrics.get("sample_len", 0),
                hash=digest,
                version=str(results["versions"].get(task)),
            )
            scores.append(score)
    return scores, notes


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def opened(args: argparse.Namespace) -> tuple[Source, RunFolder | None, tuple[int | None, str]]:
    """The weights that are meant; their run, None of a model without one; their step, and the SHA-256 of their file."""
    foreign = find_foreign(args.run)
    if foreign is not None:
        source = read_source(args.run, args.weights, args.data)
        source.tokenizer()  # refused before the tasks are read
        return source, None, (None, foreign.digest)
    chosen = choose(args.run)
    source, checkpoint = source_of(chosen, args.weights, args.data), read_manifest(chosen.paths[0])
    return source, chosen.run, (chosen.steps[0], checkpoint.files[f"{args.weights}{SUFFIX}"].sha256)


def run_command(args: argparse.Namespace) -> None:
    """What `main` does. InputError for what cannot be evaluated; nothing is written then."""
    require_harness()
    if args.out is not None and args.out.is_dir():
        raise InputError(f"--out {args.out} is a folder; give a file to write")
    source, run, place = opened(args)
    evaluation, table = evaluated(source, place, args)
    print(table)
    for note in evaluation.notes:
        print(f"note: {note}")
    path = args.out or (run.evaluations / evaluation.file_name if run else None)
    if path is None:
        print(f"not written: {args.run} is no run's folder; --out FILE says where to")
        return
    write_evaluation(path, evaluation)
    print(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weights.lm_eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder, FOLDER@STEP, or a folder of weights")
    parser.add_argument("--tasks", required=True, metavar="A,B", help="names of tasks or groups of them")
    parser.add_argument("--include", type=Path, metavar="DIR", help="tasks of one's own: *.yaml in this folder")
    parser.add_argument("--batch", type=_count(1), default=8, metavar="N", help="sequences at once; default 8")
    parser.add_argument("--precision", choices=tuple(TABLE), help="of the forward pass; default: the run's")
    parser.add_argument("--limit", type=_count(1), metavar="N", help="only the first N documents of each task")
    parser.add_argument(
        "--shots", type=_count(0), metavar="K", help="examples before each question; default: the task's"
    )
    parser.add_argument(
        "--weights", "--average", default="weights", metavar="KIND", help="an average instead: ema_0.99"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the run's data, and so its tokenizer, lies now")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON here, and not into the run's folder")
    return parser


def _count(least: int) -> Any:
    def count(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 1 << 31:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} up")
        return int(text)

    return count


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        run_command(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
