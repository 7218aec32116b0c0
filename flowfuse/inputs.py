"""The one way from events and frames to the tensors that a network takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowfuse.events import Events
from flowfuse.ops import voxelize


class ModelInputs(NamedTuple):
    """What :class:`flowfuse.model.FlowFuse` takes; B items of H x W pixels, K event slices.

    Attributes:
        slices: [B, K + 1, bins, H, W] float32, raw polarity sums of the slices E_0 .. E_K.
        frame0, frame1: [B, 1 | 3, H, W] float32 in [0, 1], gamma-encoded (gray or RGB).
        event_sum: [B, 1, H, W] float32, polarity sums from frame 0 to frame 1, weighted by the two
            exposures (:func:`sum_events`).
        exposure: [B, 2] float32, exposure durations of both frames over (t1 - t0); 0 = unknown.
        modality_mask: [B, 3] float32, 0 or 1: frames, events, history (events before t0).
    """

    slices: Tensor
    frame0: Tensor
    frame1: Tensor
    event_sum: Tensor
    exposure: Tensor
    modality_mask: Tensor


def slice_times(t0: int, t1: int, slices: int) -> list[int]:
    """Return the K + 2 limits (us) of the slices E_0 .. E_K: t0 - d, t0, t0 + d, .., t1."""
    return [t0 + k * (t1 - t0) // slices for k in range(-1, slices + 1)]


def input_interval(
    t0: int, t1: int, slices: int, exposure0: int | None, exposure1: int | None
) -> tuple[int, int]:
    """Return the half-open window (us) of all events that the inputs of [t0, t1) are made of.

    It begins with slice E_0 or with exposure 0, whichever is earlier: :func:`sum_events` weighs the
    events of the whole exposures.
    """
    first = min(slice_times(t0, t1, slices)[0], t0 - (exposure0 or 0) // 2)
    return first, t1 + (exposure1 or 0) // 2


def slice_events(
    events: Events,
    t0: int,
    t1: int,
    *,
    slices: int,
    bins: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Voxelize the causal event slices E_k = events in [tau_k - d, tau_k), d = (t1 - t0) / K.

    E_0 ends at t0, so it needs events from before t0; E_K ends at t1. Slice k sees the edges where
    they are at tau_k, and all slices are equally long.

    Args:
        events: any events; those outside [t0 - d, t1) are left out.
        t0, t1: window in microseconds.
        slices: K.
        bins: temporal bins per slice.
        height, width: sensor size in px.
        device: where to compute; the bits are the same everywhere.

    Returns:
        [K + 1, bins, H, W] float32 polarity sums, on the device.

    Raises:
        ValueError: when a slice would be shorter than one microsecond.
    """
    limits = slice_times(t0, t1, slices)
    if t1 - t0 < slices:
        raise ValueError(
            f"slice_events: the window [{t0}, {t1}) us is too short for {slices} slices "
            "of at least 1 us"
        )
    return _voxelize_windows(events, limits[:-1], limits[1:], bins, height, width, device)


def sum_events(
    events: Events,
    t0: int,
    t1: int,
    exposure0: int | None,
    exposure1: int | None,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
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
        device: where to compute.

    Returns:
        [1, H, W] float32, on the device.
    """
    half0, half1 = (exposure0 or 0) // 2, (exposure1 or 0) // 2
    start, end = t0 + half0, t1 - half1
    if start > end:  # overlapping exposures: cut both at the middle
        start = end = (start + end) // 2
    grid = (height, width, device)
    total = torch.zeros(1, height, width, device=device)
    if end > start:
        total += _voxelize_windows(events, [start], [end], 1, *grid)[0]
    # With two bins the time weights of voxelize are the ramps: bin 1 rises, bin 0 falls.
    if start > t0 - half0:
        total += _voxelize_windows(events, [t0 - half0], [start], 2, *grid)[0, 1:]
    if t1 + half1 > end:
        total += _voxelize_windows(events, [end], [t1 + half1], 2, *grid)[0, :1]
    return total


def _voxelize_windows(
    events: Events,
    starts: list[int],
    ends: list[int],
    bins: int,
    height: int,
    width: int,
    device: torch.device | str,
) -> Tensor:
    """Voxelize adjoining windows: [len(starts), bins, H, W]."""
    limits = np.searchsorted(events.t, [*starts, ends[-1]])
    low, high = limits[0], limits[-1]

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[low:high])).to(device)

    voxels, _ = voxelize(
        tensor(events.x),
        tensor(events.y),
        tensor(events.t),
        tensor(events.p),
        torch.from_numpy(limits - low).to(device),
        torch.tensor(starts, device=device),
        torch.tensor(ends, device=device),
        bins,
        height,
        width,
    )
    return voxels
