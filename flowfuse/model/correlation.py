"""Correlations of both senses: frame to frame, event slice to event slice, frame to event slice."""

from __future__ import annotations

import torch
from torch import Tensor

from flowfuse.geometry import pixel_grid
from flowfuse.ops import Correlation
from flowfuse.trajectory import bezier


class PairCorrelations:
    """All correlations of one input, looked up along trajectories.

    Pairs, in order: <E_0, E_1> .. <E_0, E_K>, <F_0, F_1>, <F_0, E_K>. Pair k < K is looked up where
    the trajectory is at tau_k = k / K, the last two where it is at 1.

    Args:
        events: [B, K + 1, C, h, w] latents of the event slices.
        frames: [B, 2, C, h, w] latents of the frames.
        radius, levels: window of each look-up, see :func:`flowfuse.ops.correlation_lookup`.
        strategy: ``"auto"``, ``"volume"`` or ``"on_demand"``.
    """

    def __init__(
        self, events: Tensor, frames: Tensor, *, radius: int, levels: int, strategy: str = "auto"
    ) -> None:
        batch, slices, channels, height, width = events.shape
        self.batch, self.slices = batch, slices - 1
        reference = torch.cat(
            (events[:, :1].expand(-1, self.slices, -1, -1, -1), frames[:, [0, 0]]), 1
        )
        target = torch.cat((events[:, 1:], frames[:, 1:], events[:, -1:]), dim=1)
        self.correlation = Correlation(
            reference.reshape(-1, channels, height, width),
            target.reshape(-1, channels, height, width),
            levels=levels,
            radius=radius,
            strategy=strategy,
        )
        tau = (
            torch.arange(1, self.slices + 1, device=events.device, dtype=torch.float32)
            / self.slices
        )
        self.tau = torch.cat((tau, tau.new_ones(2))).expand(batch, -1)  # [B, K + 2]
        self.grid = pixel_grid(height, width, device=events.device)

    def __call__(self, control_points: Tensor) -> Tensor:
        """Look up along trajectories.

        Args:
            control_points: [B, n, 2, h, w] float32 in px of the latent.

        Returns:
            [B, K + 2, levels (2 radius + 1)^2, h, w] float32.
        """
        coords = bezier(control_points, self.tau) + self.grid  # [B, K + 2, 2, h, w]
        return self.correlation(coords.flatten(0, 1)).unflatten(0, (self.batch, self.slices + 2))
