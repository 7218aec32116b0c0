"""How far each kind of match can be trusted: its expected error, pixel by pixel.

Frames and events are wrong in different ways: frames where the image is dark, blurred or repeated,
events where little moves, where they are noise or have another clock. What the images look like
does not tell it, and differs from one camera to the next; whether the matches agree does. So the
error is estimated from the matches alone: how sure each is, how well the event pairs fit one
motion, and how far the kinds are apart, here and over the whole image.
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

KINDS = len(PairKind)
MAX_LOG_SCALE = 4.0  # 55 cells: beyond any window; and 0.02 cells: less than a match resolves
FLAT = -1e4  # score of what is absent, in a softmax


class Evidence(NamedTuple):
    """What each kind of pairs proposes, and how far it may be off.

    Attributes:
        proposals: [B, 3, 2, h, w] float32, flow to t1, px of the latent, that each
            :class:`~flowfuse.inputs.PairKind` proposes; no gradient.
        log_scale: [B, 3, h, w] float32, log of the Laplace scale of the error of each, px of the
            latent; the largest where the kind is absent.
        present: [B, 3], 1 where there are pairs of the kind.
    """

    proposals: Tensor
    log_scale: Tensor
    present: Tensor


class EvidenceHead(nn.Module):
    """Estimate the error of what each kind of pairs proposes.

    Args:
        channels: width.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        gaps = KINDS * (KINDS - 1) // 2
        self.local = nn.Conv2d(3 * KINDS + gaps + 1, channels, 3, padding=1)
        self.scene = nn.Linear(channels, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, KINDS, 1)
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
        distances = [proposals.norm(dim=2) * there, spread * there[:, PairKind.EVENTS, None]]
        for a, b in combinations(range(KINDS), 2):
            both = there[:, a : a + 1] * there[:, b : b + 1]
            gap = proposals[:, a] - proposals[:, b]
            distances.append(gap.norm(dim=1, keepdim=True) * both)
        known = torch.cat((sure * there, torch.cat(distances, dim=1).log1p()), dim=1)
        flags = there.expand(-1, -1, *known.shape[-2:])
        x = activate(self.local(torch.cat((known, flags), dim=1)))
        x = x + self.scene(x.mean(dim=(2, 3)))[:, :, None, None]
        log_scale = self.out(activate(self.mix(x))).float()
        log_scale = log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
        log_scale = torch.where(there > 0, log_scale, MAX_LOG_SCALE)
        return Evidence(flow.detach().unsqueeze(1) + proposals, log_scale, present)


def present_kinds(modality_mask: Tensor) -> Tensor:
    """Which kinds of pairs there are: modality mask [B, 4] -> [B, 3], 0 or 1."""
    frames, events, history, second_frame = (modality_mask[:, column] for column in Modality)
    return torch.stack((frames * second_frame, events * history, frames * events), dim=1)


def by_pair(values: Tensor, kinds: Sequence[PairKind]) -> Tensor:
    """Give every pair what its kind has: [B, 3, h, w] and P kinds -> [B, P, 1, h, w]."""
    # Views put together: an index would be copied to the GPU, which the host waits for.
    return torch.stack([values[:, kind] for kind in kinds], dim=1).unsqueeze(2)


def precision_weights(log_scale: Tensor, present: Tensor) -> Tensor:
    """How much each kind counts: its precision over the mean precision of those that are there.

    Args:
        log_scale: [B, 3, h, w], log of the scale of each kind's error.
        present: [B, 3], 1 where the kind is there.

    Returns:
        [B, 3, h, w] in [0, 3]: 1 where all are equally good, and where a kind is absent.
    """
    there = present[:, :, None, None]
    share = torch.where(there > 0, -log_scale, FLAT).softmax(dim=1)
    return torch.where(there > 0, share * there.sum(dim=1, keepdim=True), 1.0)
