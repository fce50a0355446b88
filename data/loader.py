"""Batches of a run, in its one-pass order, prefetched by a thread; and its fixed validation windows.

A batch is inputs and targets. Of tokens, the target of each position is the token that follows; where a target does not
count it is IGNORED. Whoever trains on a batch needs to know no more, and whatever is not tokens can be given in the same way.

Shapes: T seq_len, M micro-steps per rank, b micro-batch.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.prepared import check_documents
from configs.schema import RunConfig
from configs.windows import eval_windows, order_batch, probe_windows, train_windows, windows_in
from data.manifest import Manifest, Split
from data.order import DocumentOrder, Ids, WindowOrder
from data.shards import TokenStream

Tokens = NDArray[np.int64]
Inputs = NDArray[np.integer[Any]]  # of any task: tokens int64, pixels uint8
PREFETCH_STEPS = 4
IGNORED = -100  # what torch's cross_entropy leaves out


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of update `step` (0-based): inputs and targets (M, b, T). `ids` are the windows of all ranks, in order.

    `digest` chains the ids of all windows read by all ranks up to and including this update:
    sha256(previous digest ‖ epoch·windows + window of the global batch, int64).
    """

    step: int
    inputs: Inputs
    targets: Tokens
    ids: Ids
    digest: str


@dataclass(frozen=True)
class EvalBatch:
    """One rank's share of a validation batch: inputs and targets (b, T), and how many of the targets count.

    `places`: which of the validation windows its first rows are, counted in the order of the file; rows behind them are filling.
    """

    inputs: Inputs
    targets: Tokens
    counted: int
    places: range


def inputs_and_targets(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Windows (…, T+1) → inputs (…, T) and targets (…, T), views of the same memory."""
    return tokens[..., :-1], tokens[..., 1:]


class TrainData:
    """The training split under a run's configuration: what update t reads."""

    def __init__(self, folder: str | Path, manifest: Manifest, config: RunConfig, first_window: int = 0) -> None:
        """InputError if a file is not as the manifest says, or documents to shuffle are too few."""
        self.config, self._vocab_size = config, manifest.vocab_size
        self._stream = TokenStream(Path(folder), manifest.train.shards, manifest.dtype)
        windows = train_windows(config, manifest.train.tokens)
        permuted = config.text.order == "windows"
        self.order = WindowOrder(windows, config.text.epochs, config.seeds.data, permuted, first_window)
        self._documents: dict[int, DocumentOrder] = {}
        if config.text.order == "documents":
            ends = read_document_ends(Path(folder), manifest.train)
            limit = min(manifest.train.tokens, config.text.train_tokens or manifest.train.tokens)
            self._doc_ends = np.append(ends[ends < limit], np.uint64(limit))
            check_documents(config, len(self._doc_ends), limit)

    @property
    def start_digest(self) -> str:
        """The chain's value before the first update: it names the order and its seed."""
        return hashlib.sha256(f"{self.config.text.order}/{self.config.seeds.data}".encode()).hexdigest()

    def step_ids(self, t: int) -> Ids:
        """The global batch of update t as epoch·windows + window, in order."""
        epochs, windows = self.order.step_windows(order_batch(self.config, t), self.config.examples_per_step)
        return epochs * self.order.windows + windows

    def read(self, ids: Ids, out: Tokens) -> None:
        """Fill out (len(ids), T+1) with the tokens of the given windows. InputError for one beyond the vocabulary."""
        if self.config.text.order == "windows":
            self._stream.read_rows(ids % self.order.windows * self.config.gpt.seq_len, out)
        else:
            for row, identity in enumerate(ids.tolist()):
                filled = 0
                for begin, end in self._pieces(identity):
                    self._stream.read(begin, end, out[row, filled : filled + end - begin])
                    filled += end - begin
        if out.max() >= self._vocab_size:  # where it is, is looked up only now
            for identity in ids.tolist():
                for begin, end in self._pieces(identity):
                    self._stream.check_ids(begin, end, self._vocab_size)

    def _pieces(self, identity: int) -> list[tuple[int, int]]:
        """The spans of the stream that make up a window of step_ids."""
        epoch, window = divmod(identity, self.order.windows)
        start, stop = window * self.config.gpt.seq_len, (window + 1) * self.config.gpt.seq_len + 1
        if self.config.text.order == "documents":
            return self._document_order(epoch).pieces(start, stop)
        return [(start, stop)]

    def _document_order(self, epoch: int) -> DocumentOrder:
        if epoch not in self._documents:
            self._documents = {epoch: DocumentOrder(self._doc_ends, self.config.seeds.data, epoch)}
        return self._documents[epoch]


def rank_rows(batch: int, micro_batch: int, rank: int, ranks: int) -> NDArray[np.int64]:
    """Rows of the global batch that a rank reads, (M, b): micro-step m of rank r takes the (m·ranks + r)-th slice."""
    rows = np.arange(batch, dtype=np.int64).reshape(-1, ranks, micro_batch)
    return rows[:, rank]


def step_batches(
    data: TrainData, start: int, digest: str | None, micro_batch: int, rank: int, ranks: int
) -> Iterator[StepBatch]:
    """Batches of updates start, start+1, … to the end of the schedule; `digest` is the chain's value before `start`."""
    config = data.config
    digest = digest or data.start_digest
    rows = rank_rows(config.examples_per_step, micro_batch, rank, ranks)
    for t in range(start, config.schedule.steps):
        ids = data.step_ids(t)
        digest = hashlib.sha256(bytes.fromhex(digest) + ids.astype("<i8").tobytes()).hexdigest()
        tokens = np.empty((rows.size, config.gpt.seq_len + 1), np.int64)
        data.read(ids[rows.reshape(-1)], tokens)
        yield StepBatch(t, *inputs_and_targets(tokens.reshape(*rows.shape, -1)), ids, digest)


class Prefetcher:
    """Runs an iterator of batches in a thread, a few ahead; its errors are raised by `next`."""

    def __init__(self, batches: Iterator[StepBatch]) -> None:
        self._batches = batches
        self._queue: queue.Queue[StepBatch | BaseException] = queue.Queue(PREFETCH_STEPS)
        self._ahead: StepBatch | BaseException | None = None  # the next batch, where it has been looked at
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="data", daemon=True)
        self._thread.start()

    def __next__(self) -> StepBatch:
        item, self._ahead = self._look(), None
        if isinstance(item, BaseException):
            raise item
        return item

    def problem(self) -> str:
        """What is wrong with the data of the next batch; empty where nothing is. Waits for that batch, and leaves it there."""
        item = self._look()
        return str(item) if isinstance(item, InputError) else ""

    def _look(self) -> StepBatch | BaseException:
        if self._ahead is None:
            self._ahead = self._queue.get()
        return self._ahead

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                self._put(batch)
                if self._stopped.is_set():
                    return
            self._put(StopIteration())  # so that nobody waits for a batch after the last
        except Exception as error:  # handed to the training loop, which raises it
            self._put(error)

    def _put(self, item: StepBatch | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue


def eval_batches(
    folder: str | Path,
    manifest: Manifest,
    config: RunConfig,
    micro_batch: int,
    rank: int,
    ranks: int,
    count: int | None = None,
) -> list[EvalBatch]:
    """A rank's validation batches, of `count` windows; without it as many as eval.tokens asks.

    The windows are fixed: spread evenly over the validation split, in the order of the file. Every rank gets equally many
    batches, as sharded parameters need; the last ones are filled up with rows whose targets are IGNORED.
    """
    stream = TokenStream(Path(folder), manifest.val.shards, manifest.dtype)
    count = eval_windows(config, len(stream)) if count is None else count
    windows = spread_windows(count, len(stream), config.gpt.seq_len)
    firsts = range(0, count, micro_batch * ranks)
    mine = [range(count)[first + rank * micro_batch : first + (rank + 1) * micro_batch] for first in firsts]
    return [_eval_batch(stream, manifest.vocab_size, windows, one, micro_batch, config.gpt.seq_len) for one in mine]


def probe_batch(
    folder: str | Path, manifest: Manifest, config: RunConfig, micro_batch: int, rank: int, ranks: int
) -> EvalBatch:
    """A rank's share of the windows that a probe looks at: one micro-batch of every rank, spread evenly over the whole split.

    The first batch of `eval_batches` would not do: it is of the first files of the split alone.
    """
    stream = TokenStream(Path(folder), manifest.val.shards, manifest.dtype)
    count = probe_windows(config, len(stream), micro_batch, ranks)
    windows = spread_windows(count, len(stream), config.gpt.seq_len)
    mine = range(count)[rank * micro_batch : (rank + 1) * micro_batch]
    return _eval_batch(stream, manifest.vocab_size, windows, mine, micro_batch, config.gpt.seq_len)


def spread_windows(count: int, tokens: int, length: int) -> NDArray[np.int64]:
    """`count` windows of `length` targets, evenly over a stream of `tokens`: their numbers, rising."""
    return np.arange(count, dtype=np.int64) * windows_in(tokens, length) // count


def _eval_batch(
    stream: TokenStream, vocab_size: int, windows: NDArray[np.int64], places: range, rows: int, length: int
) -> EvalBatch:
    """The windows at `places`, filled up to `rows` with IGNORED targets. InputError for a token beyond the vocabulary."""
    windows = windows[places.start : places.stop]
    tokens = np.zeros((rows, length + 1), np.int64)
    for row, window in enumerate(windows.tolist()):
        stream.read(window * length, window * length + length + 1, tokens[row])
    if tokens.max() >= vocab_size:  # where it is, is looked up only now
        for window in windows.tolist():
            stream.check_ids(window * length, window * length + length + 1, vocab_size)
    inputs, targets = inputs_and_targets(tokens)
    targets = targets.copy()
    targets[len(windows) :] = IGNORED
    return EvalBatch(inputs, targets, len(windows) * length, places)


def read_document_ends(folder: Path, split: Split) -> NDArray[np.uint64]:
    """Stream positions after each document. InputError if the file is not the split's."""
    path = folder / split.docs_file
    ends = np.fromfile(path, dtype="<u8") if path.exists() else np.empty(0, np.uint64)
    if len(ends) != split.documents or int(ends[-1]) != split.tokens:
        raise InputError(f"{path} does not hold the ends of {split.documents} documents; prepare the data again")
    return ends
