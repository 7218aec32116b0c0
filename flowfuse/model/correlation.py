"""Correlations of both modalities: frame to frame, event slice to event slice, frame to event
slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowfuse.geometry.bezier import bernstein, bezier
from flowfuse.geometry.grid import pixel_grid
from flowfuse.model.encoders import in_turn
from flowfuse.ops import Correlation


class PairCorrelations:
    """Correlations of pairs with a common source, looked up along trajectories.

    Args:
        source: [B, C, h, w] latent, correlated at every pixel with each target around the pixel's
            place at tau_p.
        targets: [B, P, C, h, w] latents.
        tau: [P], when each target is, in (0, 1].
        kind: index of these pairs among the kinds given to :func:`correlate`; only kept.
        radius, levels: window of each look-up, see :func:`flowfuse.ops.correlation_lookup`.
        strategy: ``"auto"``, ``"volume"`` or ``"on_demand"``.
    """

    def __init__(
        self,
        source: Tensor,
        targets: Tensor,
        tau: Tensor,
        *,
        kind: int,
        radius: int,
        levels: int,
        strategy: str = "auto",
    ) -> None:
        self.batch, self.pairs, _, height, width = targets.shape
        self.kind = kind
        self.correlation = Correlation(
            source.unsqueeze(1).expand_as(targets).flatten(0, 1),
            targets.flatten(0, 1),
            levels=levels,
            radius=radius,
            strategy=strategy,
        )
        self.tau = tau.expand(self.batch, -1)  # [B, P]
        self.grid = pixel_grid(height, width, device=source.device)

    def __call__(self, control_points: Tensor) -> Tensor:
        """Look up along trajectories.

        Args:
            control_points: [B, n, 2, h, w] float32 in px of the latent.

        Returns:
            [B, P, levels (2 radius + 1)^2, h, w] float32.
        """
        coords = bezier(control_points, self.tau) + self.grid
        return self.correlation(coords.flatten(0, 1)).unflatten(0, (self.batch, self.pairs))


def correlate(
    kinds: Sequence[tuple[Tensor, Tensor]], tau: Tensor, **options: Any
) -> list[PairCorrelations]:
    """Correlate pairs of several kinds, in parts whose windows are made in turn: they are large.

    Args:
        kinds: source [B, C, h, w] and targets [B, P_kind, C, h, w] of each.
        tau: [P] of all targets.
        options: radius, levels and strategy of :class:`PairCorrelations`.
    """
    parts = [
        (kind, source, part)
        for kind, (source, targets) in enumerate(kinds)
        for part in in_turn(targets)
    ]
    times = tau.split([part.shape[1] for _, _, part in parts])
    return [
        PairCorrelations(source, part, time, kind=kind, **options)
        for (kind, source, part), time in zip(parts, times, strict=True)
    ]


class Matches(NamedTuple):
    """What correlation windows say of the motion.

    Attributes:
        residual: [B, P, 2, h, w] float32, expected displacement of each pair's best match from
            where it was looked up, px of the latent.
        certainty: [B, P, 1, h, w] float32, log of the largest softmax weight; 0 = no doubt.
    """

    residual: Tensor
    certainty: Tensor


class WindowMatching(nn.Module):
    """What matches best, where, how surely: from correlation windows to trajectories.

    In each pair's window, over all levels, the softmax of the correlations gives an expected
    displacement. The trajectory that fits the displacements of all pairs best, each at its own
    time, is the solution of a small least-squares problem per pixel:

        sum_p w_p |sum_i b_i(tau_p) P_i - d_p|^2 + s sum_i |P_(i+1) - 2 P_i + P_(i-1)|^2 -> min

    with Bernstein weights b. A pair counts (w_p) by how far its softmax is from flat: an absent
    modality is flat and has no say. The learned stiffness s keeps the motion uniform where the
    pairs do not say otherwise.

    Args:
        radius, levels: as of the look-ups.
        degree: n, control points of a trajectory.
    """

    sums: Tensor
    stiffness: Tensor

    def __init__(self, radius: int, levels: int, degree: int) -> None:
        super().__init__()
        # In numpy: on the meta device, where checkpoints are checked, torch's own would import
        # hundreds of modules.
        steps = np.arange(-radius, radius + 1, dtype=np.float32)
        window = np.stack(np.meshgrid(steps, steps, indexing="ij")).reshape(2, -1)  # x slow
        offsets = np.concatenate([window * 2**level for level in range(levels)], axis=1)
        # Second differences of P_0 = 0, P_1 .. P_n: zero for uniform motion.
        bend = np.diff(np.eye(degree + 1, dtype=np.float32), 2, axis=0)[:, 1:]
        sums = np.concatenate([offsets, np.ones_like(offsets[:1])])  # of displacements, of weights
        self.register_buffer("sums", torch.tensor(sums), persistent=False)
        self.register_buffer("stiffness", torch.tensor(bend.T @ bend), persistent=False)
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.log_trust = nn.Parameter(torch.zeros(()))
        self.log_stiffness = nn.Parameter(torch.tensor(-2.0))

    def forward(self, correlations: Tensor) -> Matches:
        """Match: [B, P, levels (2 radius + 1)^2, h, w] -> :class:`Matches`."""
        height, width = correlations.shape[-2:]
        # bfloat16 has eight bits: an offset of 12 cells would be good to half a px of the image.
        with torch.autocast(correlations.device.type, enabled=False):
            scores = correlations.float().flatten(3) * self.log_sharpness.exp()
            # The softmax, divided by its sum only where the window has been summed over: torch's
            # own is slow over a dimension that is not the last. The largest weight is 1 here.
            weights = (scores - scores.amax(dim=2, keepdim=True)).exp_()
            moments = (self.sums @ weights).unflatten(3, (height, width))
            total = moments[:, :, 2:]
            return Matches(moments[:, :, :2] / total, -total.log())

    def fit(self, matches: Sequence[Matches], tau: Tensor, scores: Tensor | None = None) -> Tensor:
        """Fit trajectories to all pairs.

        Args:
            matches: of some pairs each.
            tau: [P], when each pair's motion has got to.
            scores: [B, P, 1, h, w], how much each pair counts, as logits; None: all the same.

        Returns:
            [B, n, 2, h, w] float32, change of the control points.
        """
        residual, certainty = (torch.cat(parts, dim=1) for parts in zip(*matches, strict=True))
        with torch.autocast(residual.device.type, enabled=False):
            trust = certainty * self.log_trust.exp()
            if scores is not None:
                trust = trust + scores
            share = trust.softmax(dim=1)
            return self._fit(residual, share, tau.expand(residual.shape[0], -1))

    def _fit(self, residual: Tensor, share: Tensor, tau: Tensor) -> Tensor:
        basis = bernstein(len(self.stiffness), tau)  # [B, P, n]
        outer = (basis.unsqueeze(-1) * basis.unsqueeze(-2)).flatten(2)  # [B, P, n n]
        share = share.flatten(2).transpose(1, 2)  # [B, h w, P]
        normal = (share @ outer).unflatten(2, self.stiffness.shape)
        normal = normal + self.log_stiffness.exp() * self.stiffness
        weighted = residual.flatten(3).permute(0, 3, 1, 2) * share.unsqueeze(-1)  # [B, h w, P, 2]
        moments = basis.transpose(1, 2).unsqueeze(1) @ weighted  # [B, h w, n, 2]
        change = torch.linalg.solve_ex(normal, moments).result
        return change.permute(0, 2, 3, 1).unflatten(3, residual.shape[-2:])
