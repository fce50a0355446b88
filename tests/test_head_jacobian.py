"""The Jacobian of the logits by the last hidden state: the closed form against torch.func, and the command on a real run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.func import jacrev
from torch.nn import functional as F

from configs.schema import Model
from model.gpt import GPT
from tests.processes import ConfigFile, finish_ranks
from weights import head_jacobian
from weights.head_jacobian import gram_of_head, squares

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 8, "seq_len": 6, "vocab_size": 13}


@pytest.mark.parametrize(
    "more",
    [{}, {"tied_head": False, "head_scale": True}, {"layernorm_gain": False}, {"bias": True}],
    ids=["tied", "scaled", "no gain", "biases"],
)
def test_the_closed_form_is_the_jacobian(more: dict[str, bool]) -> None:
    """Breaks if gains, the head's scale, the subtracted mean or LayerNorm's ε are left out of ‖∂logits/∂h‖, or misplaced."""
    torch.manual_seed(0)
    model = GPT(Model(**SHAPE, **more)).double().eval()
    for parameter in model.parameters():  # gains and scale that are not 1; small states, so that LayerNorm's ε counts
        torch.nn.init.normal_(parameter, 0.3, 0.5)
    states: list[torch.Tensor] = []
    hook = model.ln_f.register_forward_pre_hook(lambda _, args: states.append(args[0].detach()))
    inputs = torch.randint(0, 13, (2, 6))
    model.logits(inputs)
    hook.remove()

    def logits(h: torch.Tensor) -> torch.Tensor:
        x = model.ln_f(h)
        return F.linear(model.head_scale(x) if model.config.head_scale else x, model.head_weight)

    for tiny in (1.0, 1e-3):
        model.ln_f.eps = 1e-5 if tiny == 1.0 else float(states[0].var(-1).mean())  # ε as large as the variance
        found, deviations = squares(model, inputs, gram_of_head(model))
        for place, h in enumerate(states[0].flatten(0, 1)):
            expected = jacrev(logits)(h).square().sum()
            torch.testing.assert_close(found.flatten()[place], expected, rtol=1e-9, atol=0)
            s = math.sqrt(h.var(unbiased=False).item() + model.ln_f.eps)
            assert deviations.flatten()[place].item() == pytest.approx(s)


@pytest.mark.engine
def test_the_command(config_file: ConfigFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a checkpoint's row is of other weights or windows, or what cannot be measured is."""
    run = tmp_path / "run"
    finish_ranks(1, config_file({"checkpoint": {"every": 3}}), run)
    assert head_jacobian.main([f"{run}@all", "--windows", "4"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert rows[0]["measure/head_norm"] != rows[1]["measure/head_norm"]
    for row in rows:
        assert row["measure/head_jacobian_norm"] ** 2 <= row["measure/head_jacobian_square"]
        bound = row["measure/head_norm"] / row["measure/hidden_deviation"]
        assert row["measure/head_jacobian_norm"] == pytest.approx(bound, rel=0.5), "a projection of A over s"
    assert head_jacobian.main([str(run), "--windows", "100000"]) == 2
    assert "the validation split has" in capsys.readouterr().err
