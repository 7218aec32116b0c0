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

from flowfuse.geometry.grid import warp

MAX_CHANGE = 2.0  # px; beyond it no linear model of an image holds


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
        priors: [B, S, h, w], see :func:`lucas_kanade_step`.
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


def lucas_kanade_step(frame0: Tensor, frame1: Tensor, flow: Tensor, prior: Tensor) -> Tensor:
    """Find the change d of the flow that explains what is left of the brightness difference.

    In a window around every cell, with I1 warped by the flow, d is the minimum of

        mean (g . d + I1 - I0 - offset)^2 + prior |d|^2,    g = grad (I0 + I1) / 2

    over d and the offset: brightness that is added evenly does not matter, and a gain does so
    little. d is at most 2 px long. It depends differentiably on the prior, and on the flow as the
    linear model has it: right for a shift of a whole window, in which pixels count by how steep the
    image is. Where the flow leaves the image the border's pixels are compared: that is for the
    prior to know.

    Args:
        frame0, frame1: [B, 1, H, W] float32 in [0, 1].
        flow: [B, 2, H, W] float32, px.
        prior: [B, 1, h, w] float32 > 0, (intensity / px)^2, where H / h = W / w is the size of a
            cell; a window is three cells wide.

    Returns:
        [B, 2, h, w] float32, px; zero where nothing is seen.
    """
    cell = frame0.shape[-1] // prior.shape[-1]
    warped = warp(frame1, flow.detach())
    x, y = image_gradient((frame0 + warped) / 2)
    t = warped - frame0
    if flow.requires_grad:
        u, v = (flow - flow.detach()).split(1, dim=1)  # zero, but for its gradient
        t = t + x * u + y * v
    pairs = ((x, x), (x, y), (y, y), (x, t), (y, t))
    means = [F.avg_pool2d(image, cell) for image in (x, y, t)]
    means += [F.avg_pool2d(first * second, cell) for first, second in pairs]  # one at a time
    x, y, t, xx, xy, yy, xt, yt = windows(torch.cat(means, dim=1)).split(1, dim=1)
    xx, xy, yy = (xx - x * x).clamp(min=0), xy - x * y, (yy - y * y).clamp(min=0)
    xt, yt = xt - x * t, yt - y * t
    # Of the determinant, what rounding could make negative apart from what the prior adds.
    determinant = (xx * yy - xy * xy).clamp(min=0) + prior * (xx + yy + prior)
    change = (
        torch.cat((xy * yt - (yy + prior) * xt, xy * xt - (xx + prior) * yt), dim=1) / determinant
    )
    length = change.norm(dim=1, keepdim=True)
    return change * (MAX_CHANGE / length.clamp(min=MAX_CHANGE))


def image_gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives in x and y by central differences of fourth order: [B, 1, H, W] -> 2 x same."""
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")

    def derive(row: Tensor, dim: int) -> Tensor:
        size = row.shape[dim] - 4
        far, near, next_near, next_far = (row.narrow(dim, i, size) for i in (0, 1, 3, 4))
        return torch.sub(next_near - near, next_far - far, alpha=1 / 8).mul_(2 / 3)

    return derive(padded[:, :, 2:-2], 3), derive(padded[..., 2:-2], 2)


def windows(cells: Tensor) -> Tensor:
    """Weighted means over 3 x 3 cells, 1 2 1 in both directions: [B, C, h, w] -> same."""
    padded = F.pad(cells, (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, 2, stride=1), 2, stride=1)
