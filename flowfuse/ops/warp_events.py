"""Images of warped events."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .checks import check_event_values, check_warp_events
from .extension import LIBRARY, has_kernel
from .registration import call, register_differentiable


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
    arguments = (x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width)
    check_warp_events(*arguments)
    kernel = has_kernel(x.device)
    if x.device.type == "cpu" or not kernel:
        check_event_values("warp_events", t.shape[0], offsets, t0, t1)
    return call("warp_events", *arguments) if kernel else reference.warp_events(*arguments)


def register() -> None:
    @torch.library.register_fake("flowfuse::warp_events")
    def fake(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width):
        channels = 2 if mode == "split" else 1
        return trajectory.new_empty((trajectory.shape[0], channels, height, width))

    @torch.library.register_fake("flowfuse::warp_events_backward")
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
            gradient = call("warp_events_backward", grad, *ctx.saved_tensors, *settings)
        return (None,) * 5 + (gradient,) + (None,) * 6

    register_differentiable("warp_events", backward, setup_context)


if LIBRARY is not None:
    register()
