"""What decay rules hold during a step: measured in live engines, against what the plan counts for them."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import cost
from configs.plan import make_plan
from configs.schema import RunConfig
from data.manifest import Manifest
from engine.launch import start_world
from engine.memory import CLEAR_REFS, STATUS, forget_peak, peak_bytes
from engine.update import update
from optim.rules import RULES, Rule
from tests.live import batch_of, make_training
from tests.ranks import run_ranks

M_MMAP_THRESHOLD = -3  # malloc.h
# Thirteen million weights, and eight tokens an update: activations are nothing beside the weights.
WIDE: dict[str, Any] = {
    "model": {"n_layer": 1, "n_head": 4, "n_embd": 1024, "seq_len": 8},
    "batch": {"tokens_per_step": 8, "micro_batch": 1},
}


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())[1]) * 1024


def decay_of(rule: str) -> float:
    """A λ of the rule: of swd, whose λ is over the size of the gradients, a small one."""
    return {"swd": 1e-4}.get(rule, 0.1) if Rule(RULES[rule]).uses_decay else 0.0


def held_in_steps(configs: list[RunConfig], manifest: Manifest) -> list[int]:
    """The most that this process holds between the gradients and the end of the second update, beyond what it held before."""
    # Every large tensor is mapped by itself and given back when it is freed: what is resident is what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 131072)
    torch.set_num_threads(1)
    world, found = start_world("memory", 120, None), []
    before: list[int] = []

    def look(_: Any) -> None:
        forget_peak(world.device)
        before.append(resident())

    for config in configs:
        training = make_training(config, manifest, world)
        for t in range(2):
            assert update(training, iter([batch_of(training, t)]), look=look).ended == "applied"
        found.append(peak_bytes(world.device) - before[-1])
        del training
    return found


@pytest.mark.engine
@pytest.mark.skipif(not os.access(CLEAR_REFS, os.W_OK), reason="the system does not let the peak be set back")
def test_plan_counts_what_rules_hold(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a rule holds more in a step than the plan counts for it, or the plan counts what no rule holds."""
    cases = [(name, stage) for stage in (0, 2) for name in RULES]
    configs = [
        tiny_config(
            WIDE,
            {"optim": {"decay_rule": name, "weight_decay": decay_of(name)}},
            {"parallel": {"zero_stage": stage}},
        )
        for name, stage in cases
    ]
    measured = dict(zip(cases, run_ranks(1, held_in_steps, configs, tiny_data[1])[0], strict=True))
    copy = 4 * cost.n_parameters(configs[0].model)
    for (name, stage), config in zip(cases, configs, strict=True):
        # DeepSpeed's own step holds a copy at stage 2, when a rule's second one is not there yet.
        held, expected = measured[name, stage], max(measured["decoupled", stage], cost.rule_bytes(config, 1))
        assert held == pytest.approx(expected, abs=0.15 * copy), (
            f"{name}, stage {stage}: holds {held / copy:.2f} copies of the weights, counted are {expected / copy:.2f}"
        )


def test_counted_where_activations_are_gone(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the plan adds a rule's copies to activations that are freed before the step, or forgets a probe's beside them."""

    def activations(rule: str, probed: int | None, tokens: int) -> int:
        fields = {"optim": {"decay_rule": rule, "weight_decay": 0.0}, "log": {"probe_every": probed}}
        batch = {"batch": {"tokens_per_step": tokens, "micro_batch": tokens // 8}}
        return make_plan(tiny_config(WIDE, fields, batch), 1, None).activation_bytes

    copy = 4 * cost.n_parameters(tiny_config(WIDE).model)
    assert activations("hyperball", None, 8) == 2 * copy
    assert activations("hyperball", 1, 8) == 3 * copy
    assert activations("hyperball", 1, 8192) == activations("decoupled", 1, 8192) > 3 * copy
    assert activations("decoupled", None, 8) < copy
