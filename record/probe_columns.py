"""probes.jsonl: what updates did; rows as in metrics.jsonl (record/metrics.py).

A row every log.probe_every updates, and every tenth of the first hundred (configs/cadence.py).

Per tensor, `probe/QUANTITY/blocks.0.attn.qkv.weight`, and per kind of tensor, `probe/QUANTITY/kind:attn.qkv`, its
tensors as one vector (their rotation is the mean of the tensors' angles):

    norm          ‖w‖₂ after the update              effective_lr  η/‖w‖ (Adam), η/‖w‖² (SGD), w before the update
    rms           ‖w‖/√n                             adam_lr       mean of η/(√v + ε), v the raw second moment
    update        ‖Δw‖/‖w‖                           grad_norm     ‖g‖ before clipping
    rotation      angle between w and w + Δw (rad)   cosine        of g and w
    max           max|w|

and per tensor that decays under AdamW its equilibrium under noise, `probe/predicted_rms/…` √(η/2λ) and
`probe/predicted_rotation/…` √(2ηλ(1−β₁)/(1+β₁)) (2305.17212).

For the whole model: `probe/effective_lr`, `probe/adam_lr`, `probe/max`; over fixed validation tokens (one micro-batch of
every rank) `probe/loss`, `probe/loss_ema_0.99`, `probe/max_logit`, `probe/logsumexp` (mean), `probe/top1_error` (a
fraction); with log.noise_scale `probe/gradient_square` (|G|²), `probe/gradient_trace` (tr Σ) and
`probe/noise_scale_tokens`, their ratio: noisy in one row, average the first two over rows.
"""

from __future__ import annotations
