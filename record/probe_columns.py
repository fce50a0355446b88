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

The mean adam_lr is ruled by elements that have hardly a gradient (an unused row of the embedding has a tiny v), so read the
median. Idle, and left out of it, is an element whose v is at most 1e-5 of its tensor's mean. The median is read off counts
over all ranks, within 0.8 % (engine/adam_rates.py). Rows of earlier versions have the mean alone.

How far ε, which damps, rules an update: adam_damping, 0 where v rules alone. Where the loss knows only the direction of w, ε
acts as adam_epsilon (engine/adam_rates.py derives it). Rows of earlier versions have neither.

And per tensor that decays by decoupled, independent or corrected decay its equilibrium under noise, `probe/predicted_rms/…` and
`probe/predicted_rotation/…`: AdamW's √(η/2λ) and √(2ηλ(1−β₁)/(1+β₁)) (2305.17212), Lion's and Muon's by configs/equilibrium.py.
SGD has the rotation alone, of l2_coupled too: its size depends on the gradients'. Earlier versions recorded AdamW's alone.

For the whole model: `probe/effective_lr`, `probe/adam_lr`, `probe/adam_lr_median`, `probe/adam_idle`, `probe/max`; over fixed
validation windows `probe/loss`, `probe/loss_ema_0.99`, `probe/max_logit`, `probe/logsumexp` (mean), `probe/top1_error` (a
fraction), and `probe/windows`, how many they were: one micro-batch of every rank, window i of n being window i·W/n of the W
of the validation split. A row without `probe/windows` is of an earlier version, which took the first n of the windows that are
evaluated: its five values are of other tokens, and do not compare with those of a row that has it, nor do rows of unequal n.
With log.noise_scale `probe/gradient_square` (|G|²), `probe/gradient_trace` (tr Σ) and
`probe/noise_scale_tokens`, their ratio: noisy in one row, average the first two over rows.
"""

from __future__ import annotations
