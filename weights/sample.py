"""Text from a trained transformer.

    python -m weights.sample RUN[@STEP] --prompt "Once upon" [--tokens 100] [--temperature 0.8] [--top-k 50] [--top-p 0.9]
    python -m weights.sample RUN --prompt - < FILE              the prompt from standard input, as it is, its last newline too
    python -m weights.sample RUN --prompt "" --n 3 --seed 5     three texts from the end-of-text token
    python -m weights.sample FOLDER --prompt TEXT --data DIR    a model from elsewhere, and prepared data that has its tokenizer

Prints the prompt and what follows it, token by token as they come. A character whose bytes are not all there waits until it is
whole. A text ends at the end-of-text token, which is not printed, or after --tokens: by default what the context has left, at most
200. Prompt and tokens together must fit the context. With --n the texts are one batch: the first is printed as it comes, the others
when all have ended, each behind a line of 15 hyphens.

The default is the distribution that was trained, temperature 1. Temperature 0 is greedy: always the likeliest token, the same text
every time. Otherwise the i-th text of a seed draws the same numbers, whatever --n and the device are. Without --seed one is taken,
and named on standard error. The precision is the run's, and of a FOLDER fp32. In bfloat16 logits are rounded, and on another device
the same seed may lead to another text. Ids beyond the tokenizer's vocabulary, which only fill up the embedding, are never drawn.

A prompt is text and holds no end-of-text token: what looks like one is encoded as its characters. Nor is one put before it. An
empty prompt begins from that token, the end of a document before. Where attention stayed within a document
(data.cross_document_attention false), the text does not see it, as in training.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.errors import InputError
from data.lossless import Decoder
from model.cache import Cache
from model.gpt import GPT
from weights.next_token import pick, probabilities
from weights.read import choose_device
from weights.source import Source, read_source

TOKENS, MOST_TEXTS, SEEDS = 200, 1000, 1 << 32
BETWEEN = "-" * 15
Draw = Callable[[Tensor], list[int]]  # the next token of each text, of logits (n, V)
REPLACEMENT = "\ufffd"  # what bytes decode to that are no character, or not yet


@dataclass(frozen=True)
class Sampling:
    """What the command line says of the draws. InputError for what means nothing. `tokens` None: what fits, at most TOKENS."""

    tokens: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise InputError(f"--tokens {self.tokens}: give 1 or more")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: give a number of 0 (greedy) or more; 1 is as trained")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"--top-k {self.top_k}: give 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: give a fraction above 0, at most 1")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise InputError(f"--seed {self.seed}: give a number from 0 to {SEEDS - 1}")
        if not 1 <= self.n <= MOST_TEXTS:
            raise InputError(f"--n {self.n}: give a number from 1 to {MOST_TEXTS}")
        several = self.n if self.n > 1 else None
        given = {"--top-k": self.top_k, "--top-p": self.top_p, "--seed": self.seed, "--n": several}
        idle = [option for option, value in given.items() if value is not None]
        if self.temperature == 0 and idle:
            raise InputError(f"--temperature 0 takes the likeliest token always; leave out {', '.join(idle)}")

    def drawing(self, seed: int) -> Draw:
        """Draws the next token of each text from logits (n, V): one number a text and token, of a generator for each text."""
        generators = [np.random.default_rng([seed, i]) for i in range(self.n)]

        def draw(logits: Tensor) -> list[int]:
            uniform = torch.tensor([one.random() for one in generators], dtype=torch.float64, device=logits.device)
            return pick(probabilities(logits, self.temperature, self.top_k, self.top_p), uniform).tolist()

        return draw


@torch.no_grad()
def generate(
    network: GPT, start: list[int], tokens: int, n: int, vocabulary: int, stop: int | None, draw: Draw
) -> Iterator[list[int | None]]:
    """The next token of each of `n` texts that all begin with `start`, up to `tokens` times; None for a text that has ended.

    A text ends where `stop` is drawn. `draw`: from logits (n, vocabulary). InputError if logits are not finite.
    """
    device, ended = network.head_weight.device, [False] * n
    cache = Cache(network.config, len(start) + tokens - 1)  # the last token is not read again
    # The beginning is read once, whatever n is, and of its logits only the last are made.
    inputs = torch.tensor([start], device=device)
    last = torch.arange(len(start), device=device)[None] == len(start) - 1
    logits = network.logits(inputs, last, cache).expand(n, -1)  # (n, V)
    cache.repeat(n)
    for count in range(tokens):
        if not logits.isfinite().all():
            raise InputError("the network's logits are not finite, so no token can be drawn; did the run diverge?")
        drawn = draw(logits[:, :vocabulary])
        ended = [over or token == stop for over, token in zip(ended, drawn, strict=True)]
        yield [None if over else token for over, token in zip(ended, drawn, strict=True)]
        if all(ended) or count == tokens - 1:
            return
        # A text that has ended is still computed, and nobody looks.
        logits = network.logits(torch.tensor(drawn, device=device)[:, None], cache=cache)[:, 0]


class TextStream:
    """The text of tokens that come one after another. All that it gives, joined, is `tokenizer.decode` of all tokens."""

    def __init__(self, tokenizer: Decoder) -> None:
        self.tokenizer, self.ids, self.given = tokenizer, list[int](), 0

    def add(self, *ids: int) -> str:
        """What can be shown now. A character waits for its last byte."""
        self.ids += ids
        # From the start every time: some tokenizers treat the first token otherwise, and a context is short.
        text = self.tokenizer.decode(self.ids)
        # Of a character at most three bytes are there without the last; each may stand as a replacement of its own.
        waiting = min(3, len(text) - len(text.rstrip(REPLACEMENT)))
        return self._new(text[: len(text) - waiting])

    def end(self) -> str:
        """What still waited."""
        return self._new(self.tokenizer.decode(self.ids))

    def _new(self, text: str) -> str:
        new, self.given = text[self.given :], max(self.given, len(text))
        return new


def read_prompt(given: str) -> str:
    """The text of --prompt, `-` for standard input. InputError if it is not UTF-8."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if given == "-" else given
        text.encode("utf-8")  # bytes of a command line that are no UTF-8 are surrogates
    except UnicodeError as error:
        raise InputError(f"the prompt is not UTF-8: {error}") from None
    return text


def fitting(source: Source, prompt: int, tokens: int | None) -> int:
    """How many tokens follow `prompt` many. InputError if they do not fit the context."""
    left = source.model.seq_len - prompt
    if left < 1:
        raise InputError(
            f"the prompt has {prompt} tokens, and the context of {source.name} is {source.model.seq_len}: give a prompt of at most "
            f"{source.model.seq_len - 1}"
        )
    if tokens is not None and tokens > left:
        raise InputError(
            f"--tokens {tokens} and the prompt's {prompt} are more than the context of {source.name}, {source.model.seq_len}; at "
            f"most {left} fit"
        )
    return min(left, TOKENS) if tokens is None else tokens


def write_texts(source: Source, prompt: str, sampling: Sampling) -> None:
    """What `main` prints. InputError for what cannot be sampled."""
    tokenizer, device = source.tokenizer(without_end=True), choose_device()
    begun, stop = tokenizer.encode(prompt), tokenizer.eot
    start = begun or ([] if stop is None else [stop])
    if not start:
        raise InputError(f"the data of {source.name} has no end-of-text token to begin from; give a --prompt with text")
    tokens = fitting(source, len(start), sampling.tokens)
    if sampling.top_k is not None and sampling.top_k > tokenizer.vocab_size:
        raise InputError(f"--top-k {sampling.top_k}: the tokenizer of {source.name} has {tokenizer.vocab_size} tokens")
    network = source.network(device)
    seed = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, seed {seed}"
    print(f"{source.name}: {source.precision} on {device}, {how}, at most {tokens} tokens", file=sys.stderr)
    first, others = TextStream(tokenizer), [list(begun) for _ in range(sampling.n - 1)]
    print(first.add(*begun), end="", flush=True)
    for drawn in generate(network, start, tokens, sampling.n, tokenizer.vocab_size, stop, sampling.drawing(seed)):
        if drawn[0] is not None:
            print(first.add(drawn[0]), end="", flush=True)
        for ids, token in zip(others, drawn[1:], strict=True):
            ids += [] if token is None else [token]
    print(first.end())
    for ids in others:
        print(BETWEEN, tokenizer.decode(ids), sep="\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m weights.sample", description="Text from a trained transformer.")
    parser.add_argument("run", help="run folder, or RUN@STEP; or a FOLDER from elsewhere")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="how the text begins; - reads standard input")
    parser.add_argument("--tokens", type=int, help=f"at most so many more; default what fits, at most {TOKENS}")
    parser.add_argument("--temperature", type=float, default=1.0, help="logits are divided by it; 0: greedy; default 1")
    parser.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="only the likeliest tokens that together reach P")
    parser.add_argument("--seed", type=int, help="the same seed, the same text")
    parser.add_argument("--n", type=int, default=1, help="how many texts")
    parser.add_argument(
        "--weights", "--average", default="weights", metavar="KIND", help="an average instead: ema_0.99"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="where the run's data lies now; of a FOLDER, prepared data with its tokenizer",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        sampling = Sampling(args.tokens, args.temperature, args.top_k, args.top_p, args.seed, args.n)
        prompt = read_prompt(args.prompt)
        write_texts(read_source(args.run, args.weights, args.data), prompt, sampling)
    except KeyboardInterrupt:  # enough read
        print()
        return 130
    except BrokenPipeError:  # whoever read, as `head` does, has enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
