"""The tensors of a transformer that was made elsewhere, by our names, whole and float32, one at a time.

No pickle is executed: Hugging Face's files are safetensors, and a checkpoint of nanoGPT is loaded as tensors and plain values only.
What our network lacks must be neutral there: biases 0, gains 1. Everything else must be there, and nothing more.
"""

from __future__ import annotations

import logging
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from configs.errors import InputError
from configs.foreign_shape import Shape, misfits, shape_of_nanogpt
from configs.identity import render_differences
from configs.load import validate_as
from configs.tensors import tensor_table
from configs.transformer import Model
from model.foreign_names import gpt2_names, llama_names
from record.foreign import Foreign

logger = logging.getLogger(__name__)

Read = Callable[[str], Tensor]
PREFIXES = ("_orig_mod.", "transformer.", "model.")
# What the reader of a damaged pickle raises.
DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
# Buffers that older files have beside the weights: they say nothing.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Part:
    """A tensor there, and the shape that it must have, turned as ours are."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Opened:
    """Tensors by their names there, without prefix: what reads one, and the shape of each.

    `is_turned`: their linear maps are (in, out), ours (out, in).
    """

    read: Read
    shapes: Mapping[str, tuple[int, ...]]
    model: Shape
    is_turned: bool


def open_foreign(foreign: Foreign, ours: Model | None = None) -> tuple[Model, Read]:
    """Our network of these weights, and what reads one of its tensors. `ours`: the network that shall have them; None: theirs.

    InputError for a damaged file, another architecture or shape, a tensor that is missing or too many, and a bias or gain that
    `ours` has not and the weights need. After it reading raises nothing of the kind.
    """
    where = str(foreign.path)
    opened = _open_nanogpt(foreign) if foreign.kind == "nanogpt" else _open_hf(foreign)
    if ours is not None and (rows := misfits(ours, opened.model, where)):
        raise InputError(f"{where} is of another model:\n{render_differences(rows)}")
    model = ours or validate_as(Model, opened.model, where)
    if model.seq_len < opened.model["seq_len"]:
        logger.info("%s: a context of %d, of its %d", where, model.seq_len, opened.model["seq_len"])
    parts, neutral = _places(model)
    _check(where, opened, model, parts, neutral)
    return model, lambda name: _whole(name, model, opened, parts[name])


def _open_hf(foreign: Foreign) -> Opened:
    files: dict[str, tuple[Any, str]] = {}  # by bare name: an open file, and the name in it
    for path in foreign.files:
        try:
            file = safe_open(path, framework="pt").__enter__()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error})") from None
        names = _bare_names(file.keys(), path)
        if twice := sorted(set(names) & set(files)):
            raise InputError(f"{path} has {twice[0]}, which another of the model's files has too")
        files |= {bare: (file, name) for bare, name in names.items()}
    shapes = {name: tuple(file.get_slice(full).get_shape()) for name, (file, full) in files.items()}

    def read(name: str) -> Tensor:
        file, full = files[name]
        tensor: Tensor = file.get_tensor(full)
        return tensor

    model = foreign.shape
    assert model is not None
    return Opened(read, shapes, model, is_turned=model["position"] == "learned")


def _open_nanogpt(foreign: Foreign) -> Opened:
    path = foreign.files[0]
    try:
        # weights_only: tensors and plain values, and an error where the file would run code
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGE as error:
        why = str(error).strip().splitlines()[:1]
        raise InputError(
            f"{path} is no checkpoint of tensors and plain values, the only ones that are read ({''.join(why)})"
        ) from None
    saved = saved if isinstance(saved, dict) else {}
    tensors, arguments = saved.get("model"), saved.get("model_args")
    if (
        not isinstance(tensors, dict)
        or not isinstance(arguments, dict)
        or not all(map(torch.is_tensor, tensors.values()))
    ):
        raise InputError(f"{path} has no model and model_args; expected a checkpoint that nanoGPT wrote")
    bare = {bare: tensors[name] for bare, name in _bare_names(tensors, path).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in bare.items()}
    return Opened(bare.__getitem__, shapes, shape_of_nanogpt(arguments, str(path)), is_turned=False)


def _bare_names(names: Iterable[str], path: Path) -> dict[str, str]:
    """Names without prefix → names. InputError where two become one."""
    bare: dict[str, str] = {}
    for name in names:
        short = str(name)
        for prefix in PREFIXES:
            short = short.removeprefix(prefix)
        if short in bare:
            raise InputError(f"{path} has both {bare[short]} and {name}, which are one tensor by their names")
        bare[short] = name
    return bare


def _places(model: Model) -> tuple[dict[str, list[Part]], dict[str, float]]:
    """Of each of our tensors its parts there, in order; and theirs that we have not, with the value that does nothing."""
    parts: dict[str, list[Part]] = {}
    neutral: dict[str, float] = {}
    ours = tensor_table(model)
    is_gpt2 = model.position == "learned"
    whole = slice(None)
    modules = [(*names, whole) for names in gpt2_names(model)] if is_gpt2 else list(llama_names(model))
    if not model.tied_head:
        modules.append(("lm_head", "head", whole))
    for there, here, rows in modules:
        for end, value in (("weight", 1.0), ("bias", 0.0)):
            if f"{here}.{end}" in ours:
                first, *rest = ours[f"{here}.{end}"].shape
                count = len(range(first)[rows])
                parts.setdefault(f"{here}.{end}", []).append(Part(f"{there}.{end}", (count, *rest)))
            elif end == "weight" or is_gpt2:
                neutral[f"{there}.{end}"] = value
    return parts, neutral


def _check(where: str, opened: Opened, model: Model, parts: dict[str, list[Part]], neutral: dict[str, float]) -> None:
    """InputError unless the tensors are those of the model, whole and with their shapes."""
    required = {part.name for each in parts.values() for part in each}
    beside = {"lm_head.weight"} if model.tied_head else set()
    missing = sorted(required - set(opened.shapes))
    extra = [name for name in opened.shapes if name not in required | set(neutral) | beside]
    extra = sorted(name for name in extra if not name.endswith(BUFFERS))
    for what, names in (("lacks", missing), ("has besides", extra)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise InputError(
                f"{where} {what} {', '.join(names[:5])}{more}: these are not the tensors of the model that it says it is"
            )
    for name, each in parts.items():
        is_turned = _is_turned(name, model, opened)
        for part in each:
            shape = opened.shapes[part.name][::-1] if is_turned else opened.shapes[part.name]
            # A shorter context has the first of the positions.
            longer = (
                name == "wpe.weight" and len(shape) == 2 and shape[0] > part.shape[0] and shape[1:] == part.shape[1:]
            )
            if shape != part.shape and not longer:
                raise InputError(f"{where}: {part.name} has shape {shape}, expected {part.shape}")
    for name, value in neutral.items():
        if name in opened.shapes and not torch.all(opened.read(name) == value):
            field = "model.bias" if value == 0 else "model.layernorm_gain"
            raise InputError(
                f"{where}: {name} is not {value:g} everywhere, and this network has none; set {field} true"
            )
    if "lm_head.weight" in beside & set(opened.shapes):
        embedding = opened.read(parts["wte.weight"][0].name)
        if not torch.equal(opened.read("lm_head.weight"), embedding):
            raise InputError(
                f"{where}: its lm_head.weight is not its embedding, and model.tied_head is true; set it false"
            )


def _is_turned(name: str, model: Model, opened: Opened) -> bool:
    return opened.is_turned and tensor_table(model)[name].role == "matrix" and name != "head.weight"


def _whole(name: str, model: Model, opened: Opened, parts: list[Part]) -> Tensor:
    pieces = [opened.read(part.name).float() for part in parts]
    if _is_turned(name, model, opened):
        pieces = [piece.T for piece in pieces]
    whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return whole[: tensor_table(model)[name].shape[0]].contiguous()
