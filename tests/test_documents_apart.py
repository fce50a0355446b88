"""Documents kept apart by FlexAttention's blocks: the dense mask's attention, and never unless it is so on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema import Model, RunConfig
from engine import documents_apart
from engine.attention_kernel import attention_kernel
from engine.network import build_model
from model.gpt import GPT
from model.within_documents import document_blocks, document_mask

CPU, CUDA, EOT = torch.device("cpu"), torch.device("cuda", 0), 99
BASE: dict[str, Any] = {"vocab_size": 100, "n_layer": 1, "n_head": 4, "n_embd": 64, "seq_len": 200}
LLAMA = {"norm": "rmsnorm", "position": "rotary", "n_kv_head": 2, "qk_norm": True}


def windows() -> Tensor:
    """Two windows: one of documents of 1, 150 and 49 tokens, one whose document goes on."""
    tokens = torch.randint(0, EOT, (2, 200), generator=torch.Generator().manual_seed(1))
    tokens[0, [0, 150]] = EOT
    return tokens


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("fields", [{}, LLAMA], ids=["gpt2", "llama"])
def test_blocks_are_the_dense_mask(fields: dict[str, Any]) -> None:
    """Breaks if attention by blocks sees another document, the future, or not all of its own; or the heads of a group differ."""
    model, tokens = GPT(Model.model_validate(BASE | fields), separate_at=EOT), windows()
    model.init_weights(0)
    with torch.no_grad():
        dense = model.logits(tokens)
        model.by_blocks = True
        torch.testing.assert_close(model.logits(tokens), dense, rtol=1e-5, atol=1e-5)
        model.separate_at = None
        assert not torch.allclose(model.logits(tokens)[0], dense[0], atol=1e-3), "what is compared differs without them"


@pytest.mark.slow
def test_compiled_once() -> None:
    """Breaks if a compiled block is compiled anew for the documents of every batch."""
    model = GPT(Model.model_validate(BASE), separate_at=EOT)
    model.init_weights(0)
    compiled = torch.compile(model.blocks[0].forward, fullgraph=True, dynamic=False)
    x, draw = torch.randn(2, 200, 64), torch.Generator().manual_seed(0)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for _ in range(3):
            tokens = torch.randint(0, 20, (2, 200), generator=draw)
            expected = model.blocks[0](x, document_mask(tokens, 0))
            torch.testing.assert_close(compiled(x, document_blocks(tokens, 0)), expected, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_the_difference_tells_masks_apart(
    precision: str, tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the trial finds one attention unlike itself, or another relation like it. Of dense masks, which a CPU can train."""
    config = tiny_config({"precision": precision, "data": {"cross_document_attention": False}})
    before = torch.get_rng_state()
    monkeypatch.setattr(documents_apart, "document_blocks", document_mask)
    assert documents_apart.difference(config, CPU) < documents_apart.CLOSE
    monkeypatch.setattr(documents_apart, "document_blocks", lambda tokens, _: document_mask(tokens, -1))
    assert documents_apart.difference(config, CPU) > 5 * documents_apart.CLOSE
    assert torch.equal(torch.get_rng_state(), before)


def failing(message: str) -> Callable[..., float]:
    def fail(*_: object) -> float:
        raise RuntimeError(message)

    return fail


@pytest.mark.parametrize(
    ("trial", "word"),
    [
        (failing("out of resource\nmore"), "RuntimeError: out of resource)"),
        (lambda *_: 0.5, "50.0%"),
        (lambda *_: 1e-4, ""),
    ],
)
def test_taken_where_it_computes_the_same(
    trial: Callable[..., float],
    word: str,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Breaks if FlexAttention is taken where it fails or computes something else, or is left without a line in the log."""
    monkeypatch.setattr(documents_apart, "difference", trial)
    config = tiny_config({"data": {"cross_document_attention": False}})
    with caplog.at_level(logging.WARNING):
        assert documents_apart.takes_blocks(config, True, CUDA) == (not word)
    assert word in caplog.text
    assert ("dense mask" in caplog.text) == bool(word)


@pytest.mark.parametrize(
    ("fields", "compiled", "device"),
    [
        ({}, True, CPU),
        ({}, False, CUDA),
        ({"data": {"cross_document_attention": True}}, True, CUDA),
        ({"model": {"attention": "math"}}, True, CUDA),
        ({"model": {"dropout": 0.1}}, True, CUDA),
    ],
)
def test_not_asked_for(
    fields: dict[str, Any],
    compiled: bool,
    device: torch.device,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks if FlexAttention is tried on a CPU, uncompiled, with dropout, or where its relation or arithmetic is not wanted."""
    monkeypatch.setattr(documents_apart, "difference", failing("tried"))
    assert not documents_apart.takes_blocks(
        tiny_config({"data": {"cross_document_attention": False}}, fields), compiled, device
    )


def test_recorded_by_its_name(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a start does not name FlexAttention, or names it where a network on this CPU has the dense mask."""
    config = tiny_config({"data": {"cross_document_attention": False}})
    assert not build_model(config, EOT, CPU).by_blocks
    assert attention_kernel(config, 2, CPU) == "flash_cpu"
    assert attention_kernel(config, 2, CPU, by_blocks=True) == "flex"
