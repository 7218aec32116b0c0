"""From a network's inputs to what its layers see: normalized voxel grids, lumas, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowfuse.geometry.grid import pad_to_multiple
from flowfuse.inputs import Modality, ModelInputs
from flowfuse.io.images import as_gray
from flowfuse.model.encoders import little_memory

# A pixel is hot when it fires at least HOT_COUNT events in the window and HOT_RATIO times as many
# as its neighbours do on average: a moving edge always lights its neighbours up too.
HOT_COUNT = 16.0
HOT_RATIO = 8.0
CLIP = 3.0
# Every so manieth pixel, row after row: prime numbers, of which one does not divide the width, or
# these would be the same columns in every row.
PERCENTILE_STEPS = (13, 11)


class Scene(NamedTuple):
    """What stays of :class:`ModelInputs` once the slices are encoded: padded, zero where absent.

    Attributes:
        frame0, frame1: [B, 1, H, W] lumas; frame 1 is frame 0 where it is absent.
        event_sum: [B, 1, H, W].
        first_sum: [B, 1, H, W], polarity sum of slice E_1, normalized.
        density: [B, K + 1, h, w], mean magnitude of every slice in the cells.
        exposure: [B, 2].
        modality_mask: [B, 4].
    """

    frame0: Tensor
    frame1: Tensor
    event_sum: Tensor
    first_sum: Tensor
    density: Tensor
    exposure: Tensor
    modality_mask: Tensor


class SliceCounts(NamedTuple):
    """What the scale of an interval is found from, of one of its slices.

    Attributes:
        activity: [B, 1, H, W], sum of the absolute values over the bins.
        part: [B, bins, n], values of a part of the pixels: every ``step``-th.
        step: of these pixels.
    """

    activity: Tensor
    part: Tensor
    step: int


class SliceScale(NamedTuple):
    """How the slices of an interval are normalized.

    Attributes:
        divisor: [B, 1], the 98th percentile of the magnitudes.
        kept: [B, 1, H, W], 0 at hot pixels, else 1.
    """

    divisor: Tensor
    kept: Tensor

    def apply(self, values: Tensor, present: Tensor) -> Tensor:
        """Mask hot pixels, scale and clip: [B, N, bins, H, W]; ``present`` [B, N] is 0 or 1."""
        weight = self.kept.unsqueeze(1) * present[:, :, None, None, None]
        return (values * (weight / self.divisor.view(-1, 1, 1, 1, 1))).clamp_(-CLIP, CLIP)


def normalize_slices(slices: Tensor, slice_mask: Tensor) -> Tensor:
    """Mask hot pixels, scale by the 98th percentile of the non-zero magnitudes, clip at +-3.

    One scale for the whole input of an item: a scale per slice would hide that the motion slows
    down, and subtracting a mean would bias the polarity.

    Args:
        slices: [B, K + 1, bins, H, W] raw polarity sums.
        slice_mask: [B, K + 1], 0 where a slice is absent: it becomes zero and has no say in
            the scale.

    Returns:
        The shape of ``slices``, in [-3, 3]; zeros stay zeros.
    """
    present = slice_mask[:, :, None, None]
    activity = (magnitude(slices) * present).sum(dim=1, keepdim=True)  # [B, 1, H, W]
    step = percentile_step(slices.shape[-1])
    part = slices.flatten(3)[..., ::step] * present
    return find_scale(activity, part, step).apply(slices, slice_mask)


def count_slice(voxels: Tensor) -> SliceCounts:
    """Look at one slice [B, bins, H, W], to find the scale of the intervals that it is part of."""
    step = percentile_step(voxels.shape[-1])
    part = voxels.flatten(2)[..., ::step].clone()
    return SliceCounts(magnitude(voxels.unsqueeze(1)), part, step)


def scale_of(slices: Sequence[SliceCounts]) -> SliceScale:
    """Find the scale of an interval, as :func:`normalize_slices` does, from all its slices."""
    activity = slices[0].activity
    for counts in slices[1:]:
        activity = activity + counts.activity
    return find_scale(activity, torch.stack([s.part for s in slices], dim=1), slices[0].step)


def find_scale(activity: Tensor, part: Tensor, step: int) -> SliceScale:
    """Find hot pixels and the percentile.

    Args:
        activity: [B, 1, H, W], sum of absolute values over bins and slices.
        part: [B, K + 1, bins, n], values of every ``step``-th pixel.
        step: of these pixels.
    """
    # The neighbours' mean is (9 mean - activity) / 8.
    around = (9 / 8 * HOT_RATIO) * F.avg_pool2d(activity, 3, 1, 1)
    hot = (activity >= HOT_COUNT) & ((1 + HOT_RATIO / 8) * activity > around)
    kept = (~hot).to(part.dtype)
    # A part of the pixels gives the percentile as well. It is among the largest fiftieth of all.
    values = (part * kept.flatten(2)[..., ::step].unsqueeze(1)).abs().flatten(1)
    nonzero = (values > 0).sum(dim=1, keepdim=True)
    last = nonzero - 1
    above = last - (0.98 * last).long()  # how many values are larger
    largest = values.topk(min(values.shape[1], values.shape[1] // 50 + 2), dim=1).values
    scale = largest.gather(1, above.clamp(0, largest.shape[1] - 1))
    return SliceScale(scale.masked_fill(scale <= 0, 1.0), kept)


def percentile_step(width: int) -> int:
    """The step between the pixels that the percentile is found from."""
    return next((step for step in PERCENTILE_STEPS if width % step), 1)


def magnitude(slices: Tensor) -> Tensor:
    """Sum absolute values over the bins: [B, K + 1, bins, H, W] -> [B, K + 1, H, W].

    Where little memory counts, bin by bin: a copy of all is large, and torch is slow to sum over a
    dimension in the middle.
    """
    if not little_memory(slices):
        return slices.abs().sum(dim=2)
    total = slices[:, :, 0].abs()
    for index in range(1, slices.shape[2]):
        total += slices[:, :, index].abs()
    return total


def normalize_inputs(
    inputs: ModelInputs, *, frames: bool, events: bool, cell: int
) -> tuple[Tensor, Scene]:
    """Switch off modalities, zero what is absent, normalize slices, take lumas, pad.

    Args:
        inputs: as the network gets them.
        frames, events: whether the network uses them at all.
        cell: px; height and width become multiples of it.

    Returns:
        The slices [B, K + 1, bins, H, W], which are large, apart from what outlives them.
    """
    modality_mask = switched_mask(inputs, frames=frames, events=events)
    present = modality_mask[:, Modality.EVENTS, None]
    history = modality_mask[:, Modality.HISTORY, None] * present
    later = present.expand(-1, inputs.slices.shape[1] - 1)
    slices = normalize_slices(inputs.slices, torch.cat((history, later), dim=1))
    slices = pad_to_multiple(slices, cell, mode="constant")
    first_sum, density = slices[:, 1].sum(1, keepdim=True), F.avg_pool2d(magnitude(slices), cell)
    return slices, make_scene(inputs, modality_mask, first_sum, density, cell)


def switched_mask(inputs: ModelInputs, *, frames: bool, events: bool) -> Tensor:
    """The modality mask [B, 4] of what is there and is used by the network."""
    switches = {
        Modality.FRAMES: frames,
        Modality.EVENTS: events,
        Modality.HISTORY: events,
        Modality.SECOND_FRAME: frames,
    }
    columns = (inputs.modality_mask[:, m] for m in switches)
    first, *others, second = (
        column if switch else torch.zeros_like(column)
        for column, switch in zip(columns, switches.values(), strict=True)
    )
    return torch.stack((first, *others, second * first), dim=1)


def make_scene(
    inputs: ModelInputs, modality_mask: Tensor, first_sum: Tensor, density: Tensor, cell: int
) -> Scene:
    """Take lumas, zero what is absent, and pad.

    Args:
        inputs: as the network gets them; their slices are not read.
        modality_mask: of :func:`switched_mask`.
        first_sum, density: as of :class:`Scene`.
        cell: px; height and width become multiples of it.
    """
    has_frames = modality_mask[:, Modality.FRAMES].view(-1, 1, 1, 1)
    has_events = modality_mask[:, Modality.EVENTS].view(-1, 1, 1, 1)
    has_second = modality_mask[:, Modality.SECOND_FRAME].view(-1, 1, 1, 1)
    frame0, frame1 = as_gray(inputs.frame0), as_gray(inputs.frame1)
    return Scene(
        frame0=pad_to_multiple(frame0 * has_frames, cell),
        # Two frames that are the same show no motion, to whatever reads them as they are.
        frame1=pad_to_multiple(torch.where(has_second > 0, frame1, frame0) * has_frames, cell),
        event_sum=pad_to_multiple(inputs.event_sum * has_events, cell, mode="constant"),
        first_sum=first_sum,
        density=density,
        exposure=inputs.exposure * modality_mask[:, Modality.FRAMES, None],
        modality_mask=modality_mask,
    )
