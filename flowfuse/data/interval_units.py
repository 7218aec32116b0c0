"""Whether the limits of a time interval that is asked for are in microseconds; a guess why not."""

from __future__ import annotations

import math
import warnings

from flowfuse.events import Events

# us; who asks for less far from all events, or for a fraction of it, has seconds in mind.
_SHORTEST = 100
# A time so many times that of the last event is in nanoseconds rather than simply too late.
_FAR = 100


def whole_limits(t0: float, t1: float) -> tuple[int, int]:
    """The limits of an interval as integers.

    Raises:
        ValueError: one is no finite number.
    """
    for name, value in (("t0", t0), ("t1", t1)):
        if not math.isfinite(value):
            raise ValueError(f"events: {name} must be a time in microseconds, got {value}")
    return int(t0), int(t1)


def check_unit(t0: float, t1: float, found: Events, event_range: tuple[int, int] | None) -> None:
    """Warn where few events or none were found because times are not in microseconds.

    Args:
        t0, t1: as the user gave them.
        found: the events in [t0, t1).
        event_range: the times of the first and the last event that there are, us; None: none.
    """
    whole = int(t0) == t0 and int(t1) == t1
    if event_range is None or (whole and len(found)):
        return
    if whole and event_range[0] < t1 and t0 <= event_range[1]:
        return  # a quiet moment of the recording
    units: list[tuple[str, float]] = []
    if 0 < t1 - t0 < _SHORTEST:
        units = [("seconds", 1e6), ("milliseconds", 1e3)]
    elif t0 > _FAR * max(event_range[1], 1):
        units = [("nanoseconds", 1e-3)]
    for unit, factor in units:
        start, end = round(t0 * factor), round(t1 * factor)
        if start <= event_range[1] and event_range[0] < end:
            warnings.warn(
                f"events: {len(found) or 'none'} in [{t0}, {t1}) us of a recording whose events go "
                f"from {event_range[0]} to {event_range[1]} us; were these {unit}, it would be "
                f"[{start}, {end}) us: all times are integer microseconds",
                stacklevel=3,
            )
            return
