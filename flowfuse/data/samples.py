"""A frame pair, the events around it and the ground truth between, as a training sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from flowfuse.data.recording import Recording
from flowfuse.geometry.grid import inside, pixel_grid
from flowfuse.inputs import Exposures, InputSpec, ModelInputs, input_interval, prepare_inputs
from flowfuse.io.images import as_gray

# The fields that are images: their last two axes are rows and columns.
IMAGES = ("slices", "frame0", "frame1", "event_sum", "flow", "valid", "occluded", "boundary")


class Sample(NamedTuple):
    """The network's inputs for one frame pair, with ground truth at T times or without any.

    A batch of B samples is a Sample too (:meth:`collate`); its tensors have B as their first axis.

    Attributes:
        slices: [K + 1, bins, H, W] float32, raw polarity sums of E_0 .. E_K.
        frame0, frame1: [1, H, W] float32 in [0, 1], gray.
        event_sum: [1, H, W] float32, exposure-weighted polarity sum from t0 to t1.
        exposure: [2] float32, exposure durations over (t1 - t0); 0 = unknown.
        modality_mask: [4] float32, 0 or 1, see :class:`flowfuse.inputs.Modality`.
        tau: [T] float32, times of the ground truth in (0, 1]; the last one is 1.
        flow: [T, 2, H, W] float32, px, displacement from t0 to each tau.
        valid: [T, H, W] bool, where the flow is known, occluded or not.
        occluded: [T, H, W] bool, covered or out of the image at tau.
        boundary: [2, H, W] float32, 0 or 1: B_e, B_m; NaN where unknown.
        matching: [3] float32, 1 where the frame pair, the event pairs, and frame 0 with the last
            event slice still correspond; None: all do (:mod:`flowfuse.data.corruption`).
        flow_init: [2, H, W] float32, px, flow that the network starts from, NaN where it has
            nothing to say; None: nothing anywhere (:mod:`flowfuse.data.warm_start`).
    """

    slices: Tensor
    frame0: Tensor
    frame1: Tensor
    event_sum: Tensor
    exposure: Tensor
    modality_mask: Tensor
    # Only with ground truth; what needs it takes it to be there, the rest compares with None.
    tau: Tensor = None  # type: ignore[assignment]
    flow: Tensor = None  # type: ignore[assignment]
    valid: Tensor = None  # type: ignore[assignment]
    occluded: Tensor = None  # type: ignore[assignment]
    boundary: Tensor = None  # type: ignore[assignment]
    matching: Tensor | None = None
    flow_init: Tensor | None = None

    @property
    def inputs(self) -> ModelInputs:
        """What the network sees."""
        return ModelInputs(*(getattr(self, name) for name in ModelInputs._fields))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are there, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def map(self, change: Callable[[Tensor], Tensor], names: Iterable[str] | None = None) -> Sample:
        """Change every tensor that is there, or those of some names."""
        chosen = Sample._fields if names is None else names
        found = {n: change(value) for n, value in self.tensors().items() if n in chosen}
        return self._replace(**found)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Sample:
        """Return the sample on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def contiguous(self) -> Sample:
        """Return the sample in tensors that lie in memory as they are indexed."""
        return self.map(Tensor.contiguous)

    @staticmethod
    def collate(samples: Sequence[Sample]) -> Sample:
        """Stack samples into a batch; all have ground truth, or none has: ``collate_fn``."""
        return Sample(**default_collate([sample.tensors() for sample in samples]))


def unlabelled_sample(recording: Recording, first: int, last: int, spec: InputSpec) -> Sample:
    """Make a sample without ground truth.

    Args:
        recording: with events and frames.
        first, last: the frame pair.
        spec: slices and bins.

    Returns:
        The sample. ``modality_mask`` says what the recording has: events between the frames, and
        events before the first one.
    """
    t0, t1 = (int(recording.frame_times[i]) for i in (first, last))
    return Sample(*recording_inputs(recording, (first, last), t0, t1, spec))


def recording_inputs(
    recording: Recording, frames: tuple[int, int] | None, t0: int, t1: int, spec: InputSpec
) -> ModelInputs:
    """Make a network's inputs from a recording, in gray.

    Args:
        recording: of the frames and events.
        frames: the frame pair; None: the events alone.
        t0, t1: time interval in microseconds.
        spec: slices and bins.
    """
    exposures: Exposures = (None, None)
    frame0 = frame1 = None
    if frames is not None:
        frame0, frame1 = (as_gray(recording.frame(i)) for i in frames)
        if recording.exposures is not None:
            spans = recording.exposures[list(frames)]
            exposures = (int(spans[0, 1] - spans[0, 0]), int(spans[1, 1] - spans[1, 0]))
    start, end = input_interval(t0, t1, spec.slices, *exposures)
    events = recording.events(max(start, 0), end)
    return prepare_inputs(frame0, frame1, events, t0=t0, t1=t1, spec=spec, exposures=exposures)


def labelled_sample(
    recording: Recording,
    first: int,
    last: int,
    ground_truth: tuple[np.ndarray, np.ndarray],
    spec: InputSpec,
) -> Sample:
    """Make a sample of a frame pair and the ground truth between.

    Args:
        recording, first, last, spec: as of :func:`unlabelled_sample`.
        ground_truth: flow [2, H, W] px, and where it is valid, [H, W] bool.

    Returns:
        The sample with one time, tau = 1. ``valid`` is where there is ground truth; the flow is 0
        elsewhere. ``occluded`` covers, beside what leaves the image, all pixels without ground
        truth, where nothing can be matched; what is hidden by something else is not known.
        ``boundary`` is NaN: unknown.
    """
    flow, valid = (torch.from_numpy(values)[None] for values in ground_truth)
    flow = torch.where(valid[:, None], flow, 0.0)  # files may hold anything there
    height, width = recording.height, recording.width
    seen = inside(pixel_grid(height, width) + flow, height, width)[:, 0]
    return unlabelled_sample(recording, first, last, spec)._replace(
        tau=torch.ones(1),
        flow=flow,
        valid=valid,
        occluded=~(valid & seen),
        boundary=torch.full((2, *valid.shape[1:]), torch.nan),
    )
