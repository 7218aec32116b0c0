"""Boundary-guided fusion of frame and event motion correlations.

Both parts begin as the identity: with gates of one and a zero-initialized propagation the guided
fusion *is* concatenation at step 0, so training can only gain by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flowfuse.model.correlation import PairCorrelations, WindowMatching, join
from flowfuse.model.encoders import activate
from flowfuse.model.update import start_at_zero
from flowfuse.ops import WindowReading, propagate, propagation_weights

KEY_WIDTH = 16  # channels of the queries and keys of one step


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

    def reading(
        self,
        matching: WindowMatching,
        kind: int,
        fade: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> WindowReading:
        """How the windows of pairs of one kind are read, all items of a pair in turn.

        Args:
            matching: what finds the best matches in them.
            kind: which one.
            fade: [B, 1, h, w], multiplies the windows of all pairs of an item; None: 1.
            gate: [P B, 1, h, w], multiplies the tokens; None: 1.
        """
        layer = cast(nn.Conv2d, self.read[kind])
        return matching.reading()._replace(
            fade=fade, gate=gate, weight=layer.weight, bias=layer.bias
        )


def read_pairs(
    correlations: PairCorrelations,
    control_points: Tensor,
    matching: WindowMatching,
    tokens: CorrelationTokens,
    fades: Sequence[Tensor] | None = None,
    gates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Look up along trajectories.

    Args:
        correlations: of P pairs.
        control_points: [B, n, 2, h, w] float32 in px of the latent.
        matching, tokens: what reads the windows.
        fades: of each kind of pairs, what multiplies its correlations, [B, 1, h, w].
        gates: [B, P, 1, h, w], what multiplies the tokens.

    Returns:
        Tokens [B, P channels, h, w], and what matches, [B, P, 3, h, w].
    """
    batch, places = control_points.shape[0], correlations.places(control_points)
    if gates is not None:
        gates = gates.transpose(0, 1)
    found = []
    for look_up in correlations.look_ups:
        how, first = [], look_up.pairs.start
        for kind, count in look_up.kinds:
            fade = None if fades is None else fades[kind]
            gate = None if gates is None else gates[first : first + count].flatten(0, 1)
            how.append(tokens.reading(matching, kind, fade, gate))
            first += count
        counts = [count for _, count in look_up.kinds]
        found += correlations.read(look_up, places, counts, how)
    read, matches = (
        join(values).unflatten(0, (-1, batch)).transpose(0, 1)
        for values in zip(*found, strict=True)
    )
    return read.flatten(1, 2), matches


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
        """[B, cues, h, w] -> [B, tokens, 1, h, w] float32 in (0, 2)."""
        return 2 * torch.sigmoid(self.gate(activate(self.hidden(cues))).float()).unsqueeze(2)


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
        self.query_key = nn.Conv2d(context_channels, 2 * KEY_WIDTH * len(dilations), 1)
        # Strengths are learned through exp: they keep their sign. One pair (B_e, B_m) a step.
        self.log_strength = nn.Parameter(torch.tensor([[0.0, 1.5]]).repeat(len(dilations), 1))
        self.value = nn.Conv2d(channels, channels // 2, 1)
        self.output = start_at_zero(nn.Conv2d(channels // 2, channels, 1))

    def weights(self, context: Tensor, boundary: Tensor) -> Tensor:
        """Attention weights of every step, see :func:`flowfuse.ops.propagation_weights`.

        Args:
            context: [B, context_channels, h, w].
            boundary: [B, 2, h, w] probabilities of B_e and B_m.

        Returns:
            [B, steps, 9, h, w] float32, summing to one over the neighbours inside the image.
        """
        return propagation_weights(self.query_key(context), boundary, self.log_strength.exp())

    def forward(self, motion: Tensor, weights: Tensor) -> Tensor:
        """Add what arrives to the motion features: [B, channels, h, w] -> same."""
        return motion + self.output(propagate(self.value(motion), weights))
