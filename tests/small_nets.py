"""Tiny classifiers with data, for measures that are compared with the long way round."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weights.frozen import Frozen, freeze

CLASSES = 3


def with_statistics(model: nn.Module) -> nn.Module:
    """Normalisations get running statistics and gains that are not their first ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model


def mlp() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """4 → 5 → 3 with BatchNorm: 53 parameters; 11 examples in batches of 4, 4 and 3."""
    torch.manual_seed(1)
    model = with_statistics(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)))
    return model, batches(torch.randn(11, 4))


class ChannelsLast(nn.Module):
    """The memory order that image networks ask for, and that vmap does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


def convolutions() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Two convolutions with BatchNorm, ReLU and pooling over 6 × 6 images; the last bias is frozen."""
    torch.manual_seed(2)
    body = [nn.Conv2d(2, 3, 3, padding=1, bias=False), ChannelsLast(), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
    model = with_statistics(nn.Sequential(*body, *head))
    head[-1].bias.requires_grad_(False)
    return model, batches(torch.randn(11, 2, 6, 6))


NETS = {"mlp": mlp, "convolutions": convolutions}


def frozen(name: str, dtype: torch.dtype = torch.float64) -> tuple[Frozen, list[tuple[Tensor, Tensor]]]:
    model, data = NETS[name]()
    return freeze(model, dtype), data


def batches(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    targets = torch.randint(0, CLASSES, (len(inputs),))
    return list(zip(inputs.split(4), targets.split(4), strict=True))


def gradient(network: Frozen, value: Tensor, weights: dict[str, Tensor], keep: bool = True) -> Tensor:
    """(P,) by plain autograd."""
    found = torch.autograd.grad(value, list(weights.values()), retain_graph=keep)
    return torch.cat([piece.reshape(-1) for piece in found])


def leaves(network: Frozen) -> dict[str, Tensor]:
    return {name: p.clone().requires_grad_() for name, p in network.parameters.items()}
