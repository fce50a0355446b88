"""A peer for benchmarks.train_step: nanoGPT's model and loop said again in one file, for where nanoGPT itself is not at hand.

    python -m benchmarks.train_step --config CONFIG --peer "python -m benchmarks.peer --micro-batch 16 --micro-steps 2 --compile"

The same network as model/gpt.py without biases; logits whole and torch's cross_entropy on them as autocast gives them; the
model compiled as one with --compile; AdamW fused on CUDA only; batches drawn from memory while the device works; one line
with the milliseconds of each update. Nothing of this project is used.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.into, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.into(self.norms[0](x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.out(mixed.contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Network(nn.Module):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(args.vocab_size, args.width), nn.Embedding(args.seq_len, args.width)
        self.layers = nn.ModuleList(Layer(args.width, args.heads) for _ in range(args.layers))
        self.norm = nn.LayerNorm(args.width, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(inputs) + self.places(torch.arange(inputs.shape[1], device=inputs.device))
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__)
    sizes = {"layers": 12, "heads": 12, "width": 768, "seq-len": 256, "vocab-size": 50304}
    sizes |= {"micro-batch": 4, "micro-steps": 8, "updates": 4}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Network(args).to(device)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    gains = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=device.type == "cuda")
    forward = torch.compile(network) if args.compile else network
    corpus = torch.randint(args.vocab_size, (1_000_000,))

    def batch() -> Tensor:
        starts = torch.randint(len(corpus) - args.seq_len, (args.micro_batch,)).tolist()
        drawn = torch.stack([corpus[start : start + args.seq_len + 1] for start in starts])
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn

    drawn, begun = batch(), time.perf_counter()
    for update in range(args.updates):
        for _ in range(args.micro_steps):
            with torch.autocast(device.type, dtype=torch.bfloat16) if args.precision == "bf16" else nullcontext():
                loss = forward(drawn[:, :-1], drawn[:, 1:]) / args.micro_steps
            drawn = batch()
            loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value, now = loss.item() * args.micro_steps, time.perf_counter()
        print(f"update {update + 1}: loss {value:.3f}, time {1000 * (now - begun):.2f}ms", flush=True)
        begun = now


if __name__ == "__main__":
    main()
