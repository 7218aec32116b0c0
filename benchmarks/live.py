"""Measure a live stream: latency, the rate that it sustains, and its memory over hours.

    python benchmarks/live.py --threads 2 --json today.json --markdown today.md
    python benchmarks/live.py --only "640 x 480" --seconds 60 --hours 1
    python benchmarks/live.py --quick

Two recordings come again and again without end: the shipped one, and events of moving edges over a
moving texture. Their times are stretched, so that events come at 10^6 or 10^7 a second; frames come
at 10 Hz, and flow is made from each frame to the next.

"latency" replays in real time. A thread pushes packets of 5 ms and the frames; the main thread
takes results. Latency is from the moment when the last event of an interval was pushed to its flow.
The CPU share is that of all cores, the producer included.

"rate" replays as fast as it goes, nothing is dropped: pushing the events and frames of an interval
and taking its flow. Its peer is the estimator called afresh on the same events and frames, which
are then at hand in arrays. The two take turns.

"sliding" is the same for intervals of 100 ms that begin every 25 ms, with frames at 40 Hz. Features
of slices are used again, and estimates start from the one before; in "sliding, 1 iteration" they
make one update then. "sliding anew" does neither: only the features of frames are used again, and
results have the bits of the estimator. Work is how many operations a call of the estimator takes
for each one of the stream's, as torch counts them (convolutions, matrix products) and flowfuse's
operators; it does not depend on the machine.

"memory" pushes --hours of the sensor's time as fast as it goes and takes one result a second of it.
Memory is that of the process after the first twentieth, in the middle and at the end; growth is how
much larger it is at most, after the first twentieth, than at least. "hour" does so for an hour in
minutes: of a small sensor, with the smallest network, intervals that overlap, and all that is kept
from one to the next.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from measuring import (
    FULL,
    QUICK,
    OneLineParser,
    Row,
    add_result_arguments,
    add_run_arguments,
    chosen,
    fill,
    heading,
    limits_text,
    measure_limits,
    new_report,
    number,
    reason,
    refuse_only,
    set_up,
    table,
    tell_failures,
    time_interleaved,
)
from networks import moving_sequence, operator_operations
from torch.utils.flop_counter import FlopCounterMode

import flowfuse
from flowfuse.estimator import Estimator
from flowfuse.evaluation.report import head, line
from flowfuse.events import Events
from flowfuse.inputs import input_interval
from flowfuse.model import CONFIGS, FlowFuse

INTERVAL = 100_000  # us between frames
PACKET = 5_000  # us
SECOND = 1_000_000
SIZES = ((240, 320), (480, 640))
QUICK_SIZES = ((48, 64),)
RATES = (1e6, 1e7)
QUICK_RATES = (1e5,)
SLIDE = 25_000  # us from one interval to the next, and between frames, where intervals overlap
# Work is counted, and times are taken, when all slices and frames are known.
WARM_UP = 6
SAME_BITS = flowfuse.StreamSettings(warm_start=False)
REUSED = flowfuse.StreamSettings(warm_start=True, scale_tolerance=0.05)
SLIDING = {
    "sliding": REUSED,
    "sliding, 1 iteration": replace(REUSED, warm_iterations=1),
    "sliding anew": SAME_BITS,
}
MEASURES = ("latency", "rate", *SLIDING, "memory")
HOUR, QUICK_HOUR = 1.0, 0.005  # of the row "hour"
MARKS = 20  # sizes of the process that are looked at in a run for memory


@dataclass(frozen=True)
class Endless:
    """A recording that comes again and again.

    Attributes:
        name: of the recording.
        events: of [0, duration) us.
        frames: uint8, one every INTERVAL, in turns.
        duration: us.
    """

    name: str
    events: Events
    frames: Sequence[np.ndarray]
    duration: int

    @classmethod
    def stretched(
        cls, name: str, events: Events, frames: Sequence[np.ndarray], rate: float
    ) -> Endless:
        """The same events at so many a second."""
        first, last = int(events.t[0]), int(events.t[-1])
        duration = max(1, round(len(events) / rate * SECOND))
        t = ((events.t - first) * (duration / (last - first + 1))).astype(np.int64)
        stretched = Events(
            events.x, events.y, t, events.p, height=events.height, width=events.width
        )
        return cls(name, stretched, frames, duration)

    @property
    def size(self) -> str:
        return f"{self.events.width} x {self.events.height}"

    def between(self, t0: int, t1: int) -> Events:
        """The events of [t0, t1), us, of a time without end."""
        parts = []
        for turn in range(t0 // self.duration, (t1 - 1) // self.duration + 1):
            start = turn * self.duration
            part = self.events.slice_time(t0 - start, t1 - start)
            parts.append(
                Events(part.x, part.y, part.t + start, part.p, height=part.height, width=part.width)
            )
        return Events.concatenate(parts)

    def frame(self, number: int) -> np.ndarray:
        return self.frames[number % len(self.frames)]


def make_endless(name: str, height: int, width: int, rate: float) -> Endless:
    """One of the two recordings; the shipped one has its own size."""
    if name == "sample":
        recording = flowfuse.open_recording(flowfuse.sample_recording())
        frames = [recording.frame(i) for i in range(len(recording.frame_times))]
        return Endless.stretched(
            name, recording.events(*whole(recording.event_range)), frames, rate
        )
    sequence = moving_sequence(height, width)
    frames = [sequence.frame0, sequence.frame1]
    return Endless.stretched(name, sequence.events, frames, rate)


def whole(found: tuple[int, int] | None) -> tuple[int, int]:
    assert found is not None, "the shipped recording has events"
    return found[0], found[1] + 1


@dataclass(frozen=True)
class Case:
    """One row."""

    recording: str
    height: int
    width: int
    rate: float
    measure: str

    @property
    def label(self) -> str:
        return f"{self.recording} {self.width} x {self.height} {self.rate:g} {self.measure}"


def all_cases(quick: bool, only: Sequence[str] = ("",)) -> list[Case]:
    """The rows that are asked for."""
    sizes = [("generated", *size) for size in (QUICK_SIZES if quick else SIZES)]
    cases = [
        Case(name, height, width, rate, measure)
        for name, height, width in (("sample", 192, 256), *sizes)
        for rate in (QUICK_RATES if quick else RATES)
        for measure in MEASURES
    ]
    cases.append(Case("generated", *QUICK_SIZES[0], QUICK_RATES[0], "hour"))
    return [case for case in cases if chosen(case.label, only)]


def make_stream(
    estimator: Estimator,
    endless: Endless,
    policy: str,
    settings: flowfuse.StreamSettings = SAME_BITS,
    **intervals: int,
) -> flowfuse.Stream:
    events = endless.events
    assert events.height is not None and events.width is not None
    rate = len(events) / endless.duration
    return flowfuse.Stream(
        estimator,
        height=events.height,
        width=events.width,
        policy=policy,
        settings=replace(settings, memory=max(100_000, round(4 * INTERVAL * rate))),
        **intervals,
    )


def push(
    stream: flowfuse.Stream, endless: Endless, t0: int, t1: int, frame_step: int = INTERVAL
) -> None:
    """Push the packet of [t0, t1), and the frame at t0 if there is one."""
    if t0 % frame_step == 0:
        stream.push_frame(endless.frame(t0 // frame_step), t0)
    stream.push(endless.between(t0, t1))


def measure_latency(estimator: Estimator, endless: Endless, seconds: float) -> Row:
    """Replay in real time."""
    stream = make_stream(estimator, endless, "latest")
    failures: list[BaseException] = []

    def produce() -> None:
        try:
            began = time.perf_counter()
            for t in range(0, round(seconds * SECOND), PACKET):
                time.sleep(max(0.0, began + (t + PACKET) / SECOND - time.perf_counter()))
                push(stream, endless, t, t + PACKET)
        except BaseException as error:
            failures.append(error)
        finally:
            stream.close()

    began, cpu = time.perf_counter(), time.process_time()
    producer = threading.Thread(target=produce)
    producer.start()
    latencies = []
    for _ in stream:
        assert stream.timing is not None
        latencies.append(1e3 * stream.timing.latency)
    producer.join()
    wall = time.perf_counter() - began
    if failures:
        raise failures[0]
    if not latencies:
        raise ValueError(f"no result in {seconds} s: give --seconds more")
    stats, cores = stream.stats, len_cores()
    return {
        "results_per_s": len(latencies) / wall,
        "latency_median_ms": float(np.percentile(latencies, 50)),
        "latency_99_ms": float(np.percentile(latencies, 99)),
        "skipped": stats.intervals_skipped,
        "dropped": stats.events_dropped,
        "cpu_share": (time.process_time() - cpu) / wall / cores,
    }


def len_cores() -> int:
    """The cores of the machine."""
    return max(1, torch.multiprocessing.cpu_count())


def measure_rate(
    estimator: Estimator,
    endless: Endless,
    quick: bool,
    step: int = INTERVAL,
    settings: flowfuse.StreamSettings = SAME_BITS,
) -> Row:
    """As fast as it goes, in turns with the estimator called afresh.

    Args:
        estimator, endless, quick: as of the other measures.
        step: from one interval to the next, and between frames, us.
        settings: of the stream.
    """
    intervals = {} if step == INTERVAL else {"interval": INTERVAL, "every": step}
    stream = make_stream(estimator, endless, "all", settings, **intervals)
    slices = estimator.model.config.slices
    steps = itertools.count(INTERVAL, step)
    for t in range(0, INTERVAL, step):
        push(stream, endless, t, t + step, step)

    def live() -> list:
        t = next(steps)
        push(stream, endless, t, t + step, step)
        if stream.take(0) is None:
            raise ValueError(f"no result of the interval that ends at {t} us")
        return []

    starts = (INTERVAL, 2 * INTERVAL)
    fresh_events = [
        endless.between(input_interval(t, t + INTERVAL, slices, None, None)[0], t + INTERVAL)
        for t in starts
    ]
    turns = itertools.cycle(zip(starts, fresh_events, strict=True))

    def fresh() -> list:
        t0, events = next(turns)
        frames = (endless.frame(t // step) for t in (t0, t0 + INTERVAL))
        estimator(*frames, events, t0=t0, t1=t0 + INTERVAL)
        return []

    fresh()  # what is set up at first
    for _ in range(WARM_UP):
        live()
    work = operations(fresh) / operations(live)
    before = stream.stats
    device = estimator.device.type
    times = time_interleaved({"fresh": fresh, "live": live}, device, QUICK if quick else FULL)
    stats = stream.stats
    used = (slices + 1) * (stats.intervals - before.intervals)
    return {
        "results_per_s": 1e3 / times["live"].median,
        "fresh_per_s": 1e3 / times["fresh"].median,
        "ratio": times["fresh"].median / times["live"].median,
        "work_ratio": work,
        "encoded": 1 - (stats.slices_reused - before.slices_reused) / used,
        "skipped": stats.intervals_skipped,
        "dropped": stats.events_dropped,
    }


def operations(call: Callable[[], object]) -> int:
    """How many operations a call takes, those that torch counts and those of flowfuse."""
    with FlopCounterMode(display=False, custom_mapping=operator_operations()) as counter:
        call()
    return counter.get_total_flops()


def measure_memory(
    stream: flowfuse.Stream, endless: Endless, hours: float, step: int = INTERVAL
) -> Row:
    """Hours of the sensor's time, and the size of the process.

    Args:
        stream: with the policy "latest".
        endless: what is pushed.
        hours: of its time.
        step: of packets and frames, us.
    """
    seconds = max(MARKS, round(3600 * hours))
    sizes, began = [], time.perf_counter()
    for second in range(seconds):
        for t in range(second * SECOND, (second + 1) * SECOND, step):
            push(stream, endless, t, t + step, step)
        stream.take(0)
        if (second + 1) % (seconds // MARKS) == 0:
            sizes.append(resident_bytes())
    later = sizes[1:]
    return {
        "hours": seconds / 3600,
        "times_real": seconds / (time.perf_counter() - began),
        "memory_bytes": [later[0], later[len(later) // 2], later[-1]],
        "memory_growth": max(later) / min(later) - 1,
    }


def measure_hour(endless: Endless, hours: float) -> Row:
    """The same of the smallest network, with random weights, on intervals that overlap."""
    torch.manual_seed(0)
    estimator = Estimator(FlowFuse(CONFIGS["nano"]))
    intervals = {"interval": INTERVAL, "every": SLIDE}
    stream = make_stream(estimator, endless, "latest", REUSED, **intervals)
    row = measure_memory(stream, endless, hours, SLIDE)
    assert stream.stats.resets == 0, "an hour without end"
    return row | {"skipped": stream.stats.intervals_skipped}


def resident_bytes() -> int:
    """The memory that this process has now; Linux tells."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


KEYS = (
    "recording", "size", "events_per_s", "measure", "results_per_s", "fresh_per_s", "ratio",
    "work_ratio", "encoded",
    "latency_median_ms", "latency_99_ms", "skipped", "dropped", "cpu_share", "hours", "times_real",
    "memory_bytes", "memory_growth", "error",
)  # fmt: skip
COLUMNS = (
    "recording", "size", "events/s", "measure", "results/s", "afresh, results/s", "x afresh",
    "work, x afresh", "slices encoded", "latency, ms", "99 %, ms", "intervals skipped",
    "events dropped", "CPU share", "hours", "x real time", "memory, MiB", "growth, %", "note",
)  # fmt: skip


def measure(case: Case, estimator: Estimator, options: Namespace) -> Row:
    """One row; any failure is its own."""
    row: Row = dict.fromkeys(KEYS)
    row |= {
        "recording": case.recording,
        "size": f"{case.width} x {case.height}",
        "events_per_s": case.rate,
        "measure": case.measure,
    }
    try:
        endless = make_endless(case.recording, case.height, case.width, case.rate)
        if case.measure == "latency":
            row |= measure_latency(estimator, endless, options.seconds)
        elif case.measure == "rate":
            row |= measure_rate(estimator, endless, options.quick)
        elif case.measure in SLIDING:
            settings = SLIDING[case.measure]
            row |= measure_rate(estimator, endless, options.quick, SLIDE, settings)
        elif case.measure == "hour":
            row |= measure_hour(endless, QUICK_HOUR if options.quick else HOUR)
        else:
            stream = make_stream(estimator, endless, "latest")
            row |= measure_memory(stream, endless, options.hours)
    except Exception as error:
        row["error"] = reason(error)
    return row


def cells(row: Row) -> list[str]:
    """The texts of one row of the table."""
    return [
        str(row["recording"]),
        str(row["size"]),
        number(row["events_per_s"], "g"),
        str(row["measure"]),
        number(row["results_per_s"]),
        number(row["fresh_per_s"]),
        number(row["ratio"], ".2f"),
        number(row["work_ratio"], ".2f"),
        number(row["encoded"], ".2f"),
        number(row["latency_median_ms"]),
        number(row["latency_99_ms"]),
        number(row["skipped"], ".0f"),
        number(row["dropped"], ".0f"),
        number(row["cpu_share"], ".2f"),
        number(row["hours"], ".2g"),
        number(row["times_real"], ".3g"),
        " / ".join(number(size, ".0f", 2**-20) for size in row["memory_bytes"] or ()),
        number(row["memory_growth"], ".2f", 100),
        f"failed: {row['error']}" if row["error"] else "",
    ]


def as_markdown(report: Mapping) -> str:
    """A report as text with one table."""
    lines = [
        "Frames at 10 Hz, flow from each to the next; sliding, and the hour: frames at 40 Hz, flow "
        "of 100 ms every 25 ms. x afresh above 1 is faster than calling the estimator on arrays "
        "that are at hand. Memory is given near the start, in the middle and at the end.",
        "",
        *table(COLUMNS, [cells(row) for row in report["rows"]]),
    ]
    return "\n".join([*heading(report), *lines]) + "\n"


def measured_rows(cases: Sequence[Case], estimator: Estimator, options: Namespace) -> Iterator[Row]:
    """The rows, printed as they come."""
    print(*head(COLUMNS), sep="\n", flush=True)
    for case in cases:
        row = measure(case, estimator, options)
        print(line(cells(row)), flush=True)
        yield row


def build_parser() -> OneLineParser:
    parser = OneLineParser(__doc__, prog="live", formatter_class=RawDescriptionHelpFormatter)
    add_run_arguments(parser, "recording, size, events/s and measure")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each row of latency")
    parser.add_argument("--hours", type=float, default=0.02, help="of each row of memory")
    add_result_arguments(parser)
    return parser


def run(options: Namespace, parser: OneLineParser) -> int:
    for name in ("seconds", "hours"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    set_up(options, parser)
    cases = all_cases(options.quick, options.only)
    if not cases:
        refuse_only(parser, options.only)
    limits = measure_limits(options.device, options.quick)
    print(limits_text(asdict(limits)), flush=True)
    report = new_report(options.device, options.quick, limits)
    estimator = flowfuse.load("small", options.device)
    fill(report, "rows", measured_rows(cases, estimator, options), options, as_markdown)
    return tell_failures("live", report["rows"], ("recording", "size", "events_per_s", "measure"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    return run(parser.parse_args(argv), parser)


if __name__ == "__main__":
    sys.exit(main())
