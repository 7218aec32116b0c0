"""Images of warped events."""

from __future__ import annotations

from torch import Tensor

from . import reference
from .checks import check_event_values, check_warp_events


def warp_events(
    x: Tensor, y: Tensor, t: Tensor, p: Tensor, offsets: Tensor, trajectory: Tensor,
    t0: Tensor, t1: Tensor, t_ref: Tensor, mode: str, height: int, width: int,
) -> Tensor:  # fmt: skip
    """Move every event along the motion to the time t_ref and splat it bilinearly.

    x' = x + d(tau(t_ref)) - d(tau(t)), tau(s) = (s - t0) / (t1 - t0), where d is the displacement
    since t0: tau u for a flow u, a Bezier curve with P_0 = 0 for control points. The motion is
    sampled bilinearly at the event's own position, an approximation: the event is not where its
    point was at t0. Differentiable in the trajectory.

    Args:
        x, y: [N], pixels, both of one integer dtype or both float32, float64.
        t: [N] int64 microseconds.
        p: [N] uint8, bool or signed integer; above 0 is positive.
        offsets: [B + 1] int64, where each item's events begin and end.
        trajectory: flow [B, 2, height, width] or control points [B, n, 2, height, width], pixels,
            float32 or float64.
        t0, t1: [B] int64 microseconds; events outside [t0, t1) or the sensor are left out.
        t_ref: [B] int64 microseconds.
        mode: "signed" (+1, -1), "unsigned" (+1) or "split" (channel 0 negative, channel 1
        positive). height, width: size of the sensor.

    Returns:
        [B, 1, height, width], [B, 2, height, width] with "split", of the trajectory's dtype.

    Raises:
        ValueError: a shape, dtype, window, offset or the mode is wrong.
    """
    check_warp_events(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width)
    check_event_values("warp_events", t.shape[0], offsets, t0, t1)
    return reference.warp_events(
        x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width
    )
