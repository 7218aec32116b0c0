"""Events to voxel grids with integer weights: the same bits everywhere."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .events import check_events, check_values, event_items
from .examples import Example, event_arrays, sum_dtype, times
from .operator import Operator, check_range

TIME_BITS = 15  # fraction bits of the time weight


def voxelize(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, t0: Tensor, t1: Tensor,
    bins: int, height: int, width: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Spread the polarity of events bilinearly over time bins, and over pixels when x, y are float.

    Event i of batch item b (offsets[b] <= i < offsets[b + 1]) has the time coordinate
    (bins - 1) (t - t0) / (t1 - t0); with one bin everything lands in bin 0. Weights are integers
    (2^15 parts for time, up to 2^15 for each axis) summed in int64, so the result has the same bits
    on every device, run and thread count. Not differentiable.

    On a GPU the values of offsets, t0 and t1 are not read, which would wait for the device, so a
    wrong value raises nothing there: offsets are clamped to [0, N], an item whose end comes before
    its begin has no events, and one whose window is empty or longer than 2^40 microseconds has
    them all in `ignored`.

    Args:
        x, y: [N], pixels, both uint8, uint16, int16, int32, int64 (pixel hit) or both float32,
            float64 (rectified position, integer = pixel centre).
        t: [N] int64 microseconds; need not be sorted.
        p: [N] uint8, bool or signed integer; above 0 adds +1, otherwise -1.
        offsets: [B + 1] int64, where each item's events begin and end.
        t0, t1: [B] int64 microseconds, the half-open window [t0, t1) of each item.
        bins, height, width: size of the grid.

    Returns:
        voxels [B, bins, height, width] float32 and ignored [B] int64: events outside the window,
        wholly outside the sensor or with NaN coordinates.

    Raises:
        ValueError: a shape, dtype, window or offset is wrong.
    """
    return OPERATOR(x, y, t, p, offsets, t0, t1, bins, height, width)


def check(x, y, t, p, offsets, t0, t1, bins, height, width) -> None:
    check_range("voxelize", "bins", bins, 1, 2**16)
    check_events("voxelize", x, y, t, p, offsets, height, width, t0=t0, t1=t1)


def space_bits(counts: Tensor) -> Tensor:
    """Fraction bits of the space weights for items of `counts` events [B] int64.

    15, less for large items: count * 2^(15 + 2 bits) stays below 2^63, so that no int64 sum
    overflows.
    """
    length = torch.zeros_like(counts)  # bit length of each count
    for bit in range(48):
        length += counts >= 2**bit
    return torch.div(48 - length, 2, rounding_mode="floor").clamp(max=15)


def reference(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, t0: Tensor, t1: Tensor,
    bins: int, height: int, width: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_values("voxelize", t.numel(), offsets, t0, t1)
    batch = offsets.numel() - 1
    voxels = torch.zeros(batch * bins * height * width, dtype=torch.int64, device=x.device)
    ignored = torch.zeros(batch, dtype=torch.int64, device=x.device)
    rectified = x.is_floating_point()
    item, in_item = event_items(offsets, t.numel())
    exact = torch.float64 if rectified else torch.int64  # holds every position exactly
    x, y = x.to(exact), y.to(exact)
    if rectified:
        on_sensor = (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    else:
        on_sensor = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    used = in_item & on_sensor & (t >= t0[item]) & (t < t1[item])
    ignored.index_add_(0, item, (in_item & ~used).to(torch.int64))

    x, y, t, p, item = (value[used] for value in (x, y, t, p, item))
    sign = torch.where(p > 0, 1, -1)
    duration = (t1 - t0)[item]
    position = (bins - 1) * (t - t0[item])
    first_bin = torch.div(position, duration, rounding_mode="floor")
    late = torch.div((position % duration) << TIME_BITS, duration, rounding_mode="floor")
    bits = space_bits(offsets.diff()) if rectified else torch.zeros_like(offsets[1:])
    unit = 2 ** bits[item]  # the integer that stands for a space weight of 1
    if rectified:
        column, row = torch.floor(x), torch.floor(y)
        right = torch.round((x - column) * unit.to(x.dtype)).to(torch.int64)
        lower = torch.round((y - row) * unit.to(y.dtype)).to(torch.int64)
        column, row = column.to(torch.int64), row.to(torch.int64)
    else:
        column, row = x, y
        right = lower = torch.zeros_like(x)

    for dt in (0, 1):
        for dy in (0, 1):
            for dx in (0, 1):
                weight = late if dt else 2**TIME_BITS - late
                weight = weight * (lower if dy else unit - lower)
                weight = weight * (right if dx else unit - right)
                b, r, c = first_bin + dt, row + dy, column + dx
                tap = (b < bins) & (r >= 0) & (r < height) & (c >= 0) & (c < width)
                cell = ((item * bins + b) * height + r) * width + c
                voxels.index_add_(0, cell[tap], (sign * weight)[tap])
    scale = torch.ldexp(
        torch.ones(batch, device=x.device), -(TIME_BITS + 2 * bits)
    )  # powers of two: exact
    voxels = voxels.view(batch, bins, height, width).to(torch.float32)
    return voxels * scale.view(batch, 1, 1, 1), ignored


def fake(x, y, t, p, offsets, t0, t1, bins, height, width):
    items = offsets.shape[0] - 1
    voxels = t.new_empty((items, bins, height, width), dtype=torch.float32)
    return voxels, t.new_empty((items,))


def example(dtype: torch.dtype, size: tuple) -> Example:
    batch, height, width = size
    arguments = (*event_arrays(batch, height, width, dtype), *times(batch, 0, 1000))
    return Example(partial(voxelize, bins=5, height=height, width=width), arguments)


OPERATOR = Operator(
    "voxelize",
    check=check,
    reference=reference,
    fake=fake,
    gradient=None,
    examples={
        "voxelize, pixels": lambda dtype, size: example(torch.int16, size),
        "voxelize, rectified": lambda dtype, size: example(sum_dtype(dtype), size),
    },
)
