"""What exists together while a run trains: data, engine, progress, records. Built once and whole, by `begin`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.groups import decay_groups
from configs.origin import branch_factor
from configs.plan import Plan
from configs.schema import RunConfig
from configs.tensors import tensor_table
from configs.windows import windows_read
from data.loader import Prefetcher
from engine import checkpoint
from engine.agree import on_first_rank
from engine.attention_kernel import attention_kernel
from engine.engine import Engine, Wish
from engine.launch import World, device_name
from engine.memory import forget_peak, keep_freed_memory, peak_bytes
from engine.network import build_network
from engine.supply import OpenData
from model.gpt import GPT
from record.blocks import WEIGHTS, in_blocks, write_blocks
from record.checkpoint_manifest import BUFFERS
from record.environment import environment
from record.metrics import TENSOR_NORM
from record.progress import Progress
from record.recorder import Recorder
from record.run import RunFolder
from record.watch import LossWatch

logger = logging.getLogger(__name__)

# Whole weights with their buffers, and whether they are an average's → columns of a row.
Measurer = Callable[[dict[str, Tensor], bool], dict[str, float]]


@dataclass
class Training:
    """`norms`: the weights' norms as they are, once measured. `attention` and `memory_before` are for `describe`. `measurer`: with
    measures.every what train.py gives, for this room knows nothing of what is done with weights."""

    config: RunConfig
    plan: Plan
    folder: RunFolder
    world: World
    data: OpenData
    engine: Engine
    progress: Progress
    recorder: Recorder
    attention: str | None
    memory_before: int | None
    norms: dict[str, float] = field(default_factory=dict)
    measurer: Measurer | None = None

    @property
    def experiment(self) -> dict[str, Any]:
        return self.plan.experiment or {}

    def batches(self) -> Prefetcher:
        """The batches of the updates still to do, from a prefetch thread."""
        return Prefetcher(self.data.batches(self.progress.step, self.progress.order_digest))

    def windows_after(self, step: int) -> int:
        """How far in its order the run has read after `step` updates."""
        return windows_read(self.config, step, self.plan.first_window)

    def lr_factors(self) -> dict[str, float] | None:
        """What η of the next update is multiplied by (schedule.match, branch.lr_by_norm_of), by tensor or under "" for all."""
        # Norms are compared before the update, as the leader's were: its own recorded ones, or the live ones of this run.
        leader, match = self.plan.leader, self.config.schedule.match
        if leader is None or match is None or not match.sets_rate:
            factor = branch_factor(self.config, self.plan.origin)
            assert factor is not None, "a run starts only where the norms of branch.lr_by_norm_of are known"
            return None if factor == 1.0 else {"": factor}
        live = {} if leader.own is not None else self.norms or self.engine.weight_norms()
        if match.norm == "weights/norm_decayed" and live:
            live = {"": live["decayed"]}
        return {name: leader.factor(self.progress.step, live, name) for name in leader.norms}

    def measure_norms(self) -> dict[str, float]:
        """The weights' norms as they are now, as columns of a row."""
        norms = self.norms = self.engine.weight_norms()
        row = {"weights/norm": norms[""], "weights/norm_decayed": norms["decayed"]}
        tensors = self.engine.fragments.names if self.config.log.tensor_norms else []
        return row | {TENSOR_NORM + name: norms[name] for name in tensors}

    def evaluate(self, wish: Wish) -> bool:
        """Validation loss over the fixed windows, as a row of the current step; False where a rank wished to stop meanwhile.

        At the run's end also over those of eval.final_tokens, and block by block (record/blocks.py).
        """
        began, fragments, step = time.perf_counter(), self.engine.fragments, self.progress.step
        row: dict[str, float] = {}
        sums: dict[str, list[float]] = {}
        # The weights first, then each average in their place; a wish to stop ends it without a row.
        for kind in (WEIGHTS, *fragments.averages.kinds):
            suffix = "" if kind == WEIGHTS else f"_{kind}"
            with self._seen_as(kind):
                measured = self._losses(suffix, wish)
                if measured is None:
                    return False
                losses, sums[kind] = measured
                row |= losses | self._sizes(suffix, losses)
        if step == self.plan.steps:
            blocks = in_blocks(step, self.config.targets_per_example, self.data.val_examples, sums)
            # Before the row: a start that finds the row takes the evaluation as done.
            on_first_rank(lambda: write_blocks(self.folder.blocks, blocks))
        row["time/eval_s"] = time.perf_counter() - began
        self.recorder.add(step, row | (self.measure_norms() if step == 0 else {}))
        self.recorder.flush()
        self.progress.evaluated = step
        return True

    def _losses(self, suffix: str, wish: Wish) -> tuple[dict[str, float], list[float]] | None:
        """The losses of the weights as they stand, as columns, and at the run's end those of its windows; None as `evaluate`."""
        data, at_end = self.data, self.progress.step == self.plan.steps
        sums = torch.zeros(data.final_examples if at_end else 0, dtype=torch.float64, device=self.world.device)
        # Two passes where the end has windows of its own: val/loss stays over the same ones, in the same batches, all along.
        passes = [("val/", data.validation)]
        passes += [("train_eval/", data.train_eval)] if data.train_eval else []
        passes += [("val/final_", data.final)] if at_end and data.final is not data.validation else []
        row: dict[str, float] = {}
        for prefix, batches in passes:
            means = self.engine.evaluate(batches, wish, sums if at_end and batches is data.final else None)
            if means is None:
                return None
            row |= {f"{prefix}{name}{suffix}": mean for name, mean in means.items()}
        return row, sums.tolist()

    def _sizes(self, suffix: str, losses: dict[str, float]) -> dict[str, float]:
        """‖w‖ of an average, which has no row of its own; and the objective over the training images, where they are evaluated."""
        loss = losses.get(f"train_eval/loss{suffix}")
        if loss is None and not suffix:
            return {}
        norms, found = self.engine.weight_norms(), {}
        if suffix:
            found[f"weights/norm{suffix}"] = norms[""]
        if loss is not None:
            groups = decay_groups(tensor_table(self.config.model), self.config.optim).values()
            penalty = sum(decay / 2 * sum(norms[name] ** 2 for name in names) for names, decay in groups)
            found[f"train_eval/objective{suffix}"] = loss + penalty
        return found

    @contextmanager
    def _seen_as(self, kind: str) -> Iterator[None]:
        """Within, the forward pass sees an average, with the running statistics that belong to it."""
        if kind == WEIGHTS:
            yield
            return
        with self.engine.fragments.swapped(kind), self.engine.statistics.re_estimated(self.data.estimation()):
            yield

    def measure(self) -> dict[str, float]:
        """The columns of config.measures, of the weights as they are, and where asked for of each average. Collective."""
        began, fragments, measurer = time.perf_counter(), self.engine.fragments, self.measurer
        assert measurer is not None, "nothing to measure with"
        row: dict[str, float] = {}
        for kind in (WEIGHTS, *(fragments.averages.kinds if self.config.measures.averages else ())):
            # Rank 0 has the whole and measures; the others wait. So the number of ranks and the ZeRO stage change nothing.
            whole = {**(fragments.gather(kind, 0) or {}), **(fragments.gather(BUFFERS, 0) or {})}
            found = on_first_rank(partial(measurer, whole, kind != WEIGHTS))
            row |= {name if kind == WEIGHTS else f"{name}_{kind}": value for name, value in found.items()}
        return row | {"time/measures_s": time.perf_counter() - began}

    def save(self) -> Path:
        """A checkpoint of the current step, its rows on disk before it; older ones are deleted as configured.

        DamagedDataError if the data has turned out not to be what its manifest says: nothing is written then.
        """
        self.data.guard.check()
        # Rows first, to the disk: a checkpoint whose rows are lost could not be resumed without a gap.
        on_first_rank(lambda: self.recorder.flush(sync=True))
        began, step = time.perf_counter(), self.progress.step
        counters = self.progress.counters()
        path = checkpoint.save(self.folder.checkpoints, step, self.engine.fragments, counters, self.experiment)
        self.recorder.add(step, {"time/checkpoint_s": time.perf_counter() - began})
        on_first_rank(self._tidy_up)
        self.data.guard.saved(step)
        return path

    def delete_old(self) -> None:
        """Delete the checkpoints that are not kept, but none that damaged data would send the run back to. Rank 0 only."""
        checkpoint.delete_old(self.folder.checkpoints, self.config.checkpoint, self.data.guard.relied_on)

    def _tidy_up(self) -> None:
        self.delete_old()
        self.folder.write_status("running", self.progress.step, self.plan.steps, "", self.progress.order_digest)

    def note_start(self, given: dict[str, Any]) -> None:
        """Describe the run and this start; another machine or thread count than last time may change bits, so it is said."""
        # The description, at every start: what was planned and with which norms it runs.
        config, plan, folder, progress = self.config, self.plan, self.folder, self.progress
        folder.create(config.model_dump(mode="json"), given, self.experiment, plan.as_dict())
        match, leader = config.schedule.match, plan.leader
        if match is not None and leader is not None:
            folder.write_norms({"match": match.model_dump(mode="json"), **leader.as_dict()})
        # What can change the last bits of a float is compared with the start before.
        row, last = self.describe(), folder.last_start()
        for key in ("device", "threads_per_rank", "machine", "micro_batch", "deterministic", "compiled", "attention"):
            if last is not None and (before := last.get(key, row[key])) != row[key]:
                logger.warning(
                    "%s was %s at the last start and is %s now: results may differ by rounding", key, before, row[key]
                )
        folder.record_start(row)
        folder.write_status("running", progress.step, plan.steps, "", progress.order_digest)

    def describe(self) -> dict[str, Any]:
        """This start: machine, ranks, live dtypes, as a row of starts.jsonl."""
        return {
            **environment(),
            "step": self.progress.step,
            "ranks": self.world.ranks,
            "device": device_name(self.world.device),
            "threads_per_rank": torch.get_num_threads(),
            "threads_from": self.world.threads_from,
            "zero_stage": self.config.parallel.zero_stage,
            "micro_batch": self.plan.micro_batch,
            "deterministic": self.config.parallel.deterministic,
            "compiled": self.engine.ds.module.compiled,
            "attention": self.attention,
            "memory_before_bytes": self.memory_before,
            "data": self.data.described,
            "precision": self.config.precision,
            "dtypes": self.engine.dtypes,
        }


def begin(
    config: RunConfig, plan: Plan, folder: RunFolder, world: World, data: OpenData, recorder: Recorder
) -> Training:
    """A run at step 0: its model with initial weights, under an engine. Collective."""
    # Memory is measured from here on; what libraries took before is no part of it.
    forget_peak(world.device)
    before = peak_bytes(world.device)
    model = build_network(config, data.manifest, world.device)
    kernel = attention_kernel(config, plan.micro_batch, world.device, isinstance(model, GPT) and model.by_blocks)
    model.init_weights(config.seeds.init)
    engine = Engine(model, config, plan, world)
    # Not before the engine is there: what setting up freed is given back.
    if world.device.type == "cpu" and not keep_freed_memory():
        logger.info("the C library has no mallopt: large tensors are mapped anew each time, which is slow")
    forget_peak(world.device)
    # At step 0, as if nothing had ever been saved; engine/resume.py sets it to where the run goes on.
    watch = LossWatch(config.numerics.spike_deviations, config.numerics.divergence_margin)
    progress = Progress(data.start_digest, plan.first_window, watch)
    return Training(config, plan, folder, world, data, engine, progress, recorder, kernel, before)
