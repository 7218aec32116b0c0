"""Supervised losses on generated scenes.

Where several processes train (flowfuse.distributed), a batch is what all of them see together. Each
mean is over that batch, and each process gets its share of it: what its own pixels add, divided by
the number of all. The sum of the shares is the loss, and that of their gradients the gradient,
which an average over processes would not be where their numbers of valid pixels differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowfuse import distributed
from flowfuse.data.samples import Sample
from flowfuse.geometry.bezier import bezier, fit_bezier
from flowfuse.geometry.grid import inside, pixel_grid, sample
from flowfuse.geometry.laplace import negative_log_likelihood
from flowfuse.inputs import Modality, PairKind
from flowfuse.model.evidence import present_kinds
from flowfuse.model.flowfuse import STRIDE, ModelOutput

BORDER = 5  # px around a motion discontinuity


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses.

    Args:
        flow: weight of the trajectories' likelihood.
        absolute: weight of their absolute error beside it: the likelihood alone pulls a pixel the
            less, the wider the network thinks its error is, and starts slowly.
        coarse: weight of the absolute error of the coarse estimates.
        decay: an earlier iteration counts this much of the next one.
        boundary: weight of the boundary maps' cross-entropy.
        matching: weight of the matching cross-entropy, which makes the latent common.
        evidence: weight of the likelihood of the errors that each modality alone makes, which
            teaches how far to trust it.
        border: how much more a pixel counts in the trajectories' losses when it is within 5 px of a
            motion discontinuity: 0 is as much as others, 1 twice as much.
        regret: weight of the absolute error beyond that of the better modality alone.
        positive_event: weight of a B_e pixel over one that is none; such pixels are rare.
        positive_motion: the same for B_m.
    """

    flow: float = 1.0
    absolute: float = 0.25
    coarse: float = 0.3
    decay: float = 0.8
    boundary: float = 1.0
    matching: float = 1.0
    evidence: float = 0.2
    border: float = 0.0
    regret: float = 0.5
    positive_event: float = 2.0
    positive_motion: float = 6.0

    def __post_init__(self) -> None:
        check_loss_weights(self)


def check_loss_weights(config: Any) -> None:
    """Check that every field of a dataclass of loss weights is a finite number >= 0."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if not 0 <= value < float("inf"):
            raise ValueError(f"{entry.name} must be a number >= 0, got {value}")


def supervised_loss(
    output: ModelOutput, batch: Sample, config: LossConfig, single: SingleErrors | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the supervised losses of one batch.

    Args:
        output: of the network.
        batch: collated samples with ground truth.
        config: the weights.
        single: see :func:`single_errors`; None: the evidence is not taught, and ``evidence`` and
            ``regret`` are zero.

    Returns:
        The loss (scalar), and its parts: ``flow``, ``coarse``, ``boundary_event``,
        ``boundary_motion``, ``matching``, ``evidence``, ``regret``, and ``epe`` (px, at t1;
        no gradient). Of several processes, each gets its share of every number.
    """
    with torch.autocast(batch.flow.device.type, enabled=False):
        weight = pixel_weights(batch, config.border)
        parts = {
            "flow": likelihood_loss(output, batch, weight, config.absolute),
            "coarse": sequence_loss(output, batch, weight, config.decay),
        }
        parts["boundary_event"], parts["boundary_motion"] = boundary_loss(
            output.boundary, batch.boundary, (config.positive_event, config.positive_motion)
        )
        parts["matching"] = matching_loss(output, batch)
        parts["evidence"] = parts["regret"] = batch.flow.new_zeros(())
        if single is not None:
            parts["evidence"] = evidence_loss(output, single)
            parts["regret"] = regret_loss(output, batch, single)
        loss = (
            config.flow * parts["flow"]
            + config.coarse * parts["coarse"]
            + config.boundary * (parts["boundary_event"] + parts["boundary_motion"])
            + config.matching * parts["matching"]
            + config.evidence * parts["evidence"]
            + config.regret * parts["regret"]
        )
    parts["epe"] = end_point_error(output, batch)
    return loss, parts


@torch.no_grad()
def end_point_error(output: ModelOutput, batch: Sample) -> Tensor:
    """Mean EPE at t1 of the last iteration over the valid pixels, px."""
    error = (output.control_points[:, -1] - batch.flow[:, -1]).norm(dim=1)
    return masked_mean(error, batch.valid[:, -1])


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid elements; zero (with zero gradient) where there are none.

    Of several processes, each gets its share of the mean over the elements of all.

    Args:
        values: any shape.
        mask: bool or float weights, same shape.
    """
    weight = mask.to(values.dtype)
    # where, not a product: an invalid element may be NaN, and 0 * NaN is NaN.
    total = torch.where(weight > 0, values * weight, torch.zeros_like(values)).sum()
    return total / distributed.total(weight.sum()).clamp(min=1)


def overall_mean(values: Tensor) -> Tensor:
    """Mean over all elements, of which every process has as many.

    Of several processes, each gets its share of the mean over the elements of all.
    """
    return values.mean() / distributed.this().count


def pixel_weights(batch: Sample, border: float) -> Tensor:
    """How much each pixel counts: [B, T, H, W] float32, zero where there is no ground truth.

    Thin parts are few pixels, all of them near a border: without more weight they hardly count.

    Args:
        batch: collated samples with ground truth.
        border: see :class:`LossConfig`.
    """
    valid = batch.valid.to(batch.flow.dtype)
    if border == 0:
        return valid
    discontinuity = batch.boundary[:, 1:]
    near = torch.where(torch.isfinite(discontinuity), discontinuity, 0)
    return valid * (1 + border * F.max_pool2d(near, 2 * BORDER + 1, 1, BORDER))


def likelihood_loss(output: ModelOutput, batch: Sample, weight: Tensor, absolute: float) -> Tensor:
    """Likelihood and absolute error of the final trajectories at all given times."""
    flow = bezier(output.control_points, batch.tau)  # [B, T, 2, H, W]
    # An invalid ground truth may be NaN: it must not enter the backward at all.
    error = torch.where(batch.valid.unsqueeze(2), flow - batch.flow, 0)
    nll = negative_log_likelihood(error, output.uncertainty.unsqueeze(1))
    return masked_mean((nll + absolute * error.abs()).mean(dim=2), weight)


def sequence_loss(output: ModelOutput, batch: Sample, weight: Tensor, decay: float) -> Tensor:
    """Error of the coarse trajectories at the cells' centres, later iterations counting more."""
    ground_truth, valid, weight = map(at_cells, (batch.flow, batch.valid, weight))
    height, width = ground_truth.shape[-2:]
    iterations = output.coarse_points.shape[0]
    loss = ground_truth.new_zeros(())
    for i, points in enumerate(output.coarse_points[..., :height, :width]):
        error = torch.where(valid.unsqueeze(2), bezier(points, batch.tau) - ground_truth, 0)
        loss = loss + decay ** (iterations - 1 - i) * masked_mean(error.abs().mean(dim=2), weight)
    return loss


class SingleErrors(NamedTuple):
    """What frames alone and events alone make of the samples that have both.

    Attributes:
        error: [B, 2, h, w] float32, mean absolute error per component in every cell, px.
        valid: [B, h, w] bool, where it is known.
    """

    error: Tensor
    valid: Tensor


@torch.no_grad()
def single_errors(network: Callable[..., ModelOutput], batch: Sample) -> SingleErrors:
    """Run a network on each modality alone, to learn what error to expect of each.

    Args:
        network: a :class:`~flowfuse.model.FlowFuse`, or what takes its arguments; no gradient
            passes.
        batch: collated samples with ground truth.
    """
    inputs, errors = batch.inputs, []
    mask = inputs.modality_mask
    for kept in ((Modality.FRAMES, Modality.SECOND_FRAME), (Modality.EVENTS, Modality.HISTORY)):
        only = torch.zeros_like(mask)
        only[:, kept] = mask[:, kept]
        output = network(inputs._replace(modality_mask=only), alone=kept[0])
        error, known = cell_errors(output, batch)
        errors.append(error)
    both = (mask[:, Modality.SECOND_FRAME] * mask[:, Modality.EVENTS]).view(-1, 1, 1) > 0
    return SingleErrors(torch.stack(errors, dim=1), known & both)


def cell_errors(output: ModelOutput, batch: Sample) -> tuple[Tensor, Tensor]:
    """Mean absolute error at t1 per component in every cell, px: [B, h, w]; and where it is known.

    It is known where the ground truth is that of more than half of a cell.
    """
    valid = batch.valid[:, -1:]
    error = torch.where(valid, output.control_points[:, -1].float() - batch.flow[:, -1], 0)
    share, total = (
        F.avg_pool2d(x, STRIDE).squeeze(1)
        for x in (valid.float(), error.abs().mean(dim=1, keepdim=True))
    )
    return total / share.clamp(min=1e-6), share > 0.5


def evidence_loss(output: ModelOutput, single: SingleErrors) -> Tensor:
    """Likelihood of the errors that each modality alone makes, Laplace distributions.

    In px of the latent.
    """
    height, width = single.valid.shape[-2:]
    log_scale = output.evidence[..., :height, :width]
    error = single.error / STRIDE
    mask = single.valid.unsqueeze(1).expand_as(log_scale)
    return masked_mean(log_scale + error * torch.exp(-log_scale), mask)


def regret_loss(output: ModelOutput, batch: Sample, single: SingleErrors) -> Tensor:
    """Mean absolute error beyond that of the better modality alone, px."""
    error, _ = cell_errors(output, batch)
    return masked_mean((error - single.error.amin(dim=1)).clamp(min=0), single.valid)


def at_cells(images: Tensor) -> Tensor:
    """What full-resolution images have at the centres of the latent's cells: [..., h, w]."""
    centre = slice(STRIDE // 2, None, STRIDE)
    return images[..., centre, centre]


def boundary_loss(
    logits: Tensor, ground_truth: Tensor, positive_weight: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of B_e and of B_m, each with its own ground truth.

    Args:
        logits: [B, 2, H, W].
        ground_truth: [B, 2, H, W], 0 or 1; NaN where it is unknown, as in recordings.
        positive_weight: of a boundary pixel, for B_e and B_m.
    """
    known = torch.isfinite(ground_truth)
    costs = [
        F.binary_cross_entropy_with_logits(
            logits[:, i],
            torch.where(known[:, i], ground_truth[:, i], 0),
            pos_weight=logits.new_full((), positive_weight[i]),
            reduction="none",
        )
        for i in range(2)
    ]
    event, motion = (masked_mean(cost, known[:, i]) for i, cost in enumerate(costs))
    return event, motion


def matching_loss(output: ModelOutput, batch: Sample) -> Tensor:
    """Cross-entropy of the correlation at the true displacement.

    -log softmax of <a(x), b(.)>/sqrt(C) at x + x(tau), for (E_0, E_k), (F_0, F_1) and (F_0, E_K),
    where the place is visible and in the image. The last pair forces frames and events into one
    latent space.
    """
    events, frames = output.event_latent.float(), output.frame_latent.float()
    slices = events.shape[1] - 1
    tau = batch.tau
    # The ground truth is given at random times: a cubic through them gives it at the slices' times.
    cells, hidden = at_cells(batch.flow), at_cells(batch.occluded)
    # E_0 shows only where something fires, and not noise or lamps alone: elsewhere there is nothing
    # to match. Where moving edges are not known, whatever fires may be one.
    edges = batch.boundary[:, :1]
    edges = F.max_pool2d(torch.where(torch.isfinite(edges), edges, 1), STRIDE)
    activity = edges * F.avg_pool2d(batch.slices[:, 0].abs().sum(1, keepdim=True), STRIDE)
    # Not all of the three have a value for a last cell that the image fills only in part.
    sizes = [value.shape[-2:] for value in (cells, events, activity)]
    height, width = (min(sides) for sides in zip(*sizes, strict=True))
    events, frames = events[..., :height, :width], frames[..., :height, :width]
    cells, hidden = cells[..., :height, :width], hidden[..., :height, :width]
    points = fit_bezier(cells, tau, min(3, tau.shape[1]))
    fires = activity[..., :height, :width] > 0
    # A corrupted modality may show nothing at the true displacement.
    mask = batch.modality_mask
    matching = mask.new_ones(len(mask), len(PairKind))
    if batch.matching is not None:
        matching = batch.matching
    matching = matching * present_kinds(mask)
    has_frames, history, both = (matching[:, kind].view(-1, 1, 1, 1) > 0 for kind in PairKind)

    # P = K + 2 pairs at once: one by one, they are thousands of small operations.
    first_slice = events[:, :1].expand(-1, slices, -1, -1, -1)
    sources = torch.cat((first_slice, frames[:, :1].expand(-1, 2, -1, -1, -1)), dim=1)
    targets = torch.cat((events[:, 1:], frames[:, 1:], events[:, slices:]), dim=1)
    times = torch.cat((torch.arange(1, slices + 1, device=tau.device) / slices, tau.new_ones(2)))
    here = (fires & history).expand(-1, slices, -1, -1)
    shown = torch.cat((here, has_frames.expand_as(fires), both.expand_as(fires)), dim=1)
    coords = pixel_grid(height, width, device=cells.device)
    coords = coords + bezier(points, times.expand(len(tau), -1)) / STRIDE  # [B, P, 2, h, w]
    nearest = (tau.unsqueeze(1) - times.view(-1, 1)).abs().argmin(dim=2)  # [B, P]
    covered = hidden[torch.arange(len(tau), device=tau.device).unsqueeze(1), nearest]
    on_image = inside(coords.flatten(0, 1), height, width).view_as(covered)
    cost = _matching_cross_entropy(sources, targets, coords)
    mask = shown & on_image & ~covered
    # A mean for each pair, which has pixels of its own.
    total = torch.where(mask, cost, 0).sum(dim=(0, 2, 3))
    return (total / distributed.total(mask.sum(dim=(0, 2, 3)).float()).clamp(min=1)).mean()


def _matching_cross_entropy(source: Tensor, target: Tensor, coords: Tensor) -> Tensor:
    """[B, P, C, h, w] x 2, coords [B, P, 2, h, w] -> [B, P, h, w]; the target is spread
    bilinearly."""
    channels, height, width = source.shape[2:]
    source = source / channels**0.5
    # Pair by pair: the scores of all pixels with all others are large.
    totals = [
        (first.flatten(2).transpose(1, 2) @ second.flatten(2)).logsumexp(dim=2)
        for first, second in zip(source.unbind(1), target.unbind(1), strict=True)
    ]
    # The correlation is linear in the target: sampling the target's features samples the scores.
    found = sample(target.flatten(0, 1), coords.flatten(0, 1), padding="border").view_as(source)
    return torch.stack(totals, dim=1).unflatten(2, (height, width)) - (source * found).sum(2)
