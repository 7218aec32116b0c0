"""Images of warped events."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from flowfuse.geometry.bezier import bernstein

from .events import check_events, check_values, event_items
from .examples import Example, draw, event_arrays, sum_dtype, times
from .operator import COORDINATE_DTYPES, Gradient, Operator, require

MAX_POINTS = 16  # control points of a trajectory


def warp_events(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, trajectory: Tensor,
    t0: Tensor, t1: Tensor, t_ref: Tensor, mode: str, height: int, width: int,
) -> Tensor:  # fmt: skip
    """Move every event along the motion to the time t_ref and splat it bilinearly.

    x' = x + d(tau(t_ref)) - d(tau(t)), tau(s) = (s - t0) / (t1 - t0), where d is the displacement
    since t0: tau u for a flow u, a Bezier curve with P_0 = 0 for control points. The motion is
    sampled bilinearly at the event's own position, an approximation: the event is not where its
    point was at t0. Votes outside the image, or of events moved to NaN, are dropped.

    Differentiable in the trajectory, not in the events; the gradient in a position is that of the
    square of pixels which floor chooses.

    The kernels have the same bits twice and for every thread count. They round the weight of each
    vote to 2^-k with k = 48 (62 minus the bits of the count, for items of 2^14 events or more), so
    a pixel with n votes is off by at most n 2^-(k + 1) before its rounding to the dtype. The
    gradients are summed in float64 on a CPU. On a GPU each share of one is rounded to 2^-m of the
    item's largest slope, m = 61 minus the bits of the count, and a cell is NaN where a share is
    not finite.

    On a GPU the values of offsets, t0 and t1 are not read, which would wait for the device, so a
    wrong value raises nothing there: offsets are clamped to [0, N], an item whose end comes before
    its begin has no events, and one whose window is empty or longer than 2^40 microseconds has no
    votes.

    Args:
        x, y: [N], pixels, both of one integer dtype or both float32, float64.
        t: [N] int64 microseconds.
        p: [N] uint8, bool or signed integer; above 0 is positive.
        offsets: [B + 1] int64, where each item's events begin and end.
        trajectory: flow [B, 2, height, width] or control points [B, n, 2, height, width], n at
            most 16, pixels, float32 or float64.
        t0, t1: [B] int64 microseconds; events outside [t0, t1) or the sensor are left out.
        t_ref: [B] int64 microseconds.
        mode: "signed" (+1, -1), "unsigned" (+1) or "split" (channel 0 negative, channel 1
            positive).
        height, width: size of the sensor.

    Returns:
        [B, 1, height, width], [B, 2, height, width] with "split", of the trajectory's dtype.

    Raises:
        ValueError: a shape, dtype, window, offset or the mode is wrong.
    """
    return OPERATOR(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width)


def check(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width) -> None:
    op, modes = "warp_events", ("signed", "unsigned", "split")
    events = check_events(op, x, y, t, p, offsets, height, width, t0=t0, t1=t1, t_ref=t_ref)
    require(mode in modes, f"{op}: mode must be 'signed', 'unsigned' or 'split', got {mode!r}")
    found, items = list(trajectory.shape), offsets.shape[0] - 1
    flow, points = [items, 2, height, width], found[1:2]
    require(
        found == flow or (points != [0] and found == [items, *points, 2, height, width]),
        f"{op}: trajectory must have shape [{items}, 2, {height}, {width}] or "
        f"[{items}, n, 2, {height}, {width}], got {found}",
    )
    require(
        found == flow or points[0] <= MAX_POINTS,
        f"{op}: trajectory must have at most {MAX_POINTS} control points, got {points[0]}",
    )
    events.check("trajectory", trajectory, found, COORDINATE_DTYPES)


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


def reference(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, trajectory: Tensor,
    t0: Tensor, t1: Tensor, t_ref: Tensor, mode: str, height: int, width: int,
) -> Tensor:  # fmt: skip
    check_values("warp_events", t.numel(), offsets, t0, t1)
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
    points = planes.new_zeros(())
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


def fake(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width):
    channels = 2 if mode == "split" else 1
    return trajectory.new_empty((trajectory.shape[0], channels, height, width))


def fake_backward(grad, x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width):
    return trajectory.new_empty(trajectory.shape)


def setup_context(ctx, inputs, output):
    *tensors, ctx.mode, ctx.height, ctx.width = inputs
    ctx.save_for_backward(*tensors)
    if not ctx.needs_input_grad[5]:
        # Positions that require a gradient would make an output that seems to have one.
        ctx.mark_non_differentiable(output)


def backward(ctx, grad):
    gradient = None
    if ctx.needs_input_grad[5]:
        settings = (ctx.mode, ctx.height, ctx.width)
        gradient = OPERATOR.call_backward(grad, *ctx.saved_tensors, *settings)
    return (None,) * 5 + (gradient,) + (None,) * 6


def example(dtype: torch.dtype, size: tuple, mode: str = "signed", points: int = 0) -> Example:
    batch, height, width = size
    dtype = sum_dtype(dtype)
    events = event_arrays(batch, height, width, dtype)
    shape = (batch, *([points] if points else []), 2, height, width)
    trajectory = 2 * draw(*shape, dtype=dtype)
    trajectory[..., width // 2 :] += 3.3  # a motion discontinuity
    if trajectory.numel():
        trajectory.flatten()[::23] = 1e6

    warp = partial(warp_events, mode=mode, height=height, width=width)
    # The weight of a vote has the rounding of its position, tens of pixels, in each step to it.
    arguments = (*events, trajectory, *times(batch, 0, 1000, 750))
    return Example(warp, arguments, (5,), rounding=8.0)


OPERATOR = Operator(
    "warp_events",
    check=check,
    reference=reference,
    fake=fake,
    gradient=Gradient(fake_backward, setup_context, backward),
    examples={
        "warp_events, flow": example,
        "warp_events, split, curves": lambda dtype, size: example(dtype, size, "split", 3),
        "warp_events, unsigned": lambda dtype, size: example(dtype, size, "unsigned"),
    },
)
