"""The text that names what to train on: a kind, and presets or a path."""

from __future__ import annotations

from pathlib import Path

from flowfuse.data.synthetic.presets import PRESETS

KINDS = ("scenes", "recording", "dsec", "mvsec")


def parse_data(data: str) -> tuple[str, str]:
    """Read what to train on.

    Returns:
        Its kind, one of KINDS, and what follows: presets with weights, or a path.

    Raises:
        ValueError: another kind, or presets that :func:`scene_weights` refuses.
    """
    kind, _, rest = data.partition(":")
    if kind not in KINDS or not rest:
        raise ValueError(
            "data must be scenes:PRESET, scenes:A=2,B=1, recording:PATH, dsec:ROOT or mvsec:PATH, "
            f"got {data!r}"
        )
    if kind == "scenes":
        scene_weights(rest)
    return kind, rest


def scene_weights(text: str) -> dict[str, float]:
    """Read a mixture of scenes.

    Args:
        text: "fast", or presets with weights, "fast=2,blur=1".

    Returns:
        {preset: weight}, in the given order.

    Raises:
        ValueError: an unknown preset, or a weight that is no positive number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"data: unknown preset {name!r} in {text!r}; known: {known}")
        if name in weights:
            raise ValueError(f"data: preset {name} is named twice in {text!r}")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"data: weight of {name} must be a number, got {weight!r}") from None
        if not 0 < weights[name] < float("inf"):
            raise ValueError(f"data: weight of {name} must be positive, got {weight}")
    return weights


def absolute(data: str) -> str:
    """The same data, named as it can be found from any working directory."""
    kind, rest = parse_data(data)
    return data if kind == "scenes" else f"{kind}:{Path(rest).absolute()}"
