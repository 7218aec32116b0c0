"""What a user may choose about a stream, beside its sensor, intervals and policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowfuse.stream.buffers import FOREVER
from flowfuse.stream.clocks import microseconds


@dataclass(frozen=True)
class StreamSettings:
    """How much a stream keeps, how it takes times, and how it estimates.

    Times are integer microseconds, or a text such as "20ms"; they are kept as microseconds.

    Args:
        memory: events that are kept. An interval with its history must fit in.
        frames: frames that are kept.
        tolerance: by how much the sensors may lag behind each other, and events be out of order.
        slack: a frame this near to a limit of a fixed interval counts as taken there.
        offset: added to the times of frames, to bring them to the clock of the events.
        reset_after: a clock that jumps back by more than this began anew: the stream does too.
        rate: events per second that the policy "thin" lets through.
        wait: the longest time, seconds, that the policy "all" lets a sensor wait for room.
        iterations: recurrent updates; None: the network's default.
        warm_start: an estimate starts from the flow of the one before, carried along itself, where
            its expected error is at most 1 px. None: where intervals overlap.
        warm_iterations: recurrent updates from such a start; None: as many as from none.
        scale_tolerance: features of event slices that intervals share are used again while the
            scale that events are divided by would change by no more than this share. 0: slices are
            encoded anew, and results have the bits of a call of the estimator.
        as_torch: results give tensors on the estimator's device.

    Raises:
        ValueError: naming the setting, what was found and what was expected.
    """

    memory: int = 2_000_000
    frames: int = 8
    tolerance: int | str = "50ms"
    slack: int | str = "1ms"
    offset: int | str = 0
    reset_after: int | str = "1s"
    rate: float = 2e6
    wait: float = 30.0
    iterations: int | None = None
    warm_start: bool | None = None
    warm_iterations: int | None = None
    scale_tolerance: float = 0.0
    as_torch: bool = False

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"Stream: rate must be positive events per second, got {self.rate}")
        if not self.wait >= 0:
            raise ValueError(f"Stream: wait must be seconds >= 0, got {self.wait}")
        if not 0 <= self.scale_tolerance < 1:
            raise ValueError(
                f"Stream: scale_tolerance must be in [0, 1), got {self.scale_tolerance}"
            )
        limits = [("memory", 1), ("frames", 2), ("iterations", 1), ("warm_iterations", 1)]
        for name, least in limits:
            value = getattr(self, name)
            if value is None and name.endswith("iterations"):
                continue
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"Stream: {name} must be a whole number >= {least}, got {value!r}")
            object.__setattr__(self, name, int(value))
        times = [("tolerance", 0), ("slack", 0), ("offset", -FOREVER)]
        for name, least in times:
            object.__setattr__(self, name, microseconds(name, getattr(self, name), least=least))
        after = microseconds("reset_after", self.reset_after, least=1)
        object.__setattr__(self, "reset_after", after)
        if int(self.tolerance) >= after:
            raise ValueError(
                f"Stream: tolerance must be less than reset_after, got tolerance {self.tolerance} "
                f"us and reset_after {after} us"
            )
        if not isinstance(self.as_torch, (bool, np.bool_)):
            raise ValueError(f"Stream: as_torch must be True or False, got {self.as_torch!r}")
        if self.warm_iterations is not None and self.warm_start is False:
            raise ValueError(
                "Stream: warm_iterations belong to a warm start, got warm_iterations="
                f"{self.warm_iterations} and warm_start=False"
            )
