"""When a training stops before its last step: on Ctrl-C, on SIGTERM, or when its time is up."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag, so that a step can end and be saved.

    Args:
        deadline: time on the clock `time.monotonic`, s, when to stop; None = never.
        insist: whether the second signal interrupts at once. Not under torchrun, which passes on
            more than one and kills by itself what does not end.

    Attributes:
        requested: whether somebody asked to stop.
    """

    def __init__(self, deadline: float | None = None, *, insist: bool = True) -> None:
        self.requested = False
        self._deadline = deadline
        self._insist = insist
        self._before: dict[int, Any] = {}  # as signal.signal gives and takes them

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def __call__(self) -> bool:
        """Tell whether to stop at the next good moment."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        return self.requested or late

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._insist:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
