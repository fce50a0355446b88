"""probes.jsonl: what updates did; rows as in metrics.jsonl (record/metrics.py).

A row every log.probe_every updates, and every tenth of the first hundred (configs/cadence.py).

Per tensor, `probe/QUANTITY/blocks.0.attn.qkv.weight`, and per kind of tensor, `probe/QUANTITY/kind:attn.qkv`, its
tensors as one vector (their rotation is the mean of the tensors' angles). No effective_lr under a torch.optim.NAME, of which no law
is known; adam_… are of optim.algorithm adam alone:

    norm          ‖w‖₂ after the update              effective_lr  η/‖w‖ (Adam), η/‖w‖² (SGD), w before the update
    rms           ‖w‖/√n                             adam_lr       mean of η/(√v + ε), v the raw second moment
    update        ‖Δw‖/‖w‖                           grad_norm     ‖g‖ before clipping
    rotation      angle between w and w + Δw (rad)   cosine        of g and w
    max           max|w|                             adam_lr_median  the same, over elements that are not idle
    adam_epsilon  ε·‖w‖, w before the update         adam_idle     fraction of elements that are idle
    adam_damping  mean of ε/(√v + ε)
    changed       fraction of the masters' elements that the update changed
    changed_weights  the same of what the forward pass reads: where that is bfloat16 and masters are float32 (bf16-master)
    spectral_norm    largest singular value of a matrix after the update; of a kind, the largest of its tensors'
    norm2_alignment, norm2_injection, norm2_decay    what ‖w‖² changed by: alignment + injection − decay

spectral_norm is never too large, and up to 1 % too small where no singular value stands out (engine/spectral.py). The parts are
defined in engine/norm_change.py (2606.19367): for AdamW −2η(1 − ηλ)⟨w, u⟩, η²‖u‖² and (2ηλ − η²λ²)‖w‖². Decay is also what a rule
moves by itself, a projection or a mask, and may be negative; L2 that is in the gradient is part of the step, and its decay is 0.
Where a rule makes a step of its own size (hyperball, rotational), the step is that one.

The mean adam_lr is ruled by elements that have hardly a gradient (an unused row of the embedding has a tiny v), so read the
median. Idle, and left out of it, is an element whose v is at most 1e-5 of its tensor's mean. The median is read off counts
over all ranks, within 0.8 % (engine/adam_rates.py). Rows of earlier versions have the mean alone.

How far ε, which damps, rules an update: adam_damping, 0 where v rules alone. Where the loss knows only the direction of w, ε
acts as adam_epsilon (engine/adam_rates.py derives it). Rows of earlier versions have neither.

And per tensor that decays by decoupled, independent or corrected decay its equilibrium under noise, `probe/predicted_rms/…` and
`probe/predicted_rotation/…`: AdamW's √(η/2λ) and √(2ηλ(1−β₁)/(1+β₁)) (2305.17212), Lion's and Muon's by configs/equilibrium.py.
SGD has the rotation alone, of l2_coupled too: its size depends on the gradients'. Earlier versions recorded AdamW's alone.

For the whole model: `probe/effective_lr`, `probe/adam_lr`, `probe/adam_lr_median`, `probe/adam_idle`, `probe/max`,
`probe/changed`, `probe/changed_weights` and the three `probe/norm2_…`; over fixed validation windows `probe/loss`,
`probe/loss_ema_0.99`, `probe/max_logit`, `probe/logsumexp` (mean), `probe/top1_error` (a fraction), and `probe/windows`, how
many they were: one micro-batch of every rank, window i of n being window i·W/n of the W of the validation split. A row without
`probe/windows` is of an earlier version, which took the first n of the windows that are evaluated: its five values are of other
tokens, and do not compare with those of a row that has it, nor do rows of unequal n.

Over the same windows, after the update, `probe/attention_logit/blocks.0.attn` of each layer, and `probe/attention_logit`, the
largest of all: q·k/√D over what a position may see, queries and keys as the scores are made of them. Fixed windows and not the
update's batch, so that rows compare, and no forward pass is added; only compiled blocks take one more, for nothing is seen
inside them.

With log.noise_scale `probe/gradient_square` (|G|²), `probe/gradient_trace` (tr Σ) and
`probe/noise_scale_tokens`, their ratio: noisy in one row, average the first two over rows.
"""

from __future__ import annotations
