"""What ranks cost on one machine: a run on several ranks against the same run on one, in turn.

    python -m benchmarks.rank_scaling --config configs/gpt124m_wd0.1.json --set batch.tokens_per_step=8192 --ranks 2

On a CPU one rank has all cores and each of N an N-th of them; the ratio is what exchanging gradients leaves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.launched import launch
from benchmarks.made import write_data
from benchmarks.outcome import RESULTS, write_result
from configs.load import load_config, merge, validate
from record.metrics import read_metrics


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rank_scaling", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--stages", type=int, nargs="+", default=[0, 1], help="ZeRO stages of the runs on several ranks"
    )
    parser.add_argument("--steps", type=int, default=4, help="updates of a run; the first two are not counted")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args()
    config, given = load_config(args.config, args.set)
    tokens = config.batch.tokens_per_step
    cases = [(0, 1), *((stage, args.ranks) for stage in args.stages)]
    seconds: dict[str, list[float]] = {f"ZeRO {stage}, {ranks} rank(s)": [] for stage, ranks in cases}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_data(work / "data", (tokens * args.steps + 1, args.steps), (2 * config.model.seq_len, 1))
        for turn in range(args.rounds):
            for (stage, ranks), times in zip(cases, seconds.values(), strict=True):
                changed = {
                    "data": {"path": str(work / "data"), "train_tokens": None},
                    "parallel": {"zero_stage": stage},
                    "schedule": {"steps": args.steps, "warmup_steps": 0},
                    "eval": {"tokens": config.model.seq_len, "every": None},
                    "checkpoint": {"every": None},
                }
                case = merge(given, changed)
                validate(case, args.config)
                rows = read_metrics(launch(case, ranks, work / f"{turn}_{stage}_{ranks}").metrics)[0]
                times += [row["time/step_s"] for row in rows if "time/step_s" in row][2:]
    median = {name: statistics.median(times) for name, times in seconds.items()}
    one = median["ZeRO 0, 1 rank(s)"]
    result = {
        "ratio_to_one_rank": {name: one / s for name, s in median.items()},
        "tokens_per_s": {name: tokens / s for name, s in median.items()},
        "seconds": seconds,
        "precision": config.precision,
    }
    path = args.out or RESULTS / f"ranks-{Path(args.config).stem}-{config.precision}.json"
    for name, ratio in result["ratio_to_one_rank"].items():
        print(f"{name}: {result['tokens_per_s'][name]:,.0f} tokens/s, {ratio:.3f} of one rank")
    write_result(path, "rank_scaling", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
