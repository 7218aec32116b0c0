"""How far each modality can be trusted: the error that it alone would make, pixel by pixel.

Frames and events are wrong in different ways: frames where the image is dark, blurred or repeated,
events where little moves, where they are noise or have another clock. What the images look like
does not tell it, and differs from one camera to the next; what the matches propose, how sure they
are and whether they agree does. So the error is estimated from these alone, here and over the whole
image. What is right is known in training: there, the network is also run on one modality. The
modality that is likely to be worse is faded: whatever it shows shrinks, its matches become unsure,
and the flags that tell that it is there shrink too. A modality that has faded altogether is as good
as absent, which the network has learned to do without.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.geometry.grid import pixel_grid
from flowfuse.inputs import Modality, PairKind
from flowfuse.model.encoders import activate
from flowfuse.model.update import start_near_zero

SOURCES = 2  # frames alone and events alone, in the order of PairKind
MAX_LOG_SCALE = 4.0  # 55 cells: beyond any window; and 0.02 cells: less than a match resolves
# Estimated errors that differ by less than this factor are equal, as far as the head can tell.
MARGIN = 1.35
# Beyond it, the worse modality fades by this power of their ratio. It must be high: estimated
# errors differ by less than true ones do. On scenes where both are right, training would learn an
# exponent below 1.
STRENGTH = 8.0
LEAST_FADE = 1e-14  # so that its square has a logarithm


class Evidence(NamedTuple):
    """How good each modality is: frames first, then events.

    Attributes:
        log_scale: [B, 2, h, w] float32, log of the Laplace scale of the error, px of the latent,
            that frames alone and events alone would make.
        fade: [B, 2, h, w] float32 in (0, 1], what the features of each are multiplied with: 1 for
            the one that is better here, as far as the image agrees, and where one is absent.
    """

    log_scale: Tensor
    fade: Tensor

    @property
    def frames(self) -> Tensor:
        """What the features of the frames are multiplied with: [B, 1, h, w]."""
        return self.fade[:, :1]

    @property
    def events(self) -> Tensor:
        """What the features of the event slices are multiplied with: [B, 1, h, w]."""
        return self.fade[:, 1:]

    @property
    def both(self) -> Tensor:
        """What is multiplied with what both have in common: [B, 1, h, w]."""
        return self.frames * self.events

    def of_pair(self, kind: PairKind) -> Tensor:
        """What the correlations of a kind of pairs are multiplied with: [B, 1, h, w]."""
        first = self.events if kind == PairKind.EVENTS else self.frames
        second = self.frames if kind == PairKind.FRAMES else self.events
        return first * second


class EvidenceHead(nn.Module):
    """Estimate the error of each modality from the matches of all pairs.

    Args:
        channels: width.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        kinds = len(PairKind)
        gaps = kinds * (kinds - 1) // 2
        self.local = nn.Conv2d(4 * kinds + gaps + 3, channels, 3, padding=1)
        self.scene = nn.Linear(channels, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, SOURCES, 1)
        start_near_zero(self.out)

    def forward(self, matches: Tensor, tau: Tensor, mask: Tensor) -> Evidence:
        """Estimate the errors, and how far each modality fades.

        Args:
            matches: [B, P, 3, h, w] of all pairs, looked up at rest: the event pairs, the frame
                pair, the cross pair.
            tau: [P], when each pair's motion has got to.
            mask: [B, 4], see :class:`~flowfuse.inputs.Modality`.

        Returns:
            :class:`Evidence`; no gradient reaches the matches.
        """
        residual, certainty = matches.detach().split((2, 1), dim=2)
        # Of the event pairs, the uniform motion that fits best, and how far they are from it.
        count = residual.shape[1] - 2
        times = tau[:count].view(-1, 1, 1, 1)
        share = certainty[:, :count].softmax(dim=1)
        weight = share * times
        rate = (weight * residual[:, :count]).sum(1) / (weight * times).sum(1)
        miss = residual[:, :count] - times * rate.unsqueeze(1)
        spread = (share * miss.square().sum(2, keepdim=True)).sum(1).sqrt()
        proposals = torch.stack((residual[:, count], rate, residual[:, count + 1]), dim=1)
        slices_sure = (share * certainty[:, :count]).sum(1)
        sure = torch.cat((certainty[:, count], slices_sure, certainty[:, count + 1]), dim=1)

        there = present_kinds(mask)[:, :, None, None]
        # Of each pair of kinds, how far they are apart: 0 and 1, 0 and 2, 1 and 2.
        gaps = (proposals[:, :1] - proposals[:, 1:], proposals[:, 1:2] - proposals[:, 2:])
        both = (there[:, :1] * there[:, 1:], there[:, 1:2] * there[:, 2:])
        # A right match has the motion of its neighbourhood, a wrong one any other.
        differences = torch.cat((proposals, *gaps, unlike_neighbours(proposals)), dim=1)
        lengths = differences.norm(dim=2) * torch.cat((there, *both, there), dim=1)
        kinds = there.shape[1]
        spread = spread * there[:, PairKind.EVENTS, None]
        distances = torch.cat((lengths[:, :kinds], spread, lengths[:, kinds:]), dim=1)
        # What leaves the image cannot be found in the second frame; early slices still see it.
        ways = distance_to_border(proposals[:, :2]) * there[:, :SOURCES]
        known = torch.cat((sure * there, distances.log1p(), ways), dim=1)
        flags = there.expand(-1, -1, *known.shape[-2:])
        x = activate(self.local(torch.cat((known, flags), dim=1)))
        x = x + self.scene(x.mean(dim=(2, 3)))[:, :, None, None]
        log_scale = self.out(activate(self.mix(x))).float().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)

        ratio = shrink_to_mean(log_error_ratio(log_scale.detach()))
        return Evidence(log_scale, fades(ratio, comparable(mask)))


def log_error_ratio(log_scale: Tensor) -> Tensor:
    """Log of the error of events over that of frames: [B, 2, h, w] -> [B, 1, h, w]."""
    return log_scale[:, 1:] - log_scale[:, :1]


def shrink_to_mean(ratio: Tensor) -> Tensor:
    """Draw the ratios of all cells to their mean over the image: [B, 1, h, w] -> same.

    The weight of the mean is its share in their mean square. Where one modality is better nearly
    everywhere, what single cells say to the contrary is noise, and they follow the image. Where
    each modality is better in some places, the mean is near zero, and every cell is judged alone.
    """
    mean = ratio.mean(dim=(2, 3), keepdim=True)
    square = ratio.square().mean(dim=(2, 3), keepdim=True)
    return ratio + mean.square() / square.clamp(min=1e-6) * (mean - ratio)


def comparable(mask: Tensor) -> Tensor:
    """Where both modalities can be judged: modality mask [B, 4] -> [B, 1, 1, 1] bool.

    Of one frame no error is known: it stays as it is, and so do the events.
    """
    return (mask[:, Modality.SECOND_FRAME] * mask[:, Modality.EVENTS]).view(-1, 1, 1, 1) > 0


def fades(ratio: Tensor, where: Tensor) -> Tensor:
    """What frames and events are multiplied with: [B, 1, h, w] -> [B, 2, h, w].

    Args:
        ratio: of :func:`log_error_ratio`, shrunk or not.
        where: [B, 1, 1, 1] bool, of :func:`comparable`; all ones elsewhere.
    """
    # 1 within the margin, and for the better one.
    beyond = torch.cat((ratio, -ratio), dim=1) + math.log(MARGIN)
    fade = 2 * (STRENGTH * beyond).sigmoid()
    return fade.clamp(min=LEAST_FADE).clamp(max=1).masked_fill(~where, 1.0)


def unlike_neighbours(motion: Tensor, size: int = 5) -> Tensor:
    """Difference from the mean of the neighbourhood: [B, N, 2, h, w] -> same."""
    mean = F.avg_pool2d(
        motion.flatten(1, 2), size, stride=1, padding=size // 2, count_include_pad=False
    )
    return motion - mean.view_as(motion)


def distance_to_border(motion: Tensor, limit: float = 2.0) -> Tensor:
    """How far inside the image a motion ends, in cells, in [-limit, limit].

    [B, N, 2, h, w] -> [B, N, h, w].
    """
    height, width = motion.shape[-2:]
    grid = pixel_grid(height, width, device=motion.device)
    place, corner = grid + motion, grid[:, -1:, -1:]
    inner = torch.minimum(place, corner - place).amin(dim=2)
    return (inner + 0.5).clamp(-limit, limit)


def present_kinds(modality_mask: Tensor) -> Tensor:
    """Which kinds of pairs there are: modality mask [B, 4] -> [B, 3], 0 or 1."""
    frames, events, history, second_frame = (modality_mask[:, column] for column in Modality)
    return torch.stack((frames * second_frame, events * history, frames * events), dim=1)


def faded(features: Tensor, fade: Tensor) -> Tensor:
    """Shrink features [B, C, s h, s w] by [B, 1, h, w]."""
    return features * resized(fade, features.shape[-1]).to(features.dtype)


def resized(fade: Tensor, width: int) -> Tensor:
    """Enlarge [B, N, h, w] by a whole factor to a width."""
    scale = width // fade.shape[-1]
    return fade if scale == 1 else F.interpolate(fade, scale_factor=float(scale), mode="bilinear")
