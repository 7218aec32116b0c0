"""Switch parts of a network off, to see what each is worth: ``accuracy.py --without``.

The other weights were trained with the part, so what is lost is at most what the part is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from flowfuse.model import FlowFuse
from flowfuse.model.evidence import Evidence, compared, fades, lead
from flowfuse.model.flowfuse import NO_STEP
from flowfuse.model.refinement import Refined


def without_evidence(model: FlowFuse) -> None:
    """Nothing fades: both modalities are trusted alike."""

    def trust_both(head: Any, arguments: Any, found: Evidence) -> Evidence:
        return found._replace(fade=torch.ones_like(found.fade))

    model.evidence.register_forward_hook(trust_both)


def without_shrinking(model: FlowFuse) -> None:
    """Every cell is judged alone."""

    def judge_alone(head: Any, arguments: Any, found: Evidence) -> Evidence:
        (_, _, mask) = arguments
        return found._replace(fade=fades(lead(found.log_scale), compared(mask)))

    model.evidence.register_forward_hook(judge_alone)


def without_guidance(model: FlowFuse) -> None:
    """Boundaries guide neither gates nor context, nor propagation, nor the update at 1/4."""
    model.gates.register_forward_hook(lambda gates, cues, found: torch.ones_like(found))
    model.boundary_context.register_forward_hook(lambda c, maps, found: torch.zeros_like(found))
    model.propagation.register_forward_hook(lambda p, arguments, found: arguments[0])
    model.refinement.guide = None


def without_propagation(model: FlowFuse) -> None:
    """Motion is not carried from moving edges into interiors."""
    model.propagation.register_forward_hook(lambda p, arguments, found: arguments[0])


def without_selection(model: FlowFuse) -> None:
    """Motion is not taken over from neighbours."""
    model.refinement.selection = None


def without_correction(model: FlowFuse) -> None:
    """B_m is not corrected by the upsampled flow."""
    model.refinement.correction = None


def without_gradient_steps(model: FlowFuse) -> None:
    """The Lucas-Kanade steps at full resolution go nowhere."""

    def stand_still(refinement: Any, arguments: Any, found: Refined) -> Refined:
        return found._replace(priors=torch.full_like(found.priors, NO_STEP))

    model.refinement.register_forward_hook(stand_still)


PARTS: dict[str, Callable[[FlowFuse], None]] = {
    "evidence": without_evidence,
    "shrinking": without_shrinking,
    "guidance": without_guidance,
    "propagation": without_propagation,
    "selection": without_selection,
    "correction": without_correction,
    "gradient-steps": without_gradient_steps,
}


def switch_off(model: FlowFuse, parts: Sequence[str]) -> None:
    """Switch parts of PARTS off for good.

    Raises:
        ValueError: the network has no such part.
    """
    for part in parts:
        try:
            PARTS[part](model)
        except AttributeError:
            raise ValueError(f"--without {part}: this network has no such part") from None
