"""Steps along the brightness constancy equation, for the last fractions of a pixel.

Features at 1/4 locate motion to about half a pixel; the frames themselves do much better, once the
flow is so close that a linear model of their brightness (luma as it is coded, not its logarithm)
holds. This is the step of Lucas and Kanade (IJCAI 1981) with a prior: how far to trust it is the
network's decision, cell by cell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flowfuse.ops import lucas_kanade_step


def lucas_kanade_refine(
    control_points: Tensor,
    frame0: Tensor,
    frame1: Tensor,
    priors: Tensor,
    *,
    grad_through_steps: bool = False,
) -> Tensor:
    """Improve trajectories by as many gradient steps as there are priors.

    Frames tell where a trajectory ends, not how it gets there: every step is a uniform motion.

    With ground truth, the gradient passes the steps unchanged: a flow that is near before them is
    worth having, though a step would correct it anyway. Without ground truth it must go through
    the steps, or training pushes on at a flow that makes no difference until the steps lose it.

    Args:
        control_points: [B, n, 2, H, W] float32, px.
        frame0, frame1: [B, 1, H, W] float32 in [0, 1], zero where they are absent.
        priors: [B, S, h, w], see :func:`flowfuse.ops.lucas_kanade_step`.
        grad_through_steps: differentiate the steps instead of passing the gradient unchanged.

    Returns:
        [B, n, 2, H, W] float32, px.
    """
    if priors.shape[1] == 0:
        return control_points
    start = end = control_points[:, -1]
    for i in range(priors.shape[1]):
        change = lucas_kanade_step(
            frame0, frame1, end if grad_through_steps else end.detach(), priors[:, i : i + 1]
        )
        end = end + F.interpolate(change, end.shape[-2:], mode="bilinear", align_corners=False)
    degree = control_points.shape[1]
    shares = torch.arange(1, degree + 1, device=end.device, dtype=end.dtype) / degree
    return torch.addcmul(control_points, shares.view(-1, 1, 1, 1), (end - start).unsqueeze(1))
