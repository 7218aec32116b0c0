"""Several frame pairs at once: arguments as one row for each pair, inputs stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flowfuse.estimator.arguments import as_column
from flowfuse.inputs import ModelInputs


def argument_rows(columns: Mapping[str, Any], shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arguments of a batch as those of each of its B frame pairs.

    Args:
        columns: frame0, frame1, events, t0 and t1. Those that have a length have B values; of the
            first three, None is B times None; a time without a length is that of all.
        shared: others by name: B values, or one for all.

    Raises:
        ValueError: they do not agree on B, or it is zero.
    """
    lengths = {len(part) for part in columns.values() if has_length(part)}
    if len(lengths) != 1 or not lengths - {0}:
        found = ", ".join(
            f"{name}: {len(part) if has_length(part) else type(part).__name__}"
            for name, part in columns.items()
        )
        raise ValueError(f"estimate_batch: expected the same number of each, got {found}")
    count = lengths.pop()
    values: dict[str, Sequence[Any]] = {}
    for name, part in columns.items():
        if name in ("t0", "t1"):
            values[name] = as_column(name, part, count)
        else:
            values[name] = [None] * count if part is None else [part[i] for i in range(count)]
    for name, part in shared.items():
        values[name] = list(part) if has_length(part) else [part] * count
        if len(values[name]) != count:
            raise ValueError(
                f"estimate_batch: {name} must be one value, or {count}, got {len(values[name])}"
            )
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def has_length(value: Any) -> bool:
    """Whether a value is many; arrays without an axis are one, though they have ``__len__``."""
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def stack_inputs(items: Sequence[ModelInputs], has_frames: Sequence[bool]) -> ModelInputs:
    """Stack items of one size; absent frames are black in any number of colours."""
    channels = {len(item.frame0) for item, has in zip(items, has_frames, strict=True) if has}
    sizes = {tuple(item.frame0.shape[-2:]) for item in items}
    if len(sizes) > 1 or len(channels) > 1:
        found = ", ".join(f"{w} x {h}" for h, w in sorted(sizes))
        kinds = "gray and RGB frames" if len(channels) > 1 else "frames of one kind"
        raise ValueError(
            f"estimate_batch: expected items of one size, all gray or all RGB; got {found} px, "
            f"{kinds}"
        )
    wanted = channels.pop() if channels else 1
    grown = []
    for item in items:
        frames = (
            frame if len(frame) == wanted else frame.expand(wanted, -1, -1)
            for frame in (item.frame0, item.frame1)
        )
        frame0, frame1 = frames
        grown.append(item._replace(frame0=frame0, frame1=frame1))
    return ModelInputs(*(torch.stack(values) for values in zip(*grown, strict=True)))
