"""Convert a recording into another layout.

    python data_tools/convert.py recording.aedat4 OUT                    # a plain recording
    python data_tools/convert.py recording.raw events.h5 --events-format dsec
    python data_tools/convert.py indoor_flying1_data.hdf5 OUT            # from MVSEC, and back:
    python data_tools/convert.py OUT again/indoor_flying1_data.hdf5
    python data_tools/convert.py events.csv events.h5 --columns x,y,p,t_us
    python data_tools/convert.py a.raw OUT --frames images --frame-times triggers:rising

Events are read and written part by part, and come back to the microsecond and the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, run_command
from flowfuse.cli.reading_options import (
    add_reading_options,
    keyword_arguments,
    reading_options,
)
from flowfuse.data.file_recording import FileRecording
from flowfuse.data.formats.base import EVENTS
from flowfuse.data.formats.event_writer import EVENT_FORMATS
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_copy import copy_recording
from flowfuse.data.registry import find_format, open_event_file
from flowfuse.data.repair import find_parts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("convert", lambda: convert(arguments), interrupted="nothing is written")


def convert(arguments: Namespace) -> None:
    """Copy the recording, or each part of it, and say what was written."""
    if not arguments.split:
        copy(arguments)
        return
    if arguments.part is not None:
        raise ValueError("--split writes all parts, --part N one: give one of them")
    events = arguments.events or arguments.source
    if events.is_dir() and find_format(events, EVENTS) is None:
        raise ValueError(
            f"{events}: --split takes a file of events; frames do not tell which part they belong "
            "to: name the events, or keep one part (--part N)"
        )
    target = arguments.target
    file = open_event_file(events, arguments.columns, check=False)
    parts = len(find_parts(file).parts)
    for arguments.part in range(1, parts + 1):
        arguments.target = target.with_name(f"{target.stem}-{arguments.part}{target.suffix}")
        copy(arguments)


def copy(arguments: Namespace) -> None:
    """Copy the recording, and say what was written."""
    recording = open_recording(
        arguments.source,
        events=arguments.events,
        frames=arguments.frames,
        times=arguments.frame_times,
        calibration=arguments.calibration,
        **keyword_arguments(reading_options(arguments)),
    )
    lines = copy_recording(recording, arguments.target, events_format=arguments.events_format)
    if isinstance(recording, FileRecording) and recording.assumption is not None:
        lines.append(recording.assumption)
    print("\n".join(lines))


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("source", type=Path, help="recording directory or file, as flowfuse-infer takes it")
    add(
        "target",
        type=Path,
        help="NAME_data.hdf5: MVSEC; .h5, .npz, .txt, .csv: the events alone; else a directory",
    )
    add("--events", type=Path, help="events, where not in the source")
    add("--frames", type=Path, help="frames, likewise")
    add(
        "--frame-times",
        metavar="FILE|triggers",
        type=Path,
        help="times of the frames, likewise; triggers[:rising|falling][:INPUT]: those of the event "
        "camera's trigger input",
    )
    add("--calibration", type=Path, help="undistort, and bring the frames into the events' view")
    add(
        "--events-format",
        choices=tuple(EVENT_FORMATS),
        help="of the events in a directory (None: h5), or of a file of that kind; dsec: .h5 with "
        "ms_to_idx and t_offset",
    )
    add_reading_options(parser)
    add(
        "--split",
        action="store_true",
        help="write each part of a file of events whose clock was reset, or that was joined: "
        "TARGET-1, TARGET-2, ...",
    )
    return parser


if __name__ == "__main__":
    leave(main())
