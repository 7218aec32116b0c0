"""Settings of ``flowfuse-infer``, read from its command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flowfuse.cli.console import MAX_THREADS, CommandParser
from flowfuse.cli.infer_extras import EXTRAS
from flowfuse.cli.reading_options import add_reading_options, reading_options
from flowfuse.config import parse_duration
from flowfuse.data.formats.frames import IMAGE_SUFFIXES
from flowfuse.data.reading import ReadingOptions
from flowfuse.model.checkpoint import available
from flowfuse.precision import DTYPES
from flowfuse.runner import FIRST_FRAME, MODALITIES

COMMAND = "flowfuse-infer"
DESCRIPTION = """\
Estimate dense and continuous optical flow from a recording of frames and events.

INPUT is a recording, or several, or a folder of recordings: several are written to OUT/NAME each,
and their averages to OUT/recordings.json. `torchrun --nproc-per-node N -m flowfuse.infer ...`
shares the pairs or time intervals of each recording among N processes.

A recording is a directory with events.{h5,npz,txt,csv,raw,aedat4,bag}, images.txt (lines
`time path`, in seconds) and the images; or an .aedat4 file, a ROS bag or <sequence>_data.hdf5 of
MVSEC; or an event file (for --every, or with --frames); or a video. OUT gets

  flow/000000.flo  flow from frame 0 to frame 1, ...; with --every, of time interval 0, ...
  flow_at/TAU/     with --times: the same from each start to the fraction TAU of the way
  windows.csv      index,t0_us,t1_us,file of every time interval; no file if it has no events
  metrics.json     of frame pairs: the photometric error, and errors if there is ground truth
  pictures/, flow.mp4
  index.html       with --html: a page that shows all of it over time, in any browser
  and with --write: flow_backward/, occlusion/, uncertainty/, boundaries/, control_points/
  tracks.csv       with --tracks: id,t_us,x,y,lost of points that are followed
  event_flow/      with --event-flow: the velocity of every event

for all frame pairs or time intervals of this and earlier calls. The video covers the last call
that made new ones. The same command again continues an interrupted run.

INPUT may also be a sequence of DSEC, ROOT/SEQ, in any of its layouts. Its pairs are 100 ms apart,
or those of its ground truth if it has some. docs/guides/data_sets.md lists other data sets. With
--submission, INPUT is the ROOT that holds the test sequences, and one zip is written instead of
OUT.
"""
# What says how a recording is read and what is written of it: no matter of a submission.
_OF_RECORDINGS = (
    "output", "events", "frames", "frame_times", "pairs", "start", "end", "every", "times",
    "format", "png_encoding", "max_pictures", "no_video", "write", "events_only", "frames_only",
    "from_frame", "html", "outlier_fraction", "tracks", "event_flow", "bit_depth", "repair", "part",
    "time_offset", "depth", "columns",
)  # fmt: skip
MAX_VIEWED = 20  # pairs in index.html; at 640 x 480 px they take up to 30 MB
MAX_SECONDS = 9.2e12  # more do not fit int64 microseconds


@dataclass(frozen=True)
class InferenceConfig:
    """What one run of ``flowfuse-infer`` does.

    Args:
        input: recording directory, event file or video; None with ``events`` or ``frames``.
        inputs: all that are given, folders of recordings too; ``input`` is the first.
        events, frames, frame_times: files in place of, or in addition to, ``input``.
        calibration: of the rig, a file of :mod:`flowfuse.data.calibration`; None = one pixel grid.
        reading: what else is stated or asked for of the recording.
        output: directory of the results.
        checkpoint: shipped name, path of a file, or directory of a training.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", or "bf16": automatic mixed precision where the device has bfloat16
            instructions.
        iterations: recurrent updates; None = the network's default.
        threads: CPU threads; None = torch's choice.
        pairs: first and last (excluded) pair; None on either side = open.
        start, end: of the time to estimate, in seconds of the recording's clock.
        every: flow from events alone, one field each so many microseconds; None = frame pairs.
        times: the tau in (0, 1] at which continuous flow is written.
        format: "flo", "png", "npy" or "npz".
        png_encoding: "kitti" or "dsec".
        extras: what else is written of each interval, names of EXTRAS.
        modalities: what the network is given: "frames", "events" or both, or "frame0" and "events".
        max_pictures: pairs that get pictures, spread evenly; 0 = none.
        video: write flow.mp4.
        html: write index.html, the viewer.
        outlier_fraction: 1PE, 2PE and 3PE also ask for an error of this fraction of the true
            magnitude.
        overwrite: discard the results of a run with other settings, or a former submission.
        submission: the zip of predictions for the test set of DSEC, whose root ``input`` is.
        schedules: directory of the test set's schedules, SEQ.csv; None = where DSEC has them.
        warm_start: a prediction starts from the one before.
        tracks: a file of points to follow through all pairs, or "auto"; None = no tracks.
        event_flow: write the velocity of every event.
    """

    input: Path | None
    output: Path
    events: Path | None = None
    frames: Path | None = None
    frame_times: Path | None = None
    calibration: Path | None = None
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    checkpoint: str = "small"
    device: str = "auto"
    precision: str = "float32"
    iterations: int | None = None
    threads: int | None = None
    pairs: tuple[int | None, int | None] | None = None
    start: float | None = None
    end: float | None = None
    every: int | None = None
    times: tuple[float, ...] = ()
    format: str = "flo"
    png_encoding: str = "kitti"
    extras: tuple[str, ...] = ()
    modalities: tuple[str, ...] = MODALITIES
    max_pictures: int = 8
    video: bool = True
    html: bool = False
    inputs: tuple[Path, ...] = ()
    outlier_fraction: float = 0.0
    overwrite: bool = False
    submission: Path | None = None
    schedules: Path | None = None
    warm_start: bool = False
    tracks: str | None = None
    event_flow: bool = False


def build_parser() -> ArgumentParser:
    """Return the command line of ``flowfuse-infer``.

    It is written by hand, unlike that of ``flowfuse-train``: many options are not typed as the
    fields are (10ms, 0:10, --no-video), and which ones go together depends on what is asked for.
    """
    parser = CommandParser(
        DESCRIPTION,
        prog=COMMAND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "input",
        metavar="INPUT",
        nargs="*",
        type=str,
        help="recordings (directory, event file or video), folders of recordings, or @FILE with "
        "one of these a line",
    )
    add("-o", "--output", metavar="OUT", type=str, help="directory of the results")
    add("--events", metavar="FILE", type=str, help="events, if not in INPUT")
    add("--frames", metavar="DIR", type=str, help="directory or video of the frames, likewise")
    add(
        "--frame-times",
        metavar="FILE",
        type=str,
        help="times of the frames, likewise; or triggers[:rising|falling]",
    )
    add(
        "--calibration",
        metavar="FILE",
        type=str,
        help="YAML file of two cameras: events are undistorted, frames brought into their view",
    )
    add_reading_options(parser)
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
        "--write",
        metavar="KIND,...",
        type=str,
        default="",
        help=f"also write, of each pair or time interval: {', '.join(EXTRAS)}",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--events-only",
        action="store_true",
        help="flow of the frame pairs without their frames, to compare",
    )
    only.add_argument(
        "--frames-only", action="store_true", help="flow without the events, to compare"
    )
    only.add_argument(
        "--from-frame",
        action="store_true",
        help="flow from the first frame of each pair and the events since, as in live use",
    )
    add(
        "--max-pictures",
        metavar="N",
        type=int,
        default=8,
        help="draw pictures of at most N pairs, evenly spread; 0: none",
    )
    add(
        "--html",
        action="store_true",
        help=f"write OUT/index.html: one file for a browser, with up to {MAX_VIEWED} pairs or time "
        "intervals, evenly spread (--pairs, --start, --end choose)",
    )
    add("--no-video", action="store_true", help="do not write flow.mp4")
    add(
        "--outlier-fraction",
        metavar="F",
        type=float,
        default=0.0,
        help="count an error for 1PE, 2PE and 3PE only if it is at least this fraction of the true "
        "magnitude; 0.05 gives the NPE of BFlow",
    )
    add(
        "--checkpoint",
        metavar="NAME",
        type=str,
        default="small",
        help=f"shipped checkpoint ({', '.join(available()) or 'none here'}), .safetensors file, or "
        "directory of a training",
    )
    add("--iterations", metavar="N", type=int, help="recurrent updates: fewer are faster")
    add(
        "--device",
        type=str,
        default="auto",
        help="auto (the first GPU that torch sees, else the CPU), cpu, cuda or cuda:N",
    )
    add("--threads", metavar="N", type=int, help="CPU threads")
    add(
        "--precision",
        type=str,
        choices=list(DTYPES),
        default="float32",
        help="bf16: convolutions and features in bfloat16, coordinates and flow still in float32: "
        "faster on a GPU, slightly less exact; a CPU without bfloat16 instructions is faster in "
        "float32 and stays in it; float32 convolutions on a GPU are in TF32",
    )
    add("--overwrite", action="store_true", help="discard what an earlier run left in OUT")
    add(
        "--submission",
        metavar="ZIP",
        type=str,
        help="write the predictions that the benchmark of DSEC asks for; INPUT is the data set",
    )
    add(
        "--schedules",
        metavar="DIR",
        type=str,
        help="with --submission: SEQ.csv of its test sequences, where they are not in INPUT",
    )
    add(
        "--warm-start",
        action="store_true",
        help="with --submission: predict the time intervals in between too, each from the last",
    )
    add(
        "--tracks",
        metavar="POINTS.csv",
        type=str,
        help="follow the points of a file, lines x,y in px of the first frame, through all pairs "
        "of this call, which are estimated anew; auto: choose points",
    )
    add("--event-flow", action="store_true", help="also write the velocity of every event")
    return parser


def parse_config(parser: ArgumentParser, arguments: Sequence[str]) -> InferenceConfig:
    """Turn arguments into a configuration; wrong ones end in the parser's usage error."""
    given: Namespace = parser.parse_args(list(arguments))
    inputs = _read_inputs(parser, given.input or [])
    if not inputs and given.events is None and given.frames is None:
        parser.error("give a recording INPUT, --events or --frames")
    images = [str(path) for path in inputs if path.suffix.lower() in IMAGE_SUFFIXES]
    if images and not any(path.is_dir() for path in inputs):
        parser.error(
            f"{', '.join(images[:2])}{', ...' if len(images) > 2 else ''}: an image is no "
            "recording. Put the images into DIR/images/, and their times in seconds into "
            "DIR/timestamps.txt, a line for each such as 0 and 0.05, and give DIR; in Python, "
            'flowfuse.load("small")(image0, image1, None, t0=0, t1=50_000)'
        )
    _check_submission(parser, given)
    for name in ("iterations", "threads"):
        if given[name] is not None and given[name] < 1:
            parser.error(f"--{name} must be at least 1, got {given[name]}")
    if given.threads is not None and given.threads > MAX_THREADS:
        parser.error(f"--threads must be at most {MAX_THREADS}, got {given.threads}")
    for name in ("start", "end"):
        if given[name] is not None and not abs(given[name]) <= MAX_SECONDS:
            parser.error(
                f"--{name} must be a time in seconds of at most {MAX_SECONDS:g}, got {given[name]}"
            )
    if given.max_pictures < 0:
        parser.error(f"--max-pictures must not be negative, got {given.max_pictures}")
    if not 0 <= given.outlier_fraction < 1:
        parser.error(f"--outlier-fraction must be in [0, 1), got {given.outlier_fraction}")
    if given.every is not None and given.pairs is not None:
        parser.error("--every makes time intervals of its own: give --start and --end, not --pairs")

    for name in ("frames_only", "from_frame"):
        if given.every is not None and getattr(given, name):
            option = f"--{name.replace('_', '-')}"
            parser.error(f"--every estimates flow from events: leave out {option}")

    def convert(option: str, parse: Callable, text: str | None):
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            parser.error(f"{option} {text!r}: {error}")

    def path(text: str | None) -> Path | None:
        return None if text is None else Path(text)

    try:
        reading = reading_options(given)
    except ValueError as error:
        parser.error(str(error))
    return InferenceConfig(
        input=inputs[0] if inputs else None,
        inputs=inputs,
        output=Path(given.output or given.submission),
        events=path(given.events),
        frames=path(given.frames),
        frame_times=path(given.frame_times),
        calibration=path(given.calibration),
        reading=reading,
        checkpoint=given.checkpoint,
        device=given.device,
        precision=given.precision,
        iterations=given.iterations,
        threads=given.threads,
        pairs=convert("--pairs", parse_range, given.pairs),
        start=given.start,
        end=given.end,
        every=convert("--every", parse_duration, given.every),
        times=convert("--times", parse_times, given.times),
        format=given.format,
        png_encoding=given.png_encoding,
        extras=convert("--write", parse_extras, given.write),
        modalities=_modalities(given),
        max_pictures=given.max_pictures,
        video=not given.no_video,
        html=given.html,
        outlier_fraction=given.outlier_fraction,
        overwrite=given.overwrite,
        submission=path(given.submission),
        schedules=path(given.schedules),
        warm_start=given.warm_start,
        tracks=given.tracks,
        event_flow=given.event_flow,
    )


def _read_inputs(parser: ArgumentParser, words: Sequence[str]) -> tuple[Path, ...]:
    """The inputs, with those of an @FILE in its place."""
    found: list[Path] = []
    for word in words:
        if not word.startswith("@"):
            found.append(Path(word))
            continue
        try:
            lines = Path(word[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"{word}: cannot read a list of inputs ({error})")
        listed = [Path(line.strip()) for line in lines if line.strip()]
        if not listed:
            parser.error(f"{word}: the list is empty, expected one input a line")
        found += listed
    return tuple(found)


def _modalities(given: Namespace) -> tuple[str, ...]:
    if given.events_only:
        return ("events",)
    if given.from_frame:
        return (FIRST_FRAME, "events")
    return ("frames",) if given.frames_only else MODALITIES


def _check_submission(parser: ArgumentParser, given: Namespace) -> None:
    if given.submission is None:
        if not given.output:  # an unset variable of a shell is an empty name
            parser.error("name the directory of the results: -o OUT")
        for name in ("schedules", "warm_start"):
            if given[name]:
                parser.error(f"--{name.replace('_', '-')} belongs to --submission")
        return
    if len(given.input or []) != 1:
        parser.error(f"--submission needs INPUT, one root of DSEC, got {len(given.input or [])}")
    if not given.submission.endswith(".zip"):
        parser.error(f"--submission must name a .zip, got {given.submission!r}")
    for name in _OF_RECORDINGS:
        if given[name] != parser.get_default(name):
            option = name.replace("_", "-")
            parser.error(f"--submission writes one zip of fixed content: leave out --{option}")


def parse_times(text: str) -> tuple[float, ...]:
    """Read "0.25,0.5" as increasing fractions in (0, 1]."""
    try:
        times = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        times = (float("nan"),)
    if not all(0 < tau <= 1 for tau in times) or list(times) != sorted(set(times)):
        raise ValueError("expected increasing fractions in (0, 1], such as 0.25,0.5,0.75")
    return times


def parse_extras(text: str) -> tuple[str, ...]:
    """Read "uncertainty,backward" as names of EXTRAS, in the order that EXTRAS has."""
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for name in names:
        if name not in EXTRAS:
            raise ValueError(f"unknown kind {name!r}, expected some of {', '.join(EXTRAS)}")
    return tuple(name for name in EXTRAS if name in names)


def parse_range(text: str) -> tuple[int | None, int | None]:
    """Read "3:10", ":10" or "3:" as a half-open range."""
    match = re.fullmatch(r"\s*([0-9]*)\s*:\s*([0-9]*)\s*", text)
    if not match:
        raise ValueError("expected A:B, such as 0:10, :10 or 5:")
    first, last = (int(part) if part else None for part in match.groups())
    if last is not None and last <= (first or 0):
        raise ValueError("the range is empty; B is excluded")
    return first, last
