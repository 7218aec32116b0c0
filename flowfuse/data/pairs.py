"""What the network sees of two frames of a recording and the events around them, as a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowfuse.data.files.frames import as_gray
from flowfuse.model.inputs import event_window, slice_events, sum_events

if TYPE_CHECKING:
    from flowfuse.data.dsec.sequence import DsecSequence
    from flowfuse.data.recording import Recording


def pair_inputs(
    recording: Recording | DsecSequence, first: int, last: int, *, slices: int, bins: int
) -> dict[str, Tensor]:
    """Make the part of a sample that needs no truth: the network's inputs, frames in gray.

    Args:
        recording: with events and frames.
        first, last: frames.
        slices, bins: see :func:`flowfuse.model.inputs.slice_events`.

    Returns:
        What :class:`flowfuse.model.ModelInputs` asks for, without a batch axis. ``exposure`` is 0
        where it is unknown. ``present`` says what the recording has: events between the frames, and
        events before the first one.
    """
    t0, t1 = (int(recording.frame_times[i]) for i in (first, last))
    exposures = [None, None]
    if recording.exposures is not None:
        exposures = [int(end - start) for start, end in recording.exposures[[first, last]]]
    start, end = event_window(t0, t1, slices, *exposures)
    events = recording.events(max(start, 0), end)
    fires = len(events.slice_time(t0, t1)) > 0
    history = fires and int(events.t[0]) < t0
    size = {"height": recording.height, "width": recording.width}
    return {
        "slices": slice_events(events, t0, t1, slices=slices, bins=bins, **size),
        "frame0": _picture(recording.frame(first)),
        "frame1": _picture(recording.frame(last)),
        "event_sum": sum_events(events, t0, t1, *exposures, **size),
        "exposure": torch.tensor([(e or 0) / (t1 - t0) for e in exposures]),
        "present": torch.tensor([True, fires, history]).float(),
    }


def _picture(frame: np.ndarray) -> Tensor:
    """uint8 [H, W] or [H, W, 3] -> [1, H, W] float32 in [0, 1]."""
    return torch.from_numpy(as_gray(frame))[None].float() / 255
