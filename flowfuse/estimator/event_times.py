"""Whether events lie where they should in time; a guess why not."""

from __future__ import annotations

import warnings

import numpy as np

from flowfuse.events import Events

FEWEST_USED = 1000  # of so many events given, one at least should lie in [t0, t1)
UNITS = (("nanoseconds", 1, 1000), ("milliseconds", 1000, 1), ("seconds", 1_000_000, 1))


def check_times(events: Events, t0: int, t1: int, all_used: bool) -> None:
    """Warn where next to none of the events lie in the time interval; guess why.

    Events that are all used may be those before t0 alone, and are warned of only where another unit
    would bring them into the interval.
    """
    inside = len(events.slice_time(t0, t1))
    if inside * FEWEST_USED >= len(events):
        return
    first, last = int(events.t[0]), int(events.t[-1])
    guess = ""
    for unit, numerator, divisor in UNITS:
        # t x numerator / divisor in [t0, t1), without an overflow of int64
        limits = [-(-time * divisor // numerator) for time in (t0, t1)]
        found = int(np.diff(np.searchsorted(events.t, limits))[0])
        if found * FEWEST_USED >= len(events) and found > inside:
            guess = f"; {found} would, were their times in {unit}: all times are microseconds"
            break
    else:
        if all_used:
            return
        if last < t0 or t1 <= first:
            guess = "; is it one clock?"
    warnings.warn(
        f"estimator: {inside} of the {len(events)} events given lie in [t0, t1) = [{t0}, {t1}) us; "
        f"they go from {first} to {last} us{guess}",
        stacklevel=5,
    )
