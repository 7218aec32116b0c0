"""Your own camera: write what you have as a recording, and estimate its flow.

    python examples/own_recording.py OUT
    flowfuse-data inspect OUT/recording --sheet sheet.png    # are clocks, axes, polarity right?
    flowfuse-infer OUT/recording -o OUT/infer --html         # the same by the command

Here the "camera" sees a pattern that moves 3 px to the right and 1 px down a frame, and its events
come from the simulator. Put your own arrays in the place of `record`; what follows stays.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

import flowfuse
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.simulator import EventSensor, SensorConfig

HEIGHT, WIDTH = 96, 128
FRAMES, INTERVAL = 4, 40_000  # us from frame to frame
MOTION = 3.0, 1.0  # px from frame to frame: right, down
STEPS = 8  # instants of light from frame to frame, for the simulator
BORDER = 20  # px of the pattern beyond the image


def record() -> tuple[flowfuse.Events, np.ndarray, np.ndarray]:
    """Make what a camera gives.

    Returns:
        Events; frames, uint8 [F, H, W]; their times, int64 microseconds, mid-exposure.
    """
    noise = np.random.default_rng(0).random((HEIGHT + 2 * BORDER, WIDTH + 2 * BORDER), np.float32)
    pattern = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0.1, 0.9, cv2.NORM_MINMAX)

    def look(frame: float) -> np.ndarray:
        shift = np.array([[1, 0, frame * MOTION[0] - BORDER], [0, 1, frame * MOTION[1] - BORDER]])
        return cv2.warpAffine(pattern, shift, (WIDTH, HEIGHT))

    moments = np.arange((FRAMES - 1) * STEPS + 1) / STEPS
    light = torch.from_numpy(np.stack([srgb_to_linear(look(moment)) for moment in moments]))
    sensor = EventSensor(HEIGHT, WIDTH, SensorConfig(), seed=0)
    events = sensor.observe(light, (moments * INTERVAL).astype(np.int64))
    frames = np.stack([np.rint(255 * look(index)) for index in range(FRAMES)]).astype(np.uint8)
    return events, frames, np.arange(FRAMES, dtype=np.int64) * INTERVAL


def main(out: Path) -> float:
    """Write the recording and the flow of its frame pairs; returns the mean error in px."""
    write_recording(out / "recording", *record())
    recording = flowfuse.open_recording(out / "recording")
    estimator = flowfuse.load("small", device="auto")
    errors = []
    for first, last in recording.frame_pairs:
        t0, t1 = (int(recording.frame_times[index]) for index in (first, last))
        frames = recording.frame(first), recording.frame(last)
        # Events from one interval before t0 on: they show the scene as it is at t0.
        events = recording.events(2 * t0 - t1, t1)
        result = estimator(*frames, events, t0=t0, t1=t1)
        # None is "no frame" to an estimator, and what cv2.imread gives of a file it cannot read.
        if result.modalities != ("frames", "events"):
            raise ValueError(f"frame {first}: flow comes from {result.modalities} alone")
        flowfuse.write_flow(out / f"{first:06d}.flo", result.flow)
        errors.append(np.hypot(*(result.flow - np.reshape(MOTION, (2, 1, 1)))).mean())
        u, v = result.flow.mean(axis=(1, 2))
        print(f"frame {first}: mean motion ({u:.2f}, {v:.2f}) px")
    return float(np.mean(errors))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"mean error {main(Path(sys.argv[1])):.2f} px")
