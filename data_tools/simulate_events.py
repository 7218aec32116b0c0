"""Simulate the events that a sensor would have seen watching a video.

    python data_tools/simulate_events.py VIDEO_OR_FOLDER OUT --threshold 0.2

OUT is a plain recording: the simulated events, the frames in gray and their times. A folder of
images needs timestamps.txt (seconds) or --frame-times or --rate.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from jsonargparse import Namespace

from flowfuse.cli.console import CommandParser, leave, run_command
from flowfuse.data.formats.base import FrameSource
from flowfuse.data.formats.event_writer import write_event_parts
from flowfuse.data.formats.frames import list_images
from flowfuse.data.recording_writer import write_frames
from flowfuse.data.registry import open_frames
from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.simulator import SensorConfig, stream_events
from flowfuse.estimator import select_device
from flowfuse.io.atomic import atomic_directory, check_new_directory
from flowfuse.io.images import as_8_bits, as_gray
from flowfuse.io.progress import progress

# The intensity is taken to change linearly from frame to frame, which holds up to about a pixel.
LARGE_MOTION = 2.0  # px, of the fastest part of the image
_FASTEST = 95  # percentile of the motion that is compared with it
_LOOKED_AT = 8  # pairs of frames, evenly spread
_WIDTH = 320  # px, of the images that motion is estimated in


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(
        "simulate_events", lambda: make_recording(arguments), interrupted="nothing is written"
    )


def make_recording(arguments: Namespace) -> None:
    """Write the recording, and say what is in it."""
    check_new_directory(arguments.output)
    if arguments.seed < 0:
        raise ValueError(f"--seed must not be negative, got {arguments.seed}")
    frames = open_source(arguments.source, arguments.frame_times, arguments.rate)
    if len(frames.times) < 2:
        raise ValueError(
            f"{arguments.source}: at least 2 frames expected, found {len(frames.times)}"
        )
    config = SensorConfig(
        threshold_on=arguments.threshold,
        threshold_off=arguments.threshold,
        refractory_us=arguments.refractory,
    )
    if arguments.noiseless:
        config = SensorConfig.noiseless(arguments.threshold, refractory_us=arguments.refractory)
    motion = estimate_motion(frames)
    if motion > LARGE_MOTION:
        warnings.warn(
            f"{arguments.source}: the image moves by {motion:.1f} px from frame to frame where it "
            f"is fastest; above {LARGE_MOTION:g} px edges jump between the frames, and no events "
            "fire on their way. Interpolate the video first, or take one of a higher rate",
            stacklevel=2,
        )
    count = simulate(frames, arguments.output, config, arguments)
    seconds = (frames.times[-1] - frames.times[0]) / 1e6
    print(
        f"{arguments.output}: {len(frames.times)} frames, {count} events in {seconds:.3f} s; "
        f"motion per frame {motion:.1f} px where it is fastest"
    )


def build_parser() -> CommandParser:
    """Build the command line."""
    parser = CommandParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("source", type=Path, help="a video, or a folder of images")
    add("output", type=Path, help="a directory that does not exist or is empty")
    add("--frame-times", metavar="FILE", type=Path, help="seconds, one frame a line")
    add("--rate", metavar="HZ", type=float, help="frames per second, in place of any times")
    add("--threshold", type=float, default=0.2, help="contrast threshold, in log intensity")
    add("--refractory", metavar="US", type=float, default=0.0, help="microseconds of blindness")
    add("--noiseless", action="store_true", help="no noise, no leak, unlimited bandwidth")
    add("--seed", type=int, default=0, help="of the noise and the pixels' differences")
    add("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    return parser


def open_source(source: Path, times: Path | None, rate: float | None) -> FrameSource:
    """Open the frames, with times of a constant rate where one is given."""
    if rate is None:
        return open_frames(source, times)
    if times is not None:
        raise ValueError("give --frame-times or --rate, not both")
    if not 1e-6 <= rate <= 1e6:
        raise ValueError(f"--rate must be in [1e-6, 1e6] Hz, got {rate:g}")
    if not source.is_dir():
        frames = open_frames(source)
        count = len(frames.times)
    else:
        count = len(list_images(source))
        if not count:
            raise ValueError(f"{source}: no images in this folder")
    with tempfile.TemporaryDirectory() as directory:
        table = Path(directory) / "rate.txt"
        table.write_text("".join(f"{index / rate:.6f}\n" for index in range(count)))
        return open_frames(source, table)


def estimate_motion(frames: FrameSource) -> float:
    """Motion (px) from frame to frame of the fastest part of the image, of the fastest pair."""
    count = len(frames.times) - 1
    chosen = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int))
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    fastest = 0.0
    for index in chosen.tolist():
        pair = [as_8_bits(as_gray(frames.read(i))) for i in (index, index + 1)]
        scale = max(1.0, pair[0].shape[1] / _WIDTH)
        size = [max(16, round(side / scale)) for side in pair[0].shape[::-1]]
        small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in pair]
        flow = estimator.calc(*small, None) * scale
        fastest = max(fastest, float(np.percentile(np.hypot(*np.moveaxis(flow, 2, 0)), _FASTEST)))
    return fastest


def simulate(frames: FrameSource, output: Path, config: SensorConfig, arguments: Namespace) -> int:
    """Write the recording; one stretch of frames is in memory. Returns the number of events."""
    indices = range(len(frames.times))

    def images() -> Iterator[np.ndarray]:
        for index in progress(indices, unit=" frames"):
            yield srgb_to_linear(as_gray(frames.read(index)))

    size = frames.read(0).shape[:2]
    device = select_device(arguments.device)
    with atomic_directory(output) as directory:
        parts = stream_events(images(), frames.times, config, arguments.seed, device=device)
        count = write_event_parts(directory / "events.h5", parts, size)
        write_frames(directory, (as_gray(frames.read(i)) for i in indices), frames.times, None)
    return count


if __name__ == "__main__":
    leave(main())
