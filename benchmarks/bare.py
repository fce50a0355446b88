"""What train.py's loop is measured against: the same model trained in plain PyTorch, and the machine's matmul rate."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from benchmarks.made import IDS
from benchmarks.spans import Spans
from configs.schema import RunConfig
from configs.tensors import tensor_table
from data.image_loader import ImageStream
from data.image_manifest import ImageManifest
from engine.network import build_model, build_network
from model.linear import product


def update_seconds(
    config: RunConfig, eot: int, device: torch.device, micro_batch: int, updates: int, fused: bool = True
) -> list[float]:
    """Seconds of each update, the first ones too: the same model, precision, accumulation, clipping and AdamW, its tokens in
    memory already, and no DeepSpeed, data order, metrics or norms."""
    network = build_model(config, eot, device)
    network.init_weights(0)
    network.to(device)
    groups = [
        {"params": [p for p in network.parameters() if p.dim() >= 2], "weight_decay": config.optim.weight_decay},
        {"params": [p for p in network.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=config.optim.betas, fused=fused, foreach=False)
    tokens = torch.randint(0, IDS, (config.examples_per_step, config.model.seq_len + 1), device=device)
    seconds = []
    for _ in range(updates):
        begun = time.perf_counter()
        for micro in tokens.split(micro_batch):
            loss = network(micro[:, :-1], micro[:, 1:]) / config.batch.tokens_per_step
            loss.backward()
        if config.optim.grad_clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device, as the check for non-finite values does
        seconds.append(time.perf_counter() - begun)
    return seconds


def image_update_seconds(config: RunConfig, manifest: ImageManifest, device: torch.device, updates: int) -> list[float]:
    """The same of a network for images, with SGD and coupled decay: all training images in memory, drawn by a permutation of
    torch's, and no DeepSpeed, data order, metrics or norms.

    Averages of the weights are kept where the configuration has some: they are part of what is trained.
    """
    stream = ImageStream(config.data.path, manifest, "train")
    every, pixels = np.arange(len(stream)), np.empty((len(stream), *manifest.shape), np.uint8)
    stream.read(every, pixels)
    images, labels = (torch.from_numpy(half).to(device) for half in (pixels, stream.labels(every)))
    network = build_network(config, manifest, device)
    network.init_weights(0)
    network.to(device).train()
    weights = list(network.parameters())
    optim, batch = config.optim, config.examples_per_step
    optimizer = torch.optim.SGD(weights, optim.lr, optim.momentum, weight_decay=optim.weight_decay)
    averages = {decay: [w.detach().clone() for w in weights] for decay in config.averages.ema}
    order = torch.randperm(len(images))[: len(images) // batch * batch].view(-1, batch).to(device)
    seconds = []
    for t in range(updates):
        begun = time.perf_counter()
        for micro in order[t % len(order)].split(config.batch.micro_batch or batch):
            loss = network(images[micro], labels[micro]) / batch
            loss.backward()
        # torch's own normalisation moves its statistics in the forward pass, in the kernel that has made these notes.
        network.statistics.drop()
        if optim.grad_clip:
            torch.nn.utils.clip_grad_norm_(weights, optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for decay, average in averages.items():
                torch._foreach_lerp_(average, weights, 1 - decay)
        loss.item()  # waits for the device, as the check for non-finite values does
        seconds.append(time.perf_counter() - begun)
    return seconds


def matmul_rate(config: RunConfig, micro_batch: int, device: torch.device) -> float:
    """FLOP/s of the model's matrix products alone, forward shapes, one micro-batch: their FLOPs over their time."""
    model, tensors = config.model, tensor_table(config.model).values()
    dtype = torch.bfloat16 if config.precision.startswith("bf16") else torch.float32
    rows = micro_batch * model.seq_len
    shapes = [tensor.shape[::-1] for tensor in tensors if tensor.role == "matrix"]
    if model.tied_head:
        shapes.append((model.n_embd, model.vocab_size))
    seconds = {}
    for inner, outer in set(shapes):
        x, weight = (torch.randn(n, inner, device=device).to(dtype) for n in (rows, outer))
        product(x, weight)  # the first is slower
        times: list[float] = []
        while len(times) < 5 or sum(times) < 0.02:
            begun = Spans.now()
            product(x, weight)
            times.append(Spans.now() - begun)
        seconds[inner, outer] = statistics.median(times)
    return sum(2 * rows * a * b for a, b in shapes) / sum(seconds[shape] for shape in shapes)
