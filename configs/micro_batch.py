"""How many sequences or images a device takes at once: given, or the largest divisor of its share that fits its memory."""

from __future__ import annotations

import math

from configs import cost
from configs.cost import GIB
from configs.errors import InputError
from configs.schema import RunConfig

DEFAULT_GIB = 8.0  # for activations, where no GPU is seen: on a CPU more sequences at once are not faster
# Of a GPU: what the CUDA context, kernels' workspaces and communication take, and what the allocator cannot hand out again.
RESERVED_PART, RESERVED_BYTES = 0.1, GIB


def choose_micro_batch(config: RunConfig, ranks: int, device_bytes: int | None) -> tuple[int, str]:
    """Sequences or images per device and forward pass, and what said so. `device_bytes`: a GPU's memory, None where none is seen.

    InputError where the batch cannot be shared equally.
    """
    share = _share(config, ranks)
    smaller = [n for n in range(1, math.isqrt(share) + 1) if share % n == 0]  # each has a partner, share / n
    divisors = sorted({*smaller, *(share // n for n in smaller)})
    if (given := config.batch.micro_batch) is not None:
        _check_divides(config, ranks, given, divisors)
        return given, "batch.micro_batch"
    room, room_from = activation_room(config, ranks, device_bytes)
    if config.log.noise_scale:  # it compares a micro-batch with the whole batch, so that one must not be the other
        divisors = [n for n in divisors if n < config.examples_per_step] or divisors
    fitting = [n for n in divisors if cost.activation_bytes(config, n) <= room]
    said = f"the largest divisor whose activations fit {room_from}" if fitting else f"1, which does not fit {room_from}"
    return max(fitting, default=1), said


def activation_room(config: RunConfig, ranks: int, device_bytes: int | None) -> tuple[float, str]:
    """Bytes for the activations of one micro-batch, and what they follow from, in words."""
    if config.batch.memory_gib is not None:
        return config.batch.memory_gib * GIB, f"batch.memory_gib {config.batch.memory_gib:g}"
    if device_bytes is None:
        return DEFAULT_GIB * GIB, f"{DEFAULT_GIB:g} GiB (no GPU is seen here; on one: what its memory leaves)"
    state, reserved = cost.state_bytes(config, ranks), RESERVED_PART * device_bytes + RESERVED_BYTES
    room = max(0.0, device_bytes - reserved - state)
    parts = f"{device_bytes / GIB:.1f} of the GPU, less {state / GIB:.1f} of state and {reserved / GIB:.1f} of reserve"
    return room, f"{room / GIB:.1f} GiB ({parts})"


def memory_cautions(config: RunConfig, ranks: int, micro_batch: int, device_bytes: int | None) -> tuple[str, ...]:
    """A sentence where a plan needs more than the memory of the GPU that is seen."""
    state, working = cost.state_bytes(config, ranks), cost.working_bytes(config, ranks, micro_batch)
    if device_bytes is None or state + working <= device_bytes:
        return ()
    if working == cost.activation_bytes(config, micro_batch):
        what = "activations"
        how = "batch.micro_batch or batch.memory_gib lower, parallel.recompute true, or a higher parallel.zero_stage"
    else:
        # gradients on their way, a probe's copies, or the decay rule's: no micro-batch makes them fewer
        what = "what an update holds for a moment"
        how = "a higher parallel.zero_stage, or log.probe_every null"
    return (
        f"{(state + working) / GIB:.1f} GiB of state and {what}, and the GPU has {device_bytes / GIB:.1f}: it will run out of "
        f"memory; set {how}",
    )


def _share(config: RunConfig, ranks: int) -> int:
    """The sequences or images of a rank in an update."""
    examples, length = config.examples_per_step, config.targets_per_example
    if examples % ranks:
        below, above = examples // ranks * ranks * length, (examples // ranks + 1) * ranks * length
        are = f" is {examples} sequences of {length}, which" if config.unit == "tokens" else ":"
        raise InputError(
            f"batch.{config.unit}_per_step {config.units_per_step}{are} {ranks} ranks cannot share equally; nearest: "
            f"{below or above} or {above}"
        )
    return examples // ranks


def _check_divides(config: RunConfig, ranks: int, given: int, divisors: list[int]) -> None:
    """InputError that names the nearest divisors."""
    if given in divisors:
        return
    share = divisors[-1]
    below, above = (
        max((n for n in divisors if n < given), default=1),
        min((n for n in divisors if n > given), default=share),
    )
    length = f" / seq_len {config.targets_per_example}" if config.unit == "tokens" else ""
    raise InputError(
        f"batch.micro_batch {given} does not divide the {share} {config.examples} of a rank and step "
        f"({config.unit}_per_step {config.units_per_step}{length} / {ranks} ranks); nearest: {below} or {above}"
    )
