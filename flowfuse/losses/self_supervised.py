"""Losses that need no ground truth: what frames and events themselves say about the motion.

None of them is enough alone, and each has its way out: sharpness is greatest where all events
gather in one place, photometric error is small where the image is flat. They are to be summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flowfuse.data.samples import Sample
from flowfuse.geometry.bezier import bezier
from flowfuse.geometry.grid import inside, pixel_grid, sample
from flowfuse.inputs import Modality
from flowfuse.losses.supervised import (
    check_loss_weights,
    end_point_error,
    masked_mean,
    overall_mean,
)
from flowfuse.model.flowfuse import STRIDE, ModelOutput
from flowfuse.ops import common_gradient

SHORT_MOTION = 2.0  # px: the gradient equation, and a frame taken for sharp, ask for less
EDGE_STRENGTH = 10.0  # smoothness weighs e^-1 where the luma differs by a tenth of its range
WINDOW = 7  # of the local correlation, px


@dataclass(frozen=True)
class SelfSupervisionConfig:
    """Weights of the losses without ground truth.

    Args:
        photometric: of the difference between frame 0 and frame 1 warped back, on sharp frames.
        gradient: of the disagreement of frame gradients and events over the first slice.
        sharpness: of the blur of the events carried back to t0.
        smoothness: of the trajectories' differences between neighbours, where nothing speaks for
            an edge or a motion boundary.
        decay: an earlier iteration counts this much of the next one.
    """

    photometric: float = 10.0
    gradient: float = 0.5
    sharpness: float = 0.5
    smoothness: float = 0.5
    decay: float = 0.8

    def __post_init__(self) -> None:
        check_loss_weights(self)


def self_supervised_loss(
    output: ModelOutput, batch: Sample, config: SelfSupervisionConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the losses of one batch that need no ground truth.

    Args:
        output: of the network.
        batch: collated samples; where they have ground truth as well, the error is reported, not
            trained on.
        config: the weights.

    Returns:
        The loss (scalar), and its parts for the last iteration; ``epe`` where there is ground
        truth. Of several processes, each gets its share of every number (see
        flowfuse.losses.supervised).
    """
    estimates = dense_estimates(output)
    total = output.control_points.new_zeros(())
    with torch.autocast(total.device.type, enabled=False):
        for i, points in enumerate(estimates):
            parts = {
                "photometric": photometric_loss(points, batch),
                "gradient_constancy": gradient_constancy_loss(points, batch),
                "sharpness": sharpness_loss(points, batch),
                "smoothness": smoothness_loss(points, batch, output.boundary),
            }
            weights = (config.photometric, config.gradient, config.sharpness, config.smoothness)
            loss = sum(w * part for w, part in zip(weights, parts.values(), strict=True))
            total = total + config.decay ** (len(estimates) - 1 - i) * loss
    parts = {name: part.detach() for name, part in parts.items()}
    if batch.flow is not None:
        parts["epe"] = end_point_error(output, batch)
    return total, parts


def dense_estimates(output: ModelOutput) -> list[Tensor]:
    """All estimates at full resolution, [B, n, 2, H, W] each: the coarse ones, then the last."""
    height, width = output.control_points.shape[-2:]
    dense = []
    for points in output.coarse_points:
        field = F.interpolate(points.flatten(1, 2), scale_factor=float(STRIDE), mode="bilinear")
        dense.append(field[..., :height, :width].unflatten(1, points.shape[1:3]))
    return [*dense, output.control_points]


def photometric_loss(points: Tensor, batch: Sample) -> Tensor:
    """Difference of frame 0 and frame 1 warped back, where neither is blurred by the motion.

    A blurred edge matches over its whole width, so pixels count only while they move less than
    2 px during either exposure (unknown exposures are taken as short).

    Args:
        points: [B, n, 2, H, W] control points, px.
        batch: the network's inputs.
    """
    flow = points[:, -1]
    coords = _grid(flow) + flow
    difference = sample(batch.frame1, coords, padding="border") - batch.frame0
    blur = flow.detach().norm(dim=1, keepdim=True) * batch.exposure.amax(1).view(-1, 1, 1, 1)
    seen = (
        inside(coords.detach(), *flow.shape[-2:])
        & (blur < SHORT_MOTION)
        & _has(batch, Modality.FRAMES)
    )
    return masked_mean(_robust(difference).mean(dim=1, keepdim=True), seen)


def gradient_constancy_loss(points: Tensor, batch: Sample) -> Tensor:
    """Disagreement of -grad L . u with the polarities of slice E_1, u being the motion during it.

    One minus the local correlation coefficient, so the contrast threshold does not matter; where
    the slice has events and the motion during it is short enough for the equation to hold.
    """
    slices = batch.slices
    motion = bezier(points, 1 / (slices.shape[1] - 1))
    found = slices[:, 1].sum(dim=1, keepdim=True)
    predicted = common_gradient(batch.frame0, batch.frame1, found, motion)[:, 5:]
    fires = F.max_pool2d(found.abs(), WINDOW, 1, WINDOW // 2) > 0
    short = motion.detach().norm(dim=1, keepdim=True) < SHORT_MOTION
    use = fires & short & _has(batch, Modality.FRAMES) & _has(batch, Modality.EVENTS)
    return masked_mean(1 - _local_correlation(predicted, found), use)


def sharpness_loss(points: Tensor, batch: Sample) -> Tensor:
    """Minus the log of how much sharper the events are when carried back to t0 along trajectories.

    Sharpness is the variance of the sum of all bins, each read where the trajectories are at its
    time, over that of the bins summed in place. Polarities keep their sign: the two edges of a bar
    must not be taken for one. All bins are blurred first, or reading between pixels, which blurs,
    would count against any motion.
    """
    bins = batch.slices[:, 1:]
    batch_size, slices, count, height, width = bins.shape
    bins = F.avg_pool2d(bins.reshape(-1, 1, height, width), 3, 1, 1)
    # Bin b of slice k gathers events around this time (the first and last bins share its limits).
    within = torch.linspace(0, 1, count, device=points.device)
    within = within if count > 1 else within + 0.5
    tau = ((torch.arange(slices, device=points.device)[:, None] + within) / slices).flatten()
    places = bezier(points, tau.expand(batch_size, -1)) + _grid(points)  # [B, K bins, 2, H, W]
    moved = sample(bins, places.flatten(0, 1)).view(batch_size, -1, height, width).sum(dim=1)
    still = bins.view(batch_size, -1, height, width).sum(dim=1)
    floor = 1e-3  # events^2: no events are neither sharp nor blurred
    gain = torch.log(moved.var(dim=(1, 2)) + floor) - torch.log(still.var(dim=(1, 2)) + floor)
    return masked_mean(-gain, batch.modality_mask[:, Modality.EVENTS] > 0)


def smoothness_loss(points: Tensor, batch: Sample, boundary: Tensor) -> Tensor:
    """Differences between neighbouring trajectories, free across image edges and B_m.

    Args:
        boundary: [B, 2, H, W] logits; only their values count, or B_m = 1 would be a way out.
    """
    guide = batch.frame0.mean(dim=1, keepdim=True)
    stop = torch.sigmoid(boundary[:, 1:].detach())
    loss = points.new_zeros(())
    for axis in (-2, -1):
        size = points.shape[axis] - 1
        edge = (guide.narrow(axis, 1, size) - guide.narrow(axis, 0, size)).abs()
        crossed = torch.maximum(stop.narrow(axis, 1, size), stop.narrow(axis, 0, size))
        weight = torch.exp(-EDGE_STRENGTH * edge) * (1 - crossed)
        step = points.narrow(axis, 1, size) - points.narrow(axis, 0, size)
        loss = loss + overall_mean(_robust(step) * weight.unsqueeze(1))
    return loss


def _grid(field: Tensor) -> Tensor:
    return pixel_grid(*field.shape[-2:], device=field.device)


def _has(batch: Sample, modality: Modality) -> Tensor:
    return batch.modality_mask[:, modality].view(-1, 1, 1, 1) > 0


def _robust(difference: Tensor) -> Tensor:
    """Charbonnier: absolute value, but smooth at zero; 0 at 0."""
    return torch.sqrt(difference**2 + 1e-6) - 1e-3


def _local_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlation coefficient in 7 x 7 windows, 0 where either is flat: [B, 1, H, W] -> same."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, WINDOW, 1, WINDOW // 2, count_include_pad=False)

    mean_a, mean_b = mean(a), mean(b)
    covariance = mean(a * b) - mean_a * mean_b
    var_a = (mean(a * a) - mean_a**2).clamp(min=0) + 1e-4
    var_b = (mean(b * b) - mean_b**2).clamp(min=0) + 1e-2
    return covariance / torch.sqrt(var_a * var_b)
