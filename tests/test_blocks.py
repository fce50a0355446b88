"""The validation at a run's end, block by block: which windows, what sums, for any ranks and micro-batch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from configs.schema import RunConfig
from configs.windows import final_windows, windows_in
from data.manifest import Manifest
from data.shards import TokenStream
from record.blocks import BLOCKS, cut, in_blocks, read_blocks, write_blocks
from record.metrics import read_metrics
from record.run import RunFolder
from tests.processes import ConfigFile, finish, start
from weights.read import build_loaded, choose


def test_blocks_cover_every_window_once(tmp_path: Path) -> None:
    """Breaks if a window is in no block or in two, blocks differ by more than one window, or the file gives other numbers back."""
    for windows in (1, 7, 255, 256, 257, 1000, 15_625):
        sizes = [b - a for a, b in zip(cut(windows), cut(windows)[1:], strict=False)]
        assert sum(sizes) == windows
        assert len(sizes) == min(windows, BLOCKS)
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
    sums = [1.0 + 1e-13 * window for window in range(1000)]
    blocks = in_blocks(6, 16, 1234, {"weights": sums, "ema_0.9": [*sums[:-1], math.inf]})
    assert blocks.loss() == math.fsum(sums) / 16_000
    assert math.fsum(blocks.loss_sums["weights"][:2]) == pytest.approx(math.fsum(sums[: cut(1000)[2]]), rel=1e-15)
    write_blocks(tmp_path / "b.json", blocks)
    again = read_blocks(tmp_path / "b.json")
    assert again is not None
    assert again.loss_sums["weights"] == blocks.loss_sums["weights"]
    assert math.isnan(again.loss_sums["ema_0.9"][-1])
    assert (again.place, again.step) == ((16, 1000, 1234), 6)
    assert read_blocks(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is of format 2"),
        ({"step": -1}, "step is -1"),
        ({"windows": True}, "windows is True"),
        ({"windows": 3}, "2 blocks, where 3 windows"),
        ({"targets": []}, "0 blocks"),
        ({"targets": [1.5, 2]}, "targets is no list of counts"),
        ({"loss_sums": {"ema_0.9": [1.0, 2.0]}}, "loss_sums are no lists"),
        ({"loss_sums": {"weights": ["1", 2.0]}}, "loss_sums are no lists"),
        ({"loss_sums": {"weights": [1.0]}}, "other numbers of blocks"),
    ],
)
def test_a_foreign_file_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    """Breaks if a damaged file of blocks is read as numbers, or is a traceback."""
    write_blocks(tmp_path / "b.json", in_blocks(6, 16, 2, {"weights": [1.0, 2.0]}))
    (tmp_path / "b.json").write_text(json.dumps({**json.loads((tmp_path / "b.json").read_text()), **change}))
    with pytest.raises(InputError, match=message):
        read_blocks(tmp_path / "b.json")


def test_which_windows_the_end_has(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the whole split leaves a window out, or the end has other windows than asked."""

    def windows(**evaluation: object) -> int:
        return final_windows(tiny_config({"eval": evaluation}), 16 * 100 + 7)

    assert windows(tokens=512) == 512 // 16
    assert windows(tokens=512, final_tokens="all") == 100
    assert windows(tokens=512, final_tokens=800) == 50
    assert windows(tokens=512, final_tokens=1 << 40) == 100


def loss_by_window(run: Path, kind: str, manifest: Manifest) -> list[float]:
    """Of the weights at the end, one window at a time, by torch's own cross-entropy in float64."""
    chosen = choose(str(run))
    config = RunConfig.model_validate_json((run / "config.json").read_text())
    model = build_loaded(config, manifest, chosen.tensors(kind), torch.device("cpu"))
    stream, length = TokenStream(Path(config.data.path), manifest.val.shards, manifest.dtype), config.model.seq_len
    count = final_windows(config, len(stream))
    tokens = torch.empty(count, length + 1, dtype=torch.long)
    for place in range(count):
        begin = place * windows_in(len(stream), length) // count * length
        stream.read(begin, begin + length + 1, tokens[place].numpy())
    with torch.no_grad():
        logits = model.logits(tokens[:, :-1]).double()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return [float(loss) for loss in losses.sum(1)]


@pytest.mark.engine
def test_blocks_of_a_run(config_file: ConfigFile, tiny_data: tuple[Path, Manifest], tmp_path: Path) -> None:
    """Breaks if the blocks are not the losses of their windows, depend on ranks, micro-batch or a resume, miss an average, do not
    add up to the recorded loss, or if to write them changes a recorded value."""
    manifest = tiny_data[1]
    ema = {"averages": {"ema": [0.9]}, "checkpoint": {"every": 3}}
    asked = {**ema, "eval": {"tokens": 512, "final_tokens": 16 * 300}}
    finish(start(config_file(ema), tmp_path / "plain"))
    finish(start(config_file(asked), tmp_path / "whole"))
    finish(
        start(
            config_file(asked, {"parallel": {"zero_stage": 3}, "batch": {"micro_batch": 1}}),
            tmp_path / "two",
            ranks=2,
        )
    )
    last = {name: read_metrics(tmp_path / name / "metrics.jsonl")[0][-1] for name in ("plain", "whole", "two")}
    blocks = {name: read_blocks(RunFolder(tmp_path / name).blocks) for name in last}
    # Without final_tokens the fixed windows are the end's, and no column is new.
    plain, whole, two = (blocks[name] for name in last)
    assert plain is not None
    assert whole is not None
    assert two is not None
    assert [key for key in last["plain"] if "final" in key] == []
    assert (plain.windows, whole.windows) == (32, 300)
    assert whole.windows_in_split == windows_in(manifest.val.tokens, 16) > 300
    for kind, suffix in (("weights", ""), ("ema_0.9", "_ema_0.9")):
        assert last["plain"][f"val/loss{suffix}"] == last["whole"][f"val/loss{suffix}"]
        assert plain.loss(kind) == pytest.approx(last["plain"][f"val/loss{suffix}"], rel=1e-6)
        assert whole.loss(kind) == pytest.approx(last["whole"][f"val/final_loss{suffix}"], rel=1e-6)
        expected = in_blocks(
            6, 16, whole.windows_in_split, {"weights": loss_by_window(tmp_path / "whole", kind, manifest)}
        )
        assert whole.loss_sums[kind] == pytest.approx(expected.loss_sums["weights"], rel=1e-5)
        assert two.loss_sums[kind] == pytest.approx(whole.loss_sums[kind], rel=1e-5)
    # A resume that comes to the end again writes the same file, to the bit.
    before = RunFolder(tmp_path / "whole").blocks.read_bytes()
    RunFolder(tmp_path / "whole").blocks.unlink()
    finish(start(config_file(asked), tmp_path / "whole", "--resume", "must", "--step", "3"))
    assert RunFolder(tmp_path / "whole").blocks.read_bytes() == before
