"""What voxelize and warp_events share: columns of events, and which item each belongs to."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .operator import COORDINATE_DTYPES, Shapes, check_range, require

INTEGER_DTYPES = (torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64)
POLARITY_DTYPES = (torch.uint8, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)
MAX_DURATION = 2**40  # us, of a window of events


def check_events(
    op: str, x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor,
    height: int, width: int, **times: Tensor,
) -> Shapes:  # fmt: skip
    """Shapes, dtypes and devices of a batch of events; `times` are per batch item."""
    events = Shapes(op)
    long = (torch.int64,)
    events.check("t", t, ["N"], long)
    events.check("x", x, ["N"], INTEGER_DTYPES + COORDINATE_DTYPES)
    events.check("y", y, ["N"], (x.dtype,))
    events.check("p", p, ["N"], POLARITY_DTYPES)
    found = list(offsets.shape)
    require(
        len(found) == 1 and found[0] >= 2,
        f"{op}: offsets must have shape [B + 1], B at least 1, got {found}",
    )
    events.check("offsets", offsets, found, long)
    for name, tensor in times.items():
        events.check(name, tensor, [offsets.shape[0] - 1], long)
    check_range(op, "height", height, 1, 2**20)
    check_range(op, "width", width, 1, 2**20)
    return events


def check_values(op: str, count: int, offsets: Tensor, t0: Tensor, t1: Tensor) -> None:
    """What offsets and times must obey, where no kernel reads them (a GPU is waited for)."""
    bounds = offsets.tolist()
    ordered = all(a <= b for a, b in itertools.pairwise(bounds))
    if bounds[0] < 0 or bounds[-1] > count or not ordered:
        raise ValueError(f"{op}: offsets must not decrease and must lie within [0, {count}]")
    for item, (start, end) in enumerate(zip(t0.tolist(), t1.tolist(), strict=True)):
        if start < end <= start + MAX_DURATION:
            continue
        fault = "t1 must be later than t0"
        if start < end:
            fault = "t1 - t0 must be at most 2^40 microseconds"
        raise ValueError(f"{op}: {fault}, got t0 = {start}, t1 = {end} in item {item}")


def event_items(offsets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Batch item of each event [N] int64, and whether it has one [N] bool, from offsets [B+1]."""
    position = torch.arange(count, device=offsets.device)
    item = torch.searchsorted(offsets.contiguous(), position, right=True) - 1
    inside = (item >= 0) & (position < offsets[-1])
    return item.clamp(0, offsets.numel() - 2), inside
