"""What happens when more comes in than can be estimated, and the counts of what was lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowfuse.events import Events

POLICIES = ("latest", "all", "thin")
_LOOK = 10_000  # us of the events' clock between two decisions
_SHORTEST = 500  # us, the first of the times in which a pixel counts once
_LONGEST = 16_000
_SPREAD = 7919  # a prime number: neighbouring pixels begin their times far from each other


@dataclass
class StreamStats:
    """What a stream took in, gave and lost, counted since it began.

    Attributes:
        events, frames: all that were pushed.
        events_reordered: came late by at most the tolerance, and were put in their place.
        events_late: came later than that, and were dropped.
        events_repeated: of packets that were in memory already, dropped.
        events_thinned: dropped by the policy "thin".
        events_overwritten: left memory before the interval that needed them was estimated.
        frames_late: came after the pair around them had been estimated; in memory all the same.
        frames_repeated: of a time that was in memory already, dropped.
        frames_overwritten: left memory before a pair with them was estimated, or were older than
            all in memory.
        intervals: estimated.
        intervals_skipped: never estimated, because newer ones were there.
        intervals_empty: without any event, and without a frame pair.
        slices_reused: event slices whose features were used again, of intervals that overlap.
        resets: how often a clock began anew.
    """

    events: int = 0
    events_reordered: int = 0
    events_late: int = 0
    events_repeated: int = 0
    events_thinned: int = 0
    events_overwritten: int = 0
    frames: int = 0
    frames_late: int = 0
    frames_repeated: int = 0
    frames_overwritten: int = 0
    intervals: int = 0
    intervals_skipped: int = 0
    intervals_empty: int = 0
    slices_reused: int = 0
    resets: int = 0

    @property
    def events_dropped(self) -> int:
        """All events that were dropped, or overwritten too early."""
        return (
            self.events_late + self.events_repeated + self.events_thinned + self.events_overwritten
        )


class Thinner:
    """Lowers the rate of events: of those of one pixel and polarity within a time, the first stays.

    Edges keep all their pixels; what goes is that a pixel fires again and again. The times of a
    pixel are a fixed grid on the events' clock, shifted from pixel to pixel, so that events do not
    come in beats. Their length is chosen anew every 10 ms: from 0.5 ms to 16 ms, twice as long
    while more than ``rate`` events are left, half as long when less than half of the rate comes in,
    and then zero: all stay. How the events are divided into packets changes nothing.

    Args:
        height, width: of the sensor, px.
        rate: events per second that are to be left.
    """

    def __init__(self, height: int, width: int, rate: float) -> None:
        self.height, self.width, self.rate = height, width, rate
        # The last cell of time in which each pixel was kept, by polarity.
        self._cell = np.full((2, height * width), -1, np.int64)
        self.reset()

    def reset(self) -> None:
        """Begin anew, as after a clock did."""
        self.blind = 0  # us, of the grid; 0: all stay
        self._look: int | None = None  # number of the present look
        self._came = self._kept = 0
        self._cell.fill(-1)

    def __call__(self, events: Events) -> Events:
        """The events that stay; they are sorted by time, and later than those before."""
        looks = events.t // _LOOK
        limits = np.flatnonzero(np.diff(looks)) + 1
        kept = np.empty(len(events), bool)
        for first, last in zip((0, *limits.tolist()), (*limits.tolist(), len(events)), strict=True):
            if first == last:
                continue
            self._begin(int(looks[first]))
            kept[first:last] = self._keep(events, slice(first, last))
            self._came += last - first
            self._kept += int(kept[first:last].sum())
        return events if kept.all() else events[kept]

    def _begin(self, look: int) -> None:
        if self._look == look:
            return
        budget, before = self.rate * _LOOK * 1e-6, self.blind
        if self._kept > budget:
            self.blind = min(max(2 * self.blind, _SHORTEST), _LONGEST)
        elif self._came < budget / 2 and self.blind:
            self.blind = self.blind // 2 if self.blind > _SHORTEST else 0
        if self.blind != before:
            self._cell.fill(-1)  # cells of another length
        self._look, self._came, self._kept = look, 0, 0

    def _keep(self, events: Events, part: slice) -> np.ndarray:
        if not self.blind:
            return np.ones(part.stop - part.start, bool)
        x, y = (
            np.clip(np.rint(values[part]), 0, side - 1).astype(np.int64)
            for values, side in ((events.x, self.width), (events.y, self.height))
        )
        pixel, polarity = y * self.width + x, events.p[part].astype(np.int64)
        cell = (events.t[part] + pixel * _SPREAD % self.blind) // self.blind
        # Sorted by time, so that an earlier event of the same cell of time stands right before.
        place = polarity * (self.height * self.width) + pixel
        order = np.argsort(place, kind="stable")
        place, cell = place[order], cell[order]
        begins = np.concatenate(([True], place[1:] != place[:-1]))
        before = np.concatenate(([0], cell[:-1]))
        flat = self._cell.reshape(-1)
        before = np.where(begins, flat[place], before)
        kept = np.empty(len(place), bool)
        kept[order] = cell != before
        ends = np.concatenate((begins[1:], [True]))
        flat[place[ends]] = cell[ends]
        return kept
