"""Times that come from sensors: what is refused, with a guess of what it may be instead."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from flowfuse.config import parse_duration

# us: the year 5138 in microseconds since 1970, and 1973 in nanoseconds.
_NANOSECONDS = 10**17
# The fastest sensors give a thousand events a microsecond. Only a long look can tell: bursts, and
# sensors that read out whole images, have many events of one time.
_MOST_EVENTS = 1500  # a microsecond
_LONG_LOOK = 50_000  # events
_TICKS = 16  # distinct times
# Two clocks that differ by one of these do so by their unit.
_RATIOS = {1e3: "nanoseconds", 1e-3: "milliseconds", 1e-6: "seconds"}
_NEAR = 0.1  # relative: how near to such a ratio
_LEAST = 10**6  # us: ratios of times close to zero say nothing


def microseconds(name: str, value: int | str, *, least: int = 0) -> int:
    """Read a time that a caller gives: integer microseconds, or a text such as "20ms".

    Args:
        name: of the argument, for messages.
        value: a text may have a sign.
        least: the smallest value allowed, us.

    Raises:
        ValueError: it is none, or too small.
    """
    expected = "integer microseconds, or a text such as '20ms' or '0.5s'"
    if isinstance(value, str):
        sign = -1 if value.strip().startswith("-") else 1
        text = re.sub(r"^\s*[-+]", "", value)
        try:
            zero = re.fullmatch(r"\s*0\s*(us|ms|s)?\s*", text) is not None
            time = 0 if zero else sign * parse_duration(text)
        except ValueError:
            raise ValueError(f"Stream: {name} must be {expected}; got {value!r}") from None
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        time = int(value)
    else:
        raise ValueError(f"Stream: {name} must be {expected}; got {value!r}")
    if time < least:
        raise ValueError(f"Stream: {name} must be at least {least} us, got {time} us")
    return time


def check_event_times(t: Any) -> np.ndarray:
    """Take the times of a packet as they come, before they are put in order.

    Returns:
        [N] integers.

    Raises:
        ValueError: NaN, fractions or another unit; says which unit it may be.
    """
    if hasattr(t, "detach"):
        t = t.detach().cpu().numpy()
    times = np.asarray(t)
    if times.ndim != 1:
        raise ValueError(f"push_events: t must have shape [N], got {list(times.shape)}")
    if not times.size:
        return times.astype(np.int64)
    if times.dtype.kind == "f":
        finite = np.isfinite(times)
        if not finite.all():
            index = int(np.argmin(finite))
            raise ValueError(f"push_events: t must be finite, got t[{index}] = {times[index]}")
        whole = (times == np.rint(times)).all()
        guess = (
            "whole numbers, perhaps microseconds: give t.astype(np.int64)"
            if whole
            else "seconds? give np.rint(t * 1e6).astype(np.int64)"
        )
        raise ValueError(
            f"push_events: t must be integer microseconds, got {times.dtype} from {times[0]} to "
            f"{times[-1]} ({guess})"
        )
    if times.dtype.kind not in "iu":
        raise ValueError(f"push_events: t must be integer microseconds, got dtype {times.dtype}")
    if int(times.max()) >= _NANOSECONDS:
        raise ValueError(
            f"push_events: t must be microseconds, got {int(times.max())} (nanoseconds? give "
            "t // 1000)"
        )
    return times


class RateCheck:
    """Refuses events that come faster than any sensor gives them: their unit must be longer."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._count = self._ticks = 0

    def add(self, t: np.ndarray) -> None:
        """Look at the next times [N], sorted, us.

        Raises:
            ValueError: too many in too short a time.
        """
        if (self._count > _LONG_LOOK and self._ticks >= _TICKS) or not t.size:
            return
        first = int(t[0]) if self._first is None else self._first
        self._first = first
        self._count += t.size
        self._ticks += 1 + int((np.diff(t) > 0).sum())
        span = int(t[-1]) - first + 1
        rate = self._count / span
        if self._count > _LONG_LOOK and self._ticks >= _TICKS and rate > _MOST_EVENTS:
            count, unit, factor = self._count, "milliseconds", "1000"
            if rate / 1e3 > _MOST_EVENTS / 10:
                unit, factor = "seconds", "1_000_000"
            self._first, self._count, self._ticks = None, 0, 0
            raise ValueError(
                f"push_events: t must be microseconds, got {count} events within {span} us, more "
                f"than any sensor gives ({unit}? give t * {factor})"
            )


def check_frame_time(t: Any, exposure: Any, events: int | None) -> tuple[int, int | None]:
    """Take the time and the exposure of a frame.

    Args:
        t: integer microseconds.
        exposure: a duration in integer microseconds, or None.
        events: time of the newest event, us; None without any.

    Raises:
        ValueError: they are none; another unit than that of the events, with a guess.
    """
    time = check_time("push_frame", t, events)
    if exposure is None:
        return time, None
    length = whole_time("push_frame: exposure", exposure)
    if length < 0:
        raise ValueError(f"push_frame: exposure must not be negative, got {length} us")
    return time, length


def check_time(caller: str, t: Any, events: int | None) -> int:
    """Take a time that should be on the clock of the events.

    Args:
        caller: for messages.
        t: integer microseconds.
        events: time of the newest event, us; None without any.

    Raises:
        ValueError: it is none; another unit than that of the events, with a guess.
    """
    time = whole_time(f"{caller}: t", t)
    if time >= _NANOSECONDS:
        raise ValueError(
            f"{caller}: t must be microseconds, got {time} (nanoseconds? give t // 1000)"
        )
    if events is not None and events >= _LEAST:
        for ratio, unit in _RATIOS.items():
            if abs(time / events / ratio - 1) < _NEAR:
                raise ValueError(
                    f"{caller}: t must be microseconds on the clock of the events, which are at "
                    f"{events} us; got {time} ({unit}?)"
                )
    return time


def whole_time(name: str, value: Any) -> int:
    """Take integer microseconds.

    Args:
        name: of the argument, for messages.
        value: an integer of Python, numpy or torch.

    Raises:
        ValueError: it is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be integer microseconds, got {value!r}") from None
    if isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_)):
        return int(value)
    if hasattr(value, "dtype") and "int" in str(value.dtype):  # a tensor of one number
        return int(value)
    guess = "" if not np.isfinite(number) or number == round(number) else "; seconds?"
    raise ValueError(f"{name} must be integer microseconds, got {value!r}{guess}")
