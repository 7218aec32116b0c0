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

"memory" pushes --hours of the sensor's time as fast as it goes and takes one result a second of it.
Growth is how much larger the process is at most, after the first twentieth, than at least.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from networks import moving_sequence

import flowfuse
from flowfuse.estimator import Estimator
from flowfuse.evaluation.report import head, line
from flowfuse.events import Events
from flowfuse.inputs import input_interval

INTERVAL = 100_000  # us between frames
PACKET = 5_000  # us
SECOND = 1_000_000
SIZES = ((240, 320), (480, 640))
QUICK_SIZES = ((48, 64),)
RATES = (1e6, 1e7)
QUICK_RATES = (1e5,)
MEASURES = ("latency", "rate", "memory")
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
    return [case for case in cases if chosen(case.label, only)]


def make_stream(estimator: Estimator, endless: Endless, policy: str) -> flowfuse.Stream:
    events = endless.events
    assert events.height is not None and events.width is not None
    rate = len(events) / endless.duration
    return flowfuse.Stream(
        estimator,
        height=events.height,
        width=events.width,
        policy=policy,
        memory=max(100_000, round(4 * INTERVAL * rate)),
    )


def push(stream: flowfuse.Stream, endless: Endless, t0: int, t1: int) -> None:
    """Push the packet of [t0, t1), and the frame at t0 if there is one."""
    if t0 % INTERVAL == 0:
        stream.push_frame(endless.frame(t0 // INTERVAL), t0)
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


def measure_rate(estimator: Estimator, endless: Endless, quick: bool) -> Row:
    """As fast as it goes, in turns with the estimator called afresh."""
    stream = make_stream(estimator, endless, "all")
    numbers = itertools.count()
    push(stream, endless, 0, INTERVAL)
    slices = estimator.model.config.slices
    fresh_events = [
        endless.between(input_interval(t, t + INTERVAL, slices, None, None)[0], t + INTERVAL)
        for t in (INTERVAL, 2 * INTERVAL)
    ]

    def live() -> list:
        t = (next(numbers) + 1) * INTERVAL
        push(stream, endless, t, t + INTERVAL)
        if stream.take(0) is None:
            raise ValueError(f"no result of the interval that ends at {t} us")
        return []

    turns = itertools.cycle((1, 2))

    def fresh() -> list:
        i = next(turns)
        t0 = i * INTERVAL
        frames = endless.frame(i), endless.frame(i + 1)
        estimator(*frames, fresh_events[i - 1], t0=t0, t1=t0 + INTERVAL)
        return []

    live(), fresh()  # what is set up at first
    device = estimator.device.type
    times = time_interleaved({"fresh": fresh, "live": live}, device, QUICK if quick else FULL)
    return {
        "results_per_s": 1e3 / times["live"].median,
        "fresh_per_s": 1e3 / times["fresh"].median,
        "ratio": times["fresh"].median / times["live"].median,
        "skipped": stream.stats.intervals_skipped,
        "dropped": stream.stats.events_dropped,
    }


def measure_memory(estimator: Estimator, endless: Endless, hours: float) -> Row:
    """Hours of the sensor's time, and the size of the process."""
    stream = make_stream(estimator, endless, "latest")
    seconds = max(MARKS, round(3600 * hours))
    sizes, began = [], time.perf_counter()
    for second in range(seconds):
        for t in range(second * SECOND, (second + 1) * SECOND, INTERVAL):
            push(stream, endless, t, t + INTERVAL)
        stream.take(0)
        if (second + 1) % (seconds // MARKS) == 0:
            sizes.append(resident_bytes())
    later = sizes[1:]
    return {
        "hours": seconds / 3600,
        "times_real": seconds / (time.perf_counter() - began),
        "memory_bytes": max(later),
        "memory_growth": max(later) / min(later) - 1,
    }


def resident_bytes() -> int:
    """The memory that this process has now; Linux tells."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


KEYS = (
    "recording", "size", "events_per_s", "measure", "results_per_s", "fresh_per_s", "ratio",
    "latency_median_ms", "latency_99_ms", "skipped", "dropped", "cpu_share", "hours", "times_real",
    "memory_bytes", "memory_growth", "error",
)  # fmt: skip
COLUMNS = (
    "recording", "size", "events/s", "measure", "results/s", "afresh, results/s", "x afresh",
    "latency, ms", "99 %, ms", "intervals skipped", "events dropped", "CPU share", "hours",
    "x real time", "memory, MiB", "growth, %", "note",
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
        else:
            row |= measure_memory(estimator, endless, options.hours)
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
        number(row["latency_median_ms"]),
        number(row["latency_99_ms"]),
        number(row["skipped"], ".0f"),
        number(row["dropped"], ".0f"),
        number(row["cpu_share"], ".2f"),
        number(row["hours"], ".2g"),
        number(row["times_real"], ".3g"),
        number(row["memory_bytes"], ".0f", 2**-20),
        number(row["memory_growth"], ".2f", 100),
        f"failed: {row['error']}" if row["error"] else "",
    ]


def as_markdown(report: Mapping) -> str:
    """A report as text with one table."""
    lines = [
        "Frames at 10 Hz, flow from each to the next. x afresh above 1 is faster than calling the "
        "estimator on arrays that are at hand.",
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
    parser.add_argument("--hours", type=float, default=1.0, help="of each row of memory")
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
