"""``flowfuse-infer``: a recording in, dense and continuous flow out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from flowfuse.cli.console import leave, run_command
from flowfuse.cli.infer_figures import colour_range
from flowfuse.cli.infer_options import (
    COMMAND,
    MAX_VIEWED,
    InferenceConfig,
    build_parser,
    parse_config,
)
from flowfuse.cli.infer_outputs import OutputDirectory, run_settings
from flowfuse.cli.infer_report import RunReport
from flowfuse.cli.infer_submission import submit
from flowfuse.data.opening import open_recording
from flowfuse.data.recording import Recording
from flowfuse.estimator import Estimator, load, select_device
from flowfuse.io.opencv import opencv_name
from flowfuse.precision import NO_INSTRUCTIONS, has_native_bfloat16
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
    return run_command(COMMAND, lambda: run(config), interrupted=then, output=config.output)


def run(config: InferenceConfig) -> None:
    """Estimate, write and evaluate everything that ``config`` asks for.

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
    )
    start, end = (None if s is None else round(s * 1e6) for s in (config.start, config.end))
    if config.every:
        windows = plan_fixed_rate(recording, config.every, start, end)
    else:
        windows = plan_frame_pairs(recording, config.pairs, start, end)
        if "events" in config.modalities:
            check_events(recording)
    outputs = OutputDirectory(
        config.output, config.format, config.png_encoding, config.times, config.extras
    )
    if config.video:
        opencv_name(outputs.video)  # refused now, not when all windows are estimated
    given = (config.events, config.frames, config.frame_times, config.calibration)
    sources = [*recording.source_files, *(path for path in given if path)]
    outputs.prepare(
        run_settings(config, sources, recording, estimator.info["path"]),
        sources,
        overwrite=config.overwrite,
    )
    report = _estimate_all(config, estimator, recording, windows, outputs)
    report.metrics.write(outputs.metrics, config.checkpoint)
    found = [window for window in windows if outputs.flow(window.index).is_file()]
    if config.video and found and (report.new or not outputs.video.is_file()):
        outputs.write_video(recording, found, report.magnitude)
    if config.html:
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
    print(report.summary(config, estimator, recording, outputs), flush=True)


def spread(windows: list[Interval], count: int) -> list[Interval]:
    """At most ``count`` of the windows, evenly spread, with the first and the last."""
    chosen = np.linspace(0, len(windows) - 1, min(len(windows), count)).astype(int)
    return [windows[position] for position in chosen.tolist()]


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
    windows: list[Interval],
    outputs: OutputDirectory,
) -> RunReport:
    """Estimate the windows that are not done; measure these and those of earlier calls."""
    report = RunReport(len(windows), 0 if config.every else count_gaps(windows))
    pictured = {window.index for window in spread(windows, config.max_pictures)}
    viewed = {window.index for window in spread(windows, MAX_VIEWED if config.html else 0)}
    earlier = find_earlier(recording, windows, outputs.written())
    known = {window.index for window in earlier}
    present = sorted([*windows, *earlier], key=lambda window: window.index)
    reader = FrameReader(recording)
    # disable=None: no bar where the output is no terminal.
    bar = tqdm(present, unit=" windows" if config.every else " pairs", disable=None)
    for window in bar:
        pictures, view = window.index in pictured, window.index in viewed
        if window.index in known:
            pass
        elif outputs.is_done(window.index, pictures, view):
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
            outputs.write(recording, window, result, backward, pictures=pictures, viewed=view)
        # What was written is what is measured: an interrupted run gives the same numbers.
        flow = outputs.read(window.index)
        report.magnitude = max(report.magnitude, colour_range(flow))
        if window.frames:
            flow_at = {tau: outputs.read(window.index, tau) for tau in config.times if tau < 1}
            frame0, frame1 = reader.frames(window)
            assert frame0 is not None and frame1 is not None
            report.metrics.add(recording, window, flow, flow_at, (frame0, frame1))
            bar.set_postfix_str(report.metrics.latest)
    outputs.write_windows(present)
    asked = "events" in config.modalities and recording.event_range is not None
    if asked and 0 < report.from_frames == report.new == report.total:
        warnings.warn(f"no event in any pair asked for: {describe_times(recording)}", stacklevel=2)
    return report


def command() -> None:
    """Entry point of flowfuse-infer."""
    leave(main())


if __name__ == "__main__":
    command()
