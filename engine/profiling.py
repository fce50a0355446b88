"""A torch profiler trace of a few updates, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

logger = logging.getLogger(__name__)


@contextmanager
def profiled(steps: int, folder: Path, first_step: int, left: int) -> Iterator[Callable[[], None]]:
    """Trace `steps` updates inside the block, and give it what to call after each update. With `steps` 0 nothing is traced.

    The first two updates are left out: memory is allocated in them, and kernels are compiled. The file is
    trace_step_<first traced>.json.gz in `folder`, whole or not there. A run that has fewer updates `left` traces those.
    """
    if not steps:
        yield lambda: None
        return
    # A run with fewer updates left traces those. The trace then ends with the last of them, before the final validation.
    steps = max(1, min(steps, left - 2))
    path, done = folder / f"trace_step_{first_step + 3:08d}.json.gz", 0

    def write(trace: profile) -> None:
        # torch also calls this where the block ends in the midst of the first traced update.
        if done > 2:
            unfinished = path.with_name(f"unfinished_{path.name}")
            trace.export_chrome_trace(str(unfinished))
            unfinished.replace(path)
            logger.info("%s: trace of %d update(s)", path, min(steps, done - 2))

    kinds = supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    # One update is passed over, one warms the profiler up (its own start is slow), then come the traced ones.
    plan = schedule(wait=1, warmup=1, active=steps, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=write) as profiler:

        def after_update() -> None:
            nonlocal done
            done += 1
            profiler.step()

        yield after_update
    if done < 3:
        logger.warning("no trace: the run ended before its third update")
