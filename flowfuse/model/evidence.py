"""How far each modality can be trusted: the error that it alone would make, pixel by pixel.

Frames and events are wrong in different ways: frames where the image is dark, blurred or repeated,
events where little moves, where they are noise or have another clock. What the images look like
does not tell it, and differs from one camera to the next; how fast the motion is, how sure the
matches are and whether they agree does. So the error is estimated from these alone, here and over
the whole image. What is right is known in training: there, the network is also run on one modality.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowfuse.inputs import Modality, PairKind
from flowfuse.model.correlation import Matches
from flowfuse.model.encoders import activate
from flowfuse.model.update import start_near_zero

SOURCES = 2  # frames alone and events alone, in the order of PairKind
MAX_LOG_SCALE = 4.0  # 55 cells: beyond any window; and 0.02 cells: less than a match resolves
FLAT = -1e4  # score of what is absent, in a softmax


class Evidence(NamedTuple):
    """How good each kind of pairs is.

    Attributes:
        log_scale: [B, 2, h, w] float32, log of the Laplace scale of the error, px of the latent,
            that frames alone and events alone would make.
        scores: [B, 3, h, w] float32, how much each :class:`~flowfuse.inputs.PairKind` counts, as
            the logits of a softmax; no gradient to ``log_scale``.
        present: [B, 3], 1 where there are pairs of the kind.
    """

    log_scale: Tensor
    scores: Tensor
    present: Tensor


class EvidenceHead(nn.Module):
    """Estimate the error of each modality from the matches of all pairs.

    Args:
        channels: width.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        kinds = len(PairKind)
        gaps = kinds * (kinds - 1) // 2
        self.local = nn.Conv2d(3 * kinds + gaps + 2, channels, 3, padding=1)
        self.scene = nn.Linear(channels, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, SOURCES, 1)
        self.log_strength = nn.Parameter(torch.zeros(()))
        start_near_zero(self.out)

    def forward(
        self, flow: Tensor, matches: Sequence[Matches], tau: Tensor, present: Tensor
    ) -> Evidence:
        """Weigh what the pairs say.

        Args:
            flow: [B, 2, h, w], flow to t1 along which the pairs were looked up, px of the latent.
            matches: of all pairs: the event pairs, the frame pair, the cross pair.
            tau: [P], when each pair's motion has got to.
            present: [B, 3], 1 where there are pairs of this kind.
        """
        residual, certainty = (
            torch.cat(parts, dim=1).detach() for parts in zip(*matches, strict=True)
        )
        # Of the event pairs, the uniform motion that fits best, and how far they are from it.
        count = residual.shape[1] - 2
        times = tau[:count].view(-1, 1, 1, 1)
        share = certainty[:, :count].softmax(dim=1)
        rate = (share * times * residual[:, :count]).sum(1) / (share * times * times).sum(1)
        miss = residual[:, :count] - times * rate.unsqueeze(1)
        spread = (share * miss.square().sum(2, keepdim=True)).sum(1).sqrt()
        proposals = torch.stack((residual[:, count], rate, residual[:, count + 1]), dim=1)
        slices_sure = (share * certainty[:, :count]).sum(1)
        sure = torch.cat((certainty[:, count], slices_sure, certainty[:, count + 1]), dim=1)

        there = present[:, :, None, None]
        distances = [flow.detach().norm(dim=1, keepdim=True), proposals.norm(dim=2) * there]
        distances.append(spread * there[:, PairKind.EVENTS, None])
        for a, b in combinations(PairKind, 2):
            both = there[:, a, None] * there[:, b, None]
            distances.append((proposals[:, a] - proposals[:, b]).norm(dim=1, keepdim=True) * both)
        known = torch.cat((sure * there, torch.cat(distances, dim=1).log1p()), dim=1)
        flags = there.expand(-1, -1, *known.shape[-2:])
        x = activate(self.local(torch.cat((known, flags), dim=1)))
        x = x + self.scene(x.mean(dim=(2, 3)))[:, :, None, None]
        log_scale = self.out(activate(self.mix(x))).float().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)

        frames, events = log_scale.detach().split(1, dim=1)
        # A cross pair is as bad as the worse of its two images; of frame 0 alone nothing is known.
        cross = torch.where(there[:, PairKind.FRAMES, None] > 0, torch.max(frames, events), events)
        scores = -self.log_strength.exp() * torch.cat((frames, events, cross), dim=1)
        return Evidence(log_scale, torch.where(there > 0, scores, -MAX_LOG_SCALE), present)


def present_kinds(modality_mask: Tensor) -> Tensor:
    """Which kinds of pairs there are: modality mask [B, 4] -> [B, 3], 0 or 1."""
    frames, events, history, second_frame = (modality_mask[:, column] for column in Modality)
    return torch.stack((frames * second_frame, events * history, frames * events), dim=1)


def by_pair(values: Tensor, kinds: Sequence[PairKind]) -> Tensor:
    """Give every pair what its kind has: [B, 3, h, w] and P kinds -> [B, P, 1, h, w]."""
    # Views put together: an index would be copied to the GPU, which the host waits for.
    return torch.stack([values[:, kind] for kind in kinds], dim=1).unsqueeze(2)


def relative_weights(scores: Tensor, present: Tensor) -> Tensor:
    """How much each kind counts: its share, over the mean share of those that are there.

    Args:
        scores: [B, N, h, w], logits of the shares.
        present: [B, N], 1 where the kind is there.

    Returns:
        [B, N, h, w] in [0, N]: 1 where all are equally good, and where a kind is absent.
    """
    there = present[:, :, None, None]
    share = torch.where(there > 0, scores, FLAT).softmax(dim=1)
    return torch.where(there > 0, share * there.sum(dim=1, keepdim=True), 1.0)
