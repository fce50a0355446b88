"""Cost arithmetic without torch: parameters, FLOPs, memory, communication, disk.

Shapes: V vocabulary, T seq_len, d n_embd, L n_layer.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from configs.factors import factor_bytes, inversion_bytes, statistics_bytes
from configs.image_cost import flops_per_image, image_activation_bytes
from configs.images import ImageModel
from configs.precision import BYTES, TABLE
from configs.schema import Model, RunConfig
from configs.tensors import is_hidden_matrix, tensor_table

GIB = 1 << 30


@lru_cache(maxsize=64)  # a plan asks for every micro-batch that it considers
def n_parameters(model: Model | ImageModel) -> int:
    return sum(tensor.size for tensor in tensor_table(model).values())


def flops_per_unit(model: Model | ImageModel) -> int:
    """Training FLOPs per token or image."""
    return flops_per_token(model) if isinstance(model, Model) else flops_per_image(model)


def flops_per_token(model: Model) -> int:
    """Training FLOPs per token: 6 per matmul weight, and 12·L·d·T for attention (PaLM, 2204.02311, appendix B).

    The head counts as a matmul whether or not it is tied; embedding look-ups and the causal half are not discounted.
    """
    matmul = sum(tensor.size for tensor in tensor_table(model).values() if tensor.role == "matrix")
    if model.tied_head:
        matmul += model.vocab_size * model.n_embd
    return 6 * matmul + 12 * model.n_layer * model.n_embd * model.seq_len


# Dense peak, TFLOP/s, of bfloat16, TF32 and float32 (vendors' data sheets); the first whose words are all in a device's name.
PEAKS: dict[str, tuple[float, float, float]] = {
    "A100": (312, 156, 19.5),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 418, 60),
    "H100": (989, 494, 67),
    "H200 NVL": (835, 418, 60),
    "H200": (989, 494, 67),
    "B200": (2250, 1100, 75),
    "L4": (121, 60, 30.3),
    "L40S": (362, 183, 91.6),
    "RTX 4090": (165.2, 82.6, 82.6),
}


def peak_flops(device: str, precision: str) -> float | None:
    """FLOP/s of a device at the arithmetic of a precision's matrix products; None for a device not in the table."""
    words = set(re.split(r"[\s-]+", device.lower()))
    if words & {"laptop", "mig", "d"}:  # parts or lesser ones of the same name
        return None
    of_device = next((peaks for name, peaks in PEAKS.items() if set(name.lower().split()) <= words), None)
    kind = ("bfloat16", "tensorfloat32", "float32").index(TABLE[precision].matmul)
    return of_device[kind] * 1e12 if of_device else None


def mfu(flops_per_s: float, device: str, precision: str, devices: int) -> float | None:
    """Model FLOPs utilisation (PaLM, 2204.02311, appendix B), a fraction; None where the device's peak is not known."""
    peak = peak_flops(device, precision)
    return flops_per_s / (peak * devices) if peak else None


ROUNDED_AT_ONCE = 1 << 20  # elements whose float32 copies are held at once (optim/stochastic.py)
LOGITS_AT_ONCE = 1 << 27  # the loss's chunks (model/loss.py): 2,668 tokens of GPT-2's vocabulary, 256 MiB in bfloat16
SOFTMAX_AT_ONCE = 1 << 21  # and of these the softmax's, in float32, on a CPU
DOTTED_MOMENTS = 3  # the most that one of torch's keeps: AMSGrad, and RMSprop centred and with momentum


def n_moments(config: RunConfig) -> float:
    """Values that the optimiser keeps per parameter, on the average; of a torch.optim.NAME, which is not known here, at most."""
    optim = config.optim
    if optim.algorithm == "muon":  # one of a hidden matrix, AdamW's two of the others
        hidden = sum(tensor.size for tensor in tensor_table(config.model).values() if is_hidden_matrix(tensor))
        return 2 - hidden / n_parameters(config.model)
    momentum = int(optim.momentum > 0)
    return {"adam": 2, "lion": 1, "sgd": momentum, "kfac": momentum}.get(optim.algorithm, DOTTED_MOMENTS)


def bucket_elements(config: RunConfig) -> int:
    """Gradients that ranks exchange at once, at least the largest tensor. DeepSpeed's default is 5·10⁸, allocated whole."""
    sizes = [tensor.size for tensor in tensor_table(config.model).values()]
    return int(config.deepspeed.get("reduce_bucket_size", min(sum(sizes), max(50_000_000, *sizes))))


def state_bytes(config: RunConfig, ranks: int) -> int:
    """What one device holds all the time: weights, gradients, masters, moments, averages and K-FAC's factors, at its ZeRO stage.

    Stage 3 also holds the weights it has gathered, up to `stage3_max_live_parameters`.
    """
    dtypes, stage = TABLE[config.precision], config.parallel.zero_stage
    weights, gradients = BYTES[dtypes.weights], BYTES[dtypes.gradients]
    if dtypes.accumulation != dtypes.gradients:
        gradients += BYTES[dtypes.accumulation]
    masters = BYTES[dtypes.masters] if stage >= 1 else 0  # at stage 0 the weights are the masters
    state = masters + n_moments(config) * BYTES[dtypes.moments] + 4 * len(config.averages.ema)
    per_parameter = (
        weights / (ranks if stage >= 3 else 1)
        + gradients / (ranks if stage >= 2 else 1)
        + state / (ranks if stage >= 1 else 1)
    )
    parameters = n_parameters(config.model)
    live = min(parameters, config.deepspeed.get("stage3_max_live_parameters", 10**9)) if stage == 3 else 0
    return round(parameters * per_parameter + live * weights) + factor_bytes(config)


# What a rule holds in the midst of a step, in copies of the masters: of all that a device steps, and of its largest tensor.
# tests/test_rule_memory.py measures every rule; one that is not named holds next to nothing.
RULE_COPIES: dict[str, tuple[int, int]] = {
    "hyperball": (2, 0),  # the weights before, and the step
    "rotational": (2, 3),  # those, and their products, which are summed in float64
    "cautious": (0, 4),  # the moment to come, what it is made of, and the one before it
    "cautious_random": (0, 4),
    "swd": (0, 2),  # a moment in float64, whose sum is taken
    "selective_projection": (0, 3),  # a product, and the same in float64
}
MOVES_FIRST = ("cautious", "cautious_random")  # rules that decay before the step: a probe keeps the weights then, too


def rule_bytes(config: RunConfig, ranks: int) -> int:
    """What the decay rule holds on one device between the gradients and the end of the step."""
    of_all, of_largest = RULE_COPIES.get(config.optim.decay_rule, (0, 0))
    stepped = n_parameters(config.model) / (ranks if config.parallel.zero_stage else 1)
    largest = max(tensor.size for tensor in tensor_table(config.model).values())
    copied = of_all * stepped + of_largest * min(largest, stepped)
    return round(copied * BYTES[TABLE[config.precision].masters])


def rounding_bytes(config: RunConfig) -> int:
    """The copies of the slice that is rounded by chance (optim/stochastic.py)."""
    if TABLE[config.precision].rounding == "nearest":
        return 0
    # Of an element: float32 weight, gradient and moments, 64 bits drawn and as many to draw them, and what rounding needs.
    slice_bytes = 4 * (2 + n_moments(config)) + 2 * 8 + 2 * 8
    return round(min(ROUNDED_AT_ONCE, n_parameters(config.model)) * slice_bytes)


def working_bytes(config: RunConfig, ranks: int, micro_batch: int) -> int:
    """What one device holds beside its state: the activations of a micro-batch, or what passes by, where that is more."""
    return max(activation_bytes(config, micro_batch), passing_bytes(config, ranks))


def passing_bytes(config: RunConfig, ranks: int) -> int:
    """The most that one device holds while it holds few activations.

    Gradients on their way to other ranks, whose buckets (two at stage 3) fill as the backward pass frees activations; and
    from its end on the masters before a probed update, beside the float32 copies of a slice that is rounded by chance, and what
    the decay rule holds, or inverting K-FAC's factors.
    """
    dtypes, stage = TABLE[config.precision], config.parallel.zero_stage
    has_bucket = dtypes.accumulation == dtypes.gradients  # BF16_Optimizer has none
    buckets = (2 if stage == 3 else 1) if stage and ranks > 1 and has_bucket else 0
    exchanged = buckets * bucket_elements(config) * BYTES[dtypes.gradients]
    before = n_parameters(config.model) * BYTES[dtypes.masters] // (ranks if stage else 1)
    before = before if config.log.probe_every else 0
    # What a rule that decays first holds is gone when a probe keeps the weights that the step finds.
    twice = before if config.optim.decay_rule in MOVES_FIRST else 0
    held = max(rule_bytes(config, ranks), twice) + rounding_bytes(config)
    return max(exchanged, before + held, before + inversion_bytes(config))


def communication_bytes(config: RunConfig, ranks: int, micro_steps: int) -> int:
    """Bytes a rank sends in one update, by ring algorithms: (N−1)/N of what is gathered or scattered, twice for all-reduce.

    As DeepSpeed does it: stages 0 and 1 all-reduce the gradients once an update, stage 2 in every micro-step; stages 1 and
    2 gather the updated weights; stage 3 scatters the gradients of every micro-step, and gathers the weights for its
    forward and again for its backward pass.
    """
    dtypes, stage = TABLE[config.precision], config.parallel.zero_stage
    gradients, weights = BYTES[dtypes.reduction], BYTES[dtypes.weights]
    per_parameter = {
        0: 2 * gradients,
        1: 2 * gradients + weights,
        2: 2 * gradients * micro_steps + weights,
        3: (gradients + 2 * weights) * micro_steps,
    }[stage]
    return round(n_parameters(config.model) * per_parameter * (ranks - 1) / ranks)


def device_hours(config: RunConfig, flops_per_s: float) -> float:
    """Hours of one device that sustains `flops_per_s` for all updates of the run."""
    return flops_per_unit(config.model) * config.schedule.steps * config.units_per_step / flops_per_s / 3600


def _rms_bytes(model: Model, given: int) -> int:
    """What torch's normalisation by mean square keeps of a value of `given` bytes, on a CPU: its copy in float32 where it has fewer
    bytes, and what a gain multiplies."""
    return (4 if given < 4 else 0) + (4 if model.layernorm_gain else 0)


def block_bytes(model: Model, wide: int, narrow: int) -> tuple[int, int]:
    """Of a token: what a block keeps for its backward pass, and what it holds besides while it is at work.

    `wide` and `narrow` are bytes of a value in the residual stream and of one that a matrix multiplies. Uncompiled, as on a CPU.
    """
    d, keys = model.n_embd, model.n_embd * model.kv_heads // model.n_head
    is_rms, is_moved = model.norm == "rmsnorm", model.qk_norm or model.position == "rotary"
    hidden = model.mlp_hidden * (4 if model.activation == "swiglu" else 2)
    # Its input is lowered for each of the two maps that read it.
    twice = d if model.activation == "swiglu" and narrow < wide else 0
    kept = narrow * (2 * d + hidden + twice)  # norms' outputs, the MLP
    # The residual stream at both norms: by mean square of bfloat16 only what the norm makes of it.
    kept += 2 * d * (0 if is_rms and wide < 4 else wide)
    if is_rms:
        kept += 2 * d * _rms_bytes(model, wide) + (d + keys) * _rms_bytes(model, narrow) * model.qk_norm
    if model.attention == "sdpa":
        # q k v and the output. Queries and keys once more where they are changed; the output then lies by heads, and is copied.
        return kept + narrow * (2 * d + 2 * keys + ((2 * d + keys) if is_moved else 0)), 0
    # Values and output; queries, keys and the product in float32, by heads; q k v only where a norm reads them as they are.
    kept += narrow * 2 * d + 4 * 3 * d
    if model.qk_norm and not (is_rms and narrow < 4):
        kept += narrow * (d + 2 * keys)
    scores = model.n_head * model.seq_len
    kept += 4 * scores  # the weights of the scores, float32
    if narrow < 4:  # these rounded
        kept += narrow * scores
    return kept, 3 * 4 * scores  # scores before and after the mask, and their gradient


def activation_bytes(config: RunConfig, micro_batch: int) -> int:
    """What one micro-batch adds: activations kept for its backward pass, weights cast for it, and the loss's working memory."""
    measured = statistics_bytes(config, micro_batch)  # by K-FAC, in a pass of its own
    if isinstance(config.model, ImageModel):
        return image_activation_bytes(config.model, config.precision, micro_batch) + measured
    model, dtypes = config.model, TABLE[config.precision]
    wide, narrow = BYTES[dtypes.weights], 2 if dtypes.matmul == "bfloat16" else BYTES[dtypes.weights]
    tokens, head = micro_batch * model.seq_len, model.vocab_size * model.n_embd
    block, passing = block_bytes(model, wide, narrow)
    block *= tokens
    blocks = block * model.n_layer + tokens * passing
    if config.parallel.recompute:
        blocks = block + tokens * passing + tokens * model.n_embd * wide * model.n_layer
    cast = narrow * n_parameters(model) if narrow < wide else 0
    logits = min(tokens, max(1, LOGITS_AT_ONCE // model.vocab_size)) * model.vocab_size
    chunk = logits * narrow + (4 * min(logits, SOFTMAX_AT_ONCE) if narrow < 4 else 0)
    chunks = math.ceil(tokens * model.vocab_size / LOGITS_AT_ONCE)
    # Of the head: a chunk's gradient, and the sum over chunks.
    of_head = head * (narrow + (4 if chunks > 1 or narrow < wide else 0))
    scaled = tokens * model.n_embd * wide if model.head_scale else 0  # what the head's scale multiplies
    last = 2 * narrow + (_rms_bytes(model, wide) if model.norm == "rmsnorm" else 0)  # of the last norm
    return blocks + cast + chunk + of_head + scaled + tokens * model.n_embd * last + measured


def checkpoint_bytes(config: RunConfig) -> int:
    """Disk of one checkpoint: masters, moments, averages, and K-FAC's factors."""
    dtypes = TABLE[config.precision]
    moments = n_moments(config) * BYTES[dtypes.moments]
    of_each = BYTES[dtypes.masters] + moments + 4 * len(config.averages.ema)
    return round(n_parameters(config.model) * of_each) + factor_bytes(config)
