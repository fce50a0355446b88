"""The transformer: GPT-2 as P1 (D'Angelo et al., arXiv 2310.04415) trains it, and by fields of the configuration Llama's shapes.

Shapes: B sequences, T tokens, C = n_embd, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from configs.schema import Model
from configs.tensors import tensor_table
from model.attention import Attention, Rotary, make_norm
from model.cache import Cache, Kept
from model.linear import Linear
from model.loss import cross_entropies, cross_entropy_sum, logit_statistics
from model.within_documents import document_blocks, document_mask

RESIDUAL = ("attn.proj", "mlp.proj")  # kinds whose output is added to the residual stream: twice a block


class MLP(nn.Module):
    """Linear maps with a nonlinearity between; swiglu (2002.05202) has a gate beside the first."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.dropout, self.activation = config.dropout, config.activation
        if config.activation == "swiglu":
            self.gate = Linear(config.n_embd, config.mlp_hidden, bias=config.bias)
        self.fc = Linear(config.n_embd, config.mlp_hidden, bias=config.bias)
        self.proj = Linear(config.mlp_hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x)
        match self.activation:
            case "swiglu":
                hidden = F.silu(self.gate(x)) * hidden
            case "relu2":  # 2109.08668
                hidden = F.relu(hidden).square()
            case _:
                hidden = F.gelu(hidden, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return F.dropout(self.proj(hidden), self.dropout, self.training)


class Block(nn.Module):
    """Residual block with a normalisation before each part."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.ln_1, self.attn = make_norm(config, config.n_embd), Attention(config)
        self.ln_2, self.mlp = make_norm(config, config.n_embd), MLP(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | BlockMask | None = None,
        rotation: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, rotation, kept=kept)
        return x + self.mlp(self.ln_2(x))


class Scale(nn.Module):
    """One learned number that multiplies its input (model.head_scale).

    A module of its own, so that ZeRO stage 3 gathers it like every other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class GPT(nn.Module):
    """The network. `autocast` is the dtype of matrix products under bf16-mixed, None otherwise.

    `separate_at` is the end-of-text token where attention stays within a document, None where it does not
    (data.cross_document_attention). `z_loss` is optim.z_loss, for training only. `compiled`: blocks and softmax by
    torch.compile. `recompute`: the backward pass keeps each block's input only, and runs the block again.

    Autocast lives inside forward because DeepSpeed switches off autocast that surrounds its engine on CUDA.
    """

    measured = ("loss",)  # what by_target gives of each target

    def __init__(
        self,
        config: Model,
        autocast: torch.dtype | None = None,
        separate_at: int | None = None,
        z_loss: float = 0.0,
        compiled: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.autocast, self.separate_at, self.z_loss = config, autocast, separate_at, z_loss
        self.compiled, self.recompute = compiled, recompute
        self.by_blocks = False  # documents apart by FlexAttention (engine/documents_apart.py), and not by a dense mask
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.rotary = Rotary(config) if config.position == "rotary" else None
        if self.rotary is None:
            self.wpe = nn.Embedding(config.seq_len, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config, config.n_embd)
        if config.head_scale:
            self.head_scale = Scale()
        if not config.tied_head:
            self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.compiled_modules = (Block,) if compiled else ()
        if compiled:  # each block's forward, not the module: the parameters keep their names
            for block in self.blocks:
                block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)

    def forward(self, inputs: Tensor, targets: Tensor, statistics: bool = False, by_target: bool = False) -> Tensor:
        """Summed cross-entropy (float32 scalar) of inputs (B, T) and targets (B, T).

        With `statistics`, for probes, logit_statistics instead; with `by_target`, for evaluation, each target's own loss, float32
        (B·T,).
        """
        targets = targets.flatten()
        with self._autocast(inputs.device):
            x = self.hidden(inputs).flatten(0, 1)  # (B·T, C)
            if statistics:
                return logit_statistics(x, self.head_weight, targets)
        if by_target:
            return cross_entropies(x, self.head_weight, targets, self.autocast, self.compiled)
        z_loss = self.z_loss if self.training else 0.0
        return cross_entropy_sum(x, self.head_weight, targets, z_loss, self.autocast, self.compiled)

    def logits(self, inputs: Tensor, at: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """(B, T) token ids → (B, T, V); of the n positions alone that the mask `at` (B, T) has, (n, V). `cache` as `hidden`'s."""
        with self._autocast(inputs.device):
            hidden = self.hidden(inputs, cache)
            if at is not None:
                hidden = hidden[at]  # (n, C)
            # By the head where there is one, so that a hook on it sees it (engine/curvature.py).
            return F.linear(hidden, self.head_weight) if self.config.tied_head else self.head(hidden)

    def hidden(self, inputs: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T) token ids → the last hidden states (B, T, C), normalised, as the head takes them.

        `cache`: the inputs continue the tokens that it holds, and are kept in it; for sampling, under torch.no_grad.
        """
        start, seen = (0, inputs) if cache is None else cache.append(inputs)  # seen (B, S)
        length, rotation = inputs.shape[1], None
        x = self.wte(inputs)  # (B, T, C)
        if self.rotary is None:
            x = x + self.wpe.weight[start : start + length]
        else:
            rotation = self.rotary.at(length, inputs.device, start)
        x = F.dropout(x, self.config.dropout, self.training)
        mask: Tensor | BlockMask | None = None
        if self.separate_at is not None:
            blocks = self.by_blocks and cache is None
            mask = document_blocks(seen, self.separate_at) if blocks else document_mask(seen, self.separate_at, start)
        if start and mask is None:  # "all before" of no mask counts from the first key
            mask = x.new_ones((1, 1, length, seen.shape[1]), dtype=torch.bool).tril(start)
        recompute = self.recompute and torch.is_grad_enabled()
        kept = [None] * len(self.blocks) if cache is None else cache.blocks
        for block, own in zip(self.blocks, kept, strict=True):
            given = (x, mask, rotation, own)
            x = checkpoint(block, *given, use_reentrant=False) if recompute else block(*given)
        x = self.ln_f(x)
        # s·(x·Wᵀ) = (s·x)·Wᵀ: here every reader of logits gets the scale, and a head of any chunk needs to know nothing of it.
        return self.head_scale(x) if self.config.head_scale else x

    def example(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one sequence, for whoever wants to see a forward pass and knows no tokens."""
        tokens = torch.zeros(1, self.config.seq_len, dtype=torch.long, device=device)
        return tokens, tokens

    @property
    def head_weight(self) -> Tensor:
        """(V, C)"""
        return self.wte.weight if self.config.tied_head else self.head.weight

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """N(0, init_std) for every matrix, residual projections over √(2·n_layer); gains 1, biases 0.

        Drawn on the CPU in the order of the parameters: the same weights on every device and rank.
        """
        tensors, generator = tensor_table(self.config), torch.Generator().manual_seed(seed)
        residual = 1 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            match tensors[name].role:
                case "gain":
                    parameter.fill_(1.0)
                case "bias":
                    parameter.fill_(0.0)
                case "matrix" | "embedding":
                    std = self.config.init_std * (residual if tensors[name].kind in RESIDUAL else 1.0)
                    parameter.copy_(torch.empty_like(parameter, device="cpu").normal_(0.0, std, generator=generator))

    def _autocast(self, device: torch.device) -> torch.autocast | nullcontext[None]:
        return torch.autocast(device.type, dtype=self.autocast) if self.autocast else nullcontext()
