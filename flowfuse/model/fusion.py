"""Boundary-guided fusion of frame and event motion correlations.

Both parts begin as the identity: with gates of one and a zero-initialized propagation the guided
fusion *is* concatenation at step 0, so training can only gain by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.model.correlation import Matches, PairCorrelations, WindowMatching
from flowfuse.model.encoders import activate
from flowfuse.model.update import start_at_zero

DIRECTIONS = (
    (-1, -1),
    (-1, 0),
    (-1, 1),
    (0, -1),
    (0, 0),
    (0, 1),
    (1, -1),
    (1, 0),
    (1, 1),
)  # dy, dx


class CorrelationTokens(nn.Module):
    """Turn each pair's correlation window and best match into a token.

    Args:
        window: channels of a correlation window.
        kinds: how many kinds of pairs there are; pairs of one kind share their weights.
        channels: of a token.
    """

    def __init__(self, window: int, kinds: int, channels: int) -> None:
        super().__init__()
        self.read = nn.ModuleList(nn.Conv2d(window + 3, channels, 1) for _ in range(kinds))

    def forward(self, correlations: Tensor, matches: Matches, kind: int) -> Tensor:
        """[B, P, window, h, w] and what matches there -> tokens [B, P, channels, h, w]."""
        values = torch.cat((correlations, *matches), dim=2)
        tokens = self.read[kind](values.flatten(0, 1))
        return activate(tokens).unflatten(0, values.shape[:2])


def read_pairs(
    correlations: Sequence[PairCorrelations],
    control_points: Tensor,
    matching: WindowMatching,
    tokens: CorrelationTokens,
    fades: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Matches]]:
    """Look up along trajectories: tokens [B, P, channels, h, w] of all pairs, and what matches.

    ``fades``: of each kind of pairs, in the order given to
    :func:`~flowfuse.model.correlation.correlate`, what multiplies its correlations, [B, 1, h, w].
    """

    def read(part: PairCorrelations) -> tuple[Tensor, Matches]:
        windows = part(control_points)
        if fades is not None:
            windows = windows * fades[part.kind].unsqueeze(1)
        matches = matching(windows)
        return tokens(windows, matches, part.kind), matches

    read_tokens, matches = zip(*map(read, correlations), strict=True)
    return torch.cat(read_tokens, dim=1), list(matches)


class TokenGates(nn.Module):
    """Decide by cues how much each token counts at a pixel: 2 sigmoid(f(cues)), 1 at the start.

    Cues are the two boundary maps, the agreement S, the event density of every slice, both
    exposures and what is present; one gate per token, so tau is in the gate's place.
    """

    def __init__(self, cues: int, tokens: int, channels: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(cues, channels, 3, padding=1)
        self.gate = start_at_zero(nn.Conv2d(channels, tokens, 1))

    def forward(self, cues: Tensor) -> Tensor:
        """[B, cues, h, w] -> [B, tokens, 1, h, w] in (0, 2)."""
        return 2 * torch.sigmoid(self.gate(activate(self.hidden(cues)))).unsqueeze(2)


class BoundaryPropagation(nn.Module):
    """Carry motion known at moving edges into interiors, and stop at motion discontinuities.

    Content attention over the 3 x 3 neighbours at growing dilations (1, 2, 4, ..): a key is
    favoured by B_e and penalized by the strongest B_m on the straight way to it. Memory is linear
    in the number of pixels, unlike attention over all pairs; the reach is the sum of the dilations.
    The weights depend on the pair alone: compute them once, apply them in every iteration.

    Args:
        context_channels: channels of the features that queries and keys are made of.
        channels: channels of the motion features that are carried.
        dilations: steps, each twice the one before, from 1.
    """

    def __init__(self, context_channels: int, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.dilations = dilations
        self.width = 16
        self.query_key = nn.Conv2d(context_channels, 2 * self.width * len(dilations), 1)
        # Strengths are learned through exp: they keep their sign. One pair (B_e, B_m) a step.
        self.log_strength = nn.Parameter(torch.tensor([[0.0, 1.5]]).repeat(len(dilations), 1))
        self.value = nn.Conv2d(channels, channels // 2, 1)
        self.output = start_at_zero(nn.Conv2d(channels // 2, channels, 1))

    def weights(self, context: Tensor, boundary: Tensor) -> list[Tensor]:
        """Attention weights of every step.

        Args:
            context: [B, context_channels, h, w].
            boundary: [B, 2, h, w] probabilities of B_e and B_m.

        Returns:
            Per step [B, 9, h, w], summing to one over the neighbours inside the image.
        """
        queries, keys = self.query_key(context).float().chunk(2, dim=1)
        queries = queries.chunk(len(self.dilations), dim=1)
        keys = keys.chunk(len(self.dilations), dim=1)
        edge, stop = boundary[:, :1], boundary[:, 1:]
        inside = torch.ones_like(stop)
        crossed = [torch.maximum(stop, shift(stop, dy, dx)) for dy, dx in DIRECTIONS]
        result = []
        for step, dilation in enumerate(self.dilations):
            strength_edge, strength_stop = self.log_strength[step].exp()
            scores = []
            for i, (dy, dx) in enumerate(DIRECTIONS):
                dy, dx = dy * dilation, dx * dilation
                score = (queries[step] * shift(keys[step], dy, dx)).sum(
                    1, keepdim=True
                ) / self.width**0.5
                score = score + strength_edge * shift(edge, dy, dx) - strength_stop * crossed[i]
                scores.append(score.masked_fill(shift(inside, dy, dx) == 0, float("-inf")))
                # The way of twice the length is this way and the same again from its end.
                crossed[i] = torch.maximum(crossed[i], shift(crossed[i], dy, dx))
            result.append(torch.cat(scores, dim=1).softmax(dim=1))
        return result

    def forward(self, motion: Tensor, weights: list[Tensor]) -> Tensor:
        """Add what arrives to the motion features: [B, channels, h, w] -> same."""
        values = self.value(motion)
        for dilation, weight in zip(self.dilations, weights, strict=True):
            weight = weight.to(values.dtype)
            values = sum(
                weight[:, i : i + 1] * shift(values, dy * dilation, dx * dilation)
                for i, (dy, dx) in enumerate(DIRECTIONS)
            )
        return motion + self.output(values)


def shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """out(y, x) = in(y + dy, x + dx), zero outside: [B, C, h, w] -> same."""
    height, width = x.shape[-2:]
    if abs(dy) >= height or abs(dx) >= width:
        return torch.zeros_like(x)
    # Negative padding crops: one operator, forward and backward.
    return F.pad(x, (-dx, dx, -dy, dy))
