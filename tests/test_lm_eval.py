"""Tasks of lm-evaluation-harness over a run as it is: its scores by hand, where they lie, and what is refused.

Needs the package lm_eval, as requirements-dev.txt has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from configs.errors import InputError
from configs.schema import RunConfig
from data.image_manifest import ImageManifest
from data.manifest import Manifest
from model.gpt import GPT
from record.checkpoint_manifest import CheckpointManifest, describe
from record.evaluations import parse_evaluation, read_evaluations
from record.foreign import find_foreign
from record.run import RunFolder
from tests.processes import ROOT
from tests.test_foreign import nanogpt
from weights.harness import as_harness_asks
from weights.likelihood import Likelihoods
from weights.lm_eval import main
from weights.source import read_source

CPU = torch.device("cpu")
ROWS = [
    {"question": "import", "choices": [" os", " sys", " a long name"], "label": 0},
    {"question": "def main(", "choices": ["self", "):", """ argv=None):"""], "label": 1},
    {"question": "    return ", "choices": ["None", "True"], "label": 0},  # its last space is the choices' own
    {"question": "for i in range(10):\n    print(i)\nfor", "choices": [" key", "\n"], "label": 1},
    {"question": "", "choices": ["import", "zzz"], "label": 0},
]
CHOICE = """task: small_choice
dataset_path: json
dataset_kwargs: {{cache_dir: "{folder}/cache", data_files: {{test: "{folder}/rows.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
num_fewshot: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.0}}
"""
# Beside it text of which every token counts, by the harness's own windows.
ROLLING = CHOICE.replace("small_choice", "small_text").replace("multiple_choice", "loglikelihood_rolling")
ROLLING = ROLLING.replace(
    "doc_to_choice: choices\ndoc_to_target: label\n", 'doc_to_target: "{{{{question}}}}{{{{choices[0]}}}}"\n'
)
ROLLING = ROLLING.replace("metric: acc, aggregation: mean, higher_is_better: true", "metric: bits_per_byte")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choice", CHOICE), ("text", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny_config: Callable[..., RunConfig], tiny_data: tuple[Path, Manifest]) -> Path:
    """A run of two checkpoints that nothing has trained."""
    folder, config = RunFolder(tmp_path / "run"), tiny_config()
    fields = config.model_dump(mode="json")
    folder.create(fields, fields, {"data": {"digest": tiny_data[1].digest}}, {})
    for step in (3, 6):
        path = folder.checkpoints / f"step_{step:08}"
        path.mkdir()
        model = GPT(config.gpt)
        model.init_weights(step)
        weights = {name: 8 * tensor.detach() for name, tensor in model.named_parameters()}  # far from uniform
        save_file(weights, path / "weights.safetensors")
        files = {"weights.safetensors": describe(path / "weights.safetensors")}
        manifest = CheckpointManifest(step=step, counters={}, experiment={}, files=files).sealed()
        (path / "manifest.json").write_text(manifest.model_dump_json())
    return folder.path


def by_hand(run: Path) -> list[list[float]]:
    """Of every row the log-likelihoods of its choices, token by token from the logits."""
    source = read_source(str(run))
    network, tokenizer = source.network(CPU), source.tokenizer()
    sums = []
    for row in ROWS:
        text = str(row["question"]).rstrip(" ")
        moved = " " * (len(str(row["question"])) - len(text))
        sums.append([])
        for choice in row["choices"]:  # type: ignore[attr-defined]
            context = tokenizer.encode(text) or [tokenizer.eot]
            whole = tokenizer.encode(text + moved + choice)
            ids = [tokenizer.eot, *whole] if not text else whole
            start = max(0, len(ids) - network.config.seq_len - 1)
            with torch.no_grad():
                logits = network.logits(torch.tensor([ids[start:-1]]))[0].log_softmax(-1)
            places = range(len(context), len(ids))
            sums[-1].append(sum(logits[place - 1 - start, ids[place]].item() for place in places))
    return sums


REFUSE = """
import os, socket, sys
def refuse(*args, **kwargs):
    os.write(2, f"asked the network: {args}".encode())
    os._exit(99)
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
from weights.lm_eval import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_scores_of_a_run(run: Path, tasks: Path, tmp_path: Path) -> None:
    """Breaks if a score is not that of our logits, the network is asked, or the file lacks what was asked, of which weights."""
    words = [str(run), "--tasks", "small_choice,small_text", "--include", str(tasks), "--batch", "4"]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        env.pop(name, None)
    ended = subprocess.run(
        [sys.executable, "-c", REFUSE, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "|small_choice|" in ended.stdout
    sums = by_hand(run)
    right = [max(range(len(each)), key=each.__getitem__) == row["label"] for each, row in zip(sums, ROWS, strict=True)]
    assert 0 < sum(right) < len(right), "a score of none or all would be right by many ways"
    ((name, found),) = read_evaluations(RunFolder(run))[0].items()
    scores = {score.task: score for score in found.scores}
    assert scores["small_choice"].value == sum(right) / len(right)
    share = sum(right) / len(right)
    assert scores["small_choice"].stderr == pytest.approx((share * (1 - share) / (len(right) - 1)) ** 0.5)
    assert (scores["small_choice"].documents, scores["small_choice"].version) == (5, "2.0")
    assert all(len(score.hash) == 64 for score in found.scores)
    assert scores["small_text"].metric == "bits_per_byte"
    assert (name[:13], found.step, found.weights, found.precision) == ("step_00000006", 6, "weights", "fp32")
    assert found.sha256 == describe(run / "checkpoints" / "step_00000006" / "weights.safetensors").sha256
    assert (found.tasks, found.batch, found.packages["lm_eval"]) == (["small_choice", "small_text"], 4, "0.4.13")
    lost = [note for note in found.notes if "longer than the context of 16 tokens" in note]
    assert lost
    assert f"note: {lost[0]}" in ended.stdout


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets in the environment ends with its test."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "1")


def asked(kind: str, *requests: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=args, task_name=kind) for args in requests]


def test_how_the_harness_is_answered(run: Path, quiet: None) -> None:
    """Breaks if a space before a boundary, a token over it, a text of several windows, or an end of an answer is another."""
    source = read_source(str(run))
    network, tokenizer, notes = source.network(CPU), source.tokenizer(), Counter[str]()
    ours = as_harness_asks(Likelihoods(network, tokenizer.eot, 3, CPU), tokenizer, notes)
    for context, continuation in (("return ", "None"), ("import", " os"), ("  ", "x"), ("", "import")):
        ((value, _),) = ours.loglikelihood(asked("a", (context, continuation)), disable_tqdm=True)
        stripped = context.rstrip()
        ids = tokenizer.encode(context + continuation)
        before = tokenizer.encode(stripped) or [tokenizer.eot]
        (expected,) = Likelihoods(network, tokenizer.eot, 1, CPU).score(
            [(before, ids[len(tokenizer.encode(stripped)) :])]
        )
        assert value == pytest.approx(expected[0], abs=1e-5), (context, continuation)
    assert not notes
    assert len(tokenizer.encode("return")) < len(tokenizer.encode("re") + tokenizer.encode("turn"))
    ours.loglikelihood(asked("a", ("re", "turn")), disable_tqdm=True)
    assert list(notes.values()) == [1]
    # 40 tokens over a context of 16: each is predicted once, from as much as fits
    text = Path(json.__file__).read_text()
    ids = tokenizer.encode(text)[:40]
    sums = [sum(v for v, _ in ours._loglikelihood_tokens([("", c, t)])) for c, t in (
        ([tokenizer.eot], ids[:16]), (ids[15:16], ids[16:32]), (ids[23:32], ids[32:40]),
    )]  # fmt: skip
    (rolled, empty) = ours.loglikelihood_rolling(asked("a", (tokenizer.decode(ids),), ("",)))
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert (rolled, empty) == (pytest.approx(sum(sums), abs=1e-4), 0)
    # the answer ends before the first of the strings that end it
    free = {"until": [], "max_gen_toks": 12}
    (whole, other) = ours.generate_until(asked("a", ("def ", free), ("import os, ", free | {"max_gen_toks": 4})))
    assert len(whole) > 8
    stop = whole[4:6]
    (short, again) = ours.generate_until(
        asked("a", ("def ", free | {"until": ["no such", stop]}), ("import os, ", {"until": other[:1]}))
    )
    assert (short, again) == (whole[: whole.index(stop)], "")
    with pytest.raises(InputError, match="task drawn draws its answers"):
        ours.generate_until(asked("drawn", ("def ", {"do_sample": True, "temperature": 1.0})))


@pytest.mark.slow
def test_a_model_without_a_run(
    run: Path,
    tasks: Path,
    tmp_path: Path,
    tiny_data: tuple[Path, Manifest],
    quiet: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Breaks if weights from elsewhere score otherwise than as a run's, are read by a guessed tokenizer, or write into no run."""
    source = read_source(str(run))
    nanogpt(source.network(CPU), tmp_path / "ckpt.pt")
    words = (tmp_path / "ckpt.pt", "--tasks", "small_choice", "--include", tasks, "--shots", 3)
    assert "name prepared data that has its own with --data DIR" in refusal(capsys, *words)
    out = tmp_path / "new" / "scores.json"
    assert main([*map(str, words), "--data", str(tiny_data[0]), "--out", str(out)]) == 0
    found = parse_evaluation(json.loads(out.read_text()), "")
    assert (found.step, found.sha256, found.scores[0].value) == (None, find_foreign(tmp_path / "ckpt.pt").digest, 0.8)  # type: ignore[union-attr]
    assert "small_choice has 0 shots, and not 3: its own file says so" in found.notes
    assert main([*map(str, words), "--data", str(tiny_data[0]), "--limit", "2"]) == 0
    assert "not written" in capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.slow
def test_refused(run: Path, tasks: Path, tmp_path: Path, quiet: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if what cannot be asked ends in a traceback, is answered without what would work, or leaves a file."""
    include = ("--include", tasks)
    error = refusal(capsys, run, "--tasks", "small_choise", *include)
    assert f"There are: small_choice, small_text in {tasks}; and 1" in error  # and thousands
    assert "among them small_choice" in error
    assert "names no task" in refusal(capsys, run, "--tasks", " ,", *include)
    assert "is no folder of tasks" in refusal(capsys, run, "--tasks", "small_choice", "--include", tmp_path / "no")
    assert "is a folder" in refusal(capsys, run, "--tasks", "small_choice", *include, "--out", tmp_path)
    (tasks / "rows.jsonl").unlink()
    assert "task small_text cannot be loaded: FileNotFoundError" in refusal(
        capsys, run, "--tasks", "small_text", *include
    )
    assert "no ema_0.5" in refusal(capsys, run, "--tasks", "small_choice", *include, "--weights", "ema_0.5")
    for path in run.glob("checkpoints/*/manifest.json"):
        path.unlink()
    assert "has no sound checkpoint" in refusal(capsys, run, "--tasks", "small_choice", *include)
    assert not (run / "lm_eval").exists()


def test_not_of_images_nor_without_the_package(
    run: Path,
    tmp_path: Path,
    make_images: Callable[..., RunConfig],
    tiny_images: tuple[Path, ImageManifest],
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Breaks if a run on images is asked to read, or a missing package is a traceback that does not say how to get it."""
    fields = make_images().model_dump(mode="json")
    for name, content in (("config.json", fields), ("experiment.json", {"data": {"digest": tiny_images[1].digest}})):
        (run / name).write_text(json.dumps(content))
    assert "is a run on images" in refusal(capsys, run, "--tasks", "small_choice")
    monkeypatch.setattr(sys, "path", [str(ROOT)])
    assert "pip install lm_eval==0.4.13" in refusal(capsys, run, "--tasks", "small_choice")
