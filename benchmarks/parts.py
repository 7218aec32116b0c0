"""Switch parts of a network off, to see what is lost without them: ``accuracy.py --without``.

The other weights were trained with the part. A network that was trained without it would lose less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from flowfuse.model import FlowFuse
from flowfuse.model.evidence import Evidence, comparable, fades, log_error_ratio
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
        mask = arguments[2]
        return found._replace(fade=fades(log_error_ratio(found.log_scale), comparable(mask)))

    model.evidence.register_forward_hook(judge_alone)


def without_propagation(model: FlowFuse) -> None:
    """Motion is not carried from moving edges into interiors."""
    model.propagation.register_forward_hook(lambda module, arguments, found: arguments[0])


def without_guidance(model: FlowFuse) -> None:
    """Nothing is left of guided fusion: gates, propagation, boundary maps as context and at 1/4."""
    without_propagation(model)
    model.gates.register_forward_hook(lambda module, cues, found: torch.ones_like(found))
    model.boundary_context.register_forward_hook(
        lambda module, maps, found: torch.zeros_like(found)
    )
    model.refinement.guide = None


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


# Name: the setting that is false or 0 where a network has no such part, and how to switch it off.
PARTS: dict[str, tuple[str, Callable[[FlowFuse], None]]] = {
    "evidence": ("weighs_evidence", without_evidence),
    "shrinking": ("weighs_evidence", without_shrinking),
    "guidance": ("guided", without_guidance),
    "propagation": ("guided", without_propagation),
    "selection": ("selection", without_selection),
    "correction": ("boundary", without_correction),
    "gradient-steps": ("gradient_steps", without_gradient_steps),
}


def switch_off(model: FlowFuse, parts: Sequence[str]) -> None:
    """Switch parts of PARTS off for good.

    Raises:
        ValueError: the network has no such part.
    """
    for part in parts:
        setting, off = PARTS[part]
        if not getattr(model.config, setting):
            raise ValueError(f"--without {part}: this network has no such part")
        off(model)
