"""Models from elsewhere: the same function by our names, or one clear refusal; no pickle is executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import InputError
from configs.tensors import tensor_table
from engine.foreign_tensors import open_foreign
from model.gpt import GPT
from record.foreign import find_foreign
from tests.test_llama import gpt
from weights.hf import convert

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

TOKENS = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(1))
SMALL = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
GPT2 = SMALL | {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32}
GROUPED = SMALL | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
GROUPED |= {"intermediate_size": 40, "max_position_embeddings": 32, "head_dim": 8}


def ours_of(path: Path) -> GPT:
    """Our network with the weights that lie in `path`."""
    foreign = find_foreign(path)
    assert foreign is not None
    model, read = open_foreign(foreign)
    network = GPT(model).eval()
    network.load_state_dict({name: read(name) for name in tensor_table(model)})
    return network


def made_by_transformers(kind: str, path: Path, shard: str = "5GB", **fields: Any) -> torch.Tensor:
    """A network of theirs with random weights, biases and gains too, saved by them; its logits."""
    import transformers

    configuration, network = (
        getattr(transformers, f"{kind}Config"),
        f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}",
    )
    torch.manual_seed(0)
    model = getattr(transformers, network)(configuration(**(GPT2 if kind == "GPT2" else GROUPED) | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        logits = model(TOKENS).logits
    model.save_pretrained(path, max_shard_size=shard)
    return logits


@pytest.mark.parametrize(
    ("kind", "shard", "fields"),
    [
        ("GPT2", "5GB", {}),
        ("GPT2", "20KB", {"n_inner": 48, "activation_function": "gelu", "layer_norm_epsilon": 1e-3}),
        ("GPT2", "5GB", {"tie_word_embeddings": False}),
        ("Llama", "5GB", {"rms_norm_eps": 1e-3}),
        (
            "Llama",
            "20KB",
            {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        ),
        ("Qwen3", "5GB", {}),
    ],
)
def test_logits_of_transformers(kind: str, shard: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """Breaks if a weight is turned, cut or joined in another way, or a field of the configuration is not read."""
    theirs = made_by_transformers(kind, tmp_path, shard, **fields)
    assert (
        len(list(tmp_path.glob("*.safetensors"))) == 1
        if shard == "5GB"
        else not (tmp_path / "model.safetensors").exists()
    )
    with torch.no_grad():
        torch.testing.assert_close(ours_of(tmp_path).logits(TOKENS), theirs, rtol=1e-5, atol=1e-5)


def nanogpt(network: GPT, path: Path, prefix: str = "") -> None:
    """A checkpoint as nanoGPT writes it, of our network: GPT-2's names, linear maps as ours, the tied head named twice."""
    c = network.config
    names = {"ln_1": "ln_1", "attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj", "ln_2": "ln_2"}
    names |= {"mlp.fc": "mlp.c_fc", "mlp.proj": "mlp.c_proj"}
    state = {}
    for name, tensor in network.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs) if name.startswith("blocks.") and f".{ours}." in name else name
        state[f"{prefix}transformer.{name.replace('blocks.', 'h.')}"] = tensor
    state[f"{prefix}lm_head.weight"] = network.state_dict()["wte.weight"]
    state[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, c.seq_len, c.seq_len)
    arguments = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "block_size": c.seq_len}
    arguments |= {"bias": c.bias, "vocab_size": c.vocab_size, "dropout": 0.0}
    torch.save({"model": state, "model_args": arguments, "iter_num": 3, "best_val_loss": torch.tensor(1.0)}, path)


@pytest.mark.parametrize(("prefix", "bias"), [("", False), ("_orig_mod.", True)])
def test_logits_of_nanogpt(prefix: str, bias: bool, tmp_path: Path) -> None:
    """Breaks if a compiled model's names are not known, or a checkpoint is found only by its folder or only by its file."""
    network = gpt(bias=bias).eval()
    nanogpt(network, tmp_path / "ckpt.pt", prefix)
    for place in (tmp_path, tmp_path / "ckpt.pt"):
        torch.testing.assert_close(ours_of(place).logits(TOKENS), network.logits(TOKENS), rtol=0, atol=0)


class Harmful:
    """What a pickle may hold: a call that happens when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    """Breaks if a file that runs code when it is unpickled runs it here, or is refused without a word of why."""
    trace = tmp_path / "executed"
    torch.save({"model": {}, "model_args": Harmful(trace)}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="no checkpoint of tensors and plain values"):
        ours_of(tmp_path)
    (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(Harmful(trace)))
    with pytest.raises(InputError, match="no checkpoint of tensors and plain values"):
        ours_of(tmp_path)
    assert not trace.exists()
    pickle.loads((tmp_path / "ckpt.pt").read_bytes())  # the file does what it should not
    assert trace.exists()


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, t: c.update(model_type="mamba"), 'model_type "mamba"; these are read: gpt2, llama, qwen3'),
        (lambda c, t: c.pop("n_embd"), "'n_embd' is missing"),
        (lambda c, t: c.update(activation_function="tanh"), 'activation_function "tanh"'),
        (lambda c, t: c.update(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx true"),
        (lambda c, t: c.update(n_head=5), "not divisible by n_head 5"),
        (lambda c, t: t.pop("transformer.h.1.mlp.c_fc.weight"), "lacks h.1.mlp.c_fc.weight: these are not the tensors"),
        (lambda c, t: t.update(extra=torch.ones(1)), "has besides extra"),
        (
            lambda c, t: t.update({"transformer.h.0.attn.c_proj.weight": torch.ones(32, 31)}),
            "has shape (31, 32), expected (32, 32)",
        ),
        (lambda c, t: t.update({"lm_head.weight": torch.ones(96, 32)}), "its lm_head.weight is not its embedding"),
    ],
)
def test_refused(change: Change, said: str, tmp_path: Path) -> None:
    """Breaks if a folder that is not the model that it says it is loads all the same, or the message does not name why."""
    network = gpt(vocab_size=96)
    config, tensors = convert(network.config, network.state_dict(), 0)
    change(config, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as error:
        ours_of(tmp_path)
    assert said in str(error.value)


def test_parts_of_one_tensor_have_shapes_of_their_own(tmp_path: Path) -> None:
    """Breaks if queries and keys of other sizes pass because together they have as many rows."""
    made_by_transformers("Llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    start = "model.layers.0.self_attn."
    q, k = tensors[start + "q_proj.weight"], tensors[start + "k_proj.weight"]
    tensors |= {start + "q_proj.weight": q[:16].clone(), start + "k_proj.weight": torch.cat((k, q[16:]))}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"q_proj\.weight has shape \(16, 32\), expected \(32, 32\)"):
        ours_of(tmp_path)
    (tmp_path / "ckpt.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"and ckpt\.pt too"):
        find_foreign(tmp_path)


def test_damaged_or_absent_files(tmp_path: Path) -> None:
    """Breaks if a cut file ends in a traceback, or a pickle is named as if it could be read."""
    network = gpt(vocab_size=96)
    config, tensors = convert(network.config, network.state_dict(), 0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle, which is not read"):
        find_foreign(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        ours_of(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"a": "one.safetensors", "b": "../two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="plain name"):
        find_foreign(tmp_path)


def test_what_our_network_lacks_must_do_nothing(tmp_path: Path) -> None:
    """Breaks if biases of 0 keep a network without them from starting, or others are dropped without a word."""
    network = gpt(vocab_size=96)
    config, tensors = convert(network.config, network.state_dict(), 0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    foreign = find_foreign(tmp_path)
    assert foreign is not None
    shorter = network.config.model_copy(update={"seq_len": 8})
    _, read = open_foreign(foreign, shorter)
    assert torch.equal(read("wpe.weight"), network.wpe.weight[:8])
    with pytest.raises(InputError, match=r"model\.n_layer: asked 2, found 3"):
        open_foreign(foreign, network.config.model_copy(update={"n_layer": 2}))
    digest = foreign.digest
    changed = load_file(tmp_path / "model.safetensors")
    changed["transformer.ln_f.bias"][3] = 0.5
    save_file(changed, tmp_path / "model.safetensors")
    assert foreign.digest != digest, "one number is another model"
    with pytest.raises(InputError, match=r"ln_f\.bias is not 0 everywhere.*set model.bias true"):
        open_foreign(foreign, network.config)
