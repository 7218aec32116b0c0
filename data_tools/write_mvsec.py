"""Generate a scene and write it in the layout of MVSEC, with ground truth, to try readers on.

    python data_tools/write_mvsec.py OUT/indoor_flying1 --preset slow --seed 7 --frames 8

OUT/indoor_flying1_data.hdf5 and OUT/indoor_flying1_gt.hdf5 are written. The maps of ground truth
are 50 ms apart, as MVSEC's, whatever the rate of the frames; none has exactly the time of a frame.
The right camera is a link to the left one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, run_command
from flowfuse.data.datasets.mvsec.recording import DATA_SUFFIX
from flowfuse.data.datasets.mvsec.writer import TRUTH_SUFFIXES, write_mvsec
from flowfuse.data.synthetic.presets import PRESETS
from flowfuse.data.synthetic.scenes import Scene, generate_scene

LEAST_FRAMES = 4
LEAST_MAPS = 2
MAP_INTERVAL = 50_000  # us, as MVSEC's ground truth
MAP_SHIFT = 1_100  # us after the first frame


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("write_mvsec", lambda: generate(arguments), interrupted="nothing is written")


def generate(arguments: Namespace) -> None:
    """Write the sequence, and say what is in it."""
    if arguments.frames < LEAST_FRAMES:
        raise ValueError(
            f"--frames must be at least {LEAST_FRAMES} for two maps between them, "
            f"got {arguments.frames}"
        )
    if arguments.output.is_dir():
        raise ValueError(f"{arguments.output}: is a directory; name a sequence in it")
    # Names of real sequences are likely here, and a download must not be lost to a trial.
    for suffix in (DATA_SUFFIX, *TRUTH_SUFFIXES.values()):
        path = Path(f"{arguments.output}{suffix}")
        if path.exists():
            raise ValueError(f"{path}: exists already")
    scene = generate_scene(
        arguments.seed,
        arguments.preset,
        arguments.height,
        arguments.width,
        frames=arguments.frames,
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    path = write_scene(arguments.output, scene, arguments.ground_truth_format)
    print(f"{path}: {len(scene.frames)} frames, {len(scene.events)} events")


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("output", type=Path, help="directory and name of the sequence, which must not be there yet")
    add("--preset", default="slow", choices=tuple(PRESETS), help="kind of motion and light")
    add("--seed", type=int, default=0, help="fixes everything in the scene")
    add("--frames", type=int, default=8, help=f"number of frames, at least {LEAST_FRAMES}")
    add("--width", type=int, default=346, help="of the sensor, px")
    add("--height", type=int, default=260, help="of the sensor, px")
    add(
        "--ground-truth-format",
        choices=tuple(TRUTH_SUFFIXES),
        default="hdf5",
        help="of the ground truth",
    )
    parser.accept_former_name("--truth-format", "--ground-truth-format")
    return parser


def write_scene(prefix: Path, scene: Scene, ground_truth_format: str) -> Path:
    """Write a scene with two maps or more; returns the path of the data file.

    Raises:
        ValueError: the scene is too short for them.
    """
    interval = scene.t1 - scene.t0
    times = map_times(scene.frame_times)
    if len(times) < LEAST_MAPS:
        raise ValueError(
            f"--frames: {len(scene.frames)} frames {interval} us apart are too few for "
            f"{LEAST_MAPS} maps {MAP_INTERVAL} us apart"
        )
    places = (times - scene.t0) / interval  # in frames
    maps = [
        mark_unknown(*scene.ground_truth(float(end), start=float(start))[:2])
        for start, end in pairwise(places)
    ]
    # The last map has no end: it states the time up to which the one before it holds.
    maps.append(np.zeros_like(maps[0]))
    return write_mvsec(
        prefix,
        scene.events,
        scene.frames,
        scene.frame_times,
        maps,
        times,
        ground_truth_format=ground_truth_format,
    )


def map_times(frame_times: np.ndarray) -> np.ndarray:
    """When maps begin: each MAP_INTERVAL, from a little after the first frame; [M] int64 us.

    A map at exactly the time of a frame would make a tie, which rounding decides.
    """
    first, last = int(frame_times[0]), int(frame_times[-1])
    for shift in range(MAP_SHIFT, MAP_INTERVAL, MAP_SHIFT):
        times = np.arange(first + shift, last + 1, MAP_INTERVAL)
        if not np.isin(times, frame_times).any():
            break
    return times


def mark_unknown(flow, valid) -> np.ndarray:
    """Flow [2, H, W] with 0 where it is not valid."""
    return np.where(valid.numpy(), flow.numpy(), 0)


if __name__ == "__main__":
    leave(main())
