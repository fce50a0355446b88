"""Weights for transformers: the same logits, the same ids, the same text, or a refusal with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import InputError
from data.huggingface import HuggingFace
from data.lossless import HARD_TEXT
from data.tokenizer import SentencePiece, train_sentencepiece
from tests.processes import ConfigFile, finish_ranks
from tests.test_llama import LLAMA, gpt
from tests.test_llama_engine import SHAPE
from tests.test_named_tokenizers import byte_level
from weights import export
from weights.hf import convert
from weights.hf_folder import write_tokenizer
from weights.hf_tokenizer import tokenizer_files

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", {"activation": "gelu_tanh"}),
    "with biases": ("GPT2LMHeadModel", {"bias": True}),
    "scaled head of its own": ("GPT2LMHeadModel", {"tied_head": False, "head_scale": True, "bias": True}),
    "plain norms": ("GPT2LMHeadModel", {"layernorm_gain": False, "activation": "relu2", "mlp_width": 40}),
    "Llama": ("LlamaForCausalLM", LLAMA),
    "Llama, tied and scaled": ("LlamaForCausalLM", LLAMA | {"tied_head": True, "head_scale": True}),
    "Qwen3": ("Qwen3ForCausalLM", LLAMA | {"qk_norm": True}),
    "Qwen3, plain norms": ("Qwen3ForCausalLM", LLAMA | {"qk_norm": True, "layernorm_gain": False}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_same(name: str, tmp_path: Path) -> None:
    """Breaks if transformers computes another function of the exported weights, or misses one or finds one too many."""
    from transformers import AutoModelForCausalLM

    architecture, fields = NETWORKS[name]
    ours = gpt(**fields).eval()
    config, tensors = convert(ours.config, ours.state_dict(), 7)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == architecture
    assert not any(report.values()), report
    tokens = torch.randint(0, 100, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, ours.logits(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"position": "rotary"}, "GPT-2 would need model.position learned; Llama would need model.norm rmsnorm"),
        ({"norm": "rmsnorm"}, "GPT-2 would need model.norm layernorm; Llama would need model.position rotary"),
        (LLAMA | {"activation": "relu2"}, "Llama would need model.activation swiglu"),
        ({"activation": "swiglu", "mlp_width": 40}, "model.activation gelu or gelu_tanh or relu2"),
    ],
)
def test_refused(fields: dict[str, Any], said: str) -> None:
    """Breaks if a network that neither family holds is written all the same."""
    model = gpt(**fields)
    with pytest.raises(InputError, match=said):
        convert(model.config, model.state_dict(), 7)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_tokenizer_is_the_same(kind: str, tmp_path: Path) -> None:
    """Breaks if transformers gives another id, takes a word of the text for a special token, or gives other text back."""
    from transformers import AutoTokenizer

    texts = [path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py"))]
    ours = SentencePiece(train_sentencepiece(texts[:3], kind, 400))
    for name, content in tokenizer_files(ours, 64).items():
        (tmp_path / name).write_text(json.dumps(content))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, len(theirs)) == (ours.eot, ours.vocab_size)
    for text in (*texts, HARD_TEXT, "", " ", "\u2581 \u2581\u2581a", "<|endoftext|>", "x<unk>y", "日本語日本語"):
        ids = theirs.encode(text)
        assert ids == ours.encode(text), text[:40]
        assert theirs.decode(ids) == text


def test_a_tokenizer_json_is_written_as_it_is(tmp_path: Path) -> None:
    """Breaks if a tokenizer.json of the data comes out as another, or transformers gives other ids or another end of text."""
    from transformers import AutoTokenizer

    ours = HuggingFace(byte_level("</s>").to_str().encode(), 400)
    write_tokenizer(tmp_path, ours, 64)
    assert (tmp_path / "tokenizer.json").read_bytes() == ours.content
    # one that puts a token before every text, as Llama's: our ids have none
    around = json.loads(ours.content)
    bos = {"id": "</s>", "ids": [400], "tokens": ["</s>"]}
    parts = [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    around["post_processor"] = {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": parts,
        "special_tokens": {"</s>": bos},
    }
    (tmp_path / "around").mkdir()
    write_tokenizer(tmp_path / "around", HuggingFace(json.dumps(around).encode(), 400), 64)
    assert AutoTokenizer.from_pretrained(tmp_path / "around").encode("a b") == ours.encode("a b")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs), theirs.model_max_length) == ("</s>", 400, 401, 64)
    for text in (HARD_TEXT, "", " ", "</s>", "a</s>b  日本語"):
        ids = theirs.encode(text)
        assert ids == ours.encode(text), text
        assert theirs.decode(ids) == text


@pytest.mark.engine
def test_a_run_becomes_a_folder(config_file: ConfigFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an average of a run in bfloat16 at ZeRO stage 3 is not what is exported, or half of a folder is left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, out = tmp_path / "run", tmp_path / "hf"
    fields = {"model": SHAPE, "precision": "bf16-master", "parallel": {"zero_stage": 3}, "averages": {"ema": [0.9]}}
    finish_ranks(2, config_file(fields), run)
    assert export.main([str(run), "--to", "hf", "--out", str(out), "--weights", "ema_0.9"]) == 0
    assert export.main([str(run), "--to", "safetensors", "--out", str(tmp_path / "own"), "--weights", "ema_0.9"]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(out)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    own = load_file(tmp_path / "own" / "model.safetensors")
    assert torch.equal(theirs.model.embed_tokens.weight, own["wte.weight"])
    assert torch.equal(theirs.model.layers[1].mlp.up_proj.weight, own["blocks.1.mlp.fc.weight"])
    assert AutoTokenizer.from_pretrained(out).decode([5, 9]) != ""
    card = (out / "README.md").read_text()
    for words in ("λ 0.5", "bf16-master", "ema_0.9", "val/loss", "digest ", "python -m weights.export"):
        assert words in card, words
    # what cannot be is refused, and leaves nothing
    assert export.main([str(run), "--to", "hf", "--out", str(tmp_path / "no"), "--data", str(tmp_path)]) == 2
    assert "no prepared data" in capsys.readouterr().err
    assert not list(tmp_path.glob("*no*"))
