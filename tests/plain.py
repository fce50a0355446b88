"""The reference: a training loop in plain PyTorch, one process, no DeepSpeed, to which the engine is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from configs.schedule import lr_at
from configs.schema import RunConfig
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from model.gpt import GPT


def plain_run(config: RunConfig, manifest: Manifest) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradient norms before clipping, and final weights of `config`, accumulated one sequence at a time."""
    model = GPT(config.model)
    model.init_weights(config.seeds.init)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    undecayed = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": undecayed, "weight_decay": 0.0}],
        betas=config.optim.betas,
        eps=config.optim.eps,
    )
    losses, norms = [], []
    data = TrainData(config.data.path, manifest, config)
    for batch in step_batches(data, 0, None, 1, 0, 1):
        total = 0.0
        for micro in torch.from_numpy(batch.tokens):
            loss = model(micro[:, :-1], micro[:, 1:])
            (loss / config.batch.tokens_per_step).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(config, batch.step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / config.batch.tokens_per_step)
        norms.append(norm.item())
    return losses, norms, {name: p.detach() for name, p in model.named_parameters()}
