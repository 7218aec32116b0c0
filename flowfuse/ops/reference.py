"""The operators in plain torch, written from their formulas: slow, obvious, differentiable, on any
device.

They define what the kernels must compute (docs/operators.md) and stand in for them where no kernel
exists. Arguments are checked by the functions of flowfuse.ops, not here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flowfuse.geometry.bezier import bernstein

Result = TypeVar("Result")

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
LOG_OFFSET = 1e-3
WINDOW = 7  # of the similarity S, pixels
FRAME_FLOOR = 1e-4  # ea: log-intensity squared
EVENT_FLOOR = 1e-2  # eb: polarity counts squared
TIME_BITS = 15  # fraction bits of the time weight in voxelize


def full_precision(operator: Callable[..., Result]) -> Callable[..., Result]:
    """Keep autocast out: it would compute and sum an einsum in half precision."""

    @functools.wraps(operator)
    def run(first: Tensor, *others: object) -> Result:
        with torch.autocast(first.device.type, enabled=False):
            return operator(first, *others)

    return run


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are made in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def event_items(offsets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Batch item of each event [N] int64, and whether it has one [N] bool, from offsets [B+1]."""
    position = torch.arange(count, device=offsets.device)
    item = torch.searchsorted(offsets.contiguous(), position, right=True) - 1
    inside = (item >= 0) & (position < offsets[-1])
    return item.clamp(0, offsets.numel() - 2), inside


def space_bits(counts: Tensor) -> Tensor:
    """Fraction bits of the space weights for items of `counts` events [B] int64.

    15, less for large items: count * 2^(15 + 2 bits) stays below 2^63, so that no int64 sum
    overflows.
    """
    length = torch.zeros_like(counts)  # bit length of each count
    for bit in range(48):
        length += counts >= 2**bit
    return torch.div(48 - length, 2, rounding_mode="floor").clamp(max=15)


def voxelize(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, t0: Tensor, t1: Tensor,
    bins: int, height: int, width: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
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


def pool_levels(f1: Tensor, levels: int) -> list[Tensor]:
    """[B, C, H, W] -> maps [B, C, H >> l, W >> l]; level 0 is f1, the others float32 or 64."""
    pyramid = [f1]
    for _ in range(1, levels):
        finer = pyramid[-1].to(sum_dtype(f1.dtype))
        if min(finer.shape[2:]) < 2:  # avg_pool2d refuses an output of zero size
            pyramid.append(
                finer.new_zeros(*finer.shape[:2], finer.shape[2] // 2, finer.shape[3] // 2)
            )
        else:
            pyramid.append(F.avg_pool2d(finer, 2, 2))
    return pyramid


@full_precision
def correlation_volume(f0: Tensor, f1_levels: Sequence[Tensor]) -> list[Tensor]:
    """f0 [B, C, H, W], f1_levels [B, C, H_l, W_l] -> [B, H, W, H_l, W_l] float32 or 64 each."""
    dtype = sum_dtype(f0.dtype)
    f0 = f0.to(dtype) / math.sqrt(f0.shape[1])
    return [torch.einsum("bchw,bcij->bhwij", f0, level.to(dtype)) for level in f1_levels]


def volume_lookup(volumes: Sequence[Tensor], coords: Tensor, radius: int) -> Tensor:
    """volumes [B, H, W, H_l, W_l], coords [B, 2, H, W] -> [B, L (2r+1)^2, H, W]."""
    window = 2 * radius + 1
    missing = torch.isnan(coords).any(1, keepdim=True)  # [B, 1, H, W]
    step = torch.arange(-radius, radius + 2, device=coords.device)
    output = []
    for level, volume in enumerate(volumes):
        batch, height, width, rows, columns = volume.shape
        centre = coords.to(torch.float64) / 2**level  # so that centre - cell is exact
        # Compared as floats: a far centre may not fit an integer. One that no tap reaches is put at
        # -(r + 2), where every tap is outside too.
        size = torch.tensor([columns, rows], device=coords.device).view(1, 2, 1, 1)
        near = ((centre >= -(radius + 1)) & (centre < size + radius)).all(1, keepdim=True)
        centre = torch.where(near, centre, torch.full_like(centre, -(radius + 2)))
        cell = centre.detach().floor()
        fx, fy = (centre - cell).to(volume.dtype)[..., None, None].unbind(1)  # [B, H, W, 1, 1]
        column, row = (cell.to(torch.int64)[..., None] + step).unbind(1)  # [B, H, W, 2r+2]
        column, row = column[..., :, None], row[..., None, :]  # x slow, y fast
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        if rows * columns == 0:
            tap = volume.new_zeros(inside.shape)
        else:
            index = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
            tap = volume.flatten(3).gather(3, index.flatten(3)).view(index.shape)
            tap = torch.where(inside, tap, torch.zeros_like(tap))
        value = (1 - fx) * (1 - fy) * tap[..., :-1, :-1] + fx * (1 - fy) * tap[..., 1:, :-1]
        value = value + (1 - fx) * fy * tap[..., :-1, 1:] + fx * fy * tap[..., 1:, 1:]
        output.append(value.reshape(batch, height, width, window * window).permute(0, 3, 1, 2))
    result = torch.cat(output, dim=1)
    return torch.where(missing, torch.full_like(result, torch.nan), result)


def correlation_lookup(
    f0: Tensor, f1_levels: Sequence[Tensor], coords: Tensor, radius: int
) -> Tensor:
    return volume_lookup(correlation_volume(f0, f1_levels), coords, radius)


def log_luma(frame: Tensor, linear: bool) -> Tensor:
    """[B, 1|3, H, W] in [0, 1] -> log intensity [B, 1, H, W] in float32 or float64."""
    frame = frame.to(sum_dtype(frame.dtype))
    if frame.shape[1] == 3:
        red, green, blue = frame.split(1, dim=1)
        frame = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    frame = frame.clamp(min=0)  # a resampled frame may dip below 0, where the log has no meaning
    if not linear:
        curve = ((frame.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
        frame = torch.where(frame <= 0.04045, frame / 12.92, curve)
    return torch.log(frame + LOG_OFFSET)


def window_moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variances of a and b and their covariance over 7 x 7 windows clipped at the border."""
    batch, _, height, width = a.shape

    def windows(value: Tensor) -> Tensor:  # [B, 1, H, W] -> [B, 49, H, W]
        unfolded = F.unfold(value, WINDOW, padding=WINDOW // 2)
        return unfolded.view(batch, WINDOW * WINDOW, height, width)

    inside = windows(torch.ones_like(a))
    count = inside.sum(1, keepdim=True)
    a, b = windows(a), windows(b)  # zero outside the image
    da = (a - a.sum(1, keepdim=True) / count) * inside
    db = (b - b.sum(1, keepdim=True) / count) * inside
    return tuple((value.sum(1, keepdim=True) / count) for value in (da * da, db * db, da * db))


def common_gradient(
    frame0: Tensor,
    frame1: Tensor,
    event_sum: Tensor,
    flow: Tensor | None = None,
    linear: bool = False,
) -> Tensor:
    log0, log1 = log_luma(frame0, linear), log_luma(frame1, linear)
    event_sum = event_sum.to(log0.dtype)
    padded = F.pad(log0, (1, 1, 1, 1), mode="replicate")
    lx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    ly = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    lt = log1 - log0
    var_a, var_b, covariance = window_moments(lt, event_sum)
    similarity = covariance / torch.sqrt((var_a + FRAME_FLOOR) * (var_b + EVENT_FLOOR))
    if flow is None:
        predicted = torch.zeros_like(lx)
    else:
        predicted = -(lx * flow[:, 0:1] + ly * flow[:, 1:2])
    return torch.cat([lx, ly, lt, event_sum, similarity, predicted], dim=1)


@full_precision
def convex_upsample(field: Tensor, mask: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = field.shape
    dtype = sum_dtype(field.dtype)
    inside = F.unfold(torch.ones(1, 1, height, width, device=field.device), 3, padding=1)
    inside = inside.view(1, 9, 1, 1, height, width) > 0
    mask = mask.to(dtype).view(batch, 9, factor, factor, height, width)
    weight = torch.softmax(mask.masked_fill(~inside, -torch.inf), dim=1)
    neighbours = F.unfold(field.to(dtype), 3, padding=1).view(batch, channels, 9, height, width)
    fine = torch.einsum("bkijhw,bdkhw->bdhiwj", weight, neighbours)
    return fine.reshape(batch, channels, factor * height, factor * width)


def bezier_displacement(control_points: Tensor, tau: Tensor) -> Tensor:
    """Displacement [N, 2] at tau [N] of Bezier curves with P_0 = 0 and control points [N, n, 2]."""
    return (bernstein(control_points.shape[1], tau)[..., None] * control_points).sum(1)


def bilinear_square(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The four pixels around positions [N]: column, row (as floats) and weight of each.

    The gradient of the weights is that of the square which floor chooses, at whole numbers too.
    """
    column, row = x.detach().floor(), y.detach().floor()
    right, lower = x - column, y - row
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (right if dx else 1 - right) * (lower if dy else 1 - lower)
            yield column + dx, row + dy, weight


def warp_events(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, trajectory: Tensor,
    t0: Tensor, t1: Tensor, t_ref: Tensor, mode: str, height: int, width: int,
) -> Tensor:  # fmt: skip
    batch = offsets.numel() - 1
    if trajectory.dim() == 4:
        trajectory = trajectory[:, None]  # a flow is a trajectory of degree 1
    item, used = event_items(offsets, t.numel())
    dtype = trajectory.dtype
    x, y = x.to(dtype), y.to(dtype)
    used = used & (t >= t0[item]) & (t < t1[item])
    used = used & (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    x, y, t, p, item = (value[used] for value in (x, y, t, p, item))

    planes = trajectory.flatten(1, 2).permute(0, 2, 3, 1)  # [B, H, W, 2n]
    points = 0
    for column, row, weight in bilinear_square(x, y):
        c = column.to(torch.int64).clamp(0, width - 1)
        r = row.to(torch.int64).clamp(0, height - 1)
        points = points + weight[:, None] * planes[item, r, c]
    points = points.view(-1, trajectory.shape[1], 2)  # [N, n, 2] at the events
    duration = (t1 - t0)[item].to(dtype)
    tau = (t - t0[item]).to(dtype) / duration
    tau_ref = (t_ref - t0)[item].to(dtype) / duration
    shift = bezier_displacement(points, tau_ref) - bezier_displacement(points, tau)
    x, y = x + shift[:, 0], y + shift[:, 1]
    moved = torch.isfinite(x) & torch.isfinite(y)  # the others would make gradients of NaN
    x, y, p, item = (value[moved] for value in (x, y, p, item))

    positive = p > 0
    vote = torch.where(positive, 1, -1).to(dtype) if mode == "signed" else torch.ones_like(x)
    channels = 2 if mode == "split" else 1
    channel = positive.to(torch.int64) if mode == "split" else torch.zeros_like(item)
    image = torch.zeros(batch * channels * height * width, dtype=dtype, device=x.device)
    for column, row, weight in bilinear_square(x, y):
        # Compared as floats, before the integer cast.
        tap = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        cell = (item * channels + channel)[tap] * height + row[tap].to(torch.int64)
        cell = cell * width + column[tap].to(torch.int64)
        image = image.index_add(0, cell, (vote * weight)[tap])
    return image.view(batch, channels, height, width)
