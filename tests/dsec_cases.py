"""A small sequence of DSEC: random events, a pattern that moves, the same ground truth
everywhere."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from flowfuse.data.datasets.dsec.writer import write_sequence
from flowfuse.events import Events

HEIGHT, WIDTH, FRAMES = 24, 32, 7
STEP, FIRST = 50_000, 60_000  # us between frames, and of the first one
OFFSET = 54_000_000_000
SHIFT = (3.0, -1.5)  # ground truth, px in two frames


def make_events(count: int = 4000, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    end = FIRST + FRAMES * STEP
    times = np.sort(rng.integers(0, end, count))
    times[1000:1400] = times[1000]  # many events at one time
    return Events(
        rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count), np.sort(times),
        rng.integers(0, 2, count), height=HEIGHT, width=WIDTH,
    )  # fmt: skip


def write(root: Path, name: str = "thun_00_a", **more) -> Path:
    rng = np.random.default_rng(1)
    pattern = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8), (0, 0), 2)
    frames = [np.roll(pattern, (-i, 2 * i), (0, 1)) for i in range(FRAMES)]
    flow = np.broadcast_to(np.array(SHIFT, np.float32)[:, None, None], (2, HEIGHT, WIDTH))
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[:5] = False
    given = {"flow": {i: (flow, valid) for i in (0, 2, 4)}, "exposures": np.full(FRAMES, 8000)}
    return write_sequence(
        root, name, make_events(), frames, FIRST + STEP * np.arange(FRAMES),
        **{"image_size": (54, 72), "t_offset": OFFSET, **given, **more},
    )  # fmt: skip
