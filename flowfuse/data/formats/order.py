"""Times that go back in a file: overflows, clocks that were reset, single events out of place.

A file of events is in the order of time. Where it is not, :func:`find_order` says why:

* a counter of 32 (or 31) bits overflowed: whole periods are added from there on;
* a few events are out of place: they may be dropped;
* the clock was reset, or two recordings were joined: the file has several parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

# Of counters of microseconds: 2^32 us are 71.6 min, 2^31 us 35.8 min. A signed counter of 32 bits
# goes on at -2^31, which is a step of 2^32 too.
PERIODS = (1 << 32, 1 << 31)
# An overflow leaves a gap of at most this share of the period between the events around it.
_MOST_GAP = 1 / 400
_NEAR = 1000  # events: so many that return, or that were ahead, are single ones out of place
FEW = 10  # the same at the start or the end of a file, and where two stretches overlap in time
MOST_DROPPED = 0.01  # of the events; more of them are no accidents
_MOST_STEPS_BACK = 10_000  # more of them are no accident
_STEP = 1 << 20  # times looked at together
_LISTED = 5


@dataclass(frozen=True)
class Part:
    """A stretch of rows whose times do not decrease, but for those dropped.

    Attributes:
        first, end: rows [first, end).
        start, last: us, of the first and the last event, overflows added.
    """

    first: int
    end: int
    start: int
    last: int


@dataclass
class Order:
    """What is found in a column of times.

    Attributes:
        count: rows.
        wraps: (row, us): from this row on the times are so much later than they say; the last one
            at or before a row counts.
        parts: in the order of the file; several: the clock was reset between them.
        dropped: rows of single events out of place, increasing.
        periods: row -> the period that overflowed there, us.
    """

    count: int
    wraps: list[tuple[int, int]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    periods: dict[int, int] = field(default_factory=dict)
    first_fault: str = ""

    @property
    def is_sorted(self) -> bool:
        """Whether the times are in order once the overflows are added."""
        return not self.dropped and len(self.parts) <= 1

    @property
    def is_repairable(self) -> bool:
        """Whether the events out of order are few."""
        return len(self.dropped) <= max(FEW, self.count * MOST_DROPPED)

    def describe_wraps(self) -> str:
        """The overflows in words."""
        named = [
            f"of 2^{period.bit_length() - 1} us ({period / 6e7:.1f} min) at event {row}"
            for row, period in list(self.periods.items())[:_LISTED]
        ]
        more = f" and {len(self.periods) - _LISTED} more" * (len(self.periods) > _LISTED)
        return f"the clock overflowed: {', '.join(named)}{more}; the times are continued"

    def describe_faults(self) -> str:
        """What is not in order, where, and what can be done."""
        lines = []
        if len(self.parts) > 1:
            parts = [
                f"part {i} has the events [{part.first}, {part.end}) from {part.start / 1e6:.6f} "
                f"to {part.last / 1e6:.6f} s"
                for i, part in enumerate(self.parts[:_LISTED], 1)
            ]
            more = f", and {len(self.parts) - _LISTED} more" * (len(self.parts) > _LISTED)
            lines.append(
                f"the clock was reset, or {len(self.parts)} recordings were joined: "
                f"{', '.join(parts)}{more}; keep one (--part 1) or write all of them "
                "(data_tools/convert.py --split)"
            )
        if self.dropped:
            single = len(self.dropped) == 1
            advice = f"--repair drops {'it' if single else 'them'}"
            if not self.is_repairable:
                advice = (
                    "too many for accidents: sort the events by time, or split the file where "
                    "recordings were joined"
                )
            lines.append(
                f"{len(self.dropped)} of {self.count} events "
                f"{'is' if single else 'are'} out of order, {self.first_fault}; {advice}"
            )
        return "; ".join(lines)


class TooManyStepsBackError(ValueError):
    """The times are not sorted at all."""


def find_order(
    count: int, read: Callable[[int, int], np.ndarray], *, periods: Sequence[int] = PERIODS
) -> Order:
    """Look at all times of a file, and explain where they go back.

    Args:
        count: of times.
        read: gives those of the rows [first, end): int64 microseconds, as stored.
        periods: at which the clock may overflow, us.

    Raises:
        TooManyStepsBackError: there are more than 10,000 steps back.
    """
    order = Order(count)
    if not count:
        return order
    steps = _steps_back(count, read)
    search = _Search(order, read, periods)
    for row in steps:
        search.explain(row)
    search.close(count)
    order.dropped = sorted(search.left)
    return order


def _steps_back(count: int, read: Callable[[int, int], np.ndarray]) -> list[int]:
    found: list[int] = []
    last = None
    for first in range(0, count, _STEP):
        t = read(first, min(first + _STEP, count))
        before = np.concatenate(((t[0] if last is None else last,), t[:-1]))
        found += (first + np.flatnonzero(t < before)).tolist()
        if len(found) > _MOST_STEPS_BACK:
            raise TooManyStepsBackError(
                f"times must be sorted, but they go back more than {_MOST_STEPS_BACK} times, at "
                f"first at event {found[0]}; sort the events by time"
            )
        last = t[-1]
    return found


class _Search:
    """Goes through the steps back of a file, in order."""

    def __init__(
        self, order: Order, read: Callable[[int, int], np.ndarray], periods: Sequence[int]
    ) -> None:
        self.order, self.read, self.periods = order, read, periods
        self.begin = 0  # of the part
        self.floor = 0  # of the rows that raw times can be compared with: the last overflow
        self.added = 0  # us, of the overflows in this part
        self.resume = 0  # rows before this one are explained
        self.left: set[int] = set()  # rows dropped

    def explain(self, row: int) -> None:
        """Say why the time of a row is less than that of the one before."""
        if row < self.resume:
            return
        count = self.order.count
        first = max(self.floor, row - _NEAR)
        rows = np.array([i for i in range(first, row) if i not in self.left], np.int64)
        before = self.read(first, row)[rows - first]
        after = self.read(row, min(row + _NEAR + 1, count))
        if not len(before) or after[0] >= before[-1]:
            return
        period = self._overflow(int(before[-1]), int(after[0]))
        if period:
            self.added += period
            self.floor = row
            self.order.wraps.append((row, self.added))
            self.order.periods[row] = period
            return
        ahead = rows[before > after[0]]
        back = np.flatnonzero(after >= before[-1])
        behind = after[: back[0]] if len(back) else after
        if _overlap(before, behind):
            self.close(row)
            return
        returns = int(back[0]) if len(back) else None
        if returns is None and count - row <= FEW:
            returns = count - row
        whole = len(ahead) == len(rows)  # all that was looked at
        dropping_ahead = not whole or (first == self.floor and len(ahead) <= FEW)
        if returns is not None and (returns <= len(ahead) or not dropping_ahead):
            self._drop(range(row, row + returns), int(after[0]), int(before[-1]), row)
            self.resume = row + returns
        elif dropping_ahead:
            self._drop(ahead.tolist(), int(after[0]), int(before[-1]), row)
        else:
            self.close(row)

    def _drop(self, rows: Sequence[int], time: int, before: int, row: int) -> None:
        if not self.left:
            self.order.first_fault = (
                f"event {row} has {time + self.added} us after {before + self.added} us"
            )
        self.left.update(rows)

    def _overflow(self, before: int, after: int) -> int | None:
        lowest = min(int(self.read(self.begin, self.begin + 1)[0]), after)
        for period in self.periods:
            gap = period - (before - after)
            if 0 <= gap <= period * _MOST_GAP and before - lowest < period:
                return period
        return None

    def close(self, end: int) -> None:
        """End a part, and begin the next one there."""
        kept = [i for i in range(self.begin, min(end, self.begin + _NEAR)) if i not in self.left]
        last = end - 1
        while last in self.left:
            last -= 1
        if kept and last >= kept[0]:
            start = int(self.read(kept[0], kept[0] + 1)[0]) + self._added_at(kept[0])
            stop = int(self.read(last, last + 1)[0]) + self._added_at(last)
            self.order.parts.append(Part(self.begin, end, start, stop))
        if end < self.order.count and self.added:
            self.order.wraps.append((end, 0))
        self.begin, self.floor, self.added = end, end, 0

    def _added_at(self, row: int) -> int:
        return int(added_times(self.order.wraps, row, row + 1)[0])


def _overlap(before: np.ndarray, behind: np.ndarray) -> bool:
    """Whether two recordings of one span of time meet, and not a few events, or packets, that swap.

    Args:
        before: times up to where they go back.
        behind: those from there on, as long as they are less than the last of ``before``.
    """
    ahead = before[before > behind[0]]
    if min(len(ahead), len(behind)) <= FEW:
        return False
    if behind.max() <= ahead[0] and len(behind) <= _NEAR:
        return False  # the later ones fit in before the earlier ones
    # A wrong bit throws a few events ahead of the others: a gap stands before them.
    gap = ahead[0] - before[-len(ahead) - 1] if len(ahead) < len(before) else 0
    return bool(gap <= ahead[-1] - ahead[0])


def added_times(wraps: Sequence[tuple[int, int]], first: int, end: int) -> np.ndarray:
    """[end - first] int64: the microseconds that overflows add to the times of these rows."""
    starts = np.array([row for row, _ in wraps], np.int64)
    values = np.array([0, *(added for _, added in wraps)], np.int64)
    return values[np.searchsorted(starts, np.arange(first, end), side="right")]
