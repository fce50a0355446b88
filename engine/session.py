"""A run in progress: its counters, and the acts of the training loop over them (the loop itself is in train.py)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from configs import cost
from configs.cadence import is_probed, is_written
from configs.errors import InputError
from configs.identity import differences, render_differences
from configs.plan import Plan
from configs.schedule import lr_at
from configs.schema import Branch, RunConfig
from configs.windows import windows_read
from data.loader import Prefetcher, StepBatch, TrainData, eval_batches, step_batches, verify_split
from data.manifest import Manifest
from engine import checkpoint
from engine.agree import on_first_rank
from engine.attention import attention_kernel
from engine.launch import World, device_name
from engine.memory import forget_peak, keep_freed_memory, peak_bytes
from engine.network import build_model
from engine.precision import set_matmul_precision
from engine.probes import Probe
from engine.trainer import StepResult, Trainer
from record.checkpoints import complete, find, find_address, read_manifest
from record.environment import environment
from record.metrics import TENSOR_NORM, lost_steps, read_log
from record.recorder import Recorder
from record.run import RunFolder, State
from record.watch import LossWatch

logger = logging.getLogger(__name__)


class Session:
    """`step` updates are done; `decay_sum` is Σηλ over them, `order_digest` the digest of all windows they read.

    `evaluated`: the step of the latest validation. `skipped`: steps whose update was left out (numerics.nonfinite).
    `watch` judges spikes and divergence.
    """

    def __init__(self, config: RunConfig, manifest: Manifest, plan: Plan, folder: RunFolder, world: World) -> None:
        """Opens the data; writes nothing. InputError if the data is damaged or the device lacks the precision."""
        set_matmul_precision(config.precision, world.device)
        self.config, self.plan, self.folder, self.world = config, plan, folder, world
        if config.data.verify and world.rank == 0:
            for split in (manifest.train, manifest.val):
                verify_split(Path(config.data.path), split)
        self._eot = manifest.eot
        self._data = TrainData(config.data.path, manifest, config, plan.first_window)
        self.step, self.decay_sum, self.order_digest = 0, 0.0, self._data.start_digest
        self.evaluated, self.skipped = -1, 0
        self.watch = self._make_watch()
        self._live: dict[str, float] = {}  # norms of the weights as they are, once known
        self._eval_batches = eval_batches(config.data.path, manifest, config, plan.micro_batch, world.rank, world.ranks)
        self.experiment = plan.experiment or {}

    def start(self, recorder: Recorder) -> None:
        """Build model and engine at step 0."""
        self.recorder = recorder
        forget_peak(self.world.device)
        self.memory_before = peak_bytes(self.world.device)
        model = build_model(self.config, self._eot, self.world.device)
        self.compiled = model.compiled
        self.attention = attention_kernel(self.config, self.plan.micro_batch, self.world.device)
        model.init_weights(self.config.seeds.init)
        self.trainer = Trainer(model, self.config, self.plan, self.world)
        # Not before: what setting up freed is given back.
        if self.world.device.type == "cpu" and not keep_freed_memory():
            logger.info("the C library has no mallopt: large tensors are mapped anew each time, which is slow")
        forget_peak(self.world.device)

    def restore(self, resume: str, step: int | None = None) -> Path | None:
        """Load the checkpoint of `step`, or the newest complete and sound one; returns its path, None where there is none.

        InputError if `resume` is must and there is none, or never and there is one, or it is of another experiment, or
        the one of `step` is damaged.
        """
        folder = self.folder.checkpoints
        on_first_rank(lambda: checkpoint.delete_unfinished(folder))
        if resume == "never" and (found := on_first_rank(lambda: complete(folder))):
            raise InputError(f"--resume never: {found[-1]} exists; remove it or give another --run-dir")
        if step is None:
            path = checkpoint.newest(folder)
        else:
            path = on_first_rank(lambda: find(folder, step))
            checkpoint.check(path)
        if path is None and resume == "must":
            raise InputError(f"--resume must: no complete checkpoint in {folder}")
        self.load(path)
        for lost in on_first_rank(lambda: lost_steps(self.folder.metrics, read_log(self.folder.metrics), self.step)):
            logger.warning("%s; they were lost before this start, and stay so", lost)
        if step is not None:
            on_first_rank(lambda: checkpoint.set_aside_after(folder, step))
        if path is not None or on_first_rank(lambda: self.folder.metrics.stat().st_size > 0):
            self.recorder.add(self.step, {"event": "resume"})
        return path

    def load(self, path: Path | None) -> None:
        """Continue from a checkpoint of this run whose files are sound; without one, from where the run starts."""
        if path is None:
            if self.config.branch is not None:
                self._start_branch(self.config.branch)
            return
        manifest = on_first_rank(lambda: read_manifest(path))
        rows = differences(self.experiment, manifest.experiment)
        if rows:
            raise InputError(f"{path} is of another experiment:\n{render_differences(rows)}")
        if manifest.step > self.plan.steps:
            raise InputError(f"{path} is past schedule.steps {self.plan.steps}; set it to {manifest.step} or more")
        counters = checkpoint.load(path, self.trainer.fragments)
        self.step, self.decay_sum = counters["step"], counters["decay_sum"]
        self.order_digest, self.evaluated = counters["order_digest"], counters["evaluated"]
        self.skipped = counters["skipped"]
        self.watch = self._make_watch(counters["watch"])

    def _make_watch(self, state: dict[str, Any] | None = None) -> LossWatch:
        numerics = self.config.numerics
        return LossWatch(numerics.spike_deviations, numerics.divergence_margin, state)

    def _start_branch(self, branch: Branch) -> None:
        """Weights, and the optimiser's state unless dropped, of the trunk; the configuration's λ and η stay."""
        path = on_first_rank(lambda: find_address(branch.origin))
        checkpoint.check(path)
        counters = checkpoint.load(path, self.trainer.fragments, branch.optimizer == "keep", branch=True)
        self.watch = self._make_watch({**counters["watch"], "above_since": None})
        if branch.data == "continue":
            self.order_digest = counters["order_digest"]
        logger.info("branch of %s, optimiser state %s", path, "kept" if branch.optimizer == "keep" else "dropped")

    def describe(self) -> dict[str, Any]:
        """This start: machine, ranks, live dtypes, as a row of starts.jsonl."""
        return {
            **environment(),
            "step": self.step,
            "ranks": self.world.ranks,
            "device": device_name(self.world.device),
            "threads_per_rank": torch.get_num_threads(),
            "threads_from": self.world.threads_from,
            "zero_stage": self.config.parallel.zero_stage,
            "micro_batch": self.plan.micro_batch,
            "deterministic": self.config.parallel.deterministic,
            "compiled": self.compiled,
            "attention": self.attention,
            "memory_before_bytes": self.memory_before,
            "precision": self.config.precision,
            "dtypes": self.trainer.dtypes,
        }

    def batches(self) -> Prefetcher:
        """The batches of the updates still to do, from a prefetch thread."""
        plan, world = self.plan, self.world
        return Prefetcher(
            step_batches(self._data, self.step, self.order_digest, plan.micro_batch, world.rank, world.ranks)
        )

    def train_step(
        self,
        batches: Prefetcher,
        wish: Callable[[], bool],
        look: Callable[[list[torch.Tensor]], None] | None = None,
    ) -> StepResult:
        """One update and its row; `wish()` is this rank's wish to stop, the result's `stop` what any rank wishes.

        `look` is shown the gradients (engine/trainer.py).
        """
        start = time.perf_counter()
        batch: StepBatch = next(batches)
        lr = lr_at(self.config, self.step)
        probe = None
        if look is None and is_probed(self.config.log, self.step + 1):
            probe = Probe(self.trainer, self._eval_batches[0])
            look = probe.look
        result = self.trainer.step(batch, lr, wish, look, self._factors())
        if result.abandoned:
            return result
        spikes = self.watch.add(self.step + 1, result.loss, result.grad_norm)
        if not result.applied:
            found: dict[str, Any] = {"nonfinite/loss": result.loss, "nonfinite/grad_norm": result.grad_norm}
            found |= {"nonfinite/lr": self.trainer.lr, "nonfinite/windows": batch.ids.tolist()}
            skipped = self.config.numerics.nonfinite == "skip" and self.skipped < self.config.numerics.max_skipped
            if skipped:  # the step counts, its windows are read, the weights stay
                self.step, self.order_digest, self.skipped = batch.step + 1, batch.digest, self.skipped + 1
                found["nonfinite/skipped"] = self.skipped
            self.recorder.add(self.step, {"event": "nonfinite", **found})
            self.recorder.flush()
            return replace(result, skipped=skipped)
        self.step, self.order_digest = batch.step + 1, batch.digest
        self.decay_sum += self.trainer.lr * self.trainer.weight_decay
        row = {
            "train/loss": result.loss,
            "optim/lr": self.trainer.lr,
            "optim/decay_sum": self.decay_sum,
            "optim/grad_norm": result.grad_norm,
            **self._norms(),
            **spikes,
        }
        if probe is not None:
            self.recorder.add_probe(self.step, probe.finish())
        seconds = time.perf_counter() - start
        rate = self.config.batch.tokens_per_step / seconds
        row |= {"time/step_s": seconds, "perf/tokens_per_s": rate}
        mfu = cost.mfu(self.config.model, rate, device_name(self.world.device), self.config.precision, self.world.ranks)
        row |= {"perf/mfu": mfu} if mfu is not None else {}
        flush = is_written(self.config.log, self.step)
        self.recorder.add(self.step, row | ({"perf/peak_memory_bytes": peak_bytes(self.world.device)} if flush else {}))
        if flush:
            self.recorder.flush()
        return result

    def evaluate(self, wish: Callable[[], bool]) -> bool:
        """Validation loss over the fixed windows, as a row of the current step; False where a rank wished to stop meanwhile."""
        start = time.perf_counter()
        loss = self.trainer.evaluate(self._eval_batches, wish)
        if loss is None:
            return False
        row = {"val/loss": loss}
        for kind in self.trainer.fragments.averages.kinds:
            with self.trainer.fragments.swapped(kind):
                loss = self.trainer.evaluate(self._eval_batches, wish)
            if loss is None:
                return False
            row[f"val/loss_{kind}"] = loss
        row["time/eval_s"] = time.perf_counter() - start
        self.recorder.add(self.step, row | (self._norms() if self.step == 0 else {}))
        self.recorder.flush()
        self.evaluated = self.step
        return True

    def save(self) -> Path:
        """A checkpoint of the current step, its rows on disk before it; older ones are deleted as configured."""
        on_first_rank(lambda: self.recorder.flush(sync=True))
        counters = {
            "step": self.step,
            "decay_sum": self.decay_sum,
            "order_digest": self.order_digest,
            "evaluated": self.evaluated,
            "skipped": self.skipped,
            "windows": windows_read(self.config, self.step, self.plan.first_window),
            "watch": self.watch.state,
        }
        start = time.perf_counter()
        path = checkpoint.save(self.folder.checkpoints, self.step, self.trainer.fragments, counters, self.experiment)
        self.recorder.add(self.step, {"time/checkpoint_s": time.perf_counter() - start})
        on_first_rank(self._tidy_up)
        return path

    def _tidy_up(self) -> None:
        checkpoint.delete_old(self.folder.checkpoints, self.config.checkpoint)
        self.folder.write_status("running", self.step, self.plan.steps, "", self.order_digest)

    def outcome(self) -> tuple[State, str]:
        """What a run that has taken its last step has come to, and why."""
        divergence = self.watch.divergence
        return ("diverged", divergence) if divergence else ("done", "")

    def _norms(self) -> dict[str, float]:
        norms = self._live = self.trainer.weight_norms()
        row = {"weights/norm": norms[""], "weights/norm_decayed": norms["decayed"]}
        tensors = self.trainer.fragments.names if self.config.log.tensor_norms else []
        return row | {TENSOR_NORM + name: norms[name] for name in tensors}

    def _factors(self) -> dict[str, float] | None:
        """What η of the next update is multiplied by (schedule.match), by tensor or under "" for all."""
        leader, match = self.plan.leader, self.config.schedule.match
        if leader is None or match is None:
            return None
        live = {} if leader.own is not None else self._live or self.trainer.weight_norms()
        if match.norm == "weights/norm_decayed" and live:
            live = {"": live["decayed"]}
        return {name: leader.factor(self.step, live, name) for name in leader.norms}
