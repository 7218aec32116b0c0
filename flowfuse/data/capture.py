"""Watching a generated scene: instants to render, light into frame camera and event sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator

from flowfuse.data.camera import exposure_weights
from flowfuse.data.motion import transfer
from flowfuse.data.planes import Plane, render
from flowfuse.data.simulator import EventSensor
from flowfuse.events import Events

MAX_INSTANTS = 1024  # per frame interval; beyond, steps become longer than asked for
LONGEST_STEP = 1 / 24  # of a frame interval, also where nothing moves
CHUNK_PIXELS = {"cpu": 2**18, "cuda": 2**24}  # rendered at once: what the caches, or a GPU, like


@dataclass(frozen=True)
class Clock:
    """Times of a scene, us.

    Attributes:
        first: time of frame 0.
        interval: from frame to frame.
        exposures: [F] durations, centred on the frame times.
    """

    first: int
    interval: int
    exposures: np.ndarray

    @property
    def frame_times(self) -> np.ndarray:
        """[F] int64."""
        return self.first + self.interval * np.arange(len(self.exposures), dtype=np.int64)

    @property
    def exposure_bounds(self) -> np.ndarray:
        """[F, 2] int64: begin and end of every exposure."""
        begin = self.frame_times - self.exposures // 2
        return np.stack((begin, begin + self.exposures), axis=1)

    @property
    def start(self) -> int:
        """Half an interval before frame 0."""
        return self.first - (self.interval + 1) // 2

    @property
    def end(self) -> int:
        """The end of the last exposure."""
        return int(self.exposure_bounds[-1, 1]) + 1

    def tau(self, times: np.ndarray) -> np.ndarray:
        """Times in units of the interval, 0 at frame 0."""
        return (times - self.first) / self.interval


@dataclass(frozen=True)
class Flicker:
    """Lamps on alternating current: radiance times 1 + depth sin(2 pi frequency t + phase)."""

    depth: float
    frequency: float
    phase: float

    def gain(self, times: np.ndarray) -> np.ndarray:
        """[T] factors at times in us."""
        return 1 + self.depth * np.sin(2e-6 * np.pi * self.frequency * times + self.phase)


def draw_flicker(rng: Generator, share: float) -> Flicker | None:
    """Draw the lamps of a scene; most light is steady."""
    depth, frequency, phase = (
        rng.uniform(0.02, 0.15),
        rng.choice((100.0, 120.0)),
        rng.uniform(0, 6.28),
    )
    return Flicker(depth, frequency, phase) if rng.random() < share else None


def plan_instants(
    planes: Sequence[Plane],
    height: int,
    width: int,
    clock: Clock,
    max_step: float,
    flicker: Flicker | None,
) -> np.ndarray:
    """Choose the instants to render.

    Between two of them nothing in the image moves by more than ``max_step`` px, lamps go through at
    most an eighth of a period, and the bounds of all exposures are among them.

    Returns:
        [T] int64 us, strictly increasing, from clock.start to clock.end.
    """
    span = (clock.end - clock.start) / clock.interval
    coarse = np.linspace(clock.start, clock.end, int(64 * span) + 1)
    motion = _largest_motion(planes, clock.tau(coarse), height, width) / max_step
    idle = np.diff(coarse) / (LONGEST_STEP * clock.interval)
    if flicker is not None:
        idle = np.maximum(idle, np.diff(coarse) * 8e-6 * flicker.frequency)
    effort = np.concatenate(((0.0,), np.cumsum(np.maximum(motion, idle))))
    count = min(int(np.ceil(effort[-1])), int(MAX_INSTANTS * span))
    instants = np.interp(np.linspace(0, effort[-1], count + 1), effort, coarse)
    bounds = np.concatenate(((clock.start, clock.end), clock.exposure_bounds.ravel()))
    return np.unique(np.concatenate((np.rint(instants).astype(np.int64), bounds)))


def _largest_motion(
    planes: Sequence[Plane], tau: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Largest motion of a visible plane between consecutive times, px: [T - 1]."""
    x, y = np.meshgrid(np.linspace(0, width - 1, 7), np.linspace(0, height - 1, 7))
    image = np.stack((x.ravel(), y.ravel()), axis=1)
    largest = np.zeros(len(tau) - 1)
    for plane in planes:
        matrices = plane.motion.homographies(tau)
        if plane.bounded:
            x, y = np.meshgrid(np.linspace(0, plane.width, 7), np.linspace(0, plane.height, 7))
            texels = np.stack((x.ravel(), y.ravel()), axis=1)
        else:
            texels, _ = transfer(np.linalg.inv(matrices[:-1]), image)
        before, depth = transfer(matrices[:-1], texels)
        after, depth_after = transfer(matrices[1:], texels)
        near = ((before > -8) & (before < (width + 8, height + 8))).all(-1)
        counted = near & (depth > 0) & (depth_after > 0)
        motion = np.linalg.norm(after - before, axis=-1)
        largest = np.maximum(largest, np.where(counted, motion, 0).max(-1))
    return largest


def capture(
    planes: Sequence[Plane],
    instants: np.ndarray,
    clock: Clock,
    flicker: Flicker | None,
    sensor: EventSensor,
) -> tuple[Events, np.ndarray]:
    """Render the scene at all instants into the event sensor and the frame camera.

    Args:
        instants: [T] int64 us.

    Returns:
        The events, and the mean radiance over every exposure, [F, H, W] float32.
    """
    height, width, device = sensor.height, sensor.width, planes[0].device
    weights = np.stack([exposure_weights(instants, *bounds) for bounds in clock.exposure_bounds])
    signals = torch.zeros((len(weights), height, width), device=device)
    chunk = max(1, CHUNK_PIXELS.get(device.type, 2**18) // (height * width))
    parts = []
    for first in range(0, len(instants), chunk):
        times = instants[first : first + chunk]
        radiance = render(planes, clock.tau(times), height, width)
        if flicker is not None:
            gain = torch.from_numpy(flicker.gain(times).astype(np.float32))
            radiance = radiance * gain.to(device)[:, None, None]
        # One picture after the other: sums in a fixed order, whatever the number of threads.
        for frame, row in zip(signals, weights[:, first : first + chunk], strict=True):
            for i in np.flatnonzero(row):
                frame.add_(radiance[i], alpha=float(row[i]))
        parts.append(sensor.observe(radiance, times))
    return Events.concatenate(parts), signals.cpu().numpy()
