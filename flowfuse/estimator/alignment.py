"""Whether the events and frames of a caller share axes and polarity; the likely cause if not."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import torch

from flowfuse.events import Events
from flowfuse.result import as_events

MOST_LOOKS = 4  # frame pairs: the first may be at rest
FEWEST_EVENTS = 1000  # fewer tell nothing, and cost no look
# Of one pair; good recordings have 0.39 to 0.89 as given, and mirrored -0.09 to 0.16.
EVIDENT = 0.35
AS_GIVEN = 0.2  # at least so much: nothing is wrong


class AlignmentCheck:
    """Looks at the first frame pairs with events until one tells, and warns once at most.

    A look takes 2 to 12 ms. Frames on a GPU are not looked at: that would wait for them.
    """

    def __init__(self) -> None:
        self._looks = MOST_LOOKS
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return AlignmentCheck, ()  # a lock cannot be copied

    def look(self, frame0: Any, frame1: Any, events: Any, t0: int, t1: int) -> None:
        """Look at a frame pair that the estimator has accepted; arguments as of a call."""
        if self._looks <= 0 or any(frame is None for frame in (frame0, frame1, events)):
            return
        if any(isinstance(frame, torch.Tensor) and not frame.is_cpu for frame in (frame0, frame1)):
            return
        given = as_events(events)
        if given is None or len(given.slice_time(t0, t1)) < FEWEST_EVENTS:
            return
        from flowfuse.data.diagnosis import compare_geometry  # OpenCV, which is loaded late

        pair: Any = _Pair((frame0, frame1), given, (t0, t1))
        found = compare_geometry(pair)
        evident = found.is_evident and abs(found.correlation) >= EVIDENT
        with self._lock:
            if self._looks <= 0:
                return
            self._looks = 0 if evident or found.as_given >= AS_GIVEN else self._looks - 1
        if evident and found.as_given < AS_GIVEN:
            told = f"estimator: likely cause of wrong flow: {found.describe()}"
            warnings.warn(told, stacklevel=3)


class _Pair:
    """What :func:`compare_geometry` reads of a recording, of two images and events."""

    def __init__(self, frames: tuple[Any, Any], events: Events, times: tuple[int, int]) -> None:
        self._frames, self._events = [_as_image(frame) for frame in frames], events
        self.height, self.width = self._frames[0].shape[:2]
        self.frame_times, self.event_range = np.array(times), times

    def frame(self, index: int) -> np.ndarray:
        return self._frames[index]

    def events(self, t0: int, t1: int) -> Events:
        return self._events.slice_time(t0, t1)


def _as_image(frame: Any) -> np.ndarray:
    """A frame as files hold it: uint8 or uint16, [H, W] or [H, W, 3]."""
    if isinstance(frame, torch.Tensor):
        frame = frame.detach()
        frame = frame.float() if frame.is_floating_point() else frame  # numpy has no bfloat16
    image = np.asarray(frame)
    if image.dtype.kind == "f":
        image = np.rint(255 * np.clip(image.astype(np.float32), 0, 1)).astype(np.uint8)
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
