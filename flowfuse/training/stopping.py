"""When a training stops before its last step: on Ctrl-C, on SIGTERM, or when its time is up."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any


class StoppedError(Exception):
    """A training was stopped before its first step, in its preparation."""


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag, so that a step can end and be saved.

    As long as there is nothing to save, they interrupt at once (KeyboardInterrupt).

    Args:
        insist: whether the second signal interrupts at once. Not under torchrun, which passes on
            more than one and kills by itself what does not end.
        tell: whether the first signal is answered with a line on standard error.

    Attributes:
        requested: whether somebody asked to stop.
        deadline: time on the clock `time.monotonic`, s, when to stop; None = never.
        patient: whether there is something to save: set once the preparation is over.
    """

    def __init__(self, *, insist: bool = True, tell: bool = True) -> None:
        self.requested = self.patient = False
        self.deadline: float | None = None
        self._insist = insist
        self._tell = tell
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
        late = self.deadline is not None and time.monotonic() > self.deadline
        return self.requested or late

    def check(self) -> None:
        """Stop a preparation whose time is up.

        Raises:
            StoppedError: it is.
        """
        if self():
            raise StoppedError

    def _ask(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if self._insist:
            self._restore()
        if first and not self.patient:
            raise KeyboardInterrupt
        if first and self._tell:
            more = "; once more stops at once, without one" if self._insist else ""
            # Not print: a signal may come while another line is half printed.
            os.write(2, f"\nstopping after this step, with a checkpoint{more}\n".encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
