"""The folder of prepared images: whole or not at all, the same for the same content, and its files as its manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import InputError
from data.image_manifest import read_image_manifest
from data.image_parquet import HUB, LAYOUTS, read_rows
from data.manifest import Manifest, read_manifest
from data.prepare_images import main
from data.verify import Hashing, verify_split
from tests.pictures import (
    prepared_pictures,
    run,
    write_folder,
    write_parquet,
    write_part,
)
from tests.processes import ROOT, wait

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Breaks if a part, or a split, is held in memory whole: 98 MB of images take less than 40 MB more than 1 MB of them."""
    peaks = []
    for count in (320, 32_000):
        images = np.zeros((count, 32, 32, 3), np.uint8)
        images[:, 0, 0] = np.arange(count)[:, None] % 251
        write_part(tmp_path / "part.npz", images, np.arange(count) % 10)
        code = f"""from data.prepare_images import main
assert main(["--source", "cifar5m", "--input", {str(tmp_path / "part.npz")!r}, "--out", {str(tmp_path / str(count))!r}]) == 0
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])"""
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(ended.stdout.split()[-1]) // 1024)
    assert peaks[1] - peaks[0] < 40, peaks


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    """Breaks if the same images from another kind of file are other data, or data that trains otherwise is the same."""
    pixels = write_folder(tmp_path / "files", (3, 4, 4), [5] * 10)
    from_files = run(tmp_path / "a", "folder", "--input", tmp_path / "files")
    write_parquet(tmp_path / "cifar.parquet", pixels, np.repeat(np.arange(10), 5).tolist(), "img", "label")
    from_table = run(tmp_path / "b", "cifar10", "--input", tmp_path / "cifar.parquet")
    assert from_files.source != from_table.source
    assert from_files.classes != from_table.classes
    assert from_files.digest == from_table.digest
    assert from_files.checksum != from_table.checksum
    other = {
        "shape": from_files.model_copy(update={"shape": (3, 2, 8)}),
        "classes": from_files.model_copy(update={"classes": [*from_files.classes, "more"]}),
        "train": from_files.model_copy(
            update={"train": from_files.train.model_copy(update={"labels_sha256": "0" * 64})}
        ),
        "val": from_files.model_copy(update={"val": from_files.val.model_copy(update={"images_sha256": "0" * 64})}),
    }
    digests = {from_files.digest, *(manifest.with_digest().digest for manifest in other.values())}
    assert len(digests) == 5


def test_an_edited_manifest_is_none(tmp_path: Path, tiny_data: tuple[Path, Manifest]) -> None:
    """Breaks if a manifest that was changed by hand, is of tokens or leads outside is taken for prepared images."""
    out, manifest = prepared_pictures(tmp_path, (1, 4, 4), [10, 10])
    path, text = out / "manifest.json", (out / "manifest.json").read_text()
    fields = json.loads(text)
    outside = {**fields, "train": {**fields["train"], "images_file": "../images.u8"}}
    for given, message in (
        ({**fields, "mean": [0.5]}, "changed after preparation"),
        ({**fields, "wrong_labels": 7}, "changed after preparation"),
        ({**fields, "more": 1}, "is not a manifest of prepared images"),
        ({**fields, "format": 2}, "has format 2"),
        ({**fields, "kind": "sounds"}, "data of the kind 'sounds', not of images"),
        (outside, "is not a manifest of prepared images: .*'../images.u8' is not the plain name"),
        ([1], "holds no JSON object"),
    ):
        path.write_text(json.dumps(given))
        with pytest.raises(InputError, match=message):
            read_image_manifest(out)
    path.write_text(text)
    assert read_image_manifest(out) == manifest
    assert read_image_manifest(tmp_path / "nothing") is None
    with pytest.raises(InputError, match=r"data of tokens, not of images; `python -m data\.prepare_images`"):
        read_image_manifest(tiny_data[0])
    with pytest.raises(InputError, match="is the manifest of prepared images, not of tokens"):
        read_manifest(out)


def test_hashes(tmp_path: Path) -> None:
    """Breaks if a flipped bit in any file, the true labels included, passes for the data that was prepared."""
    out, manifest = prepared_pictures(tmp_path, (1, 4, 4), [10, 10], label_noise=0.2)
    names = [name for split in (manifest.train, manifest.val) for name, _ in split.files()]
    assert sorted([*names, "manifest.json"]) == sorted(os.listdir(out))
    for split in (manifest.train, manifest.val):
        verify_split(out, split)
        for name, sha in split.files():
            raw = (out / name).read_bytes()
            assert hashlib.sha256(raw).hexdigest() == sha
            (out / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
            with pytest.raises(InputError, match=f"{name} differs from its hash"):
                verify_split(out, split)
            hashing = Hashing(out, manifest)
            hashing.start()
            assert hashing.wait(30)
            assert f"{name} differs" in hashing.problem
            (out / name).write_bytes(raw)
    hashing = Hashing(out, manifest)
    hashing.start()
    assert hashing.wait(30)
    assert (hashing.problem, hashing.hashed) == ("", sum((out / name).stat().st_size for name in names))


def test_the_same_command_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_data: tuple[Path, Manifest]
) -> None:
    """Breaks if prepared images are made twice, taken for others, or written over something else."""
    write_folder(tmp_path / "files", (1, 4, 4), [10, 10])
    command = ["--source", "folder", "--input", str(tmp_path / "files"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert main(command) == 0
    assert "is prepared already" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for more, problem in (
        (["--label-noise", "0.2"], "images prepared otherwise"),
        (["--seed", "1"], "images prepared otherwise"),
        (["--out", str(tmp_path / "other")], "no prepared images"),
        (["--out", str(tmp_path / "file")], "it is no folder"),
        (["--out", str(tiny_data[0])], "manifest of data of tokens"),
    ):
        assert main([*command, *more]) == 2
        message = capsys.readouterr().err
        assert "holds something else" in message, message
        assert problem in message, message
    assert (tmp_path / "other" / "thesis.tex").read_text() == "mine"
    assert not list(tmp_path.glob("*.preparing*"))
    assert main([*command, "--out", str(tmp_path / "empty")]) == 0  # an empty folder gives way


@pytest.mark.parametrize("point", ["images", "labels", "manifest"])
def test_killed_and_started_over(point: str, tmp_path: Path) -> None:
    """Breaks if a preparation that was killed leaves something that passes for data, or spoils the next, even of other options."""
    write_folder(tmp_path / "files", (1, 4, 4), [40, 40])
    command = ["--source", "folder", "--input", str(tmp_path / "files"), "--out", str(tmp_path / "out")]
    stops = {
        "images": "import data.image_folder as m; name = 'decode_image'; after = 60",
        "labels": "import data.prepare_images as m; name = 'sha256_of'; after = 1",
        "manifest": "import data.prepare_images as m; name = 'replace_file'; after = 2",
    }
    code = f"""import os, signal, sys
{stops[point]}
original, calls = getattr(m, name), 0
def killed(*given):
    global calls
    calls += 1
    if calls > after: os.kill(os.getpid(), signal.SIGKILL)
    return original(*given)
setattr(m, name, killed)
from data.prepare_images import main
main({[*command, "--label-noise", "0.5"]!r})"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = sorted(path.name for path in tmp_path.iterdir())
    assert "out" not in left
    assert "out.preparing" in left
    assert not (tmp_path / "out.preparing" / "manifest.json").exists()
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "out"]
    manifest = read_image_manifest(tmp_path / "out")
    assert manifest is not None
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        ["manifest.json", *(name for split in (manifest.train, manifest.val) for name, _ in split.files())]
    )
    assert manifest == run(tmp_path / "whole", "folder", "--input", tmp_path / "files")


def test_one_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a second preparation throws away what a first one is writing."""
    write_folder(tmp_path / "files", (1, 4, 4), [10, 10])
    command = ["--source", "folder", "--input", str(tmp_path / "files"), "--out", str(tmp_path / "out")]
    code = f"""import sys, time
import data.image_folder as m
original = m.decode_image
def slow(*given):
    open({str(tmp_path / "started")!r}, "w").close()
    while not __import__("os").path.exists({str(tmp_path / "go")!r}): time.sleep(0.02)
    return original(*given)
m.decode_image = slow
from data.prepare_images import main
sys.exit(main({command!r}))"""
    first = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait((tmp_path / "started").exists, first)
        assert main(command) == 2
        assert "another preparation is writing" in capsys.readouterr().err
        (tmp_path / "go").touch()
        assert first.wait(60) == 0
    finally:
        first.kill()  # else it would wait for ever where something above failed
    assert read_image_manifest(tmp_path / "out") is not None


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """Breaks if half a data set stays on a disk that it filled, or the message promises that something was kept."""
    write_folder(tmp_path / "files", (1, 16, 16), [20, 20])
    command = ["--source", "folder", "--input", str(tmp_path / "files"), "--out", str(tmp_path / "out")]
    code = f"""import resource, sys
from data.prepare_images import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main({command!r}))"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "File too large while writing" in ended.stderr
    assert "nothing is kept: mend that, repeat the command" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]


def test_a_hub_out_of_reach_is_nobodys_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a lost network, once the files are known, is a traceback, or is called a damaged file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 sets it at the import
    layout = LAYOUTS["cifar10"]
    for name, kind in ((f"{HUB}uoft-cs/cifar10@0123/train.parquet", OSError), ("/nowhere/train.parquet", InputError)):
        with pytest.raises(kind, match=re.escape(f"{name} is not a parquet file that can be read: ")):
            next(read_rows([name], layout, None))
