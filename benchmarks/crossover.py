"""Where strategy "auto" of flowfuse.ops.Correlation should change from "volume" to "on_demand".

    python benchmarks/crossover.py --threads 2 --markdown benchmarks/results/crossover.md

Times both strategies in turns over sizes, channels, numbers of look-ups and directions, and prints
which is faster. VOLUME_CAPS in flowfuse/ops/correlation.py is set from it: the largest volume
below which "volume" loses nowhere much, since "auto" knows the shape and not the look-ups to come.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date

import torch
from cases import with_gradients
from correlation_cases import Correlated
from measuring import QUICK, Budget, commit, machine, measure_limits, time_interleaved, versions
from operators import evaluate
from reporting import OneLineParser, limits_text, result_file, write

from flowfuse import ops
from flowfuse.cli.console import parse_count
from flowfuse.ops.correlation import volume_bytes

SIZES = ((8, 10), (12, 16), (16, 20), (24, 32), (30, 40), (45, 60), (60, 80))
CHANNELS = (64, 128, 256)
LOOKUPS = (1, 4, 12)
BUDGET = Budget(least=3, most=40, seconds=0.4)


def compare(shape: Correlated, direction: str, device: str, budget: Budget) -> tuple[float, int]:
    """Time of "on_demand" over that of "volume", and the bytes of the volume."""
    maps = with_gradients(direction, *shape.features(torch.float32, device))
    lookups = shape.coords(device)
    strategies = {name: shape.ours(name, lookups) for name in ("volume", "on_demand")}
    cotangents = []
    if direction == "both":
        results = evaluate(strategies["on_demand"], maps, [])
        cotangents = [torch.randn_like(values) for values in results]
    calls = {
        name: lambda algorithm=algorithm: evaluate(algorithm, maps, cotangents)
        for name, algorithm in strategies.items()
    }
    for call in calls.values():
        call()
    times = time_interleaved(calls, device, budget)
    ratio = times["on_demand"].median / times["volume"].median
    return ratio, volume_bytes(maps[0], maps[1], shape.levels)


def rows(device: str, quick: bool) -> list[list[str]]:
    found = []
    for height, width in SIZES[:2] if quick else SIZES:
        for channels in CHANNELS:
            for direction in ("forward", "both"):
                cells = []
                for count in LOOKUPS:
                    shape = Correlated(channels, height, width, lookups=count)
                    ratio, size = compare(shape, direction, device, QUICK if quick else BUDGET)
                    cells.append(f"{ratio:.2f}")
                row = [f"{channels} x {height} x {width}", f"{size / 2**20:.2f}", direction, *cells]
                print("| " + " | ".join(row) + " |", flush=True)
                found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="crossover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=parse_count, help="CPU threads (torch's own number)")
    parser.add_argument("--quick", action="store_true", help="two sizes, few repeats: a trial")
    parser.add_argument("--markdown", type=result_file, metavar="FILE", help="write the table")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if options.threads:
        torch.set_num_threads(options.threads)
    facts, used = machine(options.device), versions()
    lines = [
        f"{facts.get('gpu') or facts['processor']}, {facts['cores']} cores, {facts['threads']} "
        f"threads, {ops.build_info()['cpu_capability']}, torch {used['torch']}, "
        f"commit {commit() or 'unknown'}, {date.today().isoformat()}. "
        f"{limits_text(asdict(measure_limits(options.device, True)))}.",
        "",
        "Time of on_demand over that of volume by the number of look-ups; on_demand wins below 1.",
        "",
        "| size | volume MiB | direction | " + " | ".join(map(str, LOOKUPS)) + " |",
        "|---" * (3 + len(LOOKUPS)) + "|",
    ]
    print("\n".join(lines), flush=True)
    lines += ["| " + " | ".join(row) + " |" for row in rows(options.device, options.quick)]
    write(options.markdown, "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
