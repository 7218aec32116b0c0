"""Watching a generated scene: instants to render, light into frame camera and event sensor."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from flowfuse.data.synthetic.camera import exposure_weights
from flowfuse.data.synthetic.layers import Plane, render
from flowfuse.data.synthetic.motion import ShiftedMotion, transfer
from flowfuse.data.synthetic.presets import SceneConfig, Split
from flowfuse.data.synthetic.simulator import EventSensor
from flowfuse.data.synthetic.v2e import V2eSensor
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
        delay: the clock of the event camera is ahead by so much: its stamps are late.
    """

    first: int
    interval: int
    exposures: np.ndarray
    delay: int = 0

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

    @property
    def watched(self) -> tuple[int, int]:
        """When the event camera watches: it stamps this span as from start to end."""
        return self.start - self.delay, self.end - self.delay

    @property
    def rendered(self) -> tuple[int, int]:
        """When either camera watches."""
        return min(self.start, self.watched[0]), max(self.end, self.watched[1])

    def tau(self, times: np.ndarray) -> np.ndarray:
        """Times in units of the interval, 0 at frame 0."""
        return (times - self.first) / self.interval


@dataclass(frozen=True)
class EventView:
    """How the event camera's view differs from the frame camera's. The defaults: not at all.

    Attributes:
        shift: (x, y) px: what is at p in a frame is at p + shift for the event camera.
        delay_us: its time stamps are late by so much; negative: early.
        blur: standard deviation of its Gaussian point-spread, px.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    delay_us: int = 0
    blur: float = 0.0

    def __post_init__(self) -> None:
        if not self.blur >= 0:
            raise ValueError(f"EventView: blur must not be negative, got {self.blur}")

    @property
    def margin(self) -> int:
        """Pixels around the image that it sees as well."""
        return max(int(np.ceil(abs(s) + 3 * self.blur)) for s in self.shift)

    def watch(self, radiance: Tensor) -> Tensor:
        """Turn pictures with the margin around, [T, H + 2 m, W + 2 m], into its own, [T, H, W]."""
        if not self.margin:
            return radiance
        for axis, shift in ((2, self.shift[0]), (1, self.shift[1])):
            size = radiance.shape[axis] - 2 * self.margin
            first, weights = point_spread(shift, self.blur)
            seen = torch.zeros_like(radiance.narrow(axis, 0, size))
            for tap, weight in enumerate(weights.tolist(), start=first):
                seen.add_(radiance.narrow(axis, self.margin - tap, size), alpha=weight)
            radiance = seen
        return radiance


def point_spread(shift: float, blur: float) -> tuple[int, np.ndarray]:
    """A shifted Gaussian as a filter of pixels, between which the picture is taken to be linear.

    Args:
        shift: its mean, px.
        blur: its standard deviation, px; 0 = linear interpolation alone.

    Returns:
        ``first`` and ``weights`` [K], which sum to 1: filtered[x] is the sum over k of weights[k]
        picture[x - first - k].
    """
    first, last = (int(end) for end in (np.floor(shift - 3 * blur), np.ceil(shift + 3 * blur)))
    # The integral of a Gaussian times a hat function is a second difference of the Gaussian's
    # second antiderivative, x Phi(x / s) + s phi(x / s); without blur that is a ramp.
    x = np.arange(first - 1, last + 2) - shift
    if blur > 0:
        cumulative = torch.special.ndtr(torch.from_numpy(x / blur)).numpy()
        density = np.exp(-0.5 * (x / blur) ** 2) / np.sqrt(2 * np.pi)
        antiderivative = x * cumulative + blur * density
    else:
        antiderivative = np.maximum(x, 0)
    weights = np.diff(antiderivative, 2)
    return first, weights / weights.sum()


def draw_view(rng: Generator, config: SceneConfig, split: Split) -> EventView:
    """Draw the event camera's view; most are the frame camera's."""

    def mostly_small(low: float, high: float) -> float:
        return low + (high - low) * rng.random() ** 3

    length, heading = mostly_small(*config.view_shift), rng.uniform(0, 2 * np.pi)
    drawn = EventView(
        shift=(float(length * np.cos(heading)), float(length * np.sin(heading))),
        delay_us=round(1000 * mostly_small(*config.view_delay_ms) * rng.choice((-1, 1))),
        blur=float(rng.uniform(*config.view_blur)),
    )
    share = config.misaligned_share if split == "train" else config.test_misaligned_share
    return drawn if rng.random() < share else EventView()


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
        [T] int64 us, strictly increasing, over clock.rendered; the bounds of clock.watched are
        among them.
    """
    start, end = clock.rendered
    span = (end - start) / clock.interval
    coarse = np.linspace(start, end, int(64 * span) + 1)
    motion = _largest_motion(planes, clock.tau(coarse), height, width) / max_step
    idle = np.diff(coarse) / (LONGEST_STEP * clock.interval)
    if flicker is not None:
        idle = np.maximum(idle, np.diff(coarse) * 8e-6 * flicker.frequency)
    effort = np.concatenate(((0.0,), np.cumsum(np.maximum(motion, idle))))
    count = min(int(np.ceil(effort[-1])), int(MAX_INSTANTS * span))
    instants = np.interp(np.linspace(0, effort[-1], count + 1), effort, coarse)
    bounds = np.concatenate((clock.rendered, clock.watched, clock.exposure_bounds.ravel()))
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
    sensor: EventSensor | V2eSensor,
    view: EventView | None = None,
) -> tuple[Events, np.ndarray]:
    """Render the scene at all instants into the event sensor and the frame camera.

    Args:
        instants: [T] int64 us.
        clock: with the delay of ``view``.
        view: the event camera's; None = the frame camera's.

    Returns:
        The events, stamped from clock.start to clock.end, and the mean radiance over every
        exposure, [F, H, W] float32.
    """
    height, width, device = sensor.height, sensor.width, planes[0].device
    view = view or EventView()
    margin = view.margin
    outer = height + 2 * margin, width + 2 * margin
    planes = _from_margin(planes, margin)
    watched = (instants >= clock.watched[0]) & (instants <= clock.watched[1])
    weights = np.stack([exposure_weights(instants, *bounds) for bounds in clock.exposure_bounds])
    signals = torch.zeros((len(weights), height, width), device=device)
    chunk = max(1, CHUNK_PIXELS.get(device.type, 2**18) // (outer[0] * outer[1]))
    parts = []
    for first in range(0, len(instants), chunk):
        times = instants[first : first + chunk]
        radiance = render(planes, clock.tau(times), *outer)
        if flicker is not None:
            gain = torch.from_numpy(flicker.gain(times).astype(np.float32))
            radiance = radiance * gain.to(device)[:, None, None]
        # One picture after the other: sums in a fixed order, whatever the number of threads.
        for frame, row in zip(signals, weights[:, first : first + chunk], strict=True):
            for i in np.flatnonzero(row):
                picture = radiance[i, margin : margin + height, margin : margin + width]
                frame.add_(picture, alpha=float(row[i]))
        now = np.flatnonzero(watched[first : first + chunk])
        if now.size:  # a span: with a delay the first or the last instants are missing
            span = slice(now[0], now[-1] + 1)
            parts.append(sensor.observe(view.watch(radiance[span]), times[span] + clock.delay))
    return Events.concatenate(parts), signals.cpu().numpy()


def _from_margin(planes: Sequence[Plane], margin: int) -> Sequence[Plane]:
    """The same planes in an image that begins ``margin`` px further to the left and above."""
    if not margin:
        return planes
    moved = [copy(plane) for plane in planes]
    for plane in moved:
        plane.motion = ShiftedMotion(plane.motion, np.array((margin, margin)))
    return moved
