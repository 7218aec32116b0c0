"""Take over the motion of neighbours at 1/4 where it fits better: sharp borders, smooth interiors.

A cell at 1/8 has one motion; along the border of an object it is often that of the wrong side. The
right one is mostly known a few cells away. So every cell at 1/4 compares its own trajectory with
those of its neighbours, near and far, as PatchMatch does (Barnes et al., SIGGRAPH 2009), and takes
a mean of them, weighted by how well each matches here, how alike both places look and what
boundaries lie there. The same weights are applied several times: what is right spreads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

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
        self.cues = nn.Conv2d(9, WIDTH, 1, bias=False)
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
        boundary: Tensor,
    ) -> Tensor:
        """Choose.

        Args:
            points: [B, 2 n, h, w] float32, control points in px of 1/4.
            features: [B, hidden, h, w].
            pairs: of frames and of event slices, the features at t0 and at t1, [B, C, h, w] each.
            fades: [B, 2, h, w], what multiplies the correlations of frames and of events; None: 1.
            boundary: [B, 2, h, w], probabilities of B_e and B_m.

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
        query, flow, border = query / KEY_WIDTH**0.5, here[:, -2:], boundary[:, 1:]
        context = self.context(features)
        around = pad(torch.cat((flow, border, key), dim=1))
        own: Tensor | None = None
        logits = []
        parts = [slice(first, first + count) for first in range(0, len(OFFSETS), count)]
        for part in parts:
            seen = shifted(around, OFFSETS[part])
            flows, borders, keys = seen.split((2, 1, KEY_WIDTH), dim=2)
            costs = self._match(correlations, flows, fades)
            own = costs[:1] if own is None else own
            gap = (flows - flow).square().sum(dim=2, keepdim=True).sqrt()
            likeness = (query * keys).sum(dim=2, keepdim=True)
            cues = (costs - own, gap.log1p(), (gap < SAME).to(gap.dtype), likeness)
            cues = torch.cat((*cues, border.expand_as(borders), borders), dim=2)
            logits.append(self._score(cues.to(context.dtype), context, part))
        weights = torch.cat(logits).softmax(dim=0)
        chosen = points
        for _ in range(ROUNDS):
            padded = pad(chosen)
            taken = ((weights[part] * shifted(padded, OFFSETS[part])).sum(dim=0) for part in parts)
            chosen = reduce(torch.add, taken)  # one after the other: little memory
        return chosen

    def _match(
        self, correlations: Sequence[Correlation], flow: Tensor, fades: Tensor | None
    ) -> Tensor:
        """How well motions [N, B, 2, h, w] match here: in each pair, alone and in the
        neighbourhood, [N, B, 4, h, w]."""
        count, batch, _, height, width = flow.shape
        places = (pixel_grid(height, width, device=flow.device) + flow).flatten(0, 1)
        found = torch.cat([correlation(places).float() for correlation in correlations], dim=1)
        found = found.unflatten(0, (count, batch))
        if fades is not None:
            found = found * fades
        around = F.avg_pool2d(found.flatten(0, 1), 3, 1, 1, count_include_pad=False)
        return torch.cat((found, around.unflatten(0, (count, batch))), dim=2)

    def _score(self, cues: Tensor, context: Tensor, part: slice) -> Tensor:
        """Logits [N, B, 1, h, w] float32 of some candidates."""
        count, batch = cues.shape[:2]
        place = self.place[part, None, :, None, None]
        x = self.cues(cues.flatten(0, 1)).unflatten(0, (count, batch)) + (context + place)
        x = activate(self.mix(activate(x.flatten(0, 1))))
        logits = self.score(x).float().unflatten(0, (count, batch))
        return logits + self.prior[part].view(-1, 1, 1, 1, 1)


def repeat(features: Tensor, count: int) -> Tensor:
    """The same features for each of some candidates: [B, C, h, w] -> [count B, C, h, w]."""
    if features.shape[0] == 1:
        return features.expand(count, -1, -1, -1)  # a correlation reads it without a copy
    return features.repeat(count, 1, 1, 1)


def pad(values: Tensor) -> Tensor:
    """Repeat the border [B, C, h, w] as far as neighbours reach."""
    return F.pad(values, (max(REACHES),) * 4, mode="replicate")


def shifted(padded: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """What neighbours have: of :func:`pad`, [N, B, C, h, w] for N offsets (y, x)."""
    reach = max(REACHES)
    height, width = (side - 2 * reach for side in padded.shape[-2:])
    return torch.stack(
        [
            padded[..., reach + y : reach + y + height, reach + x : reach + x + width]
            for y, x in offsets
        ]
    )
