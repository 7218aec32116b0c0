"""Localization of visual boundaries from the common spatiotemporal gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.model.encoders import ResidualBlock, activate, group_count, normalize


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


def max_pool(boundary: Tensor, factor: int) -> Tensor:
    """Strongest boundary probability in each ``factor`` x ``factor`` cell.

    A boundary is thin: its mean over a cell would all but vanish.

    Args:
        boundary: [B, 2, H, W] logits.

    Returns:
        [B, 2, H/factor, W/factor] in [0, 1].
    """
    return torch.sigmoid(F.max_pool2d(boundary, factor))
