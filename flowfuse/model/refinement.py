"""The update at 1/4 resolution: sharp borders, and how trajectories bend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.geometry.bezier import bernstein_rows
from flowfuse.model.boundary import BoundaryCorrection, max_pool
from flowfuse.model.correlation import PairCorrelations, WindowMatching
from flowfuse.model.encoders import (
    Encoded,
    ResidualBlock,
    convolve_parts,
    group_count,
    normalize,
)
from flowfuse.model.fusion import CorrelationTokens, read_pairs
from flowfuse.model.selection import NeighbourSelection
from flowfuse.model.update import UpsampleMask, start_at_zero, start_near_zero
from flowfuse.ops import convex_upsample

FACTOR = 2  # from the recurrent state's 1/8 to 1/4
START_TRUST = -3.0  # logit: what the matches propose is as good as not followed
START_LOG_SCALE = 2.5  # of the wide Laplace: about 13 px
START_LOG_PRIOR = -6.0  # of the gradient steps: what moderate texture has
LOG_PRIORS = (-14.0, 6.0)  # from what eight bits resolve to far beyond the sharpest edge


class Refined(NamedTuple):
    """What :class:`Refinement` gives.

    Attributes:
        control_points: [B, n, 2, H, W] float32, px, before the gradient steps.
        uncertainty: [B, 2, H, W] float32 of what the gradient steps make of them, see
            :mod:`flowfuse.geometry.laplace`.
        priors: [B, S, 2 h, 2 w] float32 > 0 for the gradient steps: how little each is trusted.
        boundary: [B, 2, H, W] float32 logits, those given, corrected by what is known by now.
    """

    control_points: Tensor
    uncertainty: Tensor
    priors: Tensor
    boundary: Tensor


class Refinement(nn.Module):
    """Update trajectories once at 1/4 resolution, then upsample them to pixels.

    Fine features are matched, where the coarse trajectories lead: frame 0 with frame 1,
    and slice E_0 with every other one. Each is looked up in a small window: what is left is the
    error of the coarse estimate, and how trajectories bend, which is mostly by less than a cell
    of 1/8.

    Args:
        stem_channels: channels of the stems' features.
        channels: of the tokens.
        hidden: channels of the recurrent state.
        guided: by the boundary maps.
        localized: whether there are boundary maps.
        slices: K.
        degree: control points per trajectory.
        radius: of the look-ups.
        stride: of the stems' features, px.
        gradient_steps: S, the number of gradient steps that follow.
        selects: whether motions of neighbours are taken over.
    """

    basis: Tensor

    def __init__(  # noqa: PLR0913 - sizes of its layers
        self,
        stem_channels: int,
        channels: int,
        hidden: int,
        *,
        guided: bool,
        localized: bool,
        slices: int,
        degree: int,
        radius: int,
        stride: int,
        gradient_steps: int,
        selects: bool,
    ) -> None:
        super().__init__()
        self.degree, self.radius, self.stride = degree, radius, stride
        times = [1.0, *(k / slices for k in range(1, slices + 1))]
        self.register_buffer("basis", torch.tensor(bernstein_rows(degree, times)), persistent=False)
        self.matching = WindowMatching(radius, 1, degree)
        self.tokens = CorrelationTokens((2 * radius + 1) ** 2, 2, channels)
        self.start_mask = UpsampleMask(hidden, FACTOR)
        merged = (slices + 1) * channels + 4 * degree + hidden + 2 * stem_channels
        self.merge = nn.Conv2d(merged, hidden, 1)
        self.guide = start_at_zero(nn.Conv2d(2 * stride**2, hidden, 1)) if guided else None
        self.norm = nn.GroupNorm(group_count(hidden), hidden)
        self.block = ResidualBlock(hidden)
        self.splits = (2 * degree, 1, 2, gradient_steps)
        self.out = nn.Conv2d(hidden, sum(self.splits), 1)
        self.mask = UpsampleMask(hidden, stride)
        # Motion discontinuities are localized by a first estimate, and known better after the last.
        self.boundary = start_at_zero(nn.Conv2d(hidden, 2 * stride**2, 1)) if localized else None
        self.selection = NeighbourSelection(hidden) if selects else None
        self.correction = BoundaryCorrection(hidden, stride) if localized else None
        start_near_zero(self.out)
        bias: Any = self.out.bias
        _, trust, uncertainty, log_priors = bias.detach().split(self.splits)
        trust.fill_(START_TRUST)
        # The errors of the first steps are many px: a scale that starts small would be driven up
        # through all that comes before it.
        uncertainty[1] = START_LOG_SCALE
        log_priors.fill_(START_LOG_PRIOR)

    def forward(
        self,
        points: Tensor,
        state: Tensor,
        events: Encoded,
        frames: Encoded,
        boundary: Tensor,
        fades: Tensor | None,
        strategy: str,
    ) -> Refined:
        """Refine.

        Args:
            points: [B, 2 n, h, w] float32, control points in px of the state's grid.
            state: [B, hidden, h, w], recurrent state.
            events: the K + 1 slices, of whose latents nothing is used.
            frames: the two frames, likewise.
            boundary: [B, 2, H, W] logits of B_e and B_m.
            fades: [B, 2, h, w], what multiplies the correlations of event and of frame pairs;
                None: nothing is faded.
            strategy: of the correlation.
        """
        points = convex_upsample(FACTOR * points, self.start_mask(state), FACTOR)
        if fades is not None:
            fades = F.interpolate(fades, scale_factor=float(FACTOR), mode="bilinear")
            fades = fades.flip(1)  # of frames, then of events, as all pairs here
        tokens, proposed = self._match(points, events.fine, frames.fine, fades, strategy)
        state = F.interpolate(
            state, scale_factor=float(FACTOR), mode="bilinear", align_corners=False
        )
        parts = (tokens, points, proposed, state, events.stem, frames.stem)
        merged = self._merge(parts, boundary)
        del tokens, state, parts  # memory is scarcest from here on
        features = self.block(normalize(self.norm, merged))
        del merged
        out = self.out(features).float()
        change, trust, uncertainty, log_priors = out.split(self.splits, dim=1)
        points = points + change + torch.sigmoid(trust) * proposed
        del proposed
        if self.boundary is not None:
            boundary = boundary + F.pixel_shuffle(self.boundary(features).float(), self.stride)
        if self.selection is not None:
            ends = [(fine[:, 0], fine[:, -1]) for fine in (frames.fine, events.fine)]
            border = max_pool(boundary[:, 1:].detach(), self.stride)
            points = self.selection(points, features, ends, fades, border)
        field = torch.cat((self.stride * points, uncertainty), dim=1)
        field = convex_upsample(field, self.mask(features), self.stride)
        control_points, uncertainty = field[:, :-2].unflatten(1, (self.degree, 2)), field[:, -2:]
        if self.correction is not None:
            boundary = self.correction(
                boundary, features, control_points[:, -1], uncertainty[:, 1:]
            )
        priors = log_priors.clamp(*LOG_PRIORS).exp()
        return Refined(control_points, uncertainty, priors, boundary)

    def _merge(self, parts: Sequence[Tensor], boundary: Tensor) -> Tensor:
        """Merge all that is known at 1/4, the tokens first: [B, hidden, 2 h, 2 w]."""
        merged = convolve_parts(self.merge, [part.to(parts[0].dtype) for part in parts])
        if self.guide is not None:
            # All pixels of a cell, so that the mask can part those on two sides of a border.
            pixels = F.pixel_unshuffle(torch.sigmoid(boundary), self.stride)
            merged = merged + self.guide(pixels.to(merged.dtype))
        return merged

    def _match(
        self,
        points: Tensor,
        events: Tensor,
        frames: Tensor,
        fades: Tensor | None,
        strategy: str,
    ) -> tuple[Tensor, Tensor]:
        """Return tokens [B, (K + 1) channels, ..] and the change they propose, [B, 2 n, ..]."""
        correlations = PairCorrelations(
            ((frames[:, 0], frames[:, 1:]), (events[:, 0], events[:, 1:])),
            self.basis,
            radius=self.radius,
            levels=1,
            strategy=strategy,
        )
        control_points = points.unflatten(1, (self.degree, 2))
        fine_fades = None if fades is None else fades.split(1, dim=1)
        tokens, matches = read_pairs(
            correlations, control_points, self.matching, self.tokens, fine_fades
        )
        return tokens, self.matching.fit(matches, self.basis).flatten(1, 2)
