"""A checkpoint as a folder of Hugging Face: config.json, model.safetensors, the tokenizer's files, and a card, README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from configs.errors import InputError
from configs.schema import RunConfig
from data.huggingface import HuggingFace
from data.lossless import HARD_TEXT
from data.manifest import Manifest
from data.tokenizer import GPT2, SentencePiece, load_tokenizer
from record.files import write_json
from record.metrics import read_metrics
from weights.hf import convert
from weights.hf_tokenizer import tokenizer_files, tokenizer_settings
from weights.read import Chosen, config_with_data

LOSSES = ("train/loss", "val/loss", "val/final_loss")


def write_folder(work: Path, chosen: Chosen, kind: str, weights: dict[str, Tensor], data: Path | None) -> None:
    """The files, into the folder `work`. `data`: where the run's data lies now; None: where the run says.

    InputError for a run on images, a network or a tokenizer that the format does not hold, and where the data is not there.
    """
    config, manifest = config_with_data(chosen.run, data)
    if not isinstance(manifest, Manifest):
        raise InputError(
            f"{chosen.run.path} is a run on images; `--to hf` is for language models, --to safetensors for any"
        )
    if manifest.eot is None:
        raise InputError(
            f"the data of {chosen.run.path} has no token that ends a document, which the format needs; use --to safetensors"
        )
    model, tensors = convert(config.gpt, weights, manifest.eot)
    tokenizer = load_tokenizer(Path(config.text.path), manifest.tokenizer)
    if not isinstance(tokenizer, SentencePiece | HuggingFace):
        hint = f"put GPT-2's merges, vocab.bpe, into {config.text.path}, or " if isinstance(tokenizer, GPT2) else ""
        raise InputError(
            f"the data's tokenizer is {manifest.tokenizer.get('kind')}, of which there is no file to write for transformers; {hint}"
            "use --to safetensors"
        )
    write_json(work / "config.json", model)
    write_tokenizer(work, tokenizer, config.gpt.seq_len)
    save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
    (work / "README.md").write_text(_card(config, manifest, chosen, kind))


def write_tokenizer(work: Path, tokenizer: SentencePiece | HuggingFace, length: int) -> None:
    """tokenizer.json and tokenizer_config.json. InputError where they give other ids, or other text back, than the data's own."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError(
            "--to hf compares the tokenizer that it writes with the data's, by the package tokenizers: pip install tokenizers"
        ) from None
    if isinstance(tokenizer, SentencePiece):
        for name, content in tokenizer_files(tokenizer, length).items():
            # Not indented: a vocabulary of 50,000 pieces is read by programs.
            (work / name).write_text(json.dumps(content, ensure_ascii=False))
    else:
        (work / "tokenizer.json").write_bytes(tokenizer.json())
        written = Tokenizer.from_file(str(work / "tokenizer.json"))
        # What it puts around a text by default is not in our ids.
        if written.encode("a").ids != written.encode("a", add_special_tokens=False).ids:
            spec = {**json.loads(tokenizer.json()), "post_processor": None}
            (work / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False))
        settings = tokenizer_settings(written.id_to_token(tokenizer.eot), length)
        (work / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False))
    written = Tokenizer.from_file(str(work / "tokenizer.json"))
    written.encode_special_tokens = True  # as split_special_tokens of tokenizer_config.json
    ids = written.encode(HARD_TEXT).ids  # with whatever it adds by default, as AutoTokenizer does
    if ids != tokenizer.encode(HARD_TEXT) or written.decode(ids, skip_special_tokens=False) != HARD_TEXT:
        raise InputError(
            "the data's tokenizer cannot be written for transformers with the same ids; use --to safetensors"
        )


def _card(config: RunConfig, manifest: Manifest, chosen: Chosen, kind: str) -> str:
    """What the weights are of: the numbers that another reader needs, and the command."""
    step = chosen.steps[-1]
    rows = {row["step"]: row for row in read_metrics(chosen.run.metrics)[0]}
    # An average has losses of its own, and was never trained.
    names = LOSSES if kind == "weights" else [f"{name}_{kind}" for name in LOSSES if name.startswith("val/")]
    losses: dict[str, Any] = {name: rows.get(step, {}).get(name) for name in names}
    optim = config.optim
    lines = {
        "run": f"{chosen.run.path.name}, step {step:,} of {config.schedule.steps:,}, {kind}",
        "parameters of the optimiser": f"{optim.algorithm}, η {optim.lr:g}, λ {optim.weight_decay:g} "
        f"({optim.decay_rule}, {optim.decay_mask})",
        "tokens": f"{step * config.units_per_step:,}, {config.units_per_step:,} a step, context {config.gpt.seq_len}",
        "precision": config.precision,
        "data": f"digest {manifest.digest}",
        "seeds": f"init {config.seeds.init}, data {config.seeds.data}",
        **{name: f"{value:.4f} nats a token" for name, value in losses.items() if value is not None},
    }
    apart = (
        ""
        if config.text.cross_document_attention
        else "\nIn training no token saw another document. transformers lets it, so give it one document at a time.\n"
    )
    text = "\n".join(f"- {name}: {value}" for name, value in lines.items())
    command = f"python -m weights.export {chosen.run.path.name}@{step} --to hf --weights {kind} --out DIR"
    return (
        f"# {config.name}\n\n{text}\n{apart}\nMade by `{command}`. The run's whole configuration is its config.json.\n"
    )
