"""How many windows the data has, and how far a run has read in their order.

A window is seq_len targets. The order (data/order.py) hands them out as global batches; update t reads one of them.
"""

from __future__ import annotations

from configs.schema import RunConfig


def windows_in(tokens: int, seq_len: int) -> int:
    """Windows of seq_len targets that a stream holds: neighbours share one token, the tail is dropped."""
    return max(0, (tokens - 1) // seq_len)


def train_windows(config: RunConfig, tokens: int) -> int:
    """Windows of one epoch of a training split of `tokens` tokens, after data.train_tokens."""
    if config.data.train_tokens is not None:
        tokens = min(tokens, config.data.train_tokens)
    return windows_in(tokens, config.model.seq_len)


def eval_windows(config: RunConfig, tokens: int) -> int:
    """Validation windows: as many as eval.tokens asks and the split holds."""
    return min(max(1, config.eval.tokens // config.model.seq_len), windows_in(tokens, config.model.seq_len))


def probe_windows(config: RunConfig, tokens: int, micro_batch: int, ranks: int) -> int:
    """Validation windows that a probe looks at: one micro-batch of every rank, and not more than are evaluated."""
    return min(micro_batch * ranks, eval_windows(config, tokens))


def final_windows(config: RunConfig, tokens: int) -> int:
    """Validation windows at the end of a run: eval.final_tokens, or those of every evaluation where it is not given."""
    asked, available = config.eval.final_tokens, windows_in(tokens, config.model.seq_len)
    if asked is None:
        return eval_windows(config, tokens)
    return available if asked == "all" else min(max(1, asked // config.model.seq_len), available)


def order_batch(config: RunConfig, t: int) -> int:
    """Which global batch of the data order update t reads (both from 0): t, and past the ranges of data.skip_steps."""
    for first, last in config.data.skip_steps:
        if t >= first - 1:
            t += last - first + 1
    return t


def windows_read(config: RunConfig, updates: int, first_window: int = 0) -> int:
    """The window at which a run stands in its order after `updates` updates, if it began at `first_window`.

    Windows that data.skip_steps leaves out count as read, once an update has read behind them.
    """
    batches = order_batch(config, updates - 1) + 1 if updates else 0
    return first_window + batches * config.sequences_per_step
