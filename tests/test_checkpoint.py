"""Checkpoints are exact: resume is bit-identical, and the files do not know the stage or the number of ranks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from configs.schema import Checkpoint as CheckpointConfig
from configs.schema import RunConfig
from data.manifest import Manifest
from engine import checkpoint, evaluate, export
from engine.launch import start_world
from model.gpt import GPT
from record.checkpoints import CheckpointManifest, complete
from tests.live import KINDS, make_trainer, train_steps
from tests.ranks import run_ranks
from tests.test_parity import CASES

pytestmark = pytest.mark.engine


def resumed_runs(configs: list[RunConfig], manifest: Manifest, folder: Path) -> list[dict[str, Any]]:
    """Each case twice: six updates in one go, and three, a checkpoint, a new engine, three more."""
    world = start_world("resume", 120, None, configs[0].parallel.deterministic)
    found = []
    for index, config in enumerate(configs):
        torch.compiler.reset()  # as in a new process; and what one process compiles is bounded
        whole = make_trainer(config, manifest, world)
        straight = train_steps(whole, manifest, range(6))
        end = checkpoint.save(folder / f"{index}a", 6, whole.fragments, {}, {})
        first = make_trainer(config, manifest, world)
        before = train_steps(first, manifest, range(3))
        middle = checkpoint.save(folder / f"{index}b", 3, first.fragments, {"note": 1}, {})
        torch.compiler.reset()
        second = make_trainer(config, manifest, world)
        counters = checkpoint.load(middle, second.fragments)
        after = train_steps(second, manifest, range(3, 6))
        again = checkpoint.save(folder / f"{index}c", 6, second.fragments, {}, {})
        found.append({"straight": straight, "resumed": before + after, "files": (end, again), "counters": counters})
    return found


def saved_again(configs: list[RunConfig], manifest: Manifest, source: Path, folder: Path) -> list[Path]:
    """Load one checkpoint under every configuration and save it again without a step."""
    world = start_world("reshard", 120, None)
    found = []
    for index, config in enumerate(configs):
        trainer = make_trainer(config, manifest, world)
        checkpoint.load(source, trainer.fragments)
        found.append(checkpoint.save(folder / f"{world.ranks}_{index}", 3, trainer.fragments, {}, {}))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_is_bit_identical(
    ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if anything the next update depends on is missing from a checkpoint, in any precision or stage."""
    configs = [tiny_config({"precision": precision, "parallel": {"zero_stage": stage}}) for precision, stage in CASES]
    configs.append(tiny_config({"model": {"dropout": 0.2}, "parallel": {"zero_stage": 3}}))
    rule = {"decay_rule": "l2_loss", "weight_decay": 0.01, "decay_schedule": {"kind": "linear"}}
    configs.append(tiny_config({"optim": rule, "parallel": {"zero_stage": 2}, "averages": {"ema": [0.99]}}))
    for momentum, stage in ((0.9, 1), (0.9, 3), (0.0, 0)):
        sgd = {"algorithm": "sgd", "momentum": momentum, "lr": 0.1}
        configs.append(tiny_config({"optim": sgd, "parallel": {"zero_stage": stage}}))
    more = ["dropout", "l2_loss", "momentum", "momentum, stage 3", "sgd"]
    for case, run in zip(
        [*CASES, *more], run_ranks(ranks, resumed_runs, configs, tiny_data[1], tmp_path)[0], strict=True
    ):
        losses = [(s.loss, s.grad_norm, s.norm) for s in run["straight"]]
        assert losses == [(s.loss, s.grad_norm, s.norm) for s in run["resumed"]], case
        kinds = ("weights", "momentum_buffer") if "momentum" in case else ("weights",) if case == "sgd" else KINDS
        assert_same_files(*run["files"], kinds=(*kinds, "ema_0.99") if case == "l2_loss" else kinds)
        assert run["counters"] == {"note": 1, "optimizer_step": 0 if "momentum" in case or case == "sgd" else 3}, case


def test_files_do_not_know_stage_or_ranks(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if loading at another stage or world size loses, pads or reorders a single byte."""
    manifest = tiny_data[1]
    source = run_ranks(2, _trained_at_stage_1, tiny_config({"parallel": {"zero_stage": 1}}), manifest, tmp_path)[0]
    batch = {"tokens_per_step": 192, "micro_batch": None}  # 12 sequences: also three ranks share them
    configs = [tiny_config({"batch": batch, "parallel": {"zero_stage": stage}}) for stage in (0, 1, 2, 3)]
    for ranks in (1, 3):
        for path in run_ranks(ranks, saved_again, configs, manifest, source, tmp_path)[0]:
            assert_same_files(source, path)


def _trained_at_stage_1(config: RunConfig, manifest: Manifest, folder: Path) -> Path:
    world = start_world("source", 120, None)
    trainer = make_trainer(config, manifest, world)
    train_steps(trainer, manifest, range(3))
    return checkpoint.save(folder / "source", 3, trainer.fragments, {}, {})


def assert_same_files(one: Path, other: Path, kinds: tuple[str, ...] = KINDS) -> None:
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()} == {"manifest.json", *(f"{k}.safetensors" for k in kinds)}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{one / name} and {other / name} differ"


def test_only_complete_checkpoints_are_found(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if a checkpoint without manifest, with a short file, or still under its temporary name is chosen."""
    source = run_ranks(1, _trained_at_stage_1, tiny_config({"parallel": {"zero_stage": 1}}), tiny_data[1], tmp_path)[0]
    folder = source.parent
    for step, harm in ((4, "manifest"), (5, "short"), (6, "temporary"), (7, "garbage")):
        copy = folder / (f".step_{step:08d}.tmp" if harm == "temporary" else f"step_{step:08d}")
        shutil.copytree(source, copy)
        if harm == "manifest":
            (copy / "manifest.json").unlink()
        elif harm == "short":
            with open(copy / "weights.safetensors", "r+b") as file:
                file.truncate(100)
        elif harm == "garbage":
            (copy / "manifest.json").write_text(json.dumps(["no", "manifest"]))
    assert complete(folder) == [source]
    shutil.copytree(source, folder / "step_00000009")
    checkpoint.delete_old(folder, CheckpointConfig(keep_last=1))
    assert [path.name for path in complete(folder)] == ["step_00000009"]
    assert not source.exists()


def test_a_flipped_bit_is_refused(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if a checkpoint of the right size but with other bytes is trained from."""
    config = tiny_config({"parallel": {"zero_stage": 1}})
    source = run_ranks(1, _trained_at_stage_1, config, tiny_data[1], tmp_path)[0]
    data = bytearray((source / "exp_avg.safetensors").read_bytes())
    data[-5] ^= 1
    (source / "exp_avg.safetensors").write_bytes(data)
    assert run_ranks(2, newest_of, source.parent) == [None, None], "nothing sound is left"
    assert (source / "manifest.damaged.json").exists()


def newest_of(folder: Path) -> Path | None:
    start_world("newest", 60, None)
    return checkpoint.newest(folder)


def test_weights_are_float32_by_name(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if the layout loses names, shapes, or the tied head's single copy."""
    from safetensors.torch import load_file

    from configs.cost import parameter_shapes

    config = tiny_config({"parallel": {"zero_stage": 1}})
    weights = load_file(run_ranks(2, _trained_at_stage_1, config, tiny_data[1], tmp_path)[0] / "weights.safetensors")
    assert {name: tuple(t.shape) for name, t in weights.items()} == parameter_shapes(config.model)
    assert {t.dtype for t in weights.values()} == {torch.float32}


def stored(folder: Path, config: RunConfig, step: int, weights: bytes | None = None) -> Path:
    """A checkpoint as a run saves it, of initial weights that follow from the step; or of these bytes for weights."""
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    model = GPT(config.model)
    model.init_weights(step)
    save_file({name: tensor.detach() for name, tensor in model.named_parameters()}, path / "weights.safetensors")
    if weights is not None:
        (path / "weights.safetensors").write_bytes(weights)
    files = {"weights.safetensors": checkpoint._describe(path / "weights.safetensors")}
    manifest = CheckpointManifest(step=step, counters={}, experiment={}, files=files)
    (path / "manifest.json").write_text(manifest.sealed().model_dump_json())
    return path


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (
        lambda p: flip(p / "weights.safetensors", -5),
        "is damaged: weights.safetensors differs from its manifest",
    ),
    "short": (
        lambda p: os.truncate(p / "weights.safetensors", 100),
        "is damaged: weights.safetensors has 100 bytes, not ",
    ),
    "missing": (lambda p: (p / "weights.safetensors").unlink(), "is damaged: weights.safetensors is missing"),
    "manifest": (lambda p: flip(p / "manifest.json", 9), "is damaged: its manifest.json is "),
    "unfinished": (lambda p: (p / "manifest.json").unlink(), "is incomplete: it has no manifest.json"),
    "set aside": (
        lambda p: os.replace(p / "manifest.json", p / "manifest.superseded.json"),
        "was set aside when the run went back to an earlier step",
    ),
    "foreign": (None, "is damaged: weights.safetensors is no safetensors file"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_older_checkpoint_is_never_used_without_a_word(
    harm: str,
    tiny_data: tuple[Path, Manifest],
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Breaks if evaluation or export takes an older checkpoint for the newest in silence, or reads a damaged one."""
    config, run = tiny_config(), tmp_path / "run"
    folder = run / "checkpoints"
    stored(folder, config, 3)
    (run / "config.json").write_text(config.model_dump_json())
    (run / "experiment.json").write_text(json.dumps({"data": {"digest": tiny_data[1].digest}}))
    assert evaluate.main([str(run)]) == 0
    sound = json.loads(capsys.readouterr().out)
    assert (sound["steps"], sound["left_out"]) == ([3], [])
    act, why = HARMS[harm]
    path = stored(folder, config, 7, b"no tensors" if act is None else None)
    if act is not None:
        act(path)
    assert evaluate.main([str(run)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["val/loss"]) == ([3], sound["val/loss"])
    (left_out,) = found["left_out"]
    assert left_out["checkpoint"] == str(path)
    assert why in left_out["why"]
    assert export.main([str(run), "--out", str(tmp_path / "out")]) == 0
    words = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(words) == 2, "one of evaluation, one of export"
    for text in words:
        assert text.startswith(f"{path} {why}")
        assert text.endswith("it is left out, and step_00000003 is used")
    for command in ("evaluate", "export"):
        asked = f"{run}@{checkpoint.step_of(path)}"
        code = evaluate.main([asked]) if command == "evaluate" else export.main([asked, "--out", str(tmp_path / "no")])
        error = capsys.readouterr().err
        assert code == 2
        assert why in error
        assert error.count("\n") == 1
    assert checkpoint.main(["verify", str(run)]) == 1
    assert why in capsys.readouterr().out
    shutil.rmtree(folder / "step_00000003")
    assert export.main([str(run), "--out", str(tmp_path / "no")]) == 2
    assert f"has no sound checkpoint: {path.name} {why}" in capsys.readouterr().err


def test_what_a_command_says_of_its_place(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if an export cannot be read by those that the umask lets read, RUN@WORD is not answered, or a configuration that is
    none is a traceback."""
    run = tmp_path / "run"
    stored(run / "checkpoints", tiny_config(), 3)
    (run / "config.json").write_text(tiny_config().model_dump_json())
    before = os.umask(0o027)
    try:
        assert export.main([str(run), "--out", str(tmp_path / "out")]) == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}
    for command in (evaluate.main, lambda args: export.main([*args, "--out", str(tmp_path / "no")])):
        capsys.readouterr()
        assert command([f"{run}@abc"]) == 2
        assert "expected a number after @ (found 'abc'), or a run folder of that whole name" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "run@abc")
    assert export.main([str(tmp_path / "run@abc"), "--out", str(tmp_path / "named")]) == 0
    (run / "config.json").write_text("null")
    for command in (evaluate.main, lambda args: export.main([*args, "--out", str(tmp_path / "no")])):
        capsys.readouterr()
        assert command([str(run)]) == 2
        assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_resume_passes_over_what_is_no_safetensors_file(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if a file that fits its manifest, and is no safetensors file, ends a resume in a traceback."""
    sound = stored(tmp_path, tiny_config(), 3)
    foreign = stored(tmp_path, tiny_config(), 7, b"no tensors")
    stored(tmp_path, tiny_config(), 9)
    (tmp_path / "step_00000009" / "manifest.json").unlink()
    assert run_ranks(2, newest_of, tmp_path) == [sound, sound]
    assert (foreign / "manifest.damaged.json").exists()
    shutil.rmtree(foreign)
    stored(tmp_path, tiny_config(), 7)
    os.replace(foreign / "manifest.json", foreign / "manifest.damaged.json")
    with pytest.raises(ValueError, match="was found damaged and set aside"):
        checkpoint.find_sound(tmp_path, 7)


def test_a_link_to_another_folder_is_not_emptied(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if deleting old checkpoints reaches through a link into a folder that is not the run's."""
    other = stored(tmp_path / "other", tiny_config(), 3)
    stored(tmp_path / "run", tiny_config(), 7)
    (tmp_path / "run" / "step_00000003").symlink_to(other)
    checkpoint.delete_old(tmp_path / "run", CheckpointConfig(keep_last=1))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step_00000007"]
    assert sorted(path.name for path in other.iterdir()) == ["manifest.json", "weights.safetensors"]
