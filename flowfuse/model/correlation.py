"""Correlations of both modalities: frame to frame, event slice to event slice, frame to event
slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowfuse.geometry.grid import pixel_grid
from flowfuse.model.encoders import in_turn, little_memory
from flowfuse.ops import Correlation, WindowReading, fit_trajectories


class LookUp(NamedTuple):
    """Pairs whose windows are made at once.

    Attributes:
        pairs: where they stand among all pairs.
        kinds: of each kind among them, its index and the number of its pairs.
        correlation: of the latents of all these pairs and items, the pairs one after the other.
    """

    pairs: slice
    kinds: list[tuple[int, int]]
    correlation: Correlation


class PairCorrelations:
    """Correlations of pairs of several kinds, looked up along trajectories.

    The windows of all pairs together are large: where little memory counts they are made one pair
    after the other, else all at once (``look_ups``).

    Args:
        kinds: of each kind of pairs, the source [B, C, h, w], correlated at every pixel with each
            target around the pixel's place at the target's time, and the targets
            [B, P_kind, C, h, w].
        basis: [P, n], Bernstein weights of the control points at the time of each target.
        radius, levels: window of each look-up, see :func:`flowfuse.ops.correlation_lookup`.
        strategy: ``"auto"``, ``"volume"`` or ``"on_demand"``.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[Tensor, Tensor]],
        basis: Tensor,
        *,
        radius: int,
        levels: int,
        strategy: str = "auto",
    ) -> None:
        self.basis = basis
        self.look_ups: list[LookUp] = []
        # Pairs come before items: those of one kind are then one piece of memory in any batch.
        parts = [
            (kind, source.expand(part.shape[1], *source.shape), part.transpose(0, 1))
            for kind, (source, targets) in enumerate(kinds)
            for part in in_turn(targets)
        ]
        groups = [[part] for part in parts] if little_memory(basis) else [parts]
        first = 0
        for group in groups:
            sources = join([source.flatten(0, 1) for _, source, _ in group])
            targets = join([part.flatten(0, 1) for _, _, part in group])
            counts = [(kind, part.shape[0]) for kind, part, _ in group]
            pairs = slice(first, first + sum(count for _, count in counts))
            correlation = Correlation(
                sources, targets, levels=levels, radius=radius, strategy=strategy
            )
            self.look_ups.append(LookUp(pairs, counts, correlation))
            first = pairs.stop
        height, width = kinds[0][0].shape[-2:]
        self.grid = pixel_grid(height, width, device=basis.device)

    def places(self, control_points: Tensor) -> Tensor:
        """Where the pixels are at the times of all pairs.

        Args:
            control_points: [B, n, 2, h, w] float32 in px of the latent.

        Returns:
            [P, B, 2, h, w] float32, px.
        """
        weights = self.basis[:, None, :, None, None, None]
        # Elementwise: a matrix product may be made of eight-bit numbers.
        return (weights * control_points).sum(dim=2) + self.grid

    def places_at_rest(self, batch: int) -> Tensor:
        """The same, without any motion."""
        return self.grid.expand(self.basis.shape[0], batch, -1, -1, -1).contiguous()

    def read(
        self, look_up: LookUp, places: Tensor, counts: Sequence[int], how: Sequence[WindowReading]
    ) -> list[tuple[Tensor, Tensor]]:
        """Look up the windows of some pairs around their places, and read them at once.

        Args:
            look_up: the pairs.
            places: [P, B, 2, h, w] of all pairs, px.
            counts: of pairs in turn that are read in one way, how many there are.
            how: of these, how: of all their windows [N, .., h, w], the items of a pair in turn.

        Returns:
            Of each of them, tokens [N, C, h, w] and matches [N, 3, h, w].
        """
        batch = places.shape[1]
        own = places[look_up.pairs].flatten(0, 1)
        return look_up.correlation.read(own, [count * batch for count in counts], how)

    def match(self, places: Tensor, matching: WindowMatching) -> Tensor:
        """Match the windows of all pairs around their places [P, B, 2, h, w].

        Returns:
            [B, P, 3, h, w] float32, see :class:`WindowMatching`.
        """
        batch, found = places.shape[1], []
        for look_up in self.look_ups:
            count = look_up.pairs.stop - look_up.pairs.start
            found += self.read(look_up, places, [count], [matching.reading()])
        return join([matches for _, matches in found]).unflatten(0, (-1, batch)).transpose(0, 1)


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate in the first dimension; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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

    offsets: Tensor
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
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.register_buffer("stiffness", torch.tensor(bend.T @ bend), persistent=False)
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.log_trust = nn.Parameter(torch.zeros(()))
        self.log_stiffness = nn.Parameter(torch.tensor(-2.0))

    def reading(self) -> WindowReading:
        """How windows are read where there are no tokens."""
        return WindowReading(None, None, self.offsets, self.log_sharpness)

    def fit(self, matches: Tensor, basis: Tensor, scores: Tensor | None = None) -> Tensor:
        """Fit trajectories to all pairs.

        Args:
            matches: [B, P, 3, h, w] of all pairs.
            basis: [P, n], Bernstein weights of the control points at the time of each pair.
            scores: [B, P, 1, h, w], how much each pair counts, as logits; None: all the same.

        Returns:
            [B, n, 2, h, w] float32, change of the control points.
        """
        return fit_trajectories(
            matches, scores, basis, self.stiffness, self.log_trust, self.log_stiffness
        )
