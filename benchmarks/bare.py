"""What train.py's loop is measured against: the same model trained in plain PyTorch, and the machine's matmul rate."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.made import IDS
from benchmarks.spans import Spans
from configs.schema import RunConfig
from configs.tensors import tensor_table
from engine.network import build_model
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
