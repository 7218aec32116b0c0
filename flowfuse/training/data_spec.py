"""The text that names what to train on: a kind, and presets or a path."""

from __future__ import annotations

from pathlib import Path

from flowfuse.data.datasets.base import DataSet
from flowfuse.data.opening import DATASETS
from flowfuse.data.synthetic.presets import find_preset

OWN_FORMS = ("scenes:PRESET", "scenes:A=2,B=1", "recording:PATH,PATH")  # beside those of data sets


def parse_data(data: str) -> tuple[str, str]:
    """Read what to train on.

    Returns:
        Its kind, "scenes", "recording" or that of a data set, and what follows: presets with
        weights, or a path.

    Raises:
        ValueError: another kind, or presets that :func:`scene_weights` refuses.
    """
    kind, _, rest = data.partition(":")
    forms = [*OWN_FORMS, *(item.training_data for item in DATASETS if item.training_data)]
    if kind not in {form.partition(":")[0] for form in forms} or not rest:
        raise ValueError(f"data must be {', '.join(forms[:-1])} or {forms[-1]}, got {data!r}")
    if kind == "scenes":
        scene_weights(rest)
    return kind, rest


def find_labelled(kind: str) -> DataSet:
    """Find the data set with ground truth that ``--data`` calls so; :func:`parse_data` knows it."""
    return next(item for item in DATASETS if item.training_data.partition(":")[0] == kind)


def scene_weights(text: str) -> dict[str, float]:
    """Read a mixture of scenes.

    Args:
        text: "fast", or presets with weights, "fast=2,blur=1"; "fast@v2e" is watched by another
            sensor.

    Returns:
        {preset: weight}, in the given order.

    Raises:
        ValueError: an unknown preset or sensor, or a weight that is no positive number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            find_preset(name)
        except ValueError as error:
            raise ValueError(f"data {text!r}: {error}") from None
        if name in weights:
            raise ValueError(f"data: preset {name} is named twice in {text!r}")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"data: weight of {name} must be a number, got {weight!r}") from None
        if not 0 < weights[name] < float("inf"):
            raise ValueError(f"data: weight of {name} must be positive, got {weight}")
    return weights


def split_paths(text: str) -> list[Path]:
    """Read the paths of recordings: one, whatever its name, or several with commas between."""
    if Path(text).exists():
        return [Path(text)]
    return [Path(part) for part in text.split(",") if part]


def absolute(data: str) -> str:
    """The same data, named as it can be found from any working directory."""
    kind, rest = parse_data(data)
    if kind == "scenes":
        return data
    paths = split_paths(rest) if kind == "recording" else [Path(rest)]
    return f"{kind}:{','.join(str(path.absolute()) for path in paths)}"
