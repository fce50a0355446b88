"""The reference to which the engine is compared: a loop in plain PyTorch, one process, no DeepSpeed, no torch.optim."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from configs.schedule import decay_factor, lr_at
from configs.schema import Optim, RunConfig
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from model.gpt import GPT


class Formulas:
    """The update of every optimiser and decay rule as its paper writes it, in float64, for one tensor."""

    def __init__(self, config: Optim, weight: Tensor, weight_decay: float) -> None:
        self.config, self.w, self.weight_decay = config, weight.detach().double().clone(), weight_decay
        self.m, self.v, self.t = torch.zeros_like(self.w), torch.zeros_like(self.w), 0

    def update(self, gradient: Tensor, lr: float, factor: float = 1.0) -> Tensor:
        """The weight after an update with this (clipped) gradient, learning rate and factor on λ."""
        config, g, decay = self.config, gradient.double(), self.weight_decay * factor
        self.t += 1
        if config.decay_rule == "l2_coupled":
            g = g + decay * self.w
        if config.decay_rule == "decoupled":
            self.w = self.w - lr * decay * self.w
        if config.algorithm == "sgd":
            self.m = config.momentum * self.m + g
            self.w = self.w - lr * self.m
            return self.w
        beta1, beta2 = config.betas
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        self.w = self.w - lr * m_hat / (v_hat.sqrt() + config.eps)
        return self.w


def weight_decay_of(name: str, tensor: Tensor, config: Optim) -> float:
    """λ of a tensor, under the masks `matrices` and `all` and the overrides."""
    for override in config.decay_overrides:
        if fnmatchcase(name, override.pattern):
            return override.weight_decay
    return config.weight_decay if tensor.dim() >= 2 or config.decay_mask == "all" else 0.0


def plain_run(config: RunConfig, manifest: Manifest) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradient norms before clipping, and final weights of `config`, accumulated one sequence at a time."""
    model = GPT(config.model)
    model.init_weights(config.seeds.init)
    rules = {
        name: Formulas(config.optim, p, weight_decay_of(name, p, config.optim)) for name, p in model.named_parameters()
    }
    losses, norms = [], []
    data = TrainData(config.data.path, manifest, config)
    for batch in step_batches(data, 0, None, 1, 0, 1):
        total, factor = 0.0, decay_factor(config, batch.step)
        for micro in zip(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), strict=True):
            loss = model(*micro)
            (loss / config.batch.tokens_per_step).backward()
            total += loss.item()
        gradients = {}
        for name, p in model.named_parameters():
            gradients[name] = p.grad.double()  # type: ignore[union-attr]
            if config.optim.decay_rule == "l2_loss":
                gradients[name] += 2 * rules[name].weight_decay * factor * p.detach().double()
            p.grad = None
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        bound = config.optim.grad_clip
        scale = bound / (norm + 1e-6) if bound and norm > bound else 1.0
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(rules[name].update(gradients[name] * scale, lr_at(config, batch.step), factor))
        losses.append(total / config.batch.tokens_per_step)
        norms.append(norm)
    return losses, norms, {name: p.detach() for name, p in model.named_parameters()}
