"""Localization of visual boundaries from the common spatiotemporal gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.inputs import Modality
from flowfuse.model.encoders import (
    ResidualBlock,
    activate,
    convolve_parts,
    group_count,
    normalize,
)
from flowfuse.model.evidence import Evidence, resized
from flowfuse.model.normalization import Scene
from flowfuse.model.update import start_at_zero
from flowfuse.ops import common_gradient

CORRECTION_WIDTH = 32
JUMP_SCALE = 4.0  # 1/px: jumps below 1/4 px hardly count
MOST_LOGIT = 8.0  # of what the correction is shown: beyond it, sure is sure


class BoundaryLocalizer(nn.Module):
    """Find B_e (informative moving edges) and B_m (motion discontinuities) at t0.

    Agreement of frame and event gradients marks moving texture; whether the motion differs on the
    two sides of an edge shows only in appearance and motion together. So the localizer sees the
    gradients with their agreement S, the stems' features, and the first estimate of the motion.

    Args:
        gradient_channels: channels of the full-resolution input.
        stem_channels: channels of each stem's features.
        channels: width of the localizer.
    """

    def __init__(self, gradient_channels: int, stem_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(gradient_channels, channels // 2, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.merge = nn.Conv2d(channels + 2 * stem_channels + 2, channels, 1)
        self.mix = ResidualBlock(channels)
        self.logits = nn.Conv2d(channels, 2 * 4 * 4, 1)

    def forward(
        self, gradients: Tensor, event_stem: Tensor, frame_stem: Tensor, flow: Tensor
    ) -> Tensor:
        """Localize.

        Args:
            gradients: [B, gradient_channels, H, W].
            event_stem: [B, C_stem, H/4, W/4] of slice E_0.
            frame_stem: [B, C_stem, H/4, W/4] of frame 0.
            flow: [B, 2, H/8, W/8] first estimate of the flow, in units of 8 px.

        Returns:
            [B, 2, H, W] float32 logits of B_e and B_m.
        """
        x = activate(self.conv1(gradients))
        x = normalize(self.norm, self.conv2(x))  # [B, channels, H/4, W/4]
        flow = F.interpolate(flow, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = activate(self.merge(torch.cat((x, event_stem, frame_stem, flow.to(x.dtype)), dim=1)))
        return F.pixel_shuffle(self.logits(self.mix(x)), 4).float()


class BoundaryCorrection(nn.Module):
    """Correct B_m by the upsampled flow and its uncertainty.

    The localizer saw only the first estimate of the motion. The last layer starts at zero, so at
    first nothing changes.

    Args:
        hidden: channels of the features.
        stride: of the features, px.
    """

    def __init__(self, hidden: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.merge = nn.Conv2d(hidden + 4 * stride**2, CORRECTION_WIDTH, 1)
        self.mix = nn.Conv2d(CORRECTION_WIDTH, CORRECTION_WIDTH, 3, padding=1)
        self.change = start_at_zero(nn.Conv2d(CORRECTION_WIDTH, stride**2, 1))

    def forward(
        self, boundary: Tensor, features: Tensor, flow: Tensor, uncertainty: Tensor
    ) -> Tensor:
        """Correct.

        Args:
            boundary: [B, 2, H, W] float32 logits of B_e and B_m.
            features: [B, hidden, H / stride, W / stride].
            flow: [B, 2, H, W] float32, px, before the gradient steps; no gradient passes.
            uncertainty: [B, 1, H, W] float32, of which the softplus is the log of the wide
                Laplace's scale, px; no gradient passes.

        Returns:
            [B, 2, H, W] float32 logits; those of B_e are the same.
        """
        jumps = flow_jumps(flow).mul_(JUMP_SCALE).log1p_()
        known = torch.cat((boundary.detach(), uncertainty.detach(), jumps), dim=1)
        known = F.pixel_unshuffle(known.clamp_(-MOST_LOGIT, MOST_LOGIT), self.stride)
        x = activate(convolve_parts(self.merge, (features, known.to(features.dtype))))
        change = F.pixel_shuffle(self.change(activate(self.mix(x))), self.stride)
        event, motion = boundary.split(1, dim=1)
        return torch.cat((event, motion + change.float()), dim=1)


def flow_jumps(flow: Tensor) -> Tensor:
    """How much the flow differs between the neighbours on two sides of a pixel, the larger of both
    axes: [B, 2, H, W] -> [B, 1, H, W], px. No gradient passes: that of a root is infinite at 0."""
    around = F.pad(flow.detach(), (1, 1, 1, 1), mode="replicate")
    across = around[..., 1:-1, 2:] - around[..., 1:-1, :-2]
    down = around[..., 2:, 1:-1] - around[..., :-2, 1:-1]
    squares = []
    for step in (across, down):
        u, v = step.split(1, dim=1)
        squares.append(torch.addcmul(u * u, v, v))  # norm() takes 100 times as long on a CPU
    return torch.maximum(*squares).sqrt_()


def max_pool(boundary: Tensor, factor: int) -> Tensor:
    """Strongest boundary probability in each ``factor`` x ``factor`` cell.

    A boundary is thin: its mean over a cell would all but vanish.

    Args:
        boundary: [B, C, H, W] logits, of B_e and B_m or of one.

    Returns:
        [B, C, H/factor, W/factor] in [0, 1].
    """
    return torch.sigmoid(F.max_pool2d(boundary, factor))


def gradients_shown(
    scene: Scene, motion: Tensor | None, evidence: Evidence | None, cell: int
) -> tuple[Tensor, Tensor]:
    """What the localizer sees at full resolution.

    What one modality shows fades with it, and what both show with either: a modality that has faded
    altogether is as good as absent.

    Args:
        scene: the inputs, normalized.
        motion: [B, 2, H, W] px, until the end of slice E_1: the gradient equation, which predicts
            what that slice saw, holds over short motion only. None: frames and events themselves
            are shown instead of their gradients.
        evidence: how far each modality is trusted; None: altogether.
        cell: px, of a mean of the agreement.

    Returns:
        [B, channels, H, W], and the agreement S of both modalities [B, 1, H / cell, W / cell], 0
        without gradients.
    """
    height, width = scene.frame0.shape[-2:]
    frame = event = scene.frame0.new_ones(1, 1, height, width)
    if evidence is not None:
        frame, event = resized(evidence.fade, width).split(1, dim=1)
    # Frames; events and whether they have a history.
    frames, events = scene.modality_mask[:, : Modality.SECOND_FRAME, None, None].split(
        (1, 2), dim=1
    )
    present = (frames * frame, events * event)
    if motion is None:
        bare = (scene.frame0 * frame, scene.frame1 * frame, compress(scene.event_sum) * event)
        return torch.cat((*bare, *present), dim=1), torch.zeros_like(scene.density[:, :1])
    # Maps of full size: none lives longer than it is needed.
    gradients = common_gradient(scene.frame0, scene.frame1, scene.event_sum, motion)
    agreement = F.avg_pool2d(gradients[:, 4:5].float(), cell)
    gradients = 4 * gradients.float()
    gradients = compress(gradients)
    of_frames, of_events, common, predicted = gradients.split((3, 1, 1, 1), dim=1)
    shown = (of_frames * frame, of_events * event, common * frame * event, predicted * frame)
    del gradients, of_frames, of_events, common, predicted
    return torch.cat((*shown, scene.first_sum * event, *present), dim=1), agreement


def compress(x: Tensor) -> Tensor:
    """x / sqrt(1 + |x|): linear near zero, a signed root far from it; cheaper than asinh."""
    return x * x.abs().add_(1).rsqrt_()
