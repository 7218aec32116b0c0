"""What a source of live frames and events is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flowfuse.events import Events


@dataclass(frozen=True)
class LiveFrame:
    """A frame as it came.

    Attributes:
        image: uint8 [H, W] or [H, W, 3] RGB.
        t: middle of the exposure, us.
        exposure: duration, us; None where unknown.
    """

    image: np.ndarray
    t: int
    exposure: int | None = None


Packet = Events | LiveFrame


class SourceLostError(OSError):
    """A source is gone that was there: a cable was pulled, a file ends in the middle."""


class Source(Protocol):
    """Frames and events of one pixel grid, as they come.

    Attributes:
        name: what messages call it.
        height, width: of the sensors, px.
        has_frames: whether frames come, too.
    """

    name: str
    height: int
    width: int
    has_frames: bool

    def packets(self) -> Iterator[Packet]:
        """Wait for one packet after the other, until the source ends or is closed.

        Raises:
            SourceLostError: it is gone.
        """

    def close(self) -> None:
        """End :meth:`packets`, from whatever thread, and let go of the device."""
