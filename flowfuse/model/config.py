"""Architectures of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowfuse.inputs import InputSpec

# What a configuration of an earlier version, which knew no such setting, means.
EARLIER_CONFIG = {"selection": False}
MAX_WINDOW = 16  # radius and levels of a correlation lookup that the operators take


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a :class:`flowfuse.model.FlowFuse`.

    Args:
        name: what the configuration is called.
        slices: K, the number of event slices between t0 and t1.
        bins: temporal bins per slice.
        stem_channels: width at 1/4 resolution.
        channels: C, width of the common latent at 1/8 resolution.
        hidden: width of the recurrent state and of the motion features.
        token_channels: C_t, width of one correlation token, and of what is matched at 1/4.
        boundary_channels: width of the boundary localizer.
        blocks: residual blocks of the shared trunk.
        degree: n, control points of a trajectory.
        iterations: default number of recurrent updates; a run-time knob; further ones are damped.
        radius: correlations are looked up in windows of (2 radius + 1)^2.
        levels: pyramid levels of the look-up.
        dilations: steps of the boundary-guided propagation.
        gradient_steps: steps along the brightness constancy equation at the end; none without
            frames.
        frames: use the frames (ablation switch).
        events: use the events (ablation switch).
        boundary: localize boundaries; without it guided fusion has no maps to go by (switch).
        common_gradient: the localizer sees the common spatiotemporal gradients; without it, the
            bare frames and event sum (switch).
        selection: take over the motion of neighbours at 1/4 where it fits better (switch).
        fusion: by "evidence", which weighs each modality by the expected error of its matches and
            takes the appearance from the frames where there are any; "guided" by the boundaries
            alone; or plain "concatenation". Each has all that the next one has (switch).
        correlation: "auto", "volume" or "on_demand".
    """

    name: str = "small"
    slices: int = 4
    bins: int = 3
    stem_channels: int = 32
    channels: int = 64
    hidden: int = 48
    token_channels: int = 24
    boundary_channels: int = 24
    blocks: int = 1
    degree: int = 3
    iterations: int = 3
    radius: int = 3
    levels: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    gradient_steps: int = 2
    frames: bool = True
    events: bool = True
    boundary: bool = True
    common_gradient: bool = True
    selection: bool = True
    fusion: Literal["evidence", "guided", "concatenation"] = "evidence"
    correlation: Literal["auto", "volume", "on_demand"] = "auto"

    def __post_init__(self) -> None:
        sizes = ("slices", "bins", "stem_channels", "channels", "hidden", "token_channels")
        for key in (
            *sizes,
            "boundary_channels",
            "blocks",
            "degree",
            "iterations",
            "radius",
            "levels",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"ModelConfig: {key} must be at least 1, got {getattr(self, key)}")
        if self.gradient_steps < 0:
            raise ValueError(
                f"ModelConfig: gradient_steps must be at least 0, got {self.gradient_steps}"
            )
        for key in ("radius", "levels"):
            if getattr(self, key) > MAX_WINDOW:
                raise ValueError(
                    f"ModelConfig: {key} must be at most {MAX_WINDOW}, got {getattr(self, key)}"
                )
        if not (self.frames or self.events):
            raise ValueError("ModelConfig: frames and events are both switched off; one is needed")
        for key, choices in (
            ("fusion", ("evidence", "guided", "concatenation")),
            ("correlation", ("auto", "volume", "on_demand")),
        ):
            if getattr(self, key) not in choices:
                raise ValueError(
                    f"ModelConfig: {key} must be one of {choices}, got {getattr(self, key)!r}"
                )
        if tuple(self.dilations) != tuple(2**i for i in range(len(self.dilations))):
            raise ValueError(f"ModelConfig: dilations must be 1, 2, 4, ..., got {self.dilations}")

    @property
    def guided(self) -> bool:
        """Whether the boundaries guide the fusion."""
        return self.fusion != "concatenation"

    @property
    def weighs_evidence(self) -> bool:
        """Whether the modalities are weighed by the expected error of their matches."""
        return self.fusion == "evidence" and self.frames and self.events

    @property
    def input_spec(self) -> InputSpec:
        """How the network wants its events."""
        return InputSpec(self.slices, self.bins)


CONFIGS = {
    "nano": ModelConfig(
        name="nano",
        iterations=2,
        stem_channels=16,
        channels=32,
        hidden=32,
        token_channels=16,
        boundary_channels=16,
    ),
    "small": ModelConfig(),
    "base": ModelConfig(
        name="base",
        slices=5,
        stem_channels=48,
        channels=96,
        hidden=72,
        token_channels=32,
        boundary_channels=32,
        blocks=2,
        iterations=4,
        radius=4,
        levels=4,
    ),
}
