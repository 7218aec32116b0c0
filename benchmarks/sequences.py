"""What benchmarks/model.py estimates the motion of: events of moving edges and two frames."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from flowfuse.events import Events

WINDOW = 100_000  # us
EVENTS_PER_PIXEL = 1e6 / (640 * 480)  # in one window
EDGES_PER_PIXEL = 200 / (640 * 480)
JITTER = 0.5  # px across an edge: threshold and latency differ from pixel to pixel


@dataclass(frozen=True)
class Sequence:
    """Frames [H, W] uint8 at t0 and t1; events of [t0 - (t1 - t0), t1), rectified (float32)."""

    frame0: np.ndarray
    frame1: np.ndarray
    events: Events
    t0: int
    t1: int

    @property
    def count(self) -> int:
        """Events between the frames."""
        return len(self.events.slice_time(self.t0, self.t1))


def moving_edges(height: int, width: int) -> Events:
    """Straight edges, each with a place, length, direction, speed and contrast of its own."""
    random = np.random.default_rng(0)
    number = max(1, round(EDGES_PER_PIXEL * height * width))
    start = random.random((2, number)) * np.array([[width - 1], [height - 1]])
    angle = random.uniform(0, 2 * np.pi, number)
    length = random.uniform(0.05, 0.5, number) * width
    speed = random.normal(0, 20, number)  # px a window
    brighter = random.integers(0, 2, number, dtype=np.uint8)

    shape = 2, round(EVENTS_PER_PIXEL * height * width)  # before t0, after it
    t = np.sort(random.integers(0, WINDOW, shape)) + np.array([[0], [WINDOW]])
    t, count = t.ravel(), t.size
    edge = random.integers(0, number, count)
    along = random.random(count) * length[edge]
    across = speed[edge] * t / WINDOW + random.normal(0, JITTER, count)
    sine, cosine = np.sin(angle[edge]), np.cos(angle[edge])
    # What leaves the image comes in again on the other side: the number of events stays.
    x = np.mod(start[0, edge] + along * cosine - across * sine, width - 1)
    y = np.mod(start[1, edge] + along * sine + across * cosine, height - 1)
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Events(x, y, t, brighter[edge], height=height, width=width)


@lru_cache(maxsize=1)  # groups of one size follow each other
def moving_sequence(height: int, width: int) -> Sequence:
    """Events of moving edges beside a smooth texture that moves by a few pixels."""
    noise = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    shifted = np.roll(texture, (2, 5), axis=(0, 1))
    return Sequence(texture, shifted, moving_edges(height, width), WINDOW, 2 * WINDOW)
