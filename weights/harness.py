"""A model of ours as lm-evaluation-harness asks it, with our own tokens; and its tasks, by name.

The package lm_eval is imported inside: it is no requirement of a run, and takes seconds.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from data.lossless import Tokenizer
from weights.likelihood import Likelihoods

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager

VERSION = "0.4.13"
ENOUGH = 256  # new tokens where a task does not say how many, as the harness has it


def require_harness() -> None:
    """InputError where the package is missing. Without a word of the user's the hub is not asked, then and later.

    A variable that is set stays: HF_HUB_OFFLINE=0 lets the harness fetch data sets.
    """
    offline = os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ.setdefault(name, offline)
    try:
        metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise InputError(
            f"python -m weights.lm_eval needs the package lm_eval, which is not installed: pip install lm_eval=={VERSION}"
        ) from None


def as_harness_asks(likelihoods: Likelihoods, tokenizer: Tokenizer, notes: Counter[str]) -> TemplateLM:
    """What the harness calls a model. `notes` counts what it had to score in another way than plainly."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Ours(TemplateLM):
        eot_token_id = tokenizer.eot

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return tokenizer.encode(string)

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            """The harness's own split, of which the parts are not always the whole: a token may lie over the boundary."""
            before, after = super()._encode_pair(context, continuation)
            if not after:
                after = tokenizer.encode(continuation)
            if before + after != tokenizer.encode(context + continuation):
                notes["continuations that begin inside a token of the whole text, split as the harness splits"] += 1
            return before, after

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return likelihoods.score([(before, after) for _, before, after in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            windows = [
                [
                    make_disjoint_window(pair)
                    for pair in get_rolling_token_windows(ids, tokenizer.eot, likelihoods.length, 1)
                ]
                for ids in (tokenizer.encode(request.args[0]) for request in requests)
            ]
            scores = iter(likelihoods.score([pair for pairs in windows for pair in pairs]))
            return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            asked = [normalize_gen_kwargs(request.args[1], ENOUGH) for request in requests]
            for request, kwargs in zip(requests, asked, strict=True):
                if kwargs["do_sample"]:
                    raise InputError(f"task {request.task_name} draws its answers (do_sample); here they are greedy")
            stops = [[stop for stop in kwargs["until"] if stop] for kwargs in asked]
            made = likelihoods.continued(
                [tokenizer.encode(request.args[0]) for request in requests],
                [kwargs["max_gen_toks"] for kwargs in asked],
                tokenizer.vocab_size,
                lambda i, ids: any(stop in tokenizer.decode(ids) for stop in stops[i]),
            )
            return [_until(tokenizer.decode(ids), ends) for ids, ends in zip(made, stops, strict=True)]

    return Ours()


def _until(text: str, stops: list[str]) -> str:
    """The text before the first of these strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def manager_of(names: list[str], include: Path | None) -> TaskManager:
    """The tasks of `include` and the harness's own, these read only where they are asked for: there are thousands.

    InputError for a name that neither has, and for a folder that is none.
    """
    from lm_eval.tasks import TaskManager

    if not names:
        raise InputError("--tasks names no task; give names with commas between")
    local: dict[str, Any] = {}
    if include is not None:
        if not include.is_dir():
            raise InputError(f"--include {include} is no folder of tasks")
        manager = TaskManager(include_path=str(include), include_defaults=False)
        local = manager.task_index
        if all(name in local and local[name].kind.name in ("TASK", "PY_TASK") for name in names):
            return manager
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3) if len(name) < 100 else []
            there = (
                f"{', '.join(sorted(local)[:20]) or 'none'} in {include}" if include else "no --include DIR was given"
            )
            raise InputError(
                f"--tasks {name[:80]}: there is no such task. There are: {there}; and {len(manager.all_tasks) - len(local):,} "
                f"of lm_eval's own{', among them ' + ', '.join(near) if near else ''}"
            )
    return manager


def load_tasks(manager: TaskManager, names: list[str]) -> list[Any]:
    """The tasks and groups, their data read. InputError where that fails, or a task is none of text or runs programs."""
    loaded = []
    for name in names:
        try:
            tasks = manager.load([name])
        except Exception as error:  # whatever a task's own code, its template or the reader of its data raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("0", "false", "no", "off")
            fetch = (
                "; data that is not on this machine is fetched with HF_HUB_OFFLINE=0 before the command"
                if offline
                else ""
            )
            raise InputError(f"task {name} cannot be loaded: {reason}{fetch}") from None
        for task_name, task in tasks["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise InputError(f"task {task_name} runs programs that a model wrote, which is not done here")
            if getattr(task, "MULTIMODAL", False):
                raise InputError(f"task {task_name} has images or sound, and the model reads text")
        # a group brings its tasks and the groups inside it
        loaded += [tasks["groups"][name]] if name in tasks.get("groups", {}) else [*tasks["tasks"].values()]
    return loaded
