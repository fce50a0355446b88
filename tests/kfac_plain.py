"""The reference to which K-FAC in the engine is compared: a loop in plain PyTorch, in float64, whose patches are cut by hand."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.plan import make_plan
from configs.schedule import lr_at
from configs.schema import RunConfig
from engine.launch import World
from engine.network import build_network
from engine.supply import open_data
from optim.kfac_statistics import output_gradients

STEPS = 4  # updates of a comparison


def rows_and_gradients(layer: Any, given: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of each output (rows, d), with a 1 for a bias, and the gradients there (rows, m)."""
    if isinstance(layer, nn.Conv2d):
        # The k × k patches by shifting the padded image: no unfold.
        k, stride, pad = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        padded, (_, _, h, w) = F.pad(given, [pad] * 4), gradient.shape  # type: ignore[list-item]
        ends = [(i, j, i + stride * (h - 1) + 1, j + stride * (w - 1) + 1) for i in range(k) for j in range(k)]
        shifted = [padded[:, :, i:i_end:stride, j:j_end:stride] for i, j, i_end, j_end in ends]
        given = torch.stack(shifted, 2).flatten(1, 2).movedim(1, -1)  # channels outside, k·k inside
        gradient = gradient.movedim(1, -1)
    rows = given.flatten(0, -2)
    if layer.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    return rows, gradient.flatten(0, -2)


def plain(config: RunConfig, manifest: Any, world: World) -> dict[str, Tensor]:
    """Final weights and running statistics of a loop of its own, in float64."""
    data = open_data(config, manifest, make_plan(config, 1, manifest.summary()), world)
    network: Any = build_network(config, manifest, torch.device("cpu"))
    network.init_weights(config.seeds.init)
    network.train().double()
    kfac, named = config.optim.kfac, dict(network.named_parameters())
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    velocity = {name: torch.zeros_like(p) for name, p in named.items()}
    factors: dict[str, list[Tensor]] = {}
    inverses: dict[str, list[Tensor]] = {}
    for batch in islice(data.batches(0, data.start_digest), STEPS):
        micros = list(zip(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), strict=True))
        count = batch.targets.size
        for inputs, targets in micros:
            (network(inputs, targets) / count).backward()
        if hasattr(network, "statistics"):
            network.statistics.fold(network.statistics.take())
        if batch.step % kfac.statistics_every == 0:
            sums: dict[str, list[Any]] = {name: [0.0, 0.0, 0] for name in layers}
            for number, (inputs, targets) in enumerate(micros):
                seen: dict[str, tuple[Tensor, Tensor]] = {}
                hooks = [
                    m.register_forward_hook(lambda _m, i, o, n=n, seen=seen: seen.update({n: (i[0], o)}))
                    for n, m in layers.items()
                ]
                logits = network.logits(inputs).flatten(0, -2)
                for hook in hooks:
                    hook.remove()
                first, place = number * targets.numel(), (config.seeds.data, batch.step)
                v = output_gradients(kfac.metric, logits, targets.flatten(), *place, first)
                found = torch.autograd.grad(logits, [seen[n][1] for n in layers], v)
                for (name, layer), g in zip(layers.items(), found, strict=True):
                    rows, g_rows = rows_and_gradients(layer, seen[name][0].detach(), g)
                    for i, more in enumerate((rows.T @ rows, g_rows.T @ g_rows, len(rows))):
                        sums[name][i] = sums[name][i] + more
            if hasattr(network, "statistics"):
                network.statistics.drop()
            for name, (a, s, rows) in sums.items():
                new, old = [a / rows, s / count], factors.get(name)
                keep = kfac.factor_decay
                factors[name] = (
                    new if old is None else [keep * o + (1 - keep) * n for o, n in zip(old, new, strict=True)]
                )
        if batch.step % kfac.inverses_every == 0:
            for name, (a, s) in factors.items():
                pi = math.sqrt(a.diagonal().mean() / s.diagonal().mean())
                both = ((a, pi * math.sqrt(kfac.damping)), (s, math.sqrt(kfac.damping) / pi))
                inverses[name] = [torch.linalg.inv(f + d * torch.eye(len(f), dtype=f.dtype)) for f, d in both]
        with torch.no_grad():
            step(config, named, inverses, velocity, lr_at(config, batch.step))
    return network.state_dict()  # type: ignore[no-any-return]


def step(
    config: RunConfig, named: dict[str, Any], inverses: dict[str, list[Tensor]], velocity: dict[str, Tensor], lr: float
) -> None:
    """One update; the mask is matrices, embeddings too."""
    optim, product = config.optim, 0.0
    decays = {name: optim.weight_decay if p.dim() > 1 else 0.0 for name, p in named.items()}
    moves = {name: p.grad + decays[name] * p * (optim.decay_rule == "l2_coupled") for name, p in named.items()}
    for layer, (a_inverse, s_inverse) in inverses.items():
        names = [n for n in (f"{layer}.weight", f"{layer}.bias") if n in named]
        g = torch.cat([moves[n].reshape(len(moves[n]), -1) for n in names], 1)
        u = s_inverse @ g @ a_inverse
        product += lr**2 * (g * u).sum().item()
        moves[names[0]] = u[:, : named[names[0]][0].numel()].reshape(named[names[0]].shape)
        if len(names) > 1:
            moves[names[1]] = u[:, -1]
    clip = optim.kfac.kl_clip
    factor = min(1.0, math.sqrt(clip / product)) if clip else 1.0
    assert clip is None or factor < 1  # else nothing is compared
    for name, p in named.items():
        in_layer = name.rpartition(".")[0] in inverses
        velocity[name].mul_(optim.momentum).add_(moves[name] * (factor if in_layer else 1.0))
        if optim.decay_rule == "decoupled":
            p.mul_(1 - lr * decays[name])
        p.sub_(lr * velocity[name])
        p.grad = None
