"""One recording of ``flowfuse-infer``: planned once, estimated by all processes, merged once."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from flowfuse import __version__, distributed
from flowfuse.cli.infer_figures import colour_range
from flowfuse.cli.infer_motion import MotionFiles
from flowfuse.cli.infer_options import COMMAND, MAX_VIEWED, InferenceConfig
from flowfuse.cli.infer_outputs import OutputDirectory, run_settings
from flowfuse.cli.infer_report import RunMetrics, RunReport
from flowfuse.cli.reading_options import keyword_arguments
from flowfuse.data.calibration import calibration_files
from flowfuse.data.diagnosis import find_cause
from flowfuse.data.opening import open_recording
from flowfuse.data.recording import Recording
from flowfuse.estimator import Estimator
from flowfuse.io.history import record_call
from flowfuse.io.progress import progress
from flowfuse.runner import (
    FIRST_FRAME,
    FrameReader,
    Interval,
    check_events,
    count_gaps,
    describe_long,
    describe_missing_events,
    describe_times,
    estimate_backward,
    estimate_interval,
    find_earlier,
    has_intervals,
    is_measured,
    plan_fixed_rate,
    plan_frame_pairs,
    plan_intervals,
)

LARGE_PAGE = 40_000_000  # bytes
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What is to be done of a recording.

    Attributes:
        intervals: those asked for.
        earlier: others, which earlier calls wrote; they are measured again.
        done: indices of the intervals whose files are all there.
        pictured, viewed: indices of the intervals that get pictures, and a part of the page.
    """

    intervals: list[Interval]
    earlier: list[Interval]
    done: frozenset[int]
    pictured: frozenset[int]
    viewed: frozenset[int]

    @property
    def present(self) -> list[Interval]:
        """All intervals, in the order of their files."""
        return sorted([*self.intervals, *self.earlier], key=lambda interval: interval.index)

    def share(self) -> list[Interval]:
        """The intervals of this process: its part of those to estimate, and of the others."""
        processes = distributed.this()
        known = {interval.index for interval in self.earlier} | self.done
        chosen: list[Interval] = []
        for finished in (False, True):
            part = [interval for interval in self.present if (interval.index in known) == finished]
            chosen += [part[position] for position in processes.part(len(part))]
        return sorted(chosen, key=lambda interval: interval.index)


def run_recording(
    config: InferenceConfig, estimator: Estimator, arguments: Sequence[str]
) -> RunReport | None:
    """Estimate, write and evaluate what ``config`` asks for of its recording.

    Args:
        config: the settings.
        estimator: the network.
        arguments: what was typed, for the output directory's history.

    Returns:
        What happened, in the first process; None in the others.

    Raises:
        OSError, ValueError: with a message that names the file or setting at fault.
        ProcessLostError: another process has ended.
    """
    first = distributed.this().is_first
    if config.tracks is not None and distributed.this().count > 1:
        raise ValueError(
            "--tracks follows points through all pairs in turn: start it in one process, without "
            "torchrun"
        )
    with _warnings_once():
        recording = open_recording(
            config.input,
            events=config.events,
            frames=config.frames,
            times=config.frame_times,
            calibration=config.calibration,
            **keyword_arguments(config.reading),
        )
    outputs = OutputDirectory(
        config.output, config.format, config.png_encoding, config.times, config.extras
    )
    motion = MotionFiles(config.output, config.tracks, config.event_flow)
    with ExitStack() as stack:
        plan = by_first(lambda: _prepare(config, estimator, recording, (outputs, motion), stack))
        if first:
            record_call(config.output, COMMAND, arguments, asdict(config), __version__)
        if not outputs.settings.is_file():
            raise ValueError(
                f"{outputs.root}: what the first process wrote there is not seen on "
                f"{socket.gethostname()}; the directory must be shared by all machines"
            )
        with motion:
            report = _estimate_share(config, estimator, recording, plan, (outputs, motion))
        parts = distributed.gathered(report)
        if first:
            report = RunReport.merged(parts)
            _finish(config, estimator, recording, plan, (outputs, motion), report)
    return report if first else None


def by_first(action: Callable[[], T]) -> T:
    """Let the first process do something, and return what it gives in all of them.

    Raises:
        Exception: what the action raised, in the first process.
        SystemExit: there, in the others, which have nothing to add.
    """
    if distributed.this().count == 1:
        return action()
    value, failure = None, None
    if distributed.this().is_first:
        try:
            value = action()
        except Exception as error:
            failure = error
    value, failed = distributed.from_first((value, failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(1)
    return value


@contextmanager
def _warnings_once() -> Iterator[None]:
    """Let only the first of several processes warn: each of them finds the same."""
    with warnings.catch_warnings():
        if not distributed.this().is_first:
            warnings.simplefilter("ignore")
        yield


def spread(intervals: list[Interval], count: int) -> list[Interval]:
    """At most ``count`` of the intervals, evenly spread, with the first and the last."""
    chosen = np.linspace(0, len(intervals) - 1, min(len(intervals), count)).astype(int)
    return [intervals[position] for position in chosen.tolist()]


def _prepare(
    config: InferenceConfig,
    estimator: Estimator,
    recording: Recording,
    files: tuple[OutputDirectory, MotionFiles],
    stack: ExitStack,
) -> Plan:
    """Plan the intervals, and take the output directory, which ``stack`` gives back."""
    outputs, motion = files
    start, end = (None if s is None else round(s * 1e6) for s in (config.start, config.end))
    _check_needs(config, estimator, recording)
    uses_events = "events" in config.modalities or config.event_flow
    evident = uses_events and _warn_of_cause(recording)  # first: it explains what follows
    if config.every:
        intervals = plan_fixed_rate(recording, config.every, start, end)
    elif has_intervals(recording):
        intervals = plan_intervals(recording, config.pairs, start, end)
    else:
        intervals = plan_frame_pairs(recording, config.pairs, start, end)
        if "events" in config.modalities:
            check_events(recording, units=not evident)
    motion.check_points(recording.height, recording.width)
    too_long = describe_long(recording, intervals)
    if too_long is not None:
        warnings.warn(f"{recording.path or 'the recording'}: {too_long}", stacklevel=2)
    given = (config.events, config.frames, config.frame_times)
    sources = [*recording.source_files, *(path for path in given if path)]
    if config.calibration is not None:
        sources += calibration_files(config.calibration)
    stack.enter_context(outputs.claimed(sources))
    outputs.prepare(
        run_settings(config, sources, recording, estimator.info["path"]),
        overwrite=config.overwrite,
    )
    earlier = find_earlier(recording, intervals, outputs.written())
    pictured = {interval.index for interval in spread(intervals, config.max_pictures)}
    viewed = {interval.index for interval in spread(intervals, MAX_VIEWED if config.html else 0)}
    indices = [interval.index for interval in intervals]
    done = {
        i for i in indices if outputs.is_done(i, i in pictured, i in viewed) and motion.is_done(i)
    }
    return Plan(intervals, earlier, frozenset(done), frozenset(pictured), frozenset(viewed))


def _check_needs(config: InferenceConfig, estimator: Estimator, recording: Recording) -> None:
    """Refuse what needs events or frames, where there are none of them."""
    if config.modalities == ("frames",):
        if not estimator.model.config.frames:
            raise ValueError(f"--frames-only: {config.checkpoint} is a network of events alone")
        count = len(recording.frame_times)
        if count < 2:
            raise ValueError(
                f"--frames-only needs at least two frames, got {count} in "
                f"{recording.path or 'the recording'}"
            )
    needs = {
        "--events-only": config.modalities == ("events",),
        "--from-frame": FIRST_FRAME in config.modalities,
        "--event-flow": config.event_flow,
        f"--checkpoint {config.checkpoint}": not estimator.model.config.frames,
    }
    asked = [option for option, needed in needs.items() if needed]
    if asked and recording.event_range is None:
        missing = describe_missing_events(recording)
        raise ValueError(f"{asked[0]} needs events, but there is {missing}")


def _warn_of_cause(recording: Recording) -> bool:
    """Warn, in one line, where events and frames, or times, are evidently not what they seem."""
    try:
        cause = find_cause(recording)
    except (OSError, ValueError):
        return False  # of frames or events that may not be asked for: told when they are read
    if cause is not None:
        warnings.warn(f"{recording.path or 'the recording'}: {cause}", stacklevel=2)
    return cause is not None


def _estimate_share(
    config: InferenceConfig,
    estimator: Estimator,
    recording: Recording,
    plan: Plan,
    files: tuple[OutputDirectory, MotionFiles],
) -> RunReport:
    """Estimate this process's intervals that are not done; measure all of its intervals."""
    outputs, motion = files
    unit = "pair" if plan.intervals[0].frames else "time interval"
    report = RunReport(unit=unit, metrics=RunMetrics(config.outlier_fraction))
    known = {interval.index for interval in plan.earlier}
    reader = FrameReader(recording)
    hidden = not distributed.this().is_first
    bar = progress(plan.share(), unit=f" {unit}s", disable=hidden)
    for interval in bar:
        uncertainty = None
        if interval.index in known:
            pass
        elif interval.index in plan.done:
            report.done += 1
        else:
            result, seconds = estimate_interval(
                estimator, recording, reader, interval, config.iterations,
                modalities=config.modalities, event_counts=report.event_counts,
            )  # fmt: skip
            if result is None:
                report.skipped += 1
                continue
            report.new += 1
            report.seconds.append(seconds)
            report.from_frames += result.modalities == ("frames",)
            uncertainty, backward = result.uncertainty, None
            if outputs.needs_backward:
                backward = estimate_backward(
                    estimator, recording, reader, interval, config.iterations, config.modalities
                )
            motion.write(recording, interval, result)
            outputs.write(
                recording, interval, result, backward,
                pictures=interval.index in plan.pictured, viewed=interval.index in plan.viewed,
            )  # fmt: skip
        # What was written is what is measured: an interrupted run gives the same numbers.
        flow = outputs.read(interval.index)
        report.magnitude = max(report.magnitude, colour_range(flow))
        if is_measured(recording, interval):
            flow_at = {tau: outputs.read(interval.index, tau) for tau in config.times if tau < 1}
            frames = reader.frames(interval)
            report.metrics.add(recording, interval, flow, flow_at, frames, uncertainty=uncertainty)
            bar.set_postfix_str(report.metrics.latest, refresh=False)
    return report


def _finish(
    config: InferenceConfig,
    estimator: Estimator,
    recording: Recording,
    plan: Plan,
    files: tuple[OutputDirectory, MotionFiles],
    report: RunReport,
) -> None:
    """Write what is made of all intervals, and say what was done."""
    outputs, motion = files
    report.total = len(plan.intervals)
    report.gaps = count_gaps(plan.intervals) if plan.intervals[0].frames else 0
    outputs.write_intervals(plan.present)
    if report.skipped == report.total and not config.every:
        warnings.warn(
            f"no event in any {report.unit} asked for, and no frames that {config.checkpoint} "
            "uses: nothing was estimated",
            stacklevel=2,
        )
    asked = "events" in config.modalities and recording.event_range is not None
    if asked and 0 < report.from_frames == report.new == report.total:
        warnings.warn(f"no event in any pair asked for: {describe_times(recording)}", stacklevel=2)
    few = report.describe_few_events()
    if few is not None:
        warnings.warn(f"{recording.path or 'the recording'}: {few}", stacklevel=2)
    report.metrics.write(outputs.metrics, config.checkpoint)
    found = [interval for interval in plan.intervals if outputs.flow(interval.index).is_file()]
    if config.video and found and (report.new or not outputs.video.is_file()):
        outputs.write_video(recording, found, report.magnitude)
    if config.html:
        _write_page(config, recording, plan.intervals, outputs, report)
    told = [report.summary(config, estimator, recording, outputs), *motion.lines()]
    # A name of a file that is not UTF-8 must not end a run that is done.
    print("\n".join(told).encode(errors="backslashreplace").decode(), flush=True)


def _write_page(
    config: InferenceConfig,
    recording: Recording,
    intervals: list[Interval],
    outputs: OutputDirectory,
    report: RunReport,
) -> None:
    name = recording.path or config.events or config.frames
    title = f"{Path(name).name if name else 'recording'}: {config.checkpoint}"
    size = outputs.write_page(title, spread(intervals, MAX_VIEWED), report.metrics.pairs)
    if len(intervals) > MAX_VIEWED:
        warnings.warn(
            f"--html: {outputs.page} shows {MAX_VIEWED} of {len(intervals)}, evenly spread; "
            "--pairs A:B, or --start and --end, choose others",
            stacklevel=2,
        )
    if size > LARGE_PAGE:
        warnings.warn(
            f"--html: {outputs.page} has {size / 1e6:.0f} MB; with fewer pairs it loads faster",
            stacklevel=2,
        )
