"""Say what a recording is like, and draw it: look at this before trusting any flow of it.

python data_tools/inspect_recording.py RECORDING --sheet sheet.png
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, parse_count, run_command
from flowfuse.cli.reading_options import (
    add_reading_options,
    keyword_arguments,
    reading_options,
)
from flowfuse.data.calibration import read_calibration
from flowfuse.data.diagnosis import BETTER, compare_clocks, compare_geometry, guess_unit
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.frames import IMAGE_SUFFIXES
from flowfuse.data.inspection import (
    BIN,
    EventStatistics,
    TimeOffset,
    count_events,
    estimate_drift,
    estimate_offset,
    usable_pairs,
)
from flowfuse.data.opening import open_recording
from flowfuse.data.recording import Recording
from flowfuse.io.atomic import check_file_path
from flowfuse.visualization import contact_sheet, render_events, render_heat, write_image

PAIRS_SHOWN = 4
NO_PAIRS = "no two successive frames lie in the time of the events: nothing can be compared"
MAX_REACH = 1000  # ms
_LISTED = 5  # gaps and hot pixels named
_SLICE = 10_000  # us of events drawn over a frame
# A frame this much later than usual after the one before has lost others in between.
_LATE = 1.5
_WORTH_TELLING = 0.1  # correlation below which no offset is told


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.recording is arguments.events is arguments.frames is None:
        parser.error("name a recording, or --events or --frames")
    return run_command("inspect_recording", lambda: inspect(arguments))


def inspect(arguments: Namespace) -> None:
    """Print what the recording is like, and draw it."""
    if arguments.sheet is not None:
        check_picture_name(arguments.sheet)
    recording = open_recording(
        arguments.recording,
        events=arguments.events,
        frames=arguments.frames,
        times=arguments.frame_times,
        calibration=arguments.calibration,
        **keyword_arguments(reading_options(arguments)),
    )
    named = arguments.recording or arguments.events or arguments.frames
    print(f"{named}: {recording.width} x {recording.height}")
    statistics = count_events(recording)
    lines = describe_frames(recording) + describe_events(recording, statistics)
    if isinstance(recording, FileRecording) and recording.assumption is not None:
        lines.append(recording.assumption)
    if arguments.calibration is not None:
        share = read_calibration(
            arguments.calibration, (recording.height, recording.width)
        ).overlap()
        lines.append(f"field of view: the frames show {100 * share:.1f} % of the events' view")
    if statistics.count and statistics.fault is None:
        lines += describe_agreement(recording, arguments.reach * 1000)
        if arguments.estimate_offset:
            lines += describe_drift(recording, arguments.reach * 1000)
    print("\n".join(lines))
    if arguments.sheet is not None:
        write_image(arguments.sheet, draw_sheet(recording, statistics))
        print(f"contact sheet: {arguments.sheet}")


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("recording", type=Path, nargs="?", help="directory or file, as flowfuse-infer takes it")
    add("--events", type=Path, help="events, where not in the recording")
    add("--frames", type=Path, help="frames, likewise")
    add("--frame-times", type=Path, help="times of the frames, likewise")
    add("--calibration", type=Path, help="of the rig")
    add_reading_options(parser)
    add(
        "--reach",
        metavar="MS",
        type=parse_reach,
        default=50,
        help="largest offset to look for, at most 1000",
    )
    add(
        "--estimate-offset",
        action="store_true",
        help="estimate the offset of the clocks and its drift, and print the --time-offset to use",
    )
    add("--sheet", metavar="PNG", type=Path, help="draw a contact sheet")
    return parser


def parse_reach(text: str) -> int:
    """Read milliseconds; the events of every one of them are summed into an image that is held."""
    if (reach := parse_count(text)) > MAX_REACH:
        raise ArgumentTypeError(f"expected at most {MAX_REACH} ms, got {reach}")
    return reach


def check_picture_name(path: Path) -> None:
    """Refuse, before all events are read, a name that no picture can be written to."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"--sheet: a name with one of {kinds} expected, got {path}")
    check_file_path(path)


def describe_frames(recording: Recording) -> list[str]:
    """Number, rate, gaps and exposures of the frames."""
    times = recording.frame_times
    if not len(times):
        return ["frames: none"]
    lines = [f"frames: {len(times)}, from {seconds(times[0])} to {seconds(times[-1])} s"]
    if len(times) > 1:
        steps = np.diff(times)
        usual = float(np.median(steps))
        lines.append(
            f"  every {usual / 1000:.3f} ms (median; {steps.min() / 1000:.3f} to "
            f"{steps.max() / 1000:.3f} ms), {1e6 / usual:.2f} Hz"
        )
        late = np.flatnonzero(steps > _LATE * usual)
        if len(late):
            named = ", ".join(f"after frame {i}" for i in late[:_LISTED].tolist())
            lines.append(f"  {len(late)} gaps longer than {_LATE} x that: {named}")
    if recording.exposures is not None:
        lengths = np.diff(recording.exposures, axis=1) / 1000
        lines.append(f"  exposures of {lengths.min():.3f} to {lengths.max():.3f} ms")
    else:
        lines.append("  exposures: unknown")
    return lines


def describe_events(recording: Recording, found: EventStatistics) -> list[str]:
    """Number, rates, gaps, coverage and hot pixels of the events."""
    if found.fault is not None:
        counted = f" after {found.count} events" if found.count else ""
        return [f"events: NOT USABLE{counted}: {found.fault}"]
    if not found.count:
        return ["events: none"]
    duration = max(1, found.last - found.start) / 1e6
    lines = [
        f"events: {found.count}, from {seconds(found.start)} to {seconds(found.last)} s, "
        f"{100 * found.positive:.1f} % ON",
        f"  {found.count / duration / 1e6:.3f} million/s on average, at most "
        f"{found.per_bin.max() / BIN:.3f} million/s over {BIN // 1000} ms",
    ]
    gaps = found.gaps()
    if gaps:
        named = ", ".join(f"{seconds(a)} to {seconds(b)} s" for a, b in gaps[:_LISTED])
        lines.append(f"  {len(gaps)} gaps without any event: {named}")
    rows, columns = (np.flatnonzero((found.counts > 0).any(axis=axis)) for axis in (1, 0))
    active = 100 * (found.counts > 0).mean()
    lines.append(
        f"  {active:.1f} % of the pixels fired, columns {columns[0]} to {columns[-1]}, rows "
        f"{rows[0]} to {rows[-1]}"
    )
    hot = found.hot_pixels()
    share = 100 * found.counts[hot[:, 1], hot[:, 0]].sum() / found.count if len(hot) else 0.0
    named = ", ".join(f"({x}, {y})" for x, y in hot[:_LISTED].tolist())
    lines.append(
        f"  {len(hot)} hot pixels, {share:.1f} % of the events" + (f": {named}" * bool(named))
    )
    if recording.has_frames:
        first, last = (int(t) for t in recording.frame_times[[0, -1]])
        common = max(0, min(last, found.last) - max(first, found.start)) / max(1, last - first)
        lines.append(f"  events cover {100 * common:.1f} % of the time of the frames")
    return lines


def describe_agreement(recording: Recording, reach: int) -> list[str]:
    """What the comparison of frame differences with polarity sums says, or the events alone."""
    if not recording.has_frames:
        told = guess_unit(recording)
        return [f"likely cause of trouble: {told}"] if told else []
    told = compare_clocks(recording, reach).describe()
    if told:
        return [f"likely cause of trouble: {told}"]
    geometry, offset = compare_geometry(recording), estimate_offset(recording, reach)
    if geometry.is_evident and not offset.correlation > abs(geometry.correlation) - BETTER:
        return [f"likely cause of trouble: {geometry.describe()}"]
    return describe_offset(offset, reach)


def describe_drift(recording: Recording, reach: int) -> list[str]:
    """The offset of the clocks and its drift, and the option that applies them."""
    if not recording.has_frames:
        return ["offset of the clocks: there are no frames"]
    if not usable_pairs(recording, reach, 1):
        return [f"offset of the clocks: unknown, {NO_PAIRS}"]
    found = estimate_drift(recording, reach)
    if not found.stretches:
        return ["offset of the clocks: cannot be estimated, nothing moves or nothing agrees"]
    drift = f"a drift of {found.drift * 1e6:.3g} us/s" if found.drift else "no drift is evident"
    return [
        f"offset of the clocks: {found.offset / 1000:+.2f} ms at the first frame, {drift} "
        f"({found.stretches} stretches, {found.spread / 1000:.2f} ms around that, mean correlation "
        f"{found.correlation:.2f})",
        f"  apply it with {found.option}",
    ]


def describe_offset(found: TimeOffset, reach: int) -> list[str]:
    """What an estimated offset says about the clocks."""
    if not found.pairs:
        return [f"time offset: unknown, {NO_PAIRS}"]
    if math.isnan(found.offset) or found.correlation < _WORTH_TELLING:
        told = f"nothing moves, or nothing agrees; {count_pairs(found)}"
        return [f"time offset: frames and events do not say ({told})"]
    if not found.is_evident:
        return [
            f"time offset: none is evident (correlation {found.as_given:.2f} as given; at best "
            f"{found.correlation:.2f}, at {found.offset / 1000:+.2f} ms; {count_pairs(found)})"
        ]
    edge = ""
    if abs(found.offset) >= reach:
        larger = ": give a larger --reach" if reach < 1000 * MAX_REACH else ""
        edge = f" (the end of what was tried{larger})"
    return [
        f"time offset: add {found.offset / 1000:+.2f} ms to the frame times "
        f"(correlation {found.correlation:.2f} there, {found.as_given:.2f} as given; "
        f"{count_pairs(found)}){edge}: {found.option}",
        "  (events lag behind the light by half a threshold, a few ms where motion is slow)",
    ]


def count_pairs(found: TimeOffset) -> str:
    """The number of frame pairs that were compared, in words."""
    return f"{found.pairs} pair{'s' * (found.pairs != 1)}"


def draw_sheet(recording: Recording, found: EventStatistics) -> np.ndarray:
    """Frames with the events right after them, and where events fired."""
    images, labels = [], []
    moments = [None]
    if recording.has_frames:
        count = len(recording.frame_times)
        moments = np.unique(np.linspace(0, count - 1, min(count, PAIRS_SHOWN)).astype(int)).tolist()
    usable = found.count > 0 and found.fault is None
    for index in moments:
        if index is None:
            time = found.start + (found.last - found.start) // 2
            frame, label = None, f"events at {seconds(time)} s"
        else:
            time = int(recording.frame_times[index])
            frame, label = recording.frame(index), f"frame {index}, {seconds(time)} s"
        if usable:
            images.append(render_events(frame, recording.events(time, time + _SLICE)))
            labels.append(f"{label}, {_SLICE // 1000} ms of events")
        elif frame is not None:
            images.append(frame)
            labels.append(label)
    if found.count:
        images.append(render_heat(np.log1p(found.counts)))
        labels.append(f"log of events per pixel, up to {found.counts.max()}")
    if not images:
        raise ValueError("nothing can be drawn: neither frames nor usable events")
    return contact_sheet(images, labels)


def seconds(microseconds: int) -> str:
    """A time as text."""
    return f"{int(microseconds) / 1e6:.6f}"


if __name__ == "__main__":
    leave(main())
