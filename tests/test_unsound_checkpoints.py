"""Checkpoints that are damaged, unfinished or foreign: none is used in silence, and each is named with the reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from configs.schema import Checkpoint as CheckpointConfig
from configs.schema import RunConfig
from data.manifest import Manifest
from engine import checkpoint
from model.gpt import GPT
from record import checkpoints
from record.checkpoint_manifest import CheckpointManifest, describe
from tests.ranks import run_ranks
from tests.test_checkpoint import newest_of
from weights import evaluate, export

pytestmark = pytest.mark.engine


def stored(folder: Path, config: RunConfig, step: int, weights: bytes | None = None) -> Path:
    """A checkpoint as a run saves it, of initial weights that follow from the step; or of these bytes for weights."""
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    model = GPT(config.model)
    model.init_weights(step)
    save_file({name: tensor.detach() for name, tensor in model.named_parameters()}, path / "weights.safetensors")
    if weights is not None:
        (path / "weights.safetensors").write_bytes(weights)
    files = {"weights.safetensors": describe(path / "weights.safetensors")}
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
        asked = f"{run}@{checkpoints.step_of(path)}"
        code = evaluate.main([asked]) if command == "evaluate" else export.main([asked, "--out", str(tmp_path / "no")])
        error = capsys.readouterr().err
        assert code == 2
        assert why in error
        assert error.count("\n") == 1
    assert checkpoints.main(["verify", str(run)]) == (0 if harm == "set aside" else 1)
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
        checkpoints.find_sound(tmp_path, 7)


def test_a_link_to_another_folder_is_not_emptied(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Breaks if deleting old checkpoints reaches through a link into a folder that is not the run's."""
    other = stored(tmp_path / "other", tiny_config(), 3)
    stored(tmp_path / "run", tiny_config(), 7)
    (tmp_path / "run" / "step_00000003").symlink_to(other)
    checkpoint.delete_old(tmp_path / "run", CheckpointConfig(keep_last=1))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step_00000007"]
    assert sorted(path.name for path in other.iterdir()) == ["manifest.json", "weights.safetensors"]
