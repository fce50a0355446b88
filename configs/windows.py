"""How many windows or images the data has, and how far a run has read in their order.

A window is seq_len targets. The order (data/order.py) hands out examples, windows or images, as global batches; update t reads
one of them.
"""

from __future__ import annotations

from configs.images import ImageData
from configs.schema import Data, RunConfig


def windows_in(tokens: int, seq_len: int) -> int:
    """Windows of seq_len targets that a stream holds: neighbours share one token, the tail is dropped."""
    return max(0, (tokens - 1) // seq_len)


def train_windows(config: RunConfig, tokens: int) -> int:
    """Windows of one epoch of a training split of `tokens` tokens, after data.train_tokens."""
    if config.text.train_tokens is not None:
        tokens = min(tokens, config.text.train_tokens)
    return windows_in(tokens, config.gpt.seq_len)


def taken_images(config: RunConfig, images: int) -> int:
    """Images of a training split of `images` that a run trains on: all, or data.train_images."""
    assert isinstance(config.data, ImageData)
    return min(images, config.data.train_images or images)


def epoch_images(config: RunConfig, images: int) -> int:
    """Images of them that one epoch reads: whole batches."""
    return taken_images(config, images) // config.examples_per_step * config.examples_per_step


def image_epochs(config: RunConfig, images: int, first: int = 0) -> int:
    """Passes over the data: data.epochs, or as many as the steps of a run need that begins at image `first` of its order."""
    assert isinstance(config.data, ImageData)
    if config.data.epochs is not None:
        return config.data.epochs
    return -(-windows_read(config, config.schedule.steps, first) // max(1, epoch_images(config, images)))


def eval_windows(config: RunConfig, tokens: int) -> int:
    """Validation windows: as many as eval.tokens asks and the split holds."""
    return min(max(1, config.eval.tokens // config.gpt.seq_len), windows_in(tokens, config.gpt.seq_len))


def probe_windows(config: RunConfig, tokens: int, micro_batch: int, ranks: int) -> int:
    """Validation windows that a probe looks at: one micro-batch of every rank, and not more than are evaluated."""
    return min(micro_batch * ranks, eval_windows(config, tokens))


def final_windows(config: RunConfig, tokens: int) -> int:
    """Validation windows at the end of a run: eval.final_tokens, or those of every evaluation where it is not given."""
    asked, available = config.eval.final_tokens, windows_in(tokens, config.gpt.seq_len)
    if asked is None:
        return eval_windows(config, tokens)
    return available if asked == "all" else min(max(1, asked // config.gpt.seq_len), available)


def order_batch(config: RunConfig, t: int) -> int:
    """Which global batch of the data order update t reads (both from 0): t, and past the ranges of data.skip_steps."""
    for first, last in config.data.skip_steps if isinstance(config.data, Data) else ():
        if t >= first - 1:
            t += last - first + 1
    return t


def windows_read(config: RunConfig, updates: int, first_window: int = 0) -> int:
    """The example at which a run stands in its order after `updates` updates, if it began at `first_window`.

    Windows that data.skip_steps leaves out count as read, once an update has read behind them.
    """
    batches = order_batch(config, updates - 1) + 1 if updates else 0
    return first_window + batches * config.examples_per_step
