"""The last update, at 1/4 resolution: sharp borders and fractions of a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.model.correlation import WindowMatching, correlate
from flowfuse.model.encoders import ResidualBlock, activate, group_count, stack_maps
from flowfuse.model.fusion import CorrelationTokens, read_pairs
from flowfuse.model.update import UpsampleMask, start_at_zero, start_near_zero
from flowfuse.ops import convex_upsample

FACTOR = 2  # from the recurrent state's 1/8 to 1/4
START_LOG_SCALE = 2.5  # of the wide Laplace: about 13 px


class Refined(NamedTuple):
    """What :class:`Refinement` gives, at full resolution.

    Attributes:
        control_points: [B, n, 2, H, W] float32, px.
        uncertainty: [B, 2, H, W] float32, see :mod:`flowfuse.uncertainty`.
    """

    control_points: Tensor
    uncertainty: Tensor


class Refinement(nn.Module):
    """Update trajectories once at 1/4 resolution, then upsample them to pixels.

    The stems' features are matched again, where the coarse trajectories lead: frame 0 with frame 1,
    and slice E_0 with the one half-way and the last. Each is looked up in a small window: what is
    left is the error of the coarse estimate.

    Args:
        stem_channels: channels of the stems' features.
        channels: of the features that are matched, and of the tokens.
        hidden: channels of the recurrent state.
        guided: by the boundary maps.
        slices: K.
        degree: control points per trajectory.
        radius: of the look-ups.
        stride: of the stems' features, px.
    """

    def __init__(
        self,
        stem_channels: int,
        channels: int,
        hidden: int,
        *,
        guided: bool,
        slices: int,
        degree: int,
        radius: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.degree, self.radius, self.stride = degree, radius, stride
        middle = (slices + 1) // 2
        self.used_slices = (0, middle, slices)
        tau = torch.tensor((1.0, middle / slices, 1.0))
        self.register_buffer("tau", tau, persistent=False)
        self.project = nn.Conv2d(stem_channels, channels, 1)
        self.matching = WindowMatching(radius, 1, degree)
        self.tokens = CorrelationTokens((2 * radius + 1) ** 2, 2, channels)
        self.start_mask = UpsampleMask(hidden, FACTOR)
        merged = 3 * channels + 4 * degree + hidden + 2 * stem_channels
        self.merge = nn.Conv2d(merged, hidden, 1)
        self.guide = start_at_zero(nn.Conv2d(2, hidden, 3, padding=1)) if guided else None
        self.norm = nn.GroupNorm(group_count(hidden), hidden)
        self.block = ResidualBlock(hidden)
        self.out = nn.Conv2d(hidden, 2 * degree + 2, 3, padding=1)
        self.mask = UpsampleMask(hidden, stride)
        start_near_zero(self.out)
        # The errors of the first steps are many px: a scale that starts small would be driven up
        # through all that comes before it.
        nn.init.constant_(self.out.bias[2 * degree + 1 :], START_LOG_SCALE)

    def forward(
        self,
        points: Tensor,
        state: Tensor,
        event_stems: Sequence[Tensor],
        frame_stems: Sequence[Tensor],
        boundary: Tensor,
        strategy: str,
    ) -> Refined:
        """Refine.

        Args:
            points: [B, 2 n, h, w] float32, control points in px of the state's grid.
            state: [B, hidden, h, w], recurrent state.
            event_stems: [B, C_stem, 2 h, 2 w] of the `used_slices`, zero where events are absent.
            frame_stems: the same of both frames.
            boundary: [B, 2, 2 h, 2 w] probabilities of B_e and B_m.
            strategy: of the correlation.
        """
        points = convex_upsample(FACTOR * points, self.start_mask(state), FACTOR)
        features = self._features(points, state, event_stems, frame_stems, boundary, strategy)
        out = self.out(features).float()
        points = points + out[:, :-2]
        field = torch.cat((self.stride * points, out[:, -2:]), dim=1)
        field = convex_upsample(field, self.mask(features), self.stride)
        return Refined(field[:, :-2].unflatten(1, (self.degree, 2)), field[:, -2:])

    def _features(
        self,
        points: Tensor,
        state: Tensor,
        event_stems: Sequence[Tensor],
        frame_stems: Sequence[Tensor],
        boundary: Tensor,
        strategy: str,
    ) -> Tensor:
        """Merge all that is known at 1/4 into features [B, hidden, 2 h, 2 w]."""
        tokens, change = self._match(points, event_stems, frame_stems, strategy)
        state = F.interpolate(
            state, scale_factor=float(FACTOR), mode="bilinear", align_corners=False
        )
        parts = (tokens, points, change, state, event_stems[0], frame_stems[0])
        merged = convolve_parts(self.merge, [part.to(tokens.dtype) for part in parts])
        if self.guide is not None:
            merged = merged + self.guide(boundary)
        return self.block(activate(self.norm(merged)))

    def _match(
        self,
        points: Tensor,
        event_stems: Sequence[Tensor],
        frame_stems: Sequence[Tensor],
        strategy: str,
    ) -> tuple[Tensor, Tensor]:
        """Return tokens [B, 3 channels, ..] and the change of the points, [B, 2 n, ..]."""
        maps = stack_maps([self.project(stem) for stem in (*frame_stems, *event_stems)])
        correlations = correlate(
            ((maps[:, 0], maps[:, 1:2]), (maps[:, 2], maps[:, 3:])),
            self.tau,
            radius=self.radius,
            levels=1,
            strategy=strategy,
        )
        control_points = points.unflatten(1, (self.degree, 2))
        tokens, matches = read_pairs(correlations, control_points, self.matching, self.tokens)
        return tokens.flatten(1, 2), self.matching.fit(matches, self.tau).flatten(1, 2)


def convolve_parts(layer: nn.Conv2d, parts: Sequence[Tensor]) -> Tensor:
    """Apply a 1 x 1 convolution to parts side by side in channels, without putting them there."""
    weights = layer.weight.split([part.shape[1] for part in parts], dim=1)
    first, *others = zip(parts, weights, strict=True)
    total = F.conv2d(*first, layer.bias)
    for part, weight in others:
        total = total + F.conv2d(part, weight)
    return total
