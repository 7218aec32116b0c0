"""From the pixels of an event sensor to its recording: jitter, a limited rate, batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from flowfuse.events import Events

RATE_BIN_US = 1000  # over which the rate is limited


@dataclass(frozen=True)
class ReadoutConfig:
    """How events are read out. The defaults change nothing.

    Attributes:
        jitter_us: time stamps are off by up to so much to both sides, uniformly; >= 0.
        rate_cap_hz: events per second and pixel of the sensor, on average over its pixels, that are
            read out at the most; None = all.
        batch_us: events are read out at multiples of this time, and stamped then; >= 1.
    """

    jitter_us: int = 0
    rate_cap_hz: float | None = None
    batch_us: int = 1

    def __post_init__(self) -> None:
        if self.jitter_us < 0:
            raise ValueError(f"ReadoutConfig: jitter_us must not be negative, got {self.jitter_us}")
        if self.rate_cap_hz is not None and not self.rate_cap_hz > 0:
            raise ValueError(
                f"ReadoutConfig: rate_cap_hz must be positive or None, got {self.rate_cap_hz}"
            )
        if self.batch_us < 1:
            raise ValueError(f"ReadoutConfig: batch_us must be at least 1, got {self.batch_us}")


def read_out(
    events: Events, config: ReadoutConfig, rng: Generator, *, start: int, end: int
) -> Events:
    """Read events out: jitter first, then the limit of the rate, then batches.

    Args:
        events: of a sensor of known size.
        rng: says how stamps are off and which events are lost.
        start, end: what is stamped outside of [start, end] (us) is not in the recording.

    Returns:
        Events sorted by time; with the default configuration the same object.
    """
    if config == ReadoutConfig():
        return events
    times, kept = events.t, np.arange(len(events))
    if config.jitter_us:
        times = times + rng.integers(-config.jitter_us, config.jitter_us, len(times), endpoint=True)
        kept = np.argsort(times, kind="stable")
        times = times[kept]
    if config.rate_cap_hz is not None and times.size:
        assert events.height is not None and events.width is not None
        pixels = events.height * events.width
        most = max(1, round(config.rate_cap_hz * 1e-6 * RATE_BIN_US * pixels))
        read = _within_cap(times, most, rng)
        times, kept = times[read], kept[read]
    times = -(-times // config.batch_us) * config.batch_us
    inside = (times >= start) & (times <= end)
    times, kept = times[inside], kept[inside]
    return Events(
        events.x[kept],
        events.y[kept],
        times,
        events.p[kept],
        height=events.height,
        width=events.width,
    )


def _within_cap(times: np.ndarray, most: int, rng: Generator) -> np.ndarray:
    """Choose at most ``most`` events of each bin at random: [N] bool."""
    bins = np.arange(times[0] // RATE_BIN_US, times[-1] // RATE_BIN_US + 2)
    edges = np.searchsorted(times, bins * RATE_BIN_US)
    read = np.ones(times.size, dtype=bool)
    for first, last in pairwise(edges):
        if last - first > most:
            read[first:last] = False
            read[first + rng.choice(last - first, most, replace=False)] = True
    return read
