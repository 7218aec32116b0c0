"""Searching a sorted column of times that is stored in blocks."""

from __future__ import annotations

import bisect
from collections.abc import Callable

_LEAST_BLOCK = 1 << 14  # rows


class BlockTimes:
    """The time of the first row of each block of a sorted column, read when needed, then kept.

    A file of 10^9 rows has 61,000 blocks at most.

    Args:
        count: rows of the column.
        chunk: rows that are stored, and so decoded, together; None where any row can be read alone.
    """

    def __init__(self, count: int, chunk: int | None = None) -> None:
        self.count = count
        chunk = chunk or 1
        self.block = chunk * -(-_LEAST_BLOCK // chunk)  # whole chunks
        self._times: dict[int, int] = {}

    def rows(self, t0: int, t1: int, read: Callable[[int], int]) -> tuple[int, int]:
        """Find which rows to read for the window [t0, t1), t0 <= t1.

        Args:
            t0, t1: microseconds.
            read: gives the time of a row, microseconds.

        Returns:
            The first row, whose time is below t0 unless it is row 0; and the end: there is none
            left, or the time is t1 or later there.
        """
        begin = max(0, self._first_block_at(t0, read) - 1)
        end = max(begin, self._first_block_at(t1, read))
        return begin * self.block, min(end * self.block, self.count)

    def _first_block_at(self, time: int, read: Callable[[int], int]) -> int:
        """The first block whose first row is at ``time`` or later."""

        def start(block: int) -> int:
            if block not in self._times:
                self._times[block] = read(block * self.block)
            return self._times[block]

        blocks = -(-self.count // self.block)
        return bisect.bisect_left(range(blocks), time, key=start)
