"""What a decay rule keeps, in branches: of the same rule or another, with the optimiser's moments or without."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.equilibrium import rotation
from configs.schema import RunConfig
from data.manifest import Manifest
from engine import checkpoint
from engine.launch import start_world
from engine.resume import load
from optim.rules import RULES, Rule
from tests.live import make_training, train_steps
from tests.ranks import run_ranks

ROTATIONAL = {"decay_rule": "rotational", "weight_decay": 1.0}
DECOUPLED = {"decay_rule": "decoupled", "weight_decay": 1.0}
HYPERBALL = {"decay_rule": "hyperball", "weight_decay": 0.0}
PROJECTED = {"decay_rule": "norm_projection", "weight_decay": 0.0}
ALL = {"decay_mask": "all"}
UPDATES = 3  # of a trunk, and of each of its branches
Config = Callable[..., RunConfig]


def run_chains(chains: list[list[RunConfig]], manifest: Manifest, folder: str) -> list[list[dict[str, Any]]]:
    """Train each chain: a trunk, and branches that each start from the end of the run before.

    Per run what its rule keeps `before` the first update, `after` it and at the `end`; ‖w‖ at the `start`, and the weights
    before the first update, after it and at the end.
    """
    torch.set_num_threads(1)
    world, found = start_world("branches", 120, None), []
    for number, chain in enumerate(chains):
        found.append([])
        for place, config in enumerate(chain):
            training = make_training(config, manifest, world)
            load(training, None)
            gather, row = training.engine.fragments.gather, {"start": training.engine.weight_norms()}
            row |= {
                "before": {k: dict(v) for k, v in training.progress.numbers.items()},
                "weights": [gather("weights", 0)],
            }
            first = place * UPDATES  # so a chain reads on, as one run would
            for steps in (range(first, first + 1), range(first + 1, first + UPDATES)):
                train_steps(training, steps)
                row["weights"].append(gather("weights", 0))
                row.setdefault("after", {k: dict(v) for k, v in training.progress.numbers.items()})
            row["end"] = {k: dict(v) for k, v in training.progress.numbers.items()}
            found[-1].append(row)
            run, counters = Path(folder) / f"{number}-{place}", training.progress.counters()
            checkpoint.save(run / "checkpoints", UPDATES, training.engine.fragments, counters, {})
    return found


def angle(row: dict[str, Any], name: str) -> float:
    """By how much the first update turned a tensor, in radians."""
    one, other = (row["weights"][i][name].double().flatten() for i in (0, 1))
    return 2 * torch.asin((one / one.norm() - other / other.norm()).norm() / 2).item()


@pytest.mark.engine
def test_chains(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if a branch judges its steps by those of an optimiser that was dropped, holds a tensor at a norm that its trunk
    did not hold, or finds what a run before its trunk kept; or loses what its trunk kept for it."""
    drop = {"branch": {"optimizer": "drop"}}
    given: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
        "whole": [(ROTATIONAL, {}), (ROTATIONAL, {})],
        "dropped": [(ROTATIONAL, {}), (ROTATIONAL, drop)],
        "from_adamw": [(DECOUPLED, {}), (ROTATIONAL, {})],
        "there_and_back": [(ROTATIONAL, {}), (DECOUPLED, {}), (ROTATIONAL, {})],
        "wider": [(PROJECTED, {}), (HYPERBALL | ALL, drop)],
        "narrower": [(HYPERBALL | ALL, {}), (PROJECTED, {}), (PROJECTED | ALL, {})],
    }
    constant = {"schedule": {"kind": "constant", "warmup_steps": 0, "steps": 3 * UPDATES}}
    chains = [
        [
            tiny_config(
                constant,
                {"optim": {"lr": 2e-3} | optim, "parallel": {"zero_stage": (number + place) % 4}},
                {"branch": {"origin": f"{tmp_path}/{number}-{place - 1}@{UPDATES}"}} if place else {},
                more,
            )
            for place, (optim, more) in enumerate(chain)
        ]
        for number, chain in enumerate(given.values())
    ]
    rows = dict(zip(given, run_ranks(2, run_chains, chains, tiny_data[1], str(tmp_path))[0], strict=True))

    # A rule keeps what it says, of the tensors that it holds, and nothing else reaches a branch.
    for chain, name in zip(chains, given, strict=True):
        for config, row in zip(chain, rows[name], strict=True):
            assert row["end"].keys() == Rule(RULES[config.optim.decay_rule]).keeps.keys(), name
        for (config, trunk), (_, branch) in pairwise(zip(chain, rows[name], strict=True)):
            held = branch["before"].get("first_norm", {})
            assert all(trunk["end"]["first_norm"][tensor] == norm for tensor, norm in held.items()), (name, config)

    # Nothing dropped: the branch goes on as one run would.
    assert rows["whole"][1]["before"] == rows["whole"][0]["end"]
    assert rows["whole"][1]["after"]["updates"]["all"] == UPDATES + 1
    # Moments dropped: norms stay, and the first step is usual, so that it turns by the angle that is prescribed.
    assert rows["dropped"][1]["before"] == {"first_norm": rows["dropped"][0]["end"]["first_norm"]}
    prescribed = rotation(2e-3, 1.0, 0.9)
    for case, place in (("dropped", 1), ("from_adamw", 1), ("there_and_back", 2)):
        row = rows[case][place]
        assert row["after"]["updates"] == {"all": 1.0}, case
        for tensor in row["after"]["first_norm"]:
            # a step is not quite at right angles to its tensor
            assert angle(row, tensor) == pytest.approx(prescribed, rel=0.1), (case, tensor)
    # Norms that no trunk held are those that the branch starts from.
    for case, place in (("from_adamw", 1), ("there_and_back", 2)):
        row = rows[case][place]
        for tensor, norm in row["after"]["first_norm"].items():
            assert norm == pytest.approx(row["start"][tensor], rel=1e-6), (case, tensor)
    # Other tensors than the trunk's: its own norms of those that it held, live ones of the rest.
    for case, place in (("wider", 1), ("narrower", 2)):
        trunk, row = rows[case][place - 1], rows[case][place]
        held = trunk["end"]["first_norm"]
        assert set(held) == {tensor for tensor, w in row["weights"][0].items() if w.dim() > 1}
        for tensor, norm in row["end"]["first_norm"].items():
            assert norm == (held[tensor] if tensor in held else pytest.approx(row["start"][tensor], rel=1e-6)), tensor
            assert row["weights"][-1][tensor].norm().item() == pytest.approx(norm, rel=1e-5), (case, tensor)
