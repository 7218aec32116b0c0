"""One recording of ``flowfuse-infer``: planned once, estimated by all processes, merged once."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from flowfuse import distributed
from flowfuse.cli.infer_figures import colour_range
from flowfuse.cli.infer_options import MAX_VIEWED, InferenceConfig
from flowfuse.cli.infer_outputs import OutputDirectory, run_settings
from flowfuse.cli.infer_report import RunReport
from flowfuse.data.opening import open_recording
from flowfuse.data.recording import Recording
from flowfuse.estimator import Estimator
from flowfuse.io.opencv import opencv_name
from flowfuse.runner import (
    FrameReader,
    Interval,
    check_events,
    count_gaps,
    describe_times,
    estimate_backward,
    estimate_interval,
    find_earlier,
    plan_fixed_rate,
    plan_frame_pairs,
)

LARGE_PAGE = 40_000_000  # bytes
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What is to be done of a recording.

    Attributes:
        windows: those asked for.
        earlier: others, which earlier calls wrote; they are measured again.
        done: indices of the windows whose files are all there.
        pictured, viewed: indices of the windows that get pictures, and a part of the page.
    """

    windows: list[Interval]
    earlier: list[Interval]
    done: frozenset[int]
    pictured: frozenset[int]
    viewed: frozenset[int]

    @property
    def present(self) -> list[Interval]:
        """All windows, in the order of their files."""
        return sorted([*self.windows, *self.earlier], key=lambda window: window.index)

    def share(self) -> list[Interval]:
        """The windows of this process: its part of those to estimate, and of the others."""
        processes = distributed.this()
        known = {window.index for window in self.earlier} | self.done
        chosen: list[Interval] = []
        for finished in (False, True):
            part = [window for window in self.present if (window.index in known) == finished]
            chosen += [part[position] for position in processes.part(len(part))]
        return sorted(chosen, key=lambda window: window.index)


def run_recording(config: InferenceConfig, estimator: Estimator) -> RunReport | None:
    """Estimate, write and evaluate what ``config`` asks for of its recording.

    Returns:
        What happened, in the first process; None in the others.

    Raises:
        OSError, ValueError: with a message that names the file or setting at fault.
        ProcessLostError: another process has ended.
    """
    first = distributed.this().is_first
    with _warnings_once():
        recording = open_recording(
            config.input,
            events=config.events,
            frames=config.frames,
            times=config.frame_times,
            calibration=config.calibration,
        )
    outputs = OutputDirectory(
        config.output, config.format, config.png_encoding, config.times, config.extras
    )
    with ExitStack() as stack:
        plan = by_first(lambda: _prepare(config, estimator, recording, outputs, stack))
        if not outputs.settings.is_file():
            raise ValueError(
                f"{outputs.root}: what the first process wrote there is not seen on "
                f"{socket.gethostname()}; the directory must be shared by all machines"
            )
        report = _estimate_share(config, estimator, recording, plan, outputs)
        parts = distributed.gathered(report)
        if first:
            report = RunReport.merged(parts)
            _finish(config, estimator, recording, plan, outputs, report)
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


def spread(windows: list[Interval], count: int) -> list[Interval]:
    """At most ``count`` of the windows, evenly spread, with the first and the last."""
    chosen = np.linspace(0, len(windows) - 1, min(len(windows), count)).astype(int)
    return [windows[position] for position in chosen.tolist()]


def _prepare(
    config: InferenceConfig,
    estimator: Estimator,
    recording: Recording,
    outputs: OutputDirectory,
    stack: ExitStack,
) -> Plan:
    """Plan the windows, and take the output directory, which ``stack`` gives back."""
    start, end = (None if s is None else round(s * 1e6) for s in (config.start, config.end))
    if config.every:
        windows = plan_fixed_rate(recording, config.every, start, end)
    else:
        windows = plan_frame_pairs(recording, config.pairs, start, end)
        if "events" in config.modalities:
            check_events(recording)
    if config.video:
        opencv_name(outputs.video)  # refused now, not when all windows are estimated
    given = (config.events, config.frames, config.frame_times, config.calibration)
    sources = [*recording.source_files, *(path for path in given if path)]
    stack.enter_context(outputs.claimed(sources))
    outputs.prepare(
        run_settings(config, sources, recording, estimator.info["path"]),
        overwrite=config.overwrite,
    )
    earlier = find_earlier(recording, windows, outputs.written())
    pictured = {window.index for window in spread(windows, config.max_pictures)}
    viewed = {window.index for window in spread(windows, MAX_VIEWED if config.html else 0)}
    indices = [window.index for window in windows]
    done = {i for i in indices if outputs.is_done(i, i in pictured, i in viewed)}
    return Plan(windows, earlier, frozenset(done), frozenset(pictured), frozenset(viewed))


def _estimate_share(
    config: InferenceConfig,
    estimator: Estimator,
    recording: Recording,
    plan: Plan,
    outputs: OutputDirectory,
) -> RunReport:
    """Estimate this process's windows that are not done; measure all of its windows."""
    report = RunReport()
    known = {window.index for window in plan.earlier}
    reader = FrameReader(recording)
    # None: no bar where the output is no terminal.
    hidden = None if distributed.this().is_first else True
    bar = tqdm(plan.share(), unit=" windows" if config.every else " pairs", disable=hidden)
    for window in bar:
        if window.index in known:
            pass
        elif window.index in plan.done:
            report.done += 1
        else:
            result, seconds = estimate_interval(
                estimator, recording, reader, window, config.iterations,
                modalities=config.modalities,
            )  # fmt: skip
            if result is None:
                report.skipped += 1
                continue
            report.new += 1
            report.seconds.append(seconds)
            report.from_frames += result.modalities == ("frames",)
            backward = None
            if outputs.needs_backward:
                backward = estimate_backward(
                    estimator, recording, reader, window, config.iterations, config.modalities
                )
            outputs.write(
                recording, window, result, backward,
                pictures=window.index in plan.pictured, viewed=window.index in plan.viewed,
            )  # fmt: skip
        # What was written is what is measured: an interrupted run gives the same numbers.
        flow = outputs.read(window.index)
        report.magnitude = max(report.magnitude, colour_range(flow))
        if window.frames:
            flow_at = {tau: outputs.read(window.index, tau) for tau in config.times if tau < 1}
            frame0, frame1 = reader.frames(window)
            assert frame0 is not None and frame1 is not None
            report.metrics.add(recording, window, flow, flow_at, (frame0, frame1))
            bar.set_postfix_str(report.metrics.latest)
    return report


def _finish(
    config: InferenceConfig,
    estimator: Estimator,
    recording: Recording,
    plan: Plan,
    outputs: OutputDirectory,
    report: RunReport,
) -> None:
    """Write what is made of all windows, and say what was done."""
    report.total = len(plan.windows)
    report.gaps = 0 if config.every else count_gaps(plan.windows)
    outputs.write_windows(plan.present)
    asked = "events" in config.modalities and recording.event_range is not None
    if asked and 0 < report.from_frames == report.new == report.total:
        warnings.warn(f"no event in any pair asked for: {describe_times(recording)}", stacklevel=2)
    report.metrics.write(outputs.metrics, config.checkpoint)
    found = [window for window in plan.windows if outputs.flow(window.index).is_file()]
    if config.video and found and (report.new or not outputs.video.is_file()):
        outputs.write_video(recording, found, report.magnitude)
    if config.html:
        _write_page(config, recording, plan.windows, outputs, report)
    print(report.summary(config, estimator, recording, outputs), flush=True)


def _write_page(
    config: InferenceConfig,
    recording: Recording,
    windows: list[Interval],
    outputs: OutputDirectory,
    report: RunReport,
) -> None:
    name = recording.path or config.events or config.frames
    title = f"{Path(name).name if name else 'recording'}: {config.checkpoint}"
    size = outputs.write_page(title, spread(windows, MAX_VIEWED), report.metrics.pairs)
    if len(windows) > MAX_VIEWED:
        warnings.warn(
            f"--html: {outputs.page} shows {MAX_VIEWED} of {len(windows)}, evenly spread; "
            "--pairs A:B, or --start and --end, choose others",
            stacklevel=2,
        )
    if size > LARGE_PAGE:
        warnings.warn(
            f"--html: {outputs.page} has {size / 1e6:.0f} MB; with fewer pairs it loads faster",
            stacklevel=2,
        )
