"""How a recording is read: what the user states or asks for beyond the names of files."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}
_RATES = {"ppm": 1e-6, "us/s": 1e-6, "ms/s": 1e-3}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class TimeOffset:
    """What brings the clock of the frames to that of the events.

    Attributes:
        offset: us, added to the times at the first frame.
        drift: added per time since then: 1e-6 (1 ppm) is a microsecond more each second.
    """

    offset: float
    drift: float = 0.0

    def __str__(self) -> str:
        drift = f",{self.drift * 1e6:.3g}ppm" if self.drift else ""
        return f"{self.offset / 1000:.3f}ms{drift}"


@dataclass(frozen=True)
class ReadingOptions:
    """Statements and wishes; the default is none of them.

    Attributes:
        bit_depth: bits of the camera whose frames are stored in 16 bits, 8 to 16.
        repair: drop events that are out of order or off the sensor, and frames out of order.
        part: of a file of events whose clock was reset, from 1 on.
        time_offset: of the clock of the frames.
        depth: of the scene, with a calibration, see :func:`flowfuse.data.depth.parse_depth`.
        columns: of a table of events, see
            :func:`flowfuse.data.formats.column_order.parse_columns`.
    """

    bit_depth: int | None = None
    repair: bool = False
    part: int | None = None
    time_offset: TimeOffset | None = None
    depth: str | None = None
    columns: str | None = None

    def __post_init__(self) -> None:
        if self.bit_depth is not None and not 8 <= self.bit_depth <= 16:
            raise ValueError(f"bit_depth must be 8 to 16, got {self.bit_depth}")
        if self.part is not None and self.part < 1:
            raise ValueError(f"part must be at least 1, got {self.part}")

    def stated(self) -> list[str]:
        """The names of those that are not left at their default."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]


def parse_time_offset(text: str) -> TimeOffset:
    """Read "-24.5ms" or "3ms,12ppm": an offset in us, ms or s, and a drift in ppm, us/s or ms/s.

    Raises:
        ValueError: it is none.
    """
    offset, mark, drift = (part.strip() for part in text.partition(","))
    units, rates = "|".join(_UNITS), "|".join(_RATES)
    found = re.fullmatch(rf"({_NUMBER})\s*({units})", offset)
    also = re.fullmatch(rf"({_NUMBER})\s*({rates})", drift) if mark else None
    if found is None or (mark and also is None):
        raise ValueError("expected an offset such as -24.5ms or 3ms,12ppm (with its drift)")
    rate = float(also[1]) * _RATES[also[2]] if also else 0.0
    return TimeOffset(float(found[1]) * _UNITS[found[2]], rate)
