"""Generate a scene and write it as a plain recording with ground truth.

    python data_tools/generate_recording.py OUT --preset fast --seed 7 --size 320x240 --frames 6

OUT then holds events.h5, images/, images.txt, exposures.txt, flow/ (frame to next frame) and
flow_at/TAU/ (frame to a time in between), which flowfuse-infer reads.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, run_command
from flowfuse.config import parse_size
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.synthetic.scenes import PRESETS, Scene, generate_scene
from flowfuse.estimator import select_device
from flowfuse.io.atomic import check_new_directory


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(
        "generate_recording", lambda: generate(arguments), interrupted="nothing is written"
    )


def generate(arguments: Namespace) -> None:
    """Write the recording, and say what is in it."""
    width, height = arguments.size
    check_new_directory(arguments.output)
    scene = generate_scene(
        arguments.seed,
        arguments.preset,
        height,
        width,
        frames=arguments.frames,
        textures=arguments.textures,
        device=select_device(arguments.device),
        max_step=arguments.max_step,
    )
    write_scene(arguments.output, scene, arguments.times, f".{arguments.ground_truth_format}")
    print(f"{arguments.output}: {len(scene.frames)} frames, {len(scene.events)} events")


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="a directory that does not exist or is empty")
    parser.add_argument(
        "--preset", default="fast", choices=tuple(PRESETS), help="kind of motion and light"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes everything in the scene")
    parser.add_argument(
        "--size", type=parse_size, default="320x240", metavar="WxH", help="of the sensor, px"
    )
    parser.add_argument("--frames", type=int, default=6, help="number of frames")
    parser.add_argument(
        "--times",
        type=parse_times,
        default="0.25,0.5,0.75",
        metavar="TAU,...",
        help="times between two frames that get ground truth, as shares of the interval",
    )
    parser.add_argument(
        "--ground-truth-format",
        choices=("flo", "png", "npz"),
        default="flo",
        help="of the ground truth; png: KITTI's 16 bit, steps of 1/64 px, a fifth of the size",
    )
    parser.add_argument(
        "--textures", type=Path, help="folder of images to take textures from; None: generated ones"
    )
    parser.add_argument("--max-step", type=float, default=0.5, help="px between rendered instants")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.accept_former_name("--truth-format", "--ground-truth-format")
    return parser


def parse_times(text: str) -> tuple[float, ...]:
    """Parse comma-separated times in (0, 1); the empty text is none."""
    try:
        times = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        times = (math.nan,)
    if not all(0 < time < 1 for time in times):
        raise ArgumentTypeError(f"expected numbers in (0, 1) and commas, got {text!r}")
    return times


def write_scene(
    path: Path, scene: Scene, times: Sequence[float], flow_suffix: str = ".flo"
) -> None:
    """Write a generated scene as a plain recording.

    Args:
        path: a directory that does not exist or is empty.
        times: tau in (0, 1), as a share of each frame interval, at which to write the true
            displacement as well.
        flow_suffix: format of the ground truth.
    """

    def ground_truth(tau: float) -> list[tuple]:
        fields = [scene.ground_truth(i + tau, start=float(i)) for i in range(len(scene.frames) - 1)]
        return [(flow.numpy(), valid.numpy()) for flow, valid, _ in fields]

    write_recording(
        path,
        scene.events,
        scene.frames,
        scene.frame_times,
        exposures=scene.exposures,
        flow=ground_truth(1.0),
        flow_at={tau: ground_truth(tau) for tau in times},
        flow_suffix=flow_suffix,
    )


if __name__ == "__main__":
    leave(main())
