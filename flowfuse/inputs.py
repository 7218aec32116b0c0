"""The one way from frames and events to the tensors that a network takes.

The estimator and all training samples call :func:`prepare_inputs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowfuse.events import Events
from flowfuse.ops import voxelize
from flowfuse.ops.events import MAX_DURATION
from flowfuse.ops.voxelize import TIME_BITS

Exposures = tuple[int | None, int | None]
GPU_TYPES = ("cuda",)  # of devices that copy from the host by themselves
ALIGNMENT = 16  # bytes; what kernels load at a time


@dataclass(frozen=True)
class InputSpec:
    """How a network wants its events.

    Attributes:
        slices: K, the number of event slices between t0 and t1.
        bins: temporal bins per slice.
    """

    slices: int
    bins: int


class Modality(IntEnum):
    """Columns of a modality mask: ``mask[:, Modality.EVENTS]`` is [B], 1 where events are there."""

    FRAMES = 0
    EVENTS = 1
    HISTORY = 2  # events before t0
    SECOND_FRAME = 3  # frame 1, beside frame 0

    @staticmethod
    def mask(*, frames: bool, events: bool, history: bool, second_frame: bool) -> Tensor:
        """Return the modality mask of one item, [4] float32, 0 or 1."""
        return torch.tensor([frames, events, history, second_frame], dtype=torch.float32)


class PairKind(IntEnum):
    """What is matched with what: frame to frame, event slice to event slice, frame to slice."""

    FRAMES = 0
    EVENTS = 1
    CROSS = 2


class ModelInputs(NamedTuple):
    """What :class:`flowfuse.model.FlowFuse` takes; B items of H x W pixels, K event slices.

    Attributes:
        slices: [B, K + 1, bins, H, W] float32, raw polarity sums of the slices E_0 .. E_K.
        frame0, frame1: [B, 1 | 3, H, W] float32 in [0, 1], gamma-encoded (gray or RGB). Nothing is
            read of those that the mask says are absent.
        event_sum: [B, 1, H, W] float32, polarity sums from frame 0 to frame 1, weighted by the two
            exposures (:func:`sum_events`).
        exposure: [B, 2] float32, exposure durations of both frames over (t1 - t0); 0 = unknown.
        modality_mask: [B, 4] float32, 0 or 1, see :class:`Modality`.
    """

    slices: Tensor
    frame0: Tensor
    frame1: Tensor
    event_sum: Tensor
    exposure: Tensor
    modality_mask: Tensor

    def as_batch(self) -> ModelInputs:
        """Return a batch of one, from an item without a batch axis."""
        return ModelInputs(*(value.unsqueeze(0) for value in self))


class EventTensors(NamedTuple):
    """Events on the device that voxelizes them.

    Attributes:
        x, y, t, p: as of :class:`~flowfuse.events.Events`.
        times: t as numpy has it: the events of an interval are found by binary search.
    """

    x: Tensor
    y: Tensor
    t: Tensor
    p: Tensor
    times: np.ndarray

    @classmethod
    def upload(cls, events: Events, device: torch.device | str = "cpu") -> EventTensors:
        """Copy events to a device, in one transfer; on the CPU they share the arrays."""
        arrays = (events.x, events.y, events.t, events.p)
        x, y, t, p = upload_together(arrays, device)
        return cls(x, y, t, p, times=events.t)


def prepare_inputs(  # noqa: PLR0913 - all that is known of a frame pair
    frame0: np.ndarray | Tensor | None,
    frame1: np.ndarray | Tensor | None,
    events: Events,
    *,
    t0: int,
    t1: int,
    spec: InputSpec,
    exposures: Exposures = (None, None),
    history: bool | None = None,
    device: torch.device | str = "cpu",
) -> ModelInputs:
    """Make a network's inputs from a frame pair and the events around it.

    The events go to the device as they are; slices are made there, which are many times larger. One
    call of voxelize makes all slices and one the event sum. Frames on the device stay there.

    Args:
        frame0, frame1: [H, W] or [H, W, 3] RGB; uint8, uint16, or float32 in [0, 1]. frame1 None:
            frame 0 alone. Both None: no frames, and the size is that of the events' sensor.
        events: any; those outside :func:`input_interval` are left out.
        t0, t1: time interval in microseconds, the mid-exposure times of the frames.
        spec: slices and bins.
        exposures: durations in microseconds; None where unknown.
        history: whether the events cover the time before t0; None: the first one is earlier.
        device: where to compute.

    Returns:
        :class:`ModelInputs` of one item, without a batch axis, on the device.

    Raises:
        ValueError: when a slice would be shorter than one microsecond, or frame 1 comes alone.
    """
    frames = [frame for frame in (frame0, frame1) if frame is not None]
    if frame0 is None and frame1 is not None:
        raise ValueError("prepare_inputs: frame1 needs frame0, got None")
    height, width = frames[0].shape[:2] if frames else (events.height, events.width)
    has_events = len(events.slice_time(t0, t1)) > 0
    if history is None:
        history = has_events and int(events.t[0]) < t0
    used = events.slice_time(*input_interval(t0, t1, spec.slices, *exposures))
    tensors = EventTensors.upload(used, device)
    size = {"height": height, "width": width}
    return assemble_inputs(
        [unit_image(frame, device) for frame in frames],
        slice_events(tensors, t0, t1, slices=spec.slices, bins=spec.bins, **size),
        sum_events(tensors, t0, t1, *exposures, **size),
        exposure_shares=[(e or 0) / (t1 - t0) for e in exposures],
        has_events=has_events,
        history=has_events and history,
    )


def assemble_inputs(
    images: Sequence[Tensor],
    slices: Tensor,
    event_sum: Tensor,
    *,
    exposure_shares: Sequence[float],
    has_events: bool,
    history: bool,
) -> ModelInputs:
    """Put together what :class:`ModelInputs` has, of one item.

    Args:
        images: two, one or no frames, as :func:`unit_image` gives them.
        slices: [K + 1, bins, H, W].
        event_sum: [1, H, W].
        exposure_shares: exposure durations of both frames over (t1 - t0); 0 = unknown.
        has_events, history: what the modality mask says of them.
    """
    device = slices.device
    empty = images[0] if images else torch.zeros_like(event_sum)
    frame0, frame1 = [*images, *[torch.zeros_like(empty)] * (2 - len(images))]
    mask = Modality.mask(
        frames=len(images) > 0, events=has_events, history=history, second_frame=len(images) > 1
    )
    return ModelInputs(
        slices=slices,
        frame0=frame0,
        frame1=frame1,
        event_sum=event_sum,
        exposure=to_device(torch.tensor(exposure_shares), device),
        modality_mask=to_device(mask, device),
    )


def to_device(values: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device; a copy from the host to a GPU is not waited for."""
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    if values.device.type == "cpu" and torch.device(device).type in GPU_TYPES:
        # Only page-locked memory is copied while the CPU goes on.
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def upload_together(arrays: Sequence[np.ndarray], device: torch.device | str) -> list[Tensor]:
    """Copy arrays to a device: to a GPU side by side, in one transfer that is not waited for."""
    if torch.device(device).type not in GPU_TYPES:
        return [to_device(array, device) for array in arrays]
    ends = np.cumsum([-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]).tolist()
    places = [
        slice(start, start + array.nbytes) for start, array in zip((0, *ends), arrays, strict=False)
    ]
    staged = page_locked(ends[-1])
    for place, array in zip(places, arrays, strict=True):
        staged.numpy()[place].view(array.dtype)[:] = array
    moved = staged.to(device, non_blocking=True)
    dtypes = [torch.from_numpy(array[:0]).dtype for array in arrays]
    return [moved[place].view(dtype) for place, dtype in zip(places, dtypes, strict=True)]


def page_locked(size: int) -> Tensor:
    """Return new bytes on the host that a GPU can read by itself, [size] uint8."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def unit_image(frame: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """Return a frame as the network takes it.

    Args:
        frame: [H, W] or [H, W, 3]; uint8 or uint16 of full range, or float32 in [0, 1].
        device: where to; the bits are the same everywhere.

    Returns:
        [1 | 3, H, W] float32 in [0, 1].
    """
    image = to_device(frame, device)
    image = image.reshape(*image.shape[:2], -1).permute(2, 0, 1)
    white = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(image.dtype)
    if white is None:
        return image
    # By a tensor on the device: by a number, CUDA multiplies with the reciprocal.
    return image.float() / torch.full((), white, device=image.device)


def slice_times(t0: int, t1: int, slices: int) -> list[int]:
    """Return the K + 2 limits (us) of the slices E_0 .. E_K: t0 - d, t0, t0 + d, .., t1."""
    return [t0 + k * (t1 - t0) // slices for k in range(-1, slices + 1)]


def input_interval(
    t0: int, t1: int, slices: int, exposure0: int | None, exposure1: int | None
) -> tuple[int, int]:
    """Return the half-open interval (us) of all events that the inputs of [t0, t1) are made of.

    It begins with slice E_0 or with exposure 0, whichever is earlier: :func:`sum_events` weighs the
    events of the whole exposures.
    """
    first = min(slice_times(t0, t1, slices)[0], t0 - (exposure0 or 0) // 2)
    return first, t1 + (exposure1 or 0) // 2


def slice_events(
    events: Events | EventTensors,
    t0: int,
    t1: int,
    *,
    slices: int,
    bins: int,
    height: int,
    width: int,
) -> Tensor:
    """Voxelize the causal event slices E_k = events in [tau_k - d, tau_k), d = (t1 - t0) / K.

    E_0 ends at t0, so it needs events from before t0; E_K ends at t1. Slice k sees the edges where
    they are at tau_k, and all slices are equally long.

    Args:
        events: any events; those outside [t0 - d, t1) are left out. The bits are the same on every
            device.
        t0, t1: time interval in microseconds.
        slices: K.
        bins: temporal bins per slice.
        height, width: sensor size in px.

    Returns:
        [K + 1, bins, H, W] float32 polarity sums, on the events' device.

    Raises:
        ValueError: when a slice would be shorter than one microsecond.
    """
    if isinstance(events, Events):
        events = EventTensors.upload(events)
    if t1 - t0 < slices:
        raise ValueError(
            f"slice_events: the time interval [{t0}, {t1}) us is too short for {slices} slices "
            "of at least 1 us"
        )
    return voxelize_slices(events, slice_times(t0, t1, slices), bins, height, width)


def voxelize_slices(
    events: EventTensors, limits: Sequence[int], bins: int, height: int, width: int
) -> Tensor:
    """Voxelize adjoining event slices.

    Args:
        events: those outside are left out.
        limits: n + 1 times, us; slice i has the events of [limits[i], limits[i + 1]).
        bins, height, width: as of :func:`slice_events`.

    Returns:
        [n, bins, H, W] float32 polarity sums, on the events' device; the same bits for a slice
        whichever others there are.
    """
    return _voxelize_intervals(events, limits, limits[1:], bins, height, width)


def sum_events(
    events: Events | EventTensors,
    t0: int,
    t1: int,
    exposure0: int | None,
    exposure1: int | None,
    height: int,
    width: int,
) -> Tensor:
    """Sum polarities from frame 0 to frame 1 as the two exposures see them.

    A frame is the mean of the light over its exposure, so frame 0 has already seen a change at time
    t inside exposure 0 by the share of the exposure that comes after t, and the two frames differ
    by the rest of it: the weight of an event rises linearly from 0 to 1 over exposure 0 (centred at
    t0), is 1 between the exposures, and falls to 0 over exposure 1 (centred at t1). Unknown
    exposures are taken as instantaneous.

    Args:
        events: any events; those that no weight reaches are left out.
        t0, t1: mid-exposure times of the frames, us.
        exposure0, exposure1: exposure durations in us, or None where unknown.
        height, width: sensor size in px.

    Returns:
        [1, H, W] float32, on the events' device.
    """
    if isinstance(events, Events):
        events = EventTensors.upload(events)
    half0, half1 = (exposure0 or 0) // 2, (exposure1 or 0) // 2
    start, end = t0 + half0, t1 - half1
    if start > end:  # overlapping exposures: cut both at the middle
        start = end = (start + end) // 2
    # With two bins the time weights of voxelize are the ramps: bin 1 rises, bin 0 falls. In between
    # an event's whole weight stays in bin 0 if it comes in the first 2^-TIME_BITS of the time.
    plain_end = start + min((end - start) << TIME_BITS, MAX_DURATION)
    parts = {
        "rise": (t0 - half0, start, start),
        "plain": (start, end, plain_end),
        "fall": (end, t1 + half1, t1 + half1),
    }
    parts = {name: part for name, part in parts.items() if part[0] < part[1]}
    ramps = parts.keys() & {"rise", "fall"}
    total = torch.zeros(1, height, width, device=events.t.device)
    if not parts:
        return total
    limits = [part[0] for part in parts.values()] + [list(parts.values())[-1][1]]
    ends = [part[2] for part in parts.values()] if ramps else limits[1:]
    voxels = _voxelize_intervals(events, limits, ends, 2 if ramps else 1, height, width)
    found = dict(zip(parts, voxels, strict=True))
    if "plain" in found:
        total += found["plain"].sum(0)
    if "rise" in found:
        total += found["rise"][1]
    if "fall" in found:
        total += found["fall"][0]
    return total


def _voxelize_intervals(
    events: EventTensors,
    limits: Sequence[int],
    ends: Sequence[int],
    bins: int,
    height: int,
    width: int,
) -> Tensor:
    """Voxelize adjoining intervals in one call.

    Args:
        limits: n + 1 times (us): interval i has the events of [limits[i], limits[i + 1]).
        ends: n times (us), where the last bin of each interval lies; limits[1:], or later.

    Returns:
        [n, bins, H, W].
    """
    offsets = np.searchsorted(events.times, limits)
    numbers = to_device(np.concatenate((offsets, limits[:-1], ends)), events.t.device)
    bounds, t0, t1 = numbers.split((len(limits), len(ends), len(ends)))
    x, y, t, p, _ = events
    voxels, _ = voxelize(x, y, t, p, bounds, t0, t1, bins, height, width)
    return voxels
