"""Configurations: what is refused and how, identity, plan, and every shipped file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs import cost
from configs.editor_schema import editor_schema
from configs.groups import decay_groups
from configs.identity import experiment, run_id
from configs.load import load_config, parse_override
from configs.plan import make_plan
from configs.prepared import DataSummary
from configs.schema import RunConfig
from configs.tensors import tensor_table
from train import main

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = sorted(path for path in CONFIGS.glob("*.json") if path.name != "config.schema.json")
DATA = DataSummary("d" * 64, 512, 100_000, 5_000)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_dry_run_of_every_shipped_configuration(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Breaks if a shipped configuration is invalid, or its plan needs data or leaves out a promised figure."""
    assert main(["--config", str(path), "--dry-run", "--set", f"data.path={tmp_path / 'absent'}"]) == 0
    text = capsys.readouterr().out
    unit = load_config(path)[0].unit
    for fact in (
        f"{unit} per step",
        "micro-step",
        "steps",
        "not prepared: run python -m data.prepare",
        "λ =",
        f"FLOPs per {unit[:-1]}",
        "memory per device",
        "checkpoint(s)",
        "Ση ",
        "Σηλ",
    ):
        assert fact in text, fact
    resolved = json.loads(text[: text.index("\n\n")])
    assert resolved["schedule"]["steps"] == load_config(path)[0].schedule.steps


def test_p1_recipe() -> None:
    """Breaks if the shipped 124M configuration drifts from P1's recipe."""
    config = load_config(CONFIGS / "gpt124m_wd0.1.json")[0]
    plan = make_plan(config, 8, None)
    assert plan.n_parameters == 50304 * 768 + 256 * 768 + 12 * (12 * 768 * 768 + 2 * 768) + 768
    assert plan.units == 3_276_800_000
    assert plan.lr_sum == pytest.approx(16.49, abs=5e-3)
    assert plan.decay_sum == pytest.approx(1.65, abs=5e-3)
    assert plan.groups["decayed"].parameters == plan.n_parameters - 25 * 768


def test_schema_file_is_current() -> None:
    """Breaks if config.schema.json was not regenerated after a change of the schema."""
    assert json.loads((CONFIGS / "config.schema.json").read_text()) == editor_schema()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"optim": {"weight_decy": 0.1}}, "unknown key 'optim.weight_decy'; did you mean 'weight_decay'"),
        ({"optimiser": {}}, "unknown key 'optimiser'; did you mean 'optim'"),
        ({"optim": {"lr": "fast"}}, 'optim.lr = "fast": Input should be a valid number'),
        ({"schedule": {"steps": 1.5}}, "schedule.steps = 1.5: Input should be a valid integer"),
        ({"schedule": {"steps": True}}, "schedule.steps = true"),
        ({"optim": {"lr": -1}}, "optim.lr = -1: Input should be greater than 0"),
        ({"optim": {"lr": 1.7e308}}, "optim.lr = 1.7e+308: Input should be less than or equal to 1000000"),
        ({"optim": {"betas": [0.9, 1.0]}}, "betas [0.9, 1.0] must each lie in [0, 1)"),
        ({"schedule": {"warmup_steps": 7}}, "warmup_steps 7 exceeds steps 6"),
        ({"model": {"n_head": 5}}, "n_embd 32 is not divisible by n_head 5; nearest n_embd: 30 or 35"),
        ({"batch": {"tokens_per_step": 130}}, "130 is not a multiple of model.seq_len 16; nearest: 128 or 144"),
        ({"batch": {"tokens_per_step": 3}}, "nearest: 16 or 16"),
        ({"precision": "fp16"}, 'precision = "fp16"'),
        ({"precision": "bf16-master"}, "bf16-master needs parallel.zero_stage 1, 2 or 3"),
        ({"precision": "bf16-true"}, "bf16-true needs parallel.zero_stage 1, 2 or 3"),
        ({"precision": "bf16-stochastic"}, "bf16-stochastic needs parallel.zero_stage 1, 2 or 3"),
        ({"deepspeed": {"gradient_cliping": 1.0}}, "deepspeed option 'gradient_cliping' is not allowed"),
        ({"deepspeed": {"reduce_bucket_size": -5}, "parallel": {"zero_stage": 1}}, "deepspeed.reduce_bucket_size"),
        ({"deepspeed": {"overlap_comm": True}}, "does nothing at ZeRO stage 0"),
        ({"deepspeed": {"sub_group_size": 5}, "parallel": {"zero_stage": 2}}, "does nothing at ZeRO stage 2"),
        ({"schedule": {"kind": "constant", "final_lr_fraction": 0.5}}, "a constant schedule has no final_lr_fraction"),
        ({"model": {"dropout": 0.1}, "batch": {"micro_batch": None}}, "model.dropout needs batch.micro_batch"),
        ({"name": "../escape"}, 'name = "../escape"'),
    ],
)
def test_nonsense_is_refused(tiny_config: Callable[..., RunConfig], override: dict[str, Any], message: str) -> None:
    """Breaks if a mistake of this kind would train for days, or its message does not say what to do."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is the point)
        tiny_config(override)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "name": "b"}', "key 'name' appears twice"),
        ('{"optim": {"lr": NaN}}', "NaN is not a number"),
        ("[1]", "holds a list, expected a JSON object"),
        ("{", "is not a valid configuration"),
        ("[" * 100_000, "is not a valid configuration"),
        ('{"base": "absent.json"}', "cannot read configuration"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """Breaks if a damaged file becomes a traceback or, worse, a configuration."""
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.json|absent\.json") as error:
        load_config(path)
    assert message in str(error.value)


def test_words_that_no_option_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if several overrides after one --set, or a glob that the shell has replaced, are answered without what would work."""
    for stray in (["--set", "optim.lr=1", "seeds.init=2"], ["--config", "b.json", "c.json"]):
        with pytest.raises(SystemExit) as ended:
            main(["--config", "a.json", *stray])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert f'no option takes ["{stray[-1]}"]: each override needs a --set of its own' in error
        assert "a name with a * must be quoted" in error


def test_one_level_of_base(tmp_path: Path) -> None:
    """Breaks if a base is merged wrongly, or a chain of bases is followed."""
    (tmp_path / "a.json").write_text(json.dumps({"base": str(CONFIGS / "quickstart.json"), "optim": {"lr": 0.5}}))
    config, given = load_config(tmp_path / "a.json", ["optim.weight_decay=0", "name=mine"])
    assert (config.optim.lr, config.optim.weight_decay, config.name, config.model.n_embd) == (0.5, 0, "mine", 64)
    assert "base" not in given
    (tmp_path / "b.json").write_text(json.dumps({"base": "a.json"}))
    with pytest.raises(ValueError, match="one level is allowed"):
        load_config(tmp_path / "b.json")


def test_overrides_are_typed() -> None:
    """Breaks if --set turns numbers into text, or accepts a key without a value."""
    assert parse_override("optim.lr=1e-3") == {"optim": {"lr": 0.001}}
    assert parse_override("batch.micro_batch=null") == {"batch": {"micro_batch": None}}
    assert parse_override("precision=bf16-mixed") == {"precision": "bf16-mixed"}
    for wrong in ("optim.lr", "=1", "optim..lr=1"):
        with pytest.raises(ValueError, match=r"expected section\.key=value"):
            parse_override(wrong)


def identity(config: RunConfig, digest: str) -> str:
    return run_id(experiment(config, digest))


def test_identity(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the id misses what changes the computation, or sees what does not."""
    base = identity(tiny_config(), "a")
    operational = [
        {"name": "other"},
        {"data": {"path": "elsewhere"}},
        {"parallel": {"zero_stage": 2}},
        {"batch": {"micro_batch": 4}},
        {"eval": {"every": 2}},
        {"checkpoint": {"every": 3, "keep_last": 1}},
        {"log": {"every": 1, "wandb": "offline"}},
        {"deepspeed": {"overlap_comm": False}, "parallel": {"zero_stage": 1}},
    ]
    assert {identity(tiny_config(change), "a") for change in operational} == {base}
    changed = [
        {"seeds": {"init": 1}},
        {"seeds": {"data": 1}},
        {"optim": {"weight_decay": 0.25}},
        {"precision": "bf16-mixed"},
        {"schedule": {"steps": 7}},
        {"data": {"order": "documents"}},
        {"model": {"n_layer": 3}},
        {"batch": {"tokens_per_step": 256}},
    ]
    ids = [identity(tiny_config(change), "a") for change in changed]
    assert len({base, identity(tiny_config(), "b"), *ids}) == len(changed) + 2
    assert identity(tiny_config({"optim": {"eps": 1e-8}}), "a") == base, "a field at its default must not enter the id"
    assert experiment(tiny_config(), "a")["data"] == {"digest": "a"}


def test_accumulation_is_derived(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if ranks × micro-steps × micro-batch × seq_len is ever not exactly tokens_per_step."""
    for ranks in (1, 2, 4, 8):
        for micro_batch in (None, 1):
            config = tiny_config({"batch": {"micro_batch": micro_batch}})
            plan = make_plan(config, ranks, DATA)
            assert ranks * plan.micro_steps * plan.micro_batch * 16 == 128
    bound = cost.activation_bytes(tiny_config(), 3) / 2**30
    assert make_plan(tiny_config({"batch": {"micro_batch": None, "memory_gib": bound}}), 1, DATA).micro_batch == 2


@pytest.mark.parametrize(
    ("ranks", "override", "message"),
    [
        (3, {}, "8 sequences of 16, which 3 ranks cannot share equally; nearest: 96 or 144"),
        (1, {"batch": {"micro_batch": 3}}, "micro_batch 3 does not divide the 8 sequences"),
        (1, {"schedule": {"steps": 100_000}}, "at most 781 steps, or more data, or data.epochs"),
        (1, {"data": {"train_tokens": 500}}, "at most 3 steps"),
        (1, {"data": {"train_tokens": 10**9}}, "train_tokens 1000000000 exceeds the 100000 training tokens"),
        (
            1,
            {"model": {"vocab_size": 511}},
            "vocabulary of 512, model.vocab_size is 511; set model.vocab_size to at least 512",
        ),
        (1, {"model": {"seq_len": 8192}, "batch": {"tokens_per_step": 8192}}, "less than one window of 8193"),
    ],
)
def test_plans_that_cannot_work(
    tiny_config: Callable[..., RunConfig], ranks: int, override: dict[str, Any], message: str
) -> None:
    """Breaks if a batch is rounded, or a run starts that its data cannot finish."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make_plan(tiny_config({"batch": {"micro_batch": None}}, override), ranks, DATA)
    assert message in str(error.value)


def test_groups_do_not_depend_on_lambda(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if λ = 0 changes the optimiser's structure."""
    tensors = tensor_table(tiny_config().model)

    def sizes(mask: str) -> dict[str, int]:
        optim = tiny_config({"optim": {"decay_mask": mask}}).optim
        return {name: len(names) for name, (names, _) in decay_groups(tensors, optim).items()}

    assert sizes("matrices") == {"decayed": 10, "undecayed": 5}
    assert sizes("matmul") == {"decayed": 8, "undecayed": 7}
    assert sizes("all") == {"decayed": 15}
    plans = [make_plan(tiny_config({"optim": {"weight_decay": wd}}), 1, DATA) for wd in (0.0, 0.3)]
    assert [(g.tensors, g.parameters) for g in plans[0].groups.values()] == [
        (g.tensors, g.parameters) for g in plans[1].groups.values()
    ]


def test_flops_by_hand(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the FLOP count loses a term: d=32, L=2, T=16, V=512 by hand."""
    assert cost.flops_per_token(tiny_config().model) == 6 * (2 * 12 * 32 * 32 + 512 * 32) + 12 * 2 * 32 * 16


def test_mfu_by_hand(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if MFU is against another device's or precision's peak, or a device nobody knows gets one."""
    flops = 6 * (2 * 12 * 32 * 32 + 512 * 32) + 12 * 2 * 32 * 16
    assert cost.flops_per_token(tiny_config().model) == flops
    assert cost.mfu(1e6 * flops, "NVIDIA H200", "bf16-mixed", 1) == pytest.approx(1e6 * flops / 989e12)
    assert cost.mfu(1e6 * flops, "NVIDIA H200", "fp32", 4) == pytest.approx(1e6 * flops / (4 * 67e12))
    assert cost.mfu(1e6 * flops, "cpu", "fp32", 1) is None
    found = {
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA B200": 2250,
        "NVIDIA L4": 121,
        "NVIDIA L40S": 362,
        "NVIDIA GeForce RTX 4090": 165.2,
    }
    for device, peak in found.items():
        assert cost.peak_flops(device, "bf16-true") == peak * 1e12, device
    laptop = "NVIDIA GeForce RTX 4090 Laptop GPU"
    for device in ("NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4080", laptop, "AMD Instinct MI300X"):
        assert cost.peak_flops(device, "bf16-mixed") is None, device
