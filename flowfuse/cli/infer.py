"""``flowfuse-infer``: a recording in, dense and continuous flow out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from flowfuse import __version__
from flowfuse.cli.console import leave, run_command
from flowfuse.cli.infer_figures import colour_range
from flowfuse.cli.infer_motion import MotionFiles
from flowfuse.cli.infer_options import COMMAND, InferenceConfig, build_parser, parse_config
from flowfuse.cli.infer_outputs import OutputDirectory, run_settings
from flowfuse.cli.infer_report import RunMetrics, RunReport
from flowfuse.cli.infer_submission import submit
from flowfuse.cli.reading_options import keyword_arguments
from flowfuse.data.calibration import calibration_files
from flowfuse.data.diagnosis import find_cause
from flowfuse.data.opening import open_recording
from flowfuse.data.recording import Recording
from flowfuse.estimator import Estimator, load, select_device
from flowfuse.io.history import record_call
from flowfuse.io.progress import progress
from flowfuse.precision import NO_INSTRUCTIONS, has_native_bfloat16
from flowfuse.runner import (
    FrameReader,
    Interval,
    check_events,
    count_gaps,
    describe_times,
    estimate_interval,
    find_earlier,
    has_intervals,
    is_measured,
    plan_fixed_rate,
    plan_frame_pairs,
    plan_intervals,
)

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}  # of --precision


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None takes those of the process.

    Returns:
        0, or 1 on an error, 2 on wrong usage, 130 when interrupted, 141 when the reader of what is
        printed has gone.
    """
    parser = build_parser()
    try:
        arguments = sys.argv[1:] if argv is None else list(argv)
        if not arguments:
            parser.print_usage(sys.stderr)
            return 2
        config = parse_config(parser, arguments)
    except SystemExit as stop:  # --help, or wrong usage after its message
        return int(stop.code or 0)
    then = "nothing is written" if config.submission else "the same command goes on from here"
    return run_command(
        COMMAND, lambda: run(config, arguments), interrupted=then, output=config.output
    )


def run(config: InferenceConfig, arguments: Sequence[str] = ()) -> None:
    """Estimate, write and evaluate everything that ``config`` asks for.

    Args:
        config: the settings.
        arguments: what was typed, for the output directory's history.

    Raises:
        OSError, ValueError: with a message that names the file or setting at fault.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config = _usable_precision(config)
    estimator = load(config.checkpoint, config.device, DTYPES[config.precision])
    if config.submission is not None:
        print(submit(config, estimator), flush=True)
        return
    recording = open_recording(
        config.input,
        events=config.events,
        frames=config.frames,
        times=config.frame_times,
        calibration=config.calibration,
        **keyword_arguments(config.reading),
    )
    start, end = (None if s is None else round(s * 1e6) for s in (config.start, config.end))
    if config.every:
        intervals = plan_fixed_rate(recording, config.every, start, end)
    elif has_intervals(recording):
        intervals = plan_intervals(recording, config.pairs, start, end)
    else:
        intervals = plan_frame_pairs(recording, config.pairs, start, end)
        check_events(recording)
    _warn_of_cause(recording)
    outputs = OutputDirectory(config.output, config.format, config.png_encoding, config.times)
    motion = MotionFiles(config.output, config.tracks, config.event_flow)
    given = (config.events, config.frames, config.frame_times)
    sources = [*recording.source_files, *(path for path in given if path)]
    if config.calibration is not None:
        sources += calibration_files(config.calibration)
    settings = run_settings(config, sources, recording, estimator.info["path"])
    outputs.prepare(settings, sources, overwrite=config.overwrite)
    record_call(config.output, COMMAND, arguments, asdict(config), __version__)
    with motion:
        report = _estimate_all(config, estimator, recording, intervals, outputs, motion)
    report.metrics.write(outputs.metrics, config.checkpoint)
    found = [interval for interval in intervals if outputs.flow(interval.index).is_file()]
    if config.video and found and (report.new or not outputs.video.is_file()):
        outputs.write_video(recording, found, report.magnitude)
    told = [report.summary(config, estimator, recording, outputs), *motion.lines()]
    # A name of a file that is not UTF-8 must not end a run that is done.
    print("\n".join(told).encode(errors="backslashreplace").decode(), flush=True)


def _warn_of_cause(recording: Recording) -> None:
    """Warn, in one line, where events and frames, or times, are evidently not what they seem."""
    try:
        cause = find_cause(recording)
    except (OSError, ValueError):
        return  # of frames or events that may not be asked for: told when they are read
    if cause is not None:
        warnings.warn(f"{recording.path or 'the recording'}: {cause}", stacklevel=2)


def _usable_precision(config: InferenceConfig) -> InferenceConfig:
    """The same in float32, and a warning, where bfloat16 would only be slower."""
    if config.precision == "float32" or has_native_bfloat16(select_device(config.device)):
        return config
    warnings.warn(f"--precision bf16: {NO_INSTRUCTIONS}, and used instead", stacklevel=2)
    return replace(config, precision="float32")


def _estimate_all(
    config: InferenceConfig,
    estimator: Estimator,
    recording: Recording,
    intervals: list[Interval],
    outputs: OutputDirectory,
    motion: MotionFiles,
) -> RunReport:
    """Estimate the intervals that are not done; measure these and those of earlier calls."""
    unit = "pair" if intervals[0].frames else "time interval"
    gaps = count_gaps(intervals) if intervals[0].frames else 0
    metrics = RunMetrics(config.outlier_fraction)
    report = RunReport(len(intervals), gaps, unit=unit, metrics=metrics)
    count = min(len(intervals), config.max_pictures)
    chosen = np.linspace(0, len(intervals) - 1, count).astype(int).tolist()
    pictured = {intervals[position].index for position in chosen}
    earlier = find_earlier(recording, intervals, outputs.written())
    known = {interval.index for interval in earlier}
    present = sorted([*intervals, *earlier], key=lambda interval: interval.index)
    reader = FrameReader(recording)
    bar = progress(present, unit=f" {unit}s")
    for interval in bar:
        pictures, uncertainty = interval.index in pictured, None
        if interval.index in known:
            pass
        elif outputs.is_done(interval.index, pictures) and motion.is_done(interval.index):
            report.done += 1
        else:
            result, seconds = estimate_interval(
                estimator, recording, reader, interval, config.iterations
            )
            if result is None:
                report.skipped += 1
                continue
            report.new += 1
            report.seconds.append(seconds)
            report.from_frames += result.modalities == ("frames",)
            motion.write(recording, interval, result)
            outputs.write(recording, interval, result, pictures=pictures)
            uncertainty = result.uncertainty
        # What was written is what is measured: an interrupted run gives the same numbers.
        flow = outputs.read(interval.index)
        report.magnitude = max(report.magnitude, colour_range(flow))
        if is_measured(recording, interval):
            flow_at = {tau: outputs.read(interval.index, tau) for tau in config.times if tau < 1}
            report.metrics.add(
                recording,
                interval,
                flow,
                flow_at,
                reader.frames(interval),
                uncertainty=uncertainty,
            )
            bar.set_postfix_str(report.metrics.latest, refresh=False)
    outputs.write_intervals(present)
    if report.skipped == report.total and not config.every:
        warnings.warn(
            f"no event in any {unit} asked for, and no frames that {config.checkpoint} uses: "
            "nothing was estimated",
            stacklevel=2,
        )
    if recording.event_range is not None and 0 < report.from_frames == report.new == report.total:
        warnings.warn(f"no event in any pair asked for: {describe_times(recording)}", stacklevel=2)
    return report


def command() -> None:
    """Entry point of flowfuse-infer."""
    leave(main())


if __name__ == "__main__":
    command()
