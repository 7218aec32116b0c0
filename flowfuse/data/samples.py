"""Two frames of a recording, the events around them and the true flow between, as a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowfuse.data.formats.frames import as_gray
from flowfuse.geometry.grid import inside, pixel_grid
from flowfuse.inputs import input_interval, slice_events, sum_events

if TYPE_CHECKING:
    from flowfuse.data.datasets.dsec.sequence import DsecSequence
    from flowfuse.data.recording import Recording


def unlabelled_sample(
    recording: Recording | DsecSequence, first: int, last: int, *, slices: int, bins: int
) -> dict[str, Tensor]:
    """Make the part of a sample that needs no truth: the network's inputs, frames in gray.

    Args:
        recording: with events and frames.
        first, last: frames.
        slices, bins: see :func:`flowfuse.inputs.slice_events`.

    Returns:
        What :class:`flowfuse.inputs.ModelInputs` asks for, without a batch axis. ``exposure`` is 0
        where it is unknown. ``present`` says what the recording has: events between the frames, and
        events before the first one.
    """
    t0, t1 = (int(recording.frame_times[i]) for i in (first, last))
    exposures = [None, None]
    if recording.exposures is not None:
        exposures = [int(end - start) for start, end in recording.exposures[[first, last]]]
    start, end = input_interval(t0, t1, slices, *exposures)
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
        "modality_mask": torch.tensor([True, fires, history]).float(),
    }


def labelled_sample(
    recording: Recording | DsecSequence,
    first: int,
    last: int,
    ground_truth: tuple[np.ndarray, np.ndarray],
    *,
    slices: int,
    bins: int,
) -> dict[str, Tensor]:
    """Make a training sample of two frames and the true flow between them.

    Args:
        recording, first, last, slices, bins: as of :func:`unlabelled_sample`.
        truth: flow [2, H, W] px, and where it is valid, [H, W] bool.

    Returns:
        What :func:`flowfuse.data.synthetic.dataset.scene_sample` returns, with one time, tau = 1,
        and ``present``. ``valid`` is where there is truth; the flow is 0 elsewhere. ``occluded``
        covers, beside what leaves the image, all pixels without truth, where nothing can be
        matched; what is hidden by something else is not known. ``boundary`` is NaN: unknown.
    """
    flow, valid = (torch.from_numpy(values)[None] for values in ground_truth)
    flow = torch.where(valid[:, None], flow, 0.0)  # files may hold anything there
    size = {"height": recording.height, "width": recording.width}
    seen = inside(pixel_grid(**size) + flow, **size)[:, 0]
    return {
        **unlabelled_sample(recording, first, last, slices=slices, bins=bins),
        "tau": torch.ones(1),
        "flow": flow,
        "valid": valid,
        "occluded": ~(valid & seen),
        "boundary": torch.full((2, *valid.shape[1:]), torch.nan),
    }


def _picture(frame: np.ndarray) -> Tensor:
    """uint8 [H, W] or [H, W, 3] -> [1, H, W] float32 in [0, 1]."""
    return torch.from_numpy(as_gray(frame))[None].float() / 255
