"""Generate a scene and write it as a sequence of DSEC, with ground truth.

    python data_tools/write_dsec.py ROOT zurich_city_01_a --preset mixed --seed 3 --frames 9

ROOT then holds the sequence, which flowfuse-infer ROOT/zurich_city_01_a reads: compressed events at
raw pixels with their rectification map, images of the frame camera with time stamps and exposures,
calibration, and flow maps from every second frame to the second next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, run_command
from flowfuse.config import parse_size
from flowfuse.data.datasets.dsec.files import FLOW_STEP
from flowfuse.data.datasets.dsec.writer import LAYOUTS, check_new_sequence, write_sequence
from flowfuse.data.synthetic.scenes import PRESETS, generate_scene
from flowfuse.estimator import select_device


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("write_dsec", lambda: generate(arguments), interrupted="nothing is written")


def generate(arguments: Namespace) -> None:
    """Write the sequence, and say what is in it."""
    width, height = arguments.size
    if arguments.frames <= FLOW_STEP:
        raise ValueError(
            f"--frames must be at least {FLOW_STEP + 1} for a flow map, got {arguments.frames}"
        )
    check_new_sequence(arguments.root, arguments.name)
    scene = generate_scene(
        arguments.seed,
        arguments.preset,
        height,
        width,
        frames=arguments.frames,
        device=select_device(arguments.device),
        max_step=arguments.max_step,
    )
    ground_truths = {
        first: scene.ground_truth(float(first + FLOW_STEP), start=float(first))
        for first in range(0, arguments.frames - FLOW_STEP, FLOW_STEP)
    }
    path = write_sequence(
        arguments.root,
        arguments.name,
        scene.events,
        scene.frames,
        scene.frame_times,
        exposures=scene.exposures,
        flow={
            first: (flow.numpy(), valid.numpy())
            for first, (flow, valid, _) in ground_truths.items()
        },
        image_size=arguments.image_size[::-1],
        layout=arguments.layout,
    )
    print(
        f"{path}: {len(scene.frames)} frames, {len(scene.events)} events, "
        f"{len(ground_truths)} flow maps"
    )


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
    parser.add_argument("--frames", type=int, default=7, help="number of frames, at least 3")
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
