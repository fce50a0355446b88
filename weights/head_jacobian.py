"""The Jacobian of a language model's logits by its last hidden state, before the final LayerNorm: exact, position by position.

    python -m weights.head_jacobian RUN[@STEP] … [--weights ema_0.99] [--windows N]
    python -m weights.head_jacobian RUN@all --data DIR      all checkpoints of a run; where its data lies now

Prints one JSON object a checkpoint, over N windows spread evenly over the validation split, the same for one data:

    measure/head_jacobian_norm      mean over positions of ‖∂logits/∂h‖_F; `…_error` its standard error over windows
    measure/head_jacobian_square    mean of its square; `…_error` as above
    measure/head_norm               ‖W·diag(γ)‖_F of the head W with the gains γ of the final LayerNorm, and model.head_scale
    measure/hidden_deviation        mean over positions of s, the deviation that the LayerNorm divides by

The head is linear, so that all is in closed form. With h (C,) of mean μ, s = √(var h + ε), x̂ = (h − μ)/s and A = W·diag(γ) (V, C)

    ∂logits/∂h = A·M/s,  M = I − 11ᵀ/C − x̂x̂ᵀ/C,  ‖∂logits/∂h‖_F² = tr(AᵀA·M²)/s²,  M² = I − 11ᵀ/C − (2 − ‖x̂‖²/C)·x̂x̂ᵀ/C.

AᵀA (C, C) is made once, then a position costs C² products whatever V is. Decay acts on it through ‖A‖, which it makes smaller, and
through s, the scale of the residual stream, which it makes smaller too: what is left is for a run to show. P2 (arXiv 1810.12281,
mechanism 2) has the Jacobian by the input, which tokens have not; this one is the part of it behind the last block.
Shapes: B windows, T positions, C = n_embd, V vocabulary. In float32, the sums in float64.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.schema import RunConfig
from data.any_manifest import AnyManifest
from data.loader import EvalBatch, eval_batches
from data.manifest import Manifest
from model.gpt import GPT
from record.metrics import encode_row
from weights.measures import addressed
from weights.on_images import to_evaluate
from weights.read import choose_device, config_with_data

WINDOWS = 16  # of a kilotoken each the standard error is a percent or so; the cost is one forward pass


@torch.no_grad()
def squares(model: GPT, inputs: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """‖∂logits/∂h‖_F² and s of every position of inputs (B, T), both (B, T) float64, of a model in eval mode without autocast.

    `gram` of `gram_of_head`.
    """
    h = _before_norm(model, inputs).double()  # (B, T, C)
    C = h.shape[-1]
    whole = gram.trace()
    if model.config.norm == "layernorm":  # takes the mean away, as I − 11ᵀ/C does, and an RMSNorm does not
        h, whole = h - h.mean(-1, keepdim=True), whole - gram.sum() / C
    s = (h.square().mean(-1) + model.ln_f.eps).sqrt()
    x = h / s[..., None]
    along = ((x @ gram) * x).sum(-1)  # x̂ᵀAᵀA x̂
    return (whole - (2 - x.square().sum(-1) / C) * along / C) / s.square(), s


def gram_of_head(model: GPT) -> Tensor:
    """AᵀA, (C, C) float64."""
    W = model.head_weight.double()
    gain = torch.ones(W.shape[1], dtype=W.dtype, device=W.device)
    if model.ln_f.weight is not None:
        gain = model.ln_f.weight.double()
    if model.config.head_scale:
        gain = gain * model.head_scale.weight.double()
    return gain[:, None] * (W.T @ W) * gain


def _before_norm(model: GPT, inputs: Tensor) -> Tensor:
    """The last hidden states as the final LayerNorm gets them, (B, T, C)."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept.append(args[0])

    hook = model.ln_f.register_forward_pre_hook(keep)
    try:
        model.hidden(inputs)
    finally:
        hook.remove()
    return kept[0]


def measure(model: GPT, batches: Iterable[EvalBatch], device: torch.device) -> dict[str, float]:
    """The columns. Errors are over windows: the positions of one window have much in common."""
    norms, means, deviations, gram = [], [], [], gram_of_head(model)
    for batch in batches:
        rows = batch.counted // batch.targets.shape[1]  # the others fill the batch up
        found, s = squares(model, torch.from_numpy(batch.inputs[:rows]).to(device), gram)
        norms.append(found.sqrt().mean(1).cpu())
        means.append(found.mean(1).cpu())
        deviations.append(s.mean(1).cpu())
    norm, square, s = (torch.cat(parts) for parts in (norms, means, deviations))
    row = {"head_jacobian_norm": norm.mean(), "head_jacobian_norm_error": norm.std() / len(norm) ** 0.5}
    row |= {"head_jacobian_square": square.mean(), "head_jacobian_square_error": square.std() / len(square) ** 0.5}
    row |= {"head_norm": gram.trace().sqrt(), "hidden_deviation": s.mean()}
    return {f"measure/{name}": value.item() for name, value in row.items()}


def windows_of(config: RunConfig, manifest: AnyManifest, count: int) -> list[EvalBatch]:
    """The windows, one a batch. InputError for a run on images, or for more windows than the validation split has."""
    if not isinstance(manifest, Manifest):
        raise InputError(
            f"{config.name} is a run on images; the Jacobian of its logits is of `python -m weights.measures RUN`"
        )
    there = manifest.val.tokens // config.gpt.seq_len
    if count > there:
        raise InputError(f"--windows {count}: the validation split has {there}")
    return eval_batches(config.data.path, manifest, config, 1, 0, 1, count)


def rows(addresses: Sequence[str], kind: str, count: int, data: Path | None) -> Iterator[dict[str, object]]:
    """What `main` prints, a checkpoint at a time. InputError for what cannot be measured."""
    device = choose_device()
    for one in addressed(addresses):
        config, manifest = config_with_data(one.run, data)
        batches = windows_of(config, manifest, count)
        model = to_evaluate(config, manifest, one.tensors(kind), False, device).float()
        assert isinstance(model, GPT)
        model.autocast = None  # as the other measures: not in the run's own precision
        found = measure(model, batches, device)
        head = {"run": str(one.run.path), "step": one.steps[0], "weights": kind, "windows": count}
        left_out = [{"checkpoint": str(path), "why": why} for path, why in one.left_out]
        yield encode_row({**head, **found, "left_out": left_out})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m weights.head_jacobian",
        description="Jacobian of a language model's logits by the last hidden state.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, FOLDER@STEP, or FOLDER@all")
    parser.add_argument("--weights", default="weights", metavar="KIND", help="an average instead: ema_0.99")
    parser.add_argument("--windows", type=_two_or_more, default=WINDOWS, metavar="N", help=f"default {WINDOWS}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the run's data lies now; other data is refused")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        for row in rows(args.runs, args.weights, args.windows, args.data):
            print(json.dumps(row), flush=True)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _two_or_more(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 2 up: an error needs two windows")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
