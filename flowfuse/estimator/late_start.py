"""Flow from events that begin at t0, without a pair of frames: the first events serve as history.

The network finds motion by what the slices after t0 have in common with the one before it. Where
there is none, and no pair of frames either, it starts one slice late, on events alone: the first of
K + 1 slices takes the place of what was before. The trajectories that it finds are those of pixels
at the later start; they are extended back to t0, and read where they come from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowfuse.events import Events
from flowfuse.geometry.bezier import restrict_bezier
from flowfuse.geometry.grid import pixel_grid, sample
from flowfuse.result import TRACE_STEPS

FEWEST = 0.25  # of the events that a slice would have if all slices had the same number


def shows_history(before: int, within: int, slices: int) -> bool:
    """Whether so many events in the slice before t0 are a history to ``within`` events after it."""
    return before > 0 and before >= FEWEST * within / slices


def late_start(events: Events, t0: int, t1: int, slices: int) -> int:
    """When the network starts on events alone without history: microseconds.

    It is t0 where a slice would be shorter than one microsecond, or the first one all but empty.
    """
    start = t0 + (t1 - t0) // (slices + 1)
    first, rest = (len(events.slice_time(*times)) for times in ((t0, start), (start, t1)))
    enough = shows_history(first, rest, slices)
    return start if enough and rest > 0 and t1 - start >= slices and start > t0 else t0


def begin_earlier(control_points: Tensor, others: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Extend trajectories to before their start, and give them to the pixels where they then begin.

    Args:
        control_points: [B, n, 2, H, W] px, of trajectories from a late start to t1.
        others: [B, C, H, W], what is known of each trajectory.
        share: (start - t0) / (t1 - start).

    Returns:
        Control points [B, n, 2, H, W] px of trajectories from t0 to t1, and [B, C, H, W].
    """
    degree, (height, width) = control_points.shape[1], control_points.shape[-2:]
    extended = restrict_bezier(control_points, -share, 1.0)  # from P_0 on, which is no longer zero
    back = extended[:, 0]
    grid = pixel_grid(height, width, device=back.device)[None]
    place = grid.expand_as(back)
    for _ in range(TRACE_STEPS):
        place = grid - sample(back, place, padding="border")
    found = sample(torch.cat((extended.flatten(1, 2), others), dim=1), place, padding="border")
    points = found[:, : 2 * (degree + 1)].unflatten(1, (degree + 1, 2))
    return points[:, 1:] - points[:, :1], found[:, 2 * (degree + 1) :]
