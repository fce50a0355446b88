"""Train one network, a GPT or a classifier of images: configuration → plan → data → model → engine → loop.

    deepspeed train.py --config configs/gpt124m_wd0.1.json
    python train.py --config configs/quickstart.json --set optim.weight_decay=0.3 --dry-run

Exit codes: 0 done, 1 failed, 2 bad input, 3 diverged, 75 preempted. Under a launcher read status.json instead.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from configs.arguments import parse_args
from configs.cadence import is_evaluated, is_saved
from configs.errors import InputError
from configs.load import load_config
from configs.plan import Plan, make_plan
from configs.render import render_plan
from configs.schema import RunConfig
from data.any_manifest import AnyManifest, manifest_of
from data.verify import DamagedDataError
from engine.devices import device_bytes, not_here
from engine.stopping import leave
from record.lineage import find_leader, find_origin
from record.lock import hold
from record.place import check_folder, check_moved, missing_data, note_early_stop
from record.recorder import Recorder, open_recorder
from record.run import EXIT_CODES, RunFolder, State

if TYPE_CHECKING:
    from engine.launch import World
    from engine.stopping import StopRequest
    from engine.training import Training

logger = logging.getLogger("train")


def main(argv: list[str] | None = None) -> int:
    """Check everything that can be checked without torch, then train."""
    args = parse_args(argv, __doc__)
    first = int(os.environ.get("RANK", 0)) == 0
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    try:
        branch = [f"branch.origin={json.dumps(args.branch)}"] if args.branch else []
        moved = [f"data.path={json.dumps(str(args.data))}"] if args.data else []
        config, given = load_config(args.config, (args.set or []) + branch + moved)
        manifest = manifest_of(config)
        ranks = args.ranks or int(os.environ.get("WORLD_SIZE", 1))
        # A plan can do without what does not exist yet, a run cannot.
        origin = find_origin(config, args.run_dir, required=not args.dry_run)
        leader = find_leader(config, args.run_dir, required=not args.dry_run)
        plan = make_plan(config, ranks, manifest.summary() if manifest else None, origin, leader, device_bytes())
        problem = not_here(config.precision)  # before the seconds that torch takes to import
        if args.dry_run:
            if config.optim.is_dotted and find_spec("torch"):
                import torch  # a start tries the optimiser out too; without torch here it alone does

                from optim.torch_named import try_out

                try_out(config.optim, torch.device("cpu"))
            if problem:  # the run may be meant for another machine
                logger.warning("not on this machine: %s", problem)
            if first:
                print(f"{config.model_dump_json(indent=2)}\n\n{render_plan(config, plan)}")
            return EXIT_CODES["done"]
        if problem:
            raise InputError(f"{problem}; use fp32 or bf16-mixed here")
        if manifest is None:
            raise InputError(missing_data(config, given, args.run_dir))
        folder = RunFolder(args.run_dir or Path("runs") / f"{config.name}-{plan.run_id}")
        if args.data:
            check_moved(folder, manifest.digest, config.data.path)
        if args.replay is not None:
            check_folder(folder, plan.experiment or {}, "must", config.data.path)
            return replay_step(config, manifest, plan, folder, args.replay)
        check_folder(folder, plan.experiment or {}, args.resume, config.data.path)  # early; again under the lock
        return EXIT_CODES[run(config, given, manifest, plan, folder, args)]
    except (InputError, OSError) as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # once a node: data may be missing on one of them
            print(f"error: {error}", file=sys.stderr)
        # A full disk or a lost network is nothing that another configuration would mend.
        return EXIT_CODES["bad input" if isinstance(error, InputError) else "failed"]


def run(
    config: RunConfig, given: dict[str, Any], manifest: AnyManifest, plan: Plan, folder: RunFolder, args: Namespace
) -> State:
    """Set up the engine, train, and leave a status that says how it ended."""
    from engine.stopping import StopRequest, launcher_ancestors

    # Before the slow imports: signals may come during them, and a launcher may die.
    stop = StopRequest(folder.path / "stop", launcher_ancestors(), first=int(os.environ.get("RANK", 0)) == 0)
    gc.disable()  # until join_world: what the imports make is no garbage
    import torch.distributed as dist

    from engine.agree import on_every_rank, on_first_rank
    from engine.ending import signalled
    from engine.profiling import profiled
    from engine.resume import resume
    from engine.supply import open_data
    from engine.training import begin

    world = join_world(config, plan, folder)
    first = world.rank == 0
    if reason := signalled(stop):  # while torch was imported: nothing is built yet, and nothing need be
        on_first_rank(lambda: note_early_stop(folder, plan.steps, reason))
        dist.destroy_process_group()
        return "preempted"
    data = on_every_rank(lambda: open_data(config, manifest, plan, world))
    logger.info("%s", render_plan(config, plan))
    training: Training | None = None
    with ExitStack() as stack:
        recorder = claim(folder, stack, config, plan, args.resume)
        try:
            # Everything is built at step 0, and then set to where the run goes on.
            training = begin(config, plan, folder, world, data, recorder)
            if config.measures.every is not None:
                from weights.measures import measurer

                training.measurer = on_every_rank(lambda: measurer(config, manifest, world.device))
            path = resume(training, args.resume, args.step)
            logger.info("%s: %s", folder.path, f"resumes from {path}" if path else "starts at step 0")
            on_first_rank(lambda: training.note_start(given))
            step = training.progress.step
            tick = stack.enter_context(profiled(args.profile if first else 0, folder.path, step, plan.steps - step))
            state, reason = train(training, stop, tick)
        except InputError:  # bad input: the folder's status stays what it was
            raise
        except BaseException as error:
            if first:
                step = training.progress.step if training is not None else 0
                folder.write_status("failed", step, plan.steps, f"{type(error).__name__}: {error}")
            raise
        finally:
            recorder.close_log()
        dist.barrier()  # nobody says that all is well before all is
        if first:
            folder.write_status(state, training.progress.step, plan.steps, reason, training.progress.order_digest)
            stop.clear_file()
    ending = f" ({reason})" if reason else ""
    logger.info("%s: %s at step %d of %d%s", folder.path, state, training.progress.step, plan.steps, ending)
    recorder.close_mirror()
    dist.destroy_process_group()
    return state


def claim(folder: RunFolder, stack: ExitStack, config: RunConfig, plan: Plan, how: str) -> Recorder:
    """Lock the run folder on rank 0, and give the recorder that writes in it; the other ranks' records nothing. Collective."""
    from engine.agree import on_first_rank

    recorder = Recorder(None, None, config.units_per_step)

    def lock() -> None:
        nonlocal recorder
        stack.enter_context(hold(folder.path))
        check_folder(folder, plan.experiment or {}, how, config.data.path)
        recorder = open_recorder(config, folder)

    on_first_rank(lock)
    return recorder


def replay_step(config: RunConfig, manifest: AnyManifest, plan: Plan, folder: RunFolder, step: int) -> int:
    """Print what one step of a run was made of (engine/replay.py); returns the exit code."""
    import torch.distributed as dist

    from engine.agree import on_every_rank
    from engine.replay import replay
    from engine.supply import open_data
    from engine.training import begin

    world = join_world(config, plan, folder)
    data = on_every_rank(lambda: open_data(config, manifest, plan, world))
    training = begin(config, plan, folder, world, data, Recorder(None, None, 1))
    replay(training, step, print if world.rank == 0 else lambda _: None)
    dist.destroy_process_group()
    return EXIT_CODES["done"]


def join_world(config: RunConfig, plan: Plan, folder: RunFolder) -> World:
    """Join the process group. InputError where the ranks' GPUs differ so much that each would take another micro-batch, or torch
    has no optimiser of the name that optim.algorithm gives, or none that a run can be driven by.
    """
    from engine.agree import from_every_rank, on_every_rank
    from engine.launch import start_world
    from optim.algorithms import state_by_name

    # What was imported stays. Looking through it for garbage each time took an eighth of a start.
    gc.freeze()
    gc.enable()
    parallel = config.parallel
    world = start_world(str(folder.path), parallel.timeout_s, parallel.threads_per_rank, parallel.deterministic)
    if len(chosen := sorted(set(from_every_rank(plan.micro_batch)))) > 1:
        raise InputError(
            f"the memory of the ranks' devices differs, and they would take micro-batches of {' and '.join(map(str, chosen))}; "
            f"set batch.micro_batch to one that fits all, for example {chosen[0]}"
        )
    on_every_rank(lambda: state_by_name(config.optim, world.device))  # before any file is written
    return world


def train(training: Training, stop: StopRequest, tick: Callable[[], None] = lambda: None) -> tuple[State, str]:
    """The loop: between updates evaluate, save, stop, in this order; then one update. Returns how it ended and why.

    `tick` is called after each update.
    """
    from engine.ending import once_compared, stop_reason
    from engine.update import update

    config, steps, progress = training.config, training.plan.steps, training.progress
    resumed_at, reason = progress.step, ""
    batches, bar = training.batches(), progress_bar(training)

    def wish() -> bool:
        return stop.pending or training.data.guard.wish

    try:
        training.data.guard.start(batches, progress.step)
        while True:
            done, fresh = progress.step == steps, progress.step > resumed_at

            # Evaluate: where it is due and was not done before this start. To stop is more urgent.
            due = is_evaluated(config.eval, progress.step, steps)
            if due and progress.evaluated < progress.step and not reason:
                reason = "" if training.evaluate(wish) else stop_reason(training, stop)

            # Save: where it is due, and before every end.
            if fresh and (reason or is_saved(config.checkpoint, progress.step, steps)):
                training.save()

            # Stop.
            if reason:
                return "preempted", reason
            if done:
                divergence = progress.watch.divergence
                return once_compared(training, stop, "diverged" if divergence else "done", divergence)

            # One update. Whether a rank wishes to stop travels with it.
            outcome = update(training, batches, wish)
            tick()
            if outcome.ended == "refused":
                what = f"loss {outcome.loss}, gradient norm {outcome.grad_norm}"
                return once_compared(training, stop, "diverged", f"{what} in update {progress.step + 1}")
            reason = stop_reason(training, stop) if outcome.stop else ""
            if outcome.ended != "abandoned":
                bar.set_postfix_str(f"step {progress.step:,} of {steps:,}, loss {outcome.loss:.3f}", refresh=False)
                bar.update(config.units_per_step)
    except DamagedDataError as error:  # all ranks know it, and end together
        return "failed", str(error)
    except InputError as error:  # here it is no longer the user's
        raise RuntimeError(f"training failed: {error}") from error
    finally:
        bar.close()
        batches.close()
        training.data.guard.close()


def progress_bar(training: Training) -> tqdm[NoReturn]:
    """In tokens or images, on rank 0. Where nobody watches it, every 15 s."""
    units_per_step = training.config.units_per_step
    return tqdm(
        total=training.plan.steps * units_per_step,
        initial=training.progress.step * units_per_step,
        desc=training.config.name,
        unit=f" {training.config.unit}",
        unit_scale=True,
        disable=training.world.rank != 0,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )


if __name__ == "__main__":
    leave(main())
