"""The predictions that the optical flow benchmark of DSEC asks for, as one zip."""

from __future__ import annotations

import statistics
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowfuse.cli.console import ListedError
from flowfuse.cli.infer_options import InferenceConfig
from flowfuse.data.datasets.dsec.files import FLOW_STEP, DsecFiles, find_schedule, read_schedule
from flowfuse.data.datasets.dsec.sequence import DsecSequence, missing_files
from flowfuse.estimator import Estimator
from flowfuse.geometry.carry import carry_forward
from flowfuse.io.atomic import atomic_path, check_file_path
from flowfuse.io.flow import encode_flow
from flowfuse.io.progress import progress
from flowfuse.runner import FrameReader, Interval, estimate_interval

# The test sequences with flow, and how many predictions the benchmark wants of each.
TEST_SEQUENCES = {
    "interlaken_00_b": 57,
    "interlaken_01_a": 108,
    "thun_01_a": 18,
    "thun_01_b": 75,
    "zurich_city_12_a": 75,
    "zurich_city_14_c": 11,
    "zurich_city_15_a": 72,
}
SCHEDULE_STEP = 10  # frames from one prediction to the next, where the schedule has no gap
LONGEST_INTERVAL = 150_000  # us; a longer one has lost frames, and motion is not carried across


@dataclass(frozen=True)
class SequencePlan:
    """What to estimate of one test sequence.

    Attributes:
        sequence: open.
        intervals: in the order of time; index is the number of the file.
        wanted: the indices that the benchmark asks for.
    """

    sequence: DsecSequence
    intervals: list[Interval]
    wanted: frozenset[int]


def submit(config: InferenceConfig, estimator: Estimator) -> str:
    """Write the zip of ``config.submission``.

    Returns:
        What was done, in a few lines.

    Raises:
        ListedError: all that is missing.
        ValueError: the zip is there already.
        OSError: it cannot be written.
    """
    path = config.submission
    assert path is not None and config.input is not None  # the command line asks for both
    if path.exists() and not config.overwrite:
        raise ValueError(f"{path}: exists already; give another name, or --overwrite")
    check_file_path(path)
    plans = plan_submission(config.input, config.schedules, warm_start=config.warm_start)
    total = sum(len(plan.intervals) for plan in plans.values())
    seconds = []
    with (
        atomic_path(path) as partial,
        zipfile.ZipFile(partial, "w") as archive,
        progress(total=total, unit=" intervals") as bar,
    ):
        for name, plan in plans.items():
            bar.set_postfix_str(name, refresh=False)
            for interval, flow, duration in predict(estimator, plan, config):
                seconds.append(duration)
                bar.update()
                if interval.index in plan.wanted:
                    entry = f"{name}/{interval.index:06d}.png"
                    archive.writestr(_entry(entry), encode_prediction(entry, flow))
    count = sum(len(plan.wanted) for plan in plans.values())
    start = "each from the one before" if config.warm_start else "each on its own"
    return (
        f"{path}: {count} predictions of {len(plans)} sequences, {start}\n"
        f"time per interval: {statistics.median(seconds):.3f} s (median of {len(seconds)})"
    )


def plan_submission(
    root: Path, schedules: Path | None = None, *, warm_start: bool = False
) -> dict[str, SequencePlan]:
    """Open the test sequences and list the intervals to estimate.

    Args:
        root: of DSEC, in any layout.
        schedules: directory of SEQ.csv; None looks where DSEC has them.
        warm_start: also the intervals of 100 ms between scheduled ones, where the schedule has no
            gap.

    Raises:
        FileNotFoundError: there is no such root.
        ListedError: everything that is missing or does not fit, of all sequences.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such directory, expected the root of DSEC")
    problems: list[str] = []
    plans: dict[str, SequencePlan] = {}
    for name, count in TEST_SEQUENCES.items():
        files = DsecFiles(root, name)
        found = missing_files(files, "test")
        schedule = find_schedule(files, schedules)
        if schedule is None:
            place = schedules or root / "test_forward_optical_flow_timestamps"
            found.append(f"{name}: no schedule {place / name}.csv")
        if schedule is not None and not found:
            try:
                sequence, rows = DsecSequence(files), read_schedule(schedule)
                if len(rows) != count:
                    found.append(f"{schedule}: {len(rows)} predictions, {count} expected")
                intervals, wrong = plan_intervals(sequence, rows, schedule, warm_start=warm_start)
                found += wrong
                plans[name] = SequencePlan(sequence, intervals, frozenset(rows[:, 2].tolist()))
            except (ValueError, OSError) as error:
                found.append(str(error))
        problems += found
    if problems:
        many = f"{len(problems)} things are" if len(problems) > 1 else "1 thing is"
        first = (
            f"{root}: {many} missing for a submission, or wrong; "
            f"`python data_tools/download_dsec.py {root} --split test` gets what is missing:"
        )
        raise ListedError("\n  ".join([first, *problems]))
    return plans


def plan_intervals(
    sequence: DsecSequence, rows: np.ndarray, schedule: Path, *, warm_start: bool
) -> tuple[list[Interval], list[str]]:
    """List the intervals of one sequence, and what is wrong with them.

    Args:
        sequence: the sequence.
        rows: [N, 3] of its schedule.
        schedule: its file, for messages.
        warm_start: see :func:`plan_submission`.
    """
    intervals: list[Interval] = []
    unknown, uncovered, problems = [], [], []
    times = sequence.frame_times
    for start, end, index in rows.tolist():
        try:
            first, last = sequence.frame_at(start, schedule), sequence.frame_at(end, schedule)
        except ValueError as error:
            unknown.append(str(error))
            continue
        if first != index:
            unknown.append(f"{schedule}: file_index {index} has the time stamp of frame {first}")
            continue
        between = first - intervals[-1].index if intervals else 0
        if warm_start and FLOW_STEP < between <= SCHEDULE_STEP:
            for i in range(intervals[-1].pair[1], first - FLOW_STEP + 1, FLOW_STEP):
                j = i + FLOW_STEP
                if times[j] - times[i] <= LONGEST_INTERVAL:
                    intervals.append(Interval(i, int(times[i]), int(times[j]), (i, j)))
        intervals.append(Interval(index, start, end, (first, last)))
    for interval in intervals:
        if not sequence.covers(interval.t0, interval.t1):
            uncovered.append(
                f"{sequence.name}: the events, from {sequence.event_range} us, do not cover "
                f"time interval {interval.index}, {interval.t0} to {interval.t1} us"
            )
    for kind in filter(None, (unknown, uncovered)):
        problems.append(kind[0] + (f" (and {len(kind) - 1} more like it)" if kind[1:] else ""))
    present = {path.name for path in sequence.frame_files}
    needed = sorted({f"{i:06d}.png" for interval in intervals for i in interval.pair})
    absent = [name for name in needed if name not in present]
    if absent:
        problems.append(f"{sequence.name}: {len(absent)} images are missing, e.g. {absent[0]}")
    return intervals, problems


def predict(
    estimator: Estimator, plan: SequencePlan, config: InferenceConfig
) -> Iterator[tuple[Interval, np.ndarray, float]]:
    """Estimate the intervals of a sequence.

    Yields:
        An interval, its flow [2, H, W] px, and the seconds in the estimator.
    """
    reader = FrameReader(plan.sequence)
    former: Interval | None = None
    flow = np.empty(0)
    for interval in plan.intervals:
        flow_init = None
        if config.warm_start and former is not None and former.pair[1] == interval.pair[0]:
            share = (interval.t1 - interval.t0) / (former.t1 - former.t0)
            flow_init = share * carry_forward(flow)
        result, seconds = estimate_interval(
            estimator, plan.sequence, reader, interval, config.iterations, flow_init
        )
        if result is None:
            raise ValueError(
                f"{plan.sequence.name}, interval {interval.index}: no event, and this network uses "
                "events alone; the benchmark wants flow of every interval"
            )
        former, flow = interval, result.flow
        if not np.isfinite(flow).all():
            raise ValueError(
                f"{plan.sequence.name}, time interval {interval.index}: the flow is not finite"
            )
        yield interval, flow, seconds


def encode_prediction(name: str, flow: np.ndarray) -> bytes:
    """Encode a prediction: 16-bit PNG, R = rint(128 u + 2^15), G of v alike, B = 0.

    Args:
        name: of the entry, for the warning where flow exceeds [-256, 256) px and is clipped.
        flow: [2, H, W], px, finite.
    """
    nowhere = np.zeros(flow.shape[1:], bool)
    return encode_flow(name, flow, nowhere, encoding="dsec")


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry of a fixed date: the same predictions make the same zip."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry
