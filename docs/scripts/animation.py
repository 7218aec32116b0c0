"""Draws docs/images/flowfuse.webp: what flowfuse makes of the recording that ships.

    python docs/scripts/animation.py [PATH]

Left a frame and the events of a moment, in the middle the flow from the frame to this moment, right
both boundary maps; tau runs through every frame pair.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

import flowfuse
from flowfuse.visualization import add_title, colour_flow, render_boundary, render_events, upscale

PATH = Path(__file__).resolve().parents[1] / "images" / "flowfuse.webp"
STEPS = 14  # pictures of a frame pair
DURATION = 70  # ms a picture
SHARE = 1 / 10  # of an interval: the events of a moment
WIDTH = 340  # of a panel, px
QUALITY = 72
GAP = 8  # px between panels
FASTEST = 0.98  # quantile of the magnitudes that has the full colour
TITLE = 15  # px


def pictures(checkpoint: str = "small") -> list[np.ndarray]:
    """All pictures of the animation, uint8 RGB of one size."""
    recording = flowfuse.open_recording(flowfuse.sample_recording())
    estimator = flowfuse.load(checkpoint)
    results = []
    for start, end in recording.frame_pairs:
        t0, t1 = int(recording.frame_times[start]), int(recording.frame_times[end])
        events = recording.events(2 * t0 - t1, t1)
        frames = recording.frame(start), recording.frame(end)
        results.append((frames[0], estimator(*frames, events, t0=t0, t1=t1)))
    magnitudes = np.concatenate([np.hypot(*result.flow).ravel() for _, result in results])
    rim = float(np.quantile(magnitudes, FASTEST))
    drawn = []
    for frame, result in results:
        boundary = panel(render_boundary(frame, result.boundary), "boundaries: B_e cyan, B_m red")
        for tau in (np.arange(STEPS) + 0.5) / STEPS:
            now = round(result.t0 + tau * (result.t1 - result.t0))
            half = round(SHARE / 2 * (result.t1 - result.t0))
            events = recording.events(now - half, now + half)
            left = panel(render_events(frame, events), "frame and events")
            flow = colour_flow(result.at(float(tau)), max_magnitude=rim)
            drawn.append(beside(left, panel(flow, f"flow from t0 to tau = {tau:.2f}"), boundary))
    return drawn


def panel(image: np.ndarray, title: str) -> np.ndarray:
    """One part of a picture, of the same width each, under its title."""
    height = round(image.shape[0] * WIDTH / image.shape[1])
    large = cv2.resize(upscale(image, WIDTH), (WIDTH, height), interpolation=cv2.INTER_AREA)
    return add_title(large, title, TITLE)


def beside(*images: np.ndarray) -> np.ndarray:
    """Pictures of one height beside each other."""
    gap = np.full((images[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for image in images for part in (image, gap)]
    return np.concatenate(parts[:-1], axis=1)


def write(path: Path, images: list[np.ndarray]) -> None:
    """Write an animated WebP that repeats for ever."""
    animation = cv2.Animation()
    animation.loop_count = 0
    animation.frames = [np.ascontiguousarray(image[:, :, ::-1]) for image in images]
    animation.durations = [DURATION] * len(images)
    if not cv2.imwriteanimation(str(path), animation, [cv2.IMWRITE_WEBP_QUALITY, QUALITY]):
        raise OSError(f"{path}: OpenCV could not write the animation")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    write(target, pictures())
    print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB")
