"""Settings of ``flowfuse-live``, read from its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowfuse.cli.console import MAX_THREADS, CommandParser
from flowfuse.config import parse_duration
from flowfuse.model.checkpoint import available
from flowfuse.precision import DTYPES
from flowfuse.stream.buffers import FOREVER
from flowfuse.stream.clocks import microseconds
from flowfuse.stream.policy import POLICIES
from flowfuse.stream.settings import StreamSettings

COMMAND = "flowfuse-live"
DESCRIPTION = """\
Estimate optical flow of live frames and events, and show it. Ctrl-C ends at any time.

SOURCE is one of

  RECORDING           what flowfuse-infer reads, replayed in real time
  dv:[SERIAL]         a camera of iniVation
  dv://HOST:PORT      a network stream of dv-processing; HOST:PORT+PORT: events and frames
  metavision:[SERIAL] a camera of Prophesee, where Metavision or OpenEB is installed
  webcam:[N]          a camera of OpenCV, with simulated events
"""
WARM_STARTS = {"auto": None, "on": True, "off": False}
VIEWS = ("text", "json", "window", "rerun", "none")


@dataclass(frozen=True)
class LiveConfig:
    """What one run of ``flowfuse-live`` does.

    Args:
        source: see :func:`flowfuse.live_sources.opening.open_source`.
        interval, every: see :class:`flowfuse.Stream`; interval None: "frames" where frames come,
            else "20ms".
        policy: see :class:`flowfuse.Stream`; None: "all" where a recording is replayed at speed 0,
            which nothing keeps from waiting, else "latest".
        rate, memory, tolerance, offset, warm_start, warm_iterations, scale_tolerance: see
            :class:`flowfuse.StreamSettings`.
        speed: of a recording that is replayed; 0: as fast as it can be read.
        record: directory that keeps what came in; None: nothing is kept.
        view: one of VIEWS.
        output: .rrd file of the view "rerun"; None: its viewer is opened.
        tracks: points that are followed; 0: none.
        seconds: stop after so many; None: when the source ends.
        checkpoint, device, precision, iterations, threads: as of flowfuse-infer.
    """

    source: str
    interval: str | None = None
    every: str | None = None
    policy: str | None = None
    rate: float = 2e6
    memory: int = 2_000_000
    tolerance: str = "50ms"
    offset: str = "0"
    warm_start: bool | None = None
    warm_iterations: int | None = None
    scale_tolerance: float = 0.0
    speed: float = 1.0
    record: Path | None = None
    view: str = "text"
    output: Path | None = None
    tracks: int = 200
    seconds: float | None = None
    checkpoint: str = "small"
    device: str = "auto"
    precision: str = "float32"
    iterations: int | None = None
    threads: int | None = None


def build_parser() -> CommandParser:
    """Return the command line of ``flowfuse-live``."""
    parser = CommandParser(
        DESCRIPTION,
        prog=COMMAND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, default = parser.add_argument, LiveConfig("")
    add("source", metavar="SOURCE", type=str, help="camera, network stream or recording")
    add(
        "--interval",
        metavar="TIME",
        type=str,
        help="frames: from each frame to the next; or the length of fixed intervals, such as 20ms "
        "(default: frames where frames come, else 20ms)",
    )
    add(
        "--every", metavar="TIME", type=str, help="from the start of one fixed interval to the next"
    )
    add("--view", type=str, choices=VIEWS, default=default.view, help="how to show it")
    add(
        "-o",
        "--output",
        metavar="FILE.rrd",
        type=str,
        help="with --view rerun: write this file, to be opened by rerun later",
    )
    add("--record", metavar="DIR", type=str, help="keep what comes in, as a recording")
    add("--tracks", metavar="N", type=int, default=default.tracks, help="points to follow; 0: none")
    add("--seconds", metavar="S", type=float, help="stop after so many seconds")
    add(
        "--speed",
        metavar="X",
        type=float,
        default=default.speed,
        help="replay a recording X times as fast as it was; 0: as fast as it can be read",
    )
    add(
        "--policy",
        type=str,
        choices=POLICIES,
        help="when more comes in than can be estimated: pass over all but the latest, let the "
        "source wait for all, or thin the events (default: latest; all with --speed 0)",
    )
    add(
        "--rate",
        metavar="N",
        type=float,
        default=default.rate,
        help="with --policy thin: events per second that are let through",
    )
    add("--memory", metavar="N", type=int, default=default.memory, help="events that are kept")
    add(
        "--tolerance",
        metavar="TIME",
        type=str,
        default=default.tolerance,
        help="by how much frames and events may lag behind each other",
    )
    add(
        "--offset",
        metavar="TIME",
        type=str,
        default=default.offset,
        help="added to the times of frames, such as 3ms; --offset=-3ms if negative",
    )
    add(
        "--warm-start",
        type=str,
        choices=list(WARM_STARTS),
        default="auto",
        help="start each estimate from the one before; auto: where intervals overlap",
    )
    add(
        "--warm-iterations",
        metavar="N",
        type=int,
        help="recurrent updates from such a start",
    )
    add(
        "--scale-tolerance",
        metavar="SHARE",
        type=float,
        default=default.scale_tolerance,
        help="where intervals overlap, use features of event slices again while the scale of "
        "events changes by no more than this share, such as 0.05",
    )
    add(
        "--checkpoint",
        metavar="NAME",
        type=str,
        default=default.checkpoint,
        help=f"shipped checkpoint ({', '.join(available()) or 'none here'}), .safetensors file, or "
        "directory of a training",
    )
    add("--iterations", metavar="N", type=int, help="recurrent updates: fewer are faster")
    add("--device", type=str, default=default.device, help="auto, cpu, cuda or cuda:N")
    add("--threads", metavar="N", type=int, help="CPU threads")
    add(
        "--precision",
        type=str,
        choices=list(DTYPES),
        default=default.precision,
        help="bf16: automatic mixed precision",
    )
    return parser


def _check_lags(parser: CommandParser, tolerance: str, offset: str) -> None:
    """Refuse a tolerance or an offset by the name of its option."""
    try:
        lag = microseconds("tolerance", tolerance)
    except ValueError:
        parser.error(f"--tolerance {tolerance!r}: expected a time such as 50ms, or 0")
    # Of the stream: a clock that jumps back by more began anew.
    if lag >= microseconds("reset_after", StreamSettings.reset_after):
        parser.error(
            f"--tolerance must be less than {StreamSettings.reset_after}: a clock that jumps back "
            f"by more began anew; got {tolerance!r}"
        )
    try:
        microseconds("offset", offset, least=-FOREVER)
    except ValueError:
        parser.error(f"--offset {offset!r}: expected a time such as 3ms, or -3ms")


def parse_config(parser: CommandParser, arguments: Sequence[str]) -> LiveConfig:
    """Turn arguments into a configuration; wrong ones end in the parser's usage error."""
    given = parser.parse_args(list(arguments)).as_dict()
    for name in ("iterations", "warm_iterations", "threads", "memory"):
        if given[name] is not None and given[name] < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be at least 1, got {given[name]}")
    if given["threads"] is not None and given["threads"] > MAX_THREADS:
        parser.error(f"--threads must be at most {MAX_THREADS}, got {given['threads']}")
    if given["tracks"] < 0:
        parser.error(f"--tracks must not be negative, got {given['tracks']}")
    if given["seconds"] is not None and not given["seconds"] > 0:
        parser.error(f"--seconds must be positive, got {given['seconds']}")
    given["warm_start"] = WARM_STARTS[given["warm_start"]]
    if not 0 <= given["scale_tolerance"] < 1:
        parser.error(f"--scale-tolerance must be in [0, 1), got {given['scale_tolerance']}")
    for name in ("interval", "every"):
        text = given[name]
        if text is None or (name, text) == ("interval", "frames"):
            continue
        try:
            parse_duration(text)
        except ValueError as error:
            parser.error(f"--{name} {text!r}: {error}")
    _check_lags(parser, given["tolerance"], given["offset"])
    if given["output"] is not None:
        if given["view"] != "rerun":
            parser.error("--output belongs to --view rerun")
        if not given["output"].endswith(".rrd"):
            parser.error(f"--output must name a .rrd, got {given['output']!r}")
    for name in ("output", "record"):
        given[name] = Path(given[name]) if given[name] else None
    return LiveConfig(**given)
