"""Generate a scene and write it as a sequence of DSEC, with ground truth.

    python data_tools/write_dsec.py ROOT zurich_city_01_a --preset mixed --seed 3 --frames 9

ROOT then holds the sequence, which flowfuse-infer ROOT/zurich_city_01_a reads: compressed events at
raw pixels with their rectification map, images of the frame camera with time stamps and exposures,
calibration, and flow maps from every second frame to the second next. The rates are DSEC's: frames
50 ms and flow 100 ms apart. The first map begins with the third frame, so that there are events
before it. Flow is unknown where a point gets hidden, and in the upper eighth, as where a laser
scanner sees only sky.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, run_command
from flowfuse.config import parse_size
from flowfuse.data.datasets.dsec.files import FLOW_STEP
from flowfuse.data.datasets.dsec.writer import LAYOUTS, check_new_sequence, write_sequence
from flowfuse.data.synthetic.presets import PRESETS, find_preset
from flowfuse.data.synthetic.scenes import generate_scene
from flowfuse.estimator import select_device

FRAME_MS = 50.0  # between frames
SKY = 1 / 8  # of the rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("write_dsec", lambda: generate(arguments), interrupted="nothing is written")


def generate(arguments: Namespace) -> None:
    """Write the sequence, and say what is in it."""
    width, height = arguments.size
    if arguments.frames <= 2 * FLOW_STEP:
        raise ValueError(
            f"--frames must be at least {2 * FLOW_STEP + 1} for a flow map with events before it, "
            f"got {arguments.frames}"
        )
    check_new_sequence(arguments.root, arguments.name)
    scene = generate_scene(
        arguments.seed,
        replace(find_preset(arguments.preset), interval_ms=(FRAME_MS, FRAME_MS)),
        height,
        width,
        frames=arguments.frames,
        device=select_device(arguments.device),
        max_step=arguments.max_step,
    )
    ground_truths = {
        first: scene.ground_truth(float(first + FLOW_STEP), start=float(first))
        for first in range(FLOW_STEP, arguments.frames - FLOW_STEP, FLOW_STEP)
    }
    path = write_sequence(
        arguments.root,
        arguments.name,
        scene.events,
        scene.frames,
        scene.frame_times,
        exposures=scene.exposures,
        flow={
            first: (flow.numpy(), seen_by_a_scanner(valid.numpy(), occluded.numpy()))
            for first, (flow, valid, occluded) in ground_truths.items()
        },
        image_size=arguments.image_size[::-1],
        layout=arguments.layout,
    )
    print(
        f"{path}: {len(scene.frames)} frames, {len(scene.events)} events, "
        f"{len(ground_truths)} flow maps"
    )


def seen_by_a_scanner(valid: np.ndarray, occluded: np.ndarray) -> np.ndarray:
    """Where flow is known, [H, W] bool: neither hidden at the end nor in the upper SKY rows."""
    known = valid & ~occluded
    known[: round(SKY * len(known))] = False
    return known


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="directory of the data set; it may hold sequences")
    parser.add_argument("name", help="of the sequence, which must not be there yet")
    parser.add_argument("--layout", default="merged", choices=LAYOUTS, help="where files lie")
    parser.add_argument(
        "--preset", default="fast", choices=tuple(PRESETS), help="kind of motion and light"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes everything in the scene")
    parser.add_argument("--frames", type=int, default=7, help="number of frames, at least 5")
    parser.add_argument(
        "--size", type=parse_size, default="640x480", metavar="WxH", help="of the event camera, px"
    )
    parser.add_argument(
        "--image-size", type=parse_size, default="1440x1080", metavar="WxH", help="of images, px"
    )
    parser.add_argument("--max-step", type=float, default=0.5, help="px between rendered instants")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    return parser


if __name__ == "__main__":
    leave(main())
