"""The options of commands that read recordings, in one place."""

from __future__ import annotations

import argparse
from typing import Any

from flowfuse.data.reading import ReadingOptions, parse_time_offset


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`ReadingOptions` to a command."""
    add = parser.add_argument
    add(
        "--bit-depth",
        metavar="BITS",
        type=int,
        help="of a camera whose frames are stored in 16 bits, such as 12 (default: what the files "
        "state, or what their largest value takes)",
    )
    add(
        "--repair",
        action="store_true",
        help="drop, and count, events out of order or off the sensor, and frames out of order",
    )
    add(
        "--part",
        metavar="N",
        type=int,
        help="of a file of events whose clock was reset, or that was joined: read the N-th part",
    )
    add(
        "--time-offset",
        metavar="TIME",
        type=str,
        help="add to the frame times: 3ms, or 3ms,12ppm with a drift; a negative one as "
        "--time-offset=-3ms",
    )
    add(
        "--columns",
        metavar="t,x,y,p",
        type=str,
        help="order of the columns of a text or a table of events; t_s, t_ms, t_us, t_ns: the unit "
        "of t (default: as the file shows them)",
    )
    add(
        "--depth",
        metavar="METRES",
        type=str,
        help="with --calibration: distance of the scene, plane:NX,NY,NZ,D, or a file or directory "
        "of depth maps",
    )


def reading_options(given: Any) -> ReadingOptions:
    """Return what was given.

    Args:
        given: the namespace of a parser with these options.

    Raises:
        ValueError: naming the option, what was given and what was expected.
    """
    offset = None
    if given.time_offset is not None:
        try:
            offset = parse_time_offset(given.time_offset)
        except ValueError as error:
            raise ValueError(f"--time-offset {given.time_offset!r}: {error}") from None
    if given.depth is not None and given.calibration is None:
        raise ValueError("--depth needs --calibration, of two cameras")
    return ReadingOptions(
        given.bit_depth, given.repair, given.part, offset, given.depth, given.columns
    )


def keyword_arguments(options: ReadingOptions) -> dict[str, Any]:
    """What ``open_recording`` takes, as keywords."""
    return vars(options).copy()
