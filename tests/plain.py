"""The reference to which the engine is compared: a loop in plain PyTorch, one process, no DeepSpeed, no torch.optim."""

from __future__ import annotations

import hashlib
import math
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from configs.schedule import lr_at, plain_decay_factor
from configs.schema import Optim, RunConfig
from data.loader import TrainData, step_batches
from data.manifest import Manifest
from model.gpt import GPT


class Formulas:
    """The update of every optimiser and decay rule as its paper writes it, in float64, for one tensor.

    `name` is the tensor's, `masked` whether the mask lets it decay, whatever λ is.
    """

    def __init__(
        self, config: Optim, weight: Tensor, weight_decay: float, name: str = "", masked: bool = True, seed: int = 0
    ) -> None:
        self.config, self.w, self.weight_decay = config, weight.detach().double().clone(), weight_decay
        self.name, self.masked, self.seed = name, masked, seed
        self.m, self.v, self.t = torch.zeros_like(self.w), torch.zeros_like(self.w), 0
        self.first_norm, self.mean_square = self.w.norm(), torch.zeros(())

    def second_moment(self, gradient: Tensor) -> Tensor:
        """Adam's bias-corrected v̂ of the update to come."""
        beta2 = self.config.betas[1]
        return (beta2 * self.v + (1 - beta2) * gradient.double() ** 2) / (1 - beta2 ** (self.t + 1))

    def update(self, gradient: Tensor, lr: float, factor: float = 1.0, mean_v: float = math.nan) -> Tensor:
        """The weight after an update with this (clipped) gradient and learning rate.

        `factor` is optim.decay_schedule's, `mean_v` the mean of v̂ over the whole model.
        """
        config, g, decay, old = self.config, gradient.double(), self.weight_decay * factor, self.w
        if config.decay_rule == "l2_coupled":
            g = g + decay * self.w
        if mean_v != mean_v and config.decay_rule == "swd":
            mean_v = self.second_moment(g).mean().item()
        step = self._step(g, lr)
        shrinks = (step * old >= 0).double()
        self.w = old - step
        match config.decay_rule:
            case "decoupled":
                self.w = self.w - lr * decay * old
            case "independent":
                self.w = self.w - lr / config.lr * decay * old
            case "corrected":
                normalised = "blocks." in self.name or self.name == "wpe.weight"
                self.w = self.w - (lr**2 / config.lr if normalised else lr) * decay * old
            case "cautious":
                self.w = self.w - lr * decay * shrinks * old
            case "cautious_random":
                drawn = drawn_by_hand(self.seed, self.t - 1, self.name, old.numel()).view(old.shape)
                self.w = self.w - lr * decay * (drawn < shrinks.mean()) * old
            case "swd":
                self.w = self.w - lr * decay / (math.sqrt(mean_v) if mean_v else math.inf) * old
            case "selective_projection":
                growth = ((self.w.norm() - old.norm()) / self.w.norm()).clamp(0, 1)
                if (g * old).sum() > 0:
                    self.w = (1 - decay * growth) * self.w
            case "norm_projection" if self.masked and self.t % config.projection_every == 0:
                self.w = self.w * (self.first_norm / self.w.norm())
            case "hyperball" if self.masked:
                turned = old - lr * self.first_norm * step / step.norm() if step.norm() else old
                self.w = turned * (self.first_norm / turned.norm())
            case "rotational" if decay:
                step = step - old * ((step * old).sum() / old.norm() ** 2)
                self.mean_square = 0.9 * self.mean_square + 0.1 * (step / lr).norm() ** 2
                angle = math.sqrt(2 * lr * decay * (1 - config.betas[0]) / (1 + config.betas[0]))
                usual = (self.mean_square / (1 - 0.9**self.t)).sqrt()
                turned = old - angle * self.first_norm * (step / lr) / usual if usual else old
                self.w = turned * (self.first_norm / turned.norm())
        return self.w

    def _step(self, g: Tensor, lr: float) -> Tensor:
        """η·u, u the algorithm's step for this gradient."""
        config = self.config
        self.t += 1
        if config.algorithm == "muon":  # of no gradient alone; tests/test_muon.py has the others
            assert not g.any()
            return torch.zeros_like(g)
        if config.algorithm == "sgd":
            self.m = config.momentum * self.m + g
            return lr * self.m
        beta1, beta2 = config.betas
        if config.algorithm == "lion":
            step = lr * (beta1 * self.m + (1 - beta1) * g).sign()
            self.m = beta2 * self.m + (1 - beta2) * g
            return step
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        return lr * m_hat / (v_hat.sqrt() + config.eps)


def drawn_by_hand(seed: int, step: int, name: str, n: int) -> Tensor:
    """What optim/draws.py draws for cautious_random, in Python's whole numbers, float64 (n,)."""
    digest = hashlib.sha256(f"cautious_random/{seed}/{step}/{name}".encode()).digest()
    key, whole, drawn = int.from_bytes(digest[:8], "little"), (1 << 64) - 1, []
    for i in range(n):
        x = (key + i * 0x9E3779B97F4A7C15) & whole
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & whole
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & whole
        drawn.append(((x ^ (x >> 31)) >> 40) / 2**24)
    return torch.tensor(drawn, dtype=torch.float64)


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
        name: Formulas(
            config.optim,
            p,
            weight_decay_of(name, p, config.optim),
            name,
            p.dim() >= 2 or config.optim.decay_mask == "all",
            config.seeds.data,
        )
        for name, p in model.named_parameters()
    }
    if config.optim.decay_rule == "sphere":
        onto_sphere(model, rules)
    losses, norms = [], []
    data = TrainData(config.data.path, manifest, config)
    for batch in step_batches(data, 0, None, 1, 0, 1):
        total, factor = 0.0, plain_decay_factor(config, batch.step)
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
        seconds = torch.cat([rules[name].second_moment(g * scale).view(-1) for name, g in gradients.items()])
        with torch.no_grad():
            for name, p in model.named_parameters():
                lr, mean_v = lr_at(config, batch.step), seconds.mean().item()
                p.copy_(rules[name].update(gradients[name] * scale, lr, factor, mean_v))
        if config.optim.decay_rule == "sphere":
            onto_sphere(model, rules)
        losses.append(total / config.batch.tokens_per_step)
        norms.append(norm)
    return losses, norms, {name: p.detach() for name, p in model.named_parameters()}


def onto_sphere(model: GPT, rules: dict[str, Formulas]) -> None:
    """w ← w/‖w‖, w the whole model: what no tensor's own formula can say."""
    norm = torch.cat([rule.w.view(-1) for rule in rules.values()]).norm()
    with torch.no_grad():
        for name, p in model.named_parameters():
            rules[name].w = rules[name].w / norm
            p.copy_(rules[name].w)
