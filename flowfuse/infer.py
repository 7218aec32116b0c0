"""``flowfuse-infer``: a recording in, dense and continuous flow out."""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from flowfuse.checkpoint import available
from flowfuse.data.recording import Recording, open_recording
from flowfuse.estimator import Estimator, load
from flowfuse.infer_metrics import RunMetrics
from flowfuse.infer_outputs import OutputDirectory, run_settings
from flowfuse.infer_pictures import LEAST_MAGNITUDE, colour_range
from flowfuse.windows import (
    GAP_RATIO,
    FrameReader,
    Window,
    count_gaps,
    estimate_window,
    plan_pairs,
    plan_steps,
)

COMMAND = "flowfuse-infer"
DESCRIPTION = """\
Estimate dense and continuous optical flow from a recording of frames and events.

INPUT is a directory with events.{h5,npz,txt,csv}, images.txt (lines `time path`, in seconds) and
the images. OUT gets flow/000000.flo (from frame 0 to frame 1), ..., pictures/, flow.mp4, and
metrics.json where the recording has true flow. The same command again takes up an interrupted run.
"""
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000}


@dataclass(frozen=True)
class InferenceConfig:
    """What one run of ``flowfuse-infer`` does.

    Args:
        input: recording directory, or None when ``events`` is given.
        events, frames, frame_times: files in place of, or in addition to, ``input``.
        output: directory of the results.
        checkpoint: shipped name or path.
        device: "cpu" or "cuda[:index]".
        bf16: automatic mixed precision.
        iterations: recurrent updates; None = the network's default.
        threads: CPU threads; None = torch's choice.
        pairs: first and last (excluded) pair; None on either side = open.
        start, end: window in seconds of the recording's clock.
        every: flow from events alone, one field each so many microseconds; None = frame pairs.
        times: the tau in (0, 1) at which continuous flow is written.
        format: "flo", "png", "npy" or "npz".
        png_encoding: "kitti" or "dsec".
        max_pictures: pairs that get pictures, spread evenly; 0 = none.
        video: write flow.mp4.
        overwrite: discard the results of a run with other settings.
    """

    input: Path | None
    output: Path
    events: Path | None = None
    frames: Path | None = None
    frame_times: Path | None = None
    checkpoint: str = "small"
    device: str = "cpu"
    bf16: bool = False
    iterations: int | None = None
    threads: int | None = None
    pairs: tuple[int | None, int | None] | None = None
    start: float | None = None
    end: float | None = None
    every: int | None = None
    times: tuple[float, ...] = ()
    format: str = "flo"
    png_encoding: str = "kitti"
    max_pictures: int = 8
    video: bool = True
    overwrite: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None takes those of the process.

    Returns:
        0, or 1 on an error, 2 on wrong usage, 130 when interrupted.
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
    try:
        with _plain_warnings():
            run(config)
    except KeyboardInterrupt:
        print(f"{COMMAND}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (OSError, ValueError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"{COMMAND}: error: {_one_line(error, config.output)}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> ArgumentParser:
    """Return the command line of ``flowfuse-infer``."""
    parser = ArgumentParser(
        prog=COMMAND,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="?", type=str, help="recording directory")
    add("-o", "--output", metavar="OUT", type=str, required=True, help="directory of the results")
    add("--events", metavar="FILE", type=str, help="events, where not in INPUT")
    add("--frames", metavar="DIR", type=str, help="directory or video of the frames, likewise")
    add("--frame-times", metavar="FILE", type=str, help="times of the frames, likewise")
    add("--pairs", metavar="A:B", type=str, help="pairs A to B - 1 of the recording (default: all)")
    add("--start", metavar="S", type=float, help="start here, in seconds of the recording's clock")
    add("--end", metavar="S", type=float, help="end here, likewise")
    add(
        "--every",
        metavar="TIME",
        type=str,
        help="flow from the events alone, one field every 10ms, 5000us or 0.01s",
    )
    add(
        "--times",
        metavar="TAU,...",
        type=str,
        default="",
        help="also write the flow to these times, as fractions of each pair: 0.25,0.5,0.75",
    )
    add(
        "--format",
        type=str,
        choices=["flo", "png", "npy", "npz"],
        default="flo",
        help="file format of the flow",
    )
    add(
        "--png-encoding",
        type=str,
        choices=["kitti", "dsec"],
        default="kitti",
        help="scale of 16-bit PNG: kitti 1/64 px, dsec 1/128 px",
    )
    add(
        "--max-pictures",
        metavar="N",
        type=int,
        default=8,
        help="draw pictures of at most N pairs, evenly spread; 0: none",
    )
    add("--no-video", action="store_true", help="do not write flow.mp4")
    add(
        "--checkpoint",
        metavar="NAME",
        type=str,
        default="small",
        help=f"shipped checkpoint ({', '.join(available()) or 'none here'}) or a .safetensors file",
    )
    add("--iterations", metavar="N", type=int, help="recurrent updates: fewer are faster")
    add("--device", type=str, default="cpu", help="cpu, cuda or cuda:<index>")
    add("--threads", metavar="N", type=int, help="CPU threads")
    add("--bf16", action="store_true", help="mixed precision: faster, slightly less exact")
    add("--overwrite", action="store_true", help="discard what an earlier run left in OUT")
    return parser


def parse_config(parser: ArgumentParser, arguments: Sequence[str]) -> InferenceConfig:
    """Turn arguments into a configuration; wrong ones end in the parser's usage error."""
    given: Namespace = parser.parse_args(list(arguments))
    if given.input is None and given.events is None:
        parser.error("give a recording directory INPUT, or --events")
    for name in ("iterations", "threads"):
        if given[name] is not None and given[name] < 1:
            parser.error(f"--{name} must be at least 1, got {given[name]}")
    if given.max_pictures < 0:
        parser.error(f"--max-pictures must not be negative, got {given.max_pictures}")
    if given.every is not None and given.pairs is not None:
        parser.error("--every makes windows of its own: give --start and --end, not --pairs")

    def convert(option: str, parse: Callable, text: str | None):
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            parser.error(f"{option} {text!r}: {error}")

    def path(text: str | None) -> Path | None:
        return None if text is None else Path(text)

    return InferenceConfig(
        input=path(given.input),
        output=Path(given.output),
        events=path(given.events),
        frames=path(given.frames),
        frame_times=path(given.frame_times),
        checkpoint=given.checkpoint,
        device=given.device,
        bf16=given.bf16,
        iterations=given.iterations,
        threads=given.threads,
        pairs=convert("--pairs", parse_range, given.pairs),
        start=given.start,
        end=given.end,
        every=convert("--every", parse_duration, given.every),
        times=convert("--times", parse_times, given.times),
        format=given.format,
        png_encoding=given.png_encoding,
        max_pictures=given.max_pictures,
        video=not given.no_video,
        overwrite=given.overwrite,
    )


def parse_duration(text: str) -> int:
    """Read "10ms", "5000us" or "0.01s" as microseconds."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(us|ms|s)\s*", text)
    try:
        value = float(match[1]) * _UNITS[match[2]] if match else -1
    except ValueError:
        value = -1
    if value < 1 or value != round(value, 6) or round(value) < 1:
        raise ValueError("expected a time of at least 1us, such as 10ms, 5000us or 0.01s")
    return round(value)


def parse_times(text: str) -> tuple[float, ...]:
    """Read "0.25,0.5" as increasing fractions in (0, 1]."""
    try:
        times = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        times = (float("nan"),)
    if not all(0 < tau <= 1 for tau in times) or list(times) != sorted(set(times)):
        raise ValueError("expected increasing fractions in (0, 1], such as 0.25,0.5,0.75")
    return times


def parse_range(text: str) -> tuple[int | None, int | None]:
    """Read "3:10", ":10" or "3:" as a half-open range."""
    match = re.fullmatch(r"\s*([0-9]*)\s*:\s*([0-9]*)\s*", text)
    if not match:
        raise ValueError("expected A:B, such as 0:10, :10 or 5:")
    first, last = (int(part) if part else None for part in match.groups())
    if last is not None and last <= (first or 0):
        raise ValueError("the range is empty; B is excluded")
    return first, last


def run(config: InferenceConfig) -> None:
    """Estimate, write and evaluate everything that ``config`` asks for.

    Raises:
        OSError, ValueError: with a message that names the file or setting at fault.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    estimator = load(config.checkpoint, config.device, torch.bfloat16 if config.bf16 else None)
    recording = open_recording(
        config.input, events=config.events, frames=config.frames, times=config.frame_times
    )
    start, end = (None if s is None else round(s * 1e6) for s in (config.start, config.end))
    if config.every:
        windows = plan_steps(recording, config.every, start, end)
    else:
        windows = plan_pairs(recording, config.pairs, start, end)
    outputs = OutputDirectory(config.output, config.format, config.png_encoding, config.times)
    sources = [p for p in (config.input, config.events, config.frames, config.frame_times) if p]
    outputs.prepare(
        run_settings(config, sources, estimator.info["path"]), sources, overwrite=config.overwrite
    )
    report = _estimate_all(config, estimator, recording, windows, outputs)
    report.metrics.write(outputs.metrics, config.checkpoint)
    found = [window for window in windows if outputs.flow(window.index).is_file()]
    if config.video and found and (report.new or not outputs.video.is_file()):
        outputs.write_video(recording, found, report.magnitude)
    print(report.summary(config, estimator, recording, outputs), flush=True)


@dataclass
class RunReport:
    """What happened to the windows of a run."""

    total: int
    gaps: int
    done: int = 0
    new: int = 0
    from_frames: int = 0
    skipped: int = 0
    magnitude: float = LEAST_MAGNITUDE
    seconds: list[float] = field(default_factory=list)
    metrics: RunMetrics = field(default_factory=RunMetrics)

    def summary(
        self,
        config: InferenceConfig,
        estimator: Estimator,
        recording: Recording,
        outputs: OutputDirectory,
    ) -> str:
        """Say it in a few lines."""
        unit = "window" if config.every else "pair"
        found = f"{self.total} {unit}s of {recording.width} x {recording.height} px"
        lines = [f"{found}: {self.new} estimated, {self.done} were there already"]
        for count, text in (
            (self.skipped, "without any event: no flow, no file"),
            (self.from_frames, "without any event: flow from the frames alone"),
            (self.gaps, f"longer than {GAP_RATIO} x the median interval (frames missing)"),
        ):
            if count:
                lines.append(f"  {count} {unit}s {text}")
        lines += self.metrics.lines()
        if self.seconds:
            # The first call pays for allocations and thread start-up.
            counted = self.seconds[1:] or self.seconds
            iterations = config.iterations or estimator.model.config.iterations
            lines.append(
                f"time per {unit}: {statistics.median(counted):.3f} s (median of {len(counted)}, "
                f"network and event slices; {estimator.device}, {torch.get_num_threads()} threads, "
                f"{iterations} iterations)"
            )
        return "\n".join(lines + outputs.lines())


def _estimate_all(
    config: InferenceConfig,
    estimator: Estimator,
    recording: Recording,
    windows: list[Window],
    outputs: OutputDirectory,
) -> RunReport:
    report = RunReport(len(windows), 0 if config.every else count_gaps(windows))
    count = min(len(windows), config.max_pictures)
    pictured = set(np.linspace(0, len(windows) - 1, count).astype(int).tolist())
    reader = FrameReader(recording)
    # disable=None: no bar where the output is no terminal.
    bar = tqdm(windows, unit=" windows" if config.every else " pairs", disable=None)
    for position, window in enumerate(bar):
        pictures = position in pictured
        if outputs.is_done(window.index, pictures):
            report.done += 1
        else:
            result, seconds = estimate_window(
                estimator, recording, reader, window, config.iterations
            )
            if result is None:
                report.skipped += 1
                continue
            report.new += 1
            report.seconds.append(seconds)
            report.from_frames += result.modalities == ("frames",)
            outputs.write(recording, window, result, pictures=pictures)
        # What was written is what is measured: an interrupted run gives the same numbers.
        flow = outputs.read(window.index)
        report.magnitude = max(report.magnitude, colour_range(flow))
        if window.frames:
            flow_at = {tau: outputs.read(window.index, tau) for tau in config.times if tau < 1}
            report.metrics.add(recording, window.index, flow, flow_at, reader.frames(window))
            bar.set_postfix_str(report.metrics.latest)
    return report


def _one_line(error: BaseException, output: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        # A write to a full disk knows no file name.
        return f"{error.filename or output}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as lines of the command, beside the progress bar."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        tqdm.write(f"{COMMAND}: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def command() -> None:
    """Entry point of flowfuse-infer."""
    sys.exit(main())


if __name__ == "__main__":
    command()
