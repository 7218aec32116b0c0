"""Take over the motion of neighbours at 1/4 where it fits better: smooth interiors, sharp borders.

A cell at 1/8 has one motion; along the border of an object it is often that of the wrong side. The
right one is mostly known a few cells away. So every cell at 1/4 compares its own trajectory with
those of its neighbours, near and far, as PatchMatch does (Barnes et al., SIGGRAPH 2009), and takes
a mean of them, weighted by how well each matches here, how alike both places look and what
boundaries lie there. The same weights are applied several times: what is right spreads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.geometry.grid import pixel_grid
from flowfuse.model.encoders import activate, little_memory
from flowfuse.ops import Correlation

REACHES = (2, 4)  # of the neighbours, cells of 1/4
KEY_WIDTH = 16  # channels in which two places are compared
WIDTH = 24
ROUNDS = 3  # times that the weights are applied
CUES = 9  # 4 of the match, distance, sameness, likeness, B_m here and there
OWN_LOGIT = 3.0  # of a cell's own trajectory at the start, and minus that of all others
SAME = 0.5  # cells: trajectories that end closer to each other are the same
STEPS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
OFFSETS = [(0, 0), *((reach * y, reach * x) for reach in REACHES for y, x in STEPS)]


class NeighbourSelection(nn.Module):
    """Choose among the trajectories of 16 neighbours and a cell's own, in several rounds.

    At the start, a cell's own has nearly all the weight.

    Args:
        hidden: channels of the features.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query_key = nn.Conv2d(hidden, 2 * KEY_WIDTH, 3, padding=1)
        self.context = nn.Conv2d(hidden, WIDTH, 1)
        self.cues = nn.Conv2d(CUES, WIDTH, 1, bias=False)
        self.place = nn.Parameter(torch.zeros(len(OFFSETS), WIDTH))
        self.mix = nn.Conv2d(WIDTH, WIDTH, 1)
        self.score = nn.Conv2d(WIDTH, 1, 1, bias=False)
        nn.init.zeros_(self.score.weight)
        prior = torch.full((len(OFFSETS),), -OWN_LOGIT)
        prior[0] = OWN_LOGIT
        self.prior = nn.Parameter(prior)

    def forward(
        self,
        points: Tensor,
        features: Tensor,
        pairs: Sequence[tuple[Tensor, Tensor]],
        fades: Tensor | None,
        border: Tensor,
    ) -> Tensor:
        """Return each cell's trajectory after all rounds.

        Args:
            points: [B, 2 n, h, w] float32, control points in px of 1/4.
            features: [B, hidden, h, w].
            pairs: of frames and of event slices, the features at t0 and at t1, [B, C, h, w] each.
            fades: [B, 2, h, w], what multiplies the correlations of frames and of events; None: 1.
            border: [B, 1, h, w], probability of B_m.

        Returns:
            [B, 2 n, h, w] float32.
        """
        here = points.detach()
        count = 1 if little_memory(points) else len(OFFSETS)  # candidates that are scored at once
        correlations = [
            # One product for each candidate: far fewer than a volume has.
            Correlation(*(repeat(side, count) for side in pair), levels=1, radius=0,
                        strategy="on_demand")
            for pair in pairs
        ]  # fmt: skip
        query, key = self.query_key(features).float().chunk(2, dim=1)
        query, flow = query / KEY_WIDTH**0.5, here[:, -2:]
        grid = pixel_grid(*here.shape[-2:], device=here.device)
        context = self.context(features)
        place = self.place.to(context.dtype)[:, None, :, None, None]
        prior = self.prior.view(-1, 1, 1, 1, 1)
        # Apart from the keys: no gradient passes through the places that candidates lead to.
        fixed, keyed = pad(torch.cat((flow, border), dim=1)), pad(key)
        own: Tensor | None = None
        logits = []
        parts = [slice(first, first + count) for first in range(0, len(OFFSETS), count)]
        for part in parts:
            flows, borders = shifted(fixed, OFFSETS[part]).split((2, 1), dim=2)
            keys = shifted(keyed, OFFSETS[part])
            matches = self._match(correlations, grid + flows, fades)
            own = matches[:1] if own is None else own
            gap = (flows - flow).square().sum(dim=2, keepdim=True).sqrt()
            likeness = (query * keys).sum(dim=2, keepdim=True)
            of_motion = (matches - own, gap.log1p(), (gap < SAME).to(gap.dtype), likeness)
            cues = torch.cat((*of_motion, border.expand_as(borders), borders), dim=2)
            logits.append(self._score(cues, context + place[part]) + prior[part])
        weights = torch.cat(logits).softmax(dim=0)
        chosen = points
        for _ in range(ROUNDS):
            around = pad(chosen)
            if count == 1:  # one after the other: little memory
                chosen = torch.zeros_like(here)
                for weight, offset in zip(weights, OFFSETS, strict=True):
                    chosen = torch.addcmul(chosen, weight, neighbour(around, offset))
            else:
                chosen = (weights * shifted(around, OFFSETS)).sum(dim=0)
        return chosen

    def _match(
        self, correlations: Sequence[Correlation], places: Tensor, fades: Tensor | None
    ) -> Tensor:
        """How alike cells and the places are that candidates lead to.

        Args:
            correlations: of each pair.
            places: [N, B, 2, h, w] float32, px.
            fades: see :meth:`forward`.

        Returns:
            [N, B, 4, h, w] float32: correlations of the pairs, and their means over 3 x 3 cells.
        """
        count, batch = places.shape[:2]
        found = [correlation(places.flatten(0, 1)).float() for correlation in correlations]
        alone = torch.cat(found, dim=1).unflatten(0, (count, batch))
        if fades is not None:
            alone = alone * fades
        around = F.avg_pool2d(alone.flatten(0, 1), 3, 1, 1, count_include_pad=False)
        return torch.cat((alone, around.unflatten(0, (count, batch))), dim=2)

    def _score(self, cues: Tensor, known: Tensor) -> Tensor:
        """Scores [N, B, 1, h, w] float32 of candidates, of their cues and what is known of the
        cell and of the candidate's place."""
        x = activate(project(self.cues, cues.to(known.dtype)) + known)
        return project(self.score, activate(project(self.mix, x))).float()


def project(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution to [.., C, h, w], as a product of matrices.

    For so few channels that is ten times as fast on a CPU.
    """
    (*leading, _, height, width), weight = x.shape, layer.weight.flatten(1)
    maps = x.flatten(0, -4).flatten(2)
    y = torch.bmm(weight.expand(maps.shape[0], -1, -1), maps)
    if layer.bias is not None:
        y = y + layer.bias.view(-1, 1).to(y.dtype)
    return y.view(*leading, -1, height, width)


def repeat(features: Tensor, count: int) -> Tensor:
    """The same features for each of some candidates: [B, C, h, w] -> [count B, C, h, w].

    They are copied where there are several of both.
    """
    if count == 1:
        return features
    if features.shape[0] == 1:
        return features.expand(count, -1, -1, -1)  # a correlation reads it without a copy
    return features.repeat(count, 1, 1, 1)


def pad(values: Tensor) -> Tensor:
    """Repeat the border [B, C, h, w] as far as neighbours reach.

    ``F.pad`` does so too, but its gradient fails in compiled networks (torch 2.13: it assumes other
    strides there than it gets).
    """
    reach = max(REACHES)
    for dim in (-1, -2):
        shape = list(values.shape)
        shape[dim] = reach
        first, last = values.narrow(dim, 0, 1), values.narrow(dim, values.shape[dim] - 1, 1)
        values = torch.cat((first.expand(shape), values, last.expand(shape)), dim=dim)
    return values


def shifted(padded: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """What neighbours have: of :func:`pad`, [N, B, C, h, w] for N offsets (y, x)."""
    if len(offsets) == 1:
        return neighbour(padded, offsets[0]).unsqueeze(0)  # no copy
    return torch.stack([neighbour(padded, offset) for offset in offsets])


def neighbour(padded: Tensor, offset: tuple[int, int]) -> Tensor:
    """What one neighbour has: of :func:`pad`, a view [B, C, h, w] at an offset (y, x)."""
    reach = max(REACHES)
    height, width = (side - 2 * reach for side in padded.shape[-2:])
    y, x = (reach + step for step in offset)
    return padded[..., y : y + height, x : x + width]
