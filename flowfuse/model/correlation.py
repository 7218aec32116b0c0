"""Correlations of both senses: frame to frame, event slice to event slice, frame to event slice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        # Views: the index [0, 0] would be a tensor copied to a GPU, which waits for it.
        reference = torch.cat(
            [
                values[:, :1].expand(-1, count, -1, -1, -1)
                for values, count in ((events, self.slices), (frames, 2))
            ],
            dim=1,
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
        return self.at(bezier(control_points, self.tau))

    def at(self, displacements: Tensor) -> Tensor:
        """Look each pair up at its own displacement.

        Args:
            displacements: [B, K + 2, 2, h, w] float32 in px of the latent.

        Returns:
            [B, K + 2, levels (2 radius + 1)^2, h, w] float32.
        """
        coords = displacements + self.grid
        return self.correlation(coords.flatten(0, 1)).unflatten(0, (self.batch, self.slices + 2))


class WindowMatching(nn.Module):
    """Straight motion from the correlations around no motion: what matches best, where, how surely.

    In each pair's window, over all levels, the softmax of the correlations gives an expected
    displacement. Divided by the pair's tau it is a velocity, and the velocities are averaged by how
    far each pair's softmax is from flat: an absent sense is flat and has no say.

    Args:
        radius, levels: as of the look-ups.
    """

    def __init__(self, radius: int, levels: int) -> None:
        super().__init__()
        steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
        x, y = torch.meshgrid(steps, steps, indexing="ij")  # x slow, as the look-up's channels
        window = torch.stack((x.flatten(), y.flatten()))  # [2, (2 r + 1)^2]
        offsets = torch.cat([window * 2**level for level in range(levels)], dim=1)
        self.register_buffer("offsets", offsets, persistent=False)
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.log_trust = nn.Parameter(torch.zeros(()))

    def forward(self, correlations: Tensor, tau: Tensor) -> Tensor:
        """Match.

        Args:
            correlations: [B, P, levels (2 radius + 1)^2, h, w] at zero displacement.
            tau: [B, P], when each pair's motion has got to.

        Returns:
            [B, 2, h, w] displacement at tau = 1, px of the latent.
        """
        scores = correlations * self.log_sharpness.exp()
        weights = scores.softmax(dim=2)
        expected = torch.stack(
            [(weights * axis.view(1, 1, -1, 1, 1)).sum(dim=2) for axis in self.offsets], dim=2
        )  # [B, P, 2, h, w]
        sure = weights.amax(dim=2, keepdim=True).log() * self.log_trust.exp()
        velocity = expected / tau[:, :, None, None, None]
        return (velocity * sure.softmax(dim=1)).sum(dim=1)
