"""Numbers that a caller gives: times, exposures, iterations, a flow to start from."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowfuse.ops.events import MAX_DURATION

MOST_FLOW = 10  # times the longer side of an image, of a flow to start from
MAX_TIME = 2**61  # us: what is an interval or two earlier or later still fits into int64


def as_interval(t0: Any, t1: Any) -> tuple[int, int]:
    """Check the limits of a time interval: integer microseconds, in order, not too far apart."""
    t0, t1 = as_time("t0", t0), as_time("t1", t1)
    if t1 <= t0:
        raise ValueError(f"estimator: t1 must be later than t0, got t0 = {t0} us, t1 = {t1} us")
    if t1 - t0 > MAX_DURATION:
        raise ValueError(
            f"estimator: t1 - t0 must be at most {MAX_DURATION} us, got t0 = {t0} us, t1 = {t1} us"
        )
    return t0, t1


def as_column(name: str, values: Any, count: int) -> list[Any]:
    """One value for each item of a batch; a single number is that of all."""
    column = values.tolist() if hasattr(values, "tolist") else values
    column = list(column) if isinstance(column, (list, tuple)) else [column] * count
    if len(column) != count:
        raise ValueError(f"{name} must be one number, or [{count}], got {len(column)} numbers")
    return column


def as_integer(name: str, value: Any, expected: str) -> int:
    """Take any integer of Python, numpy or torch; ``expected`` says in a message what it is."""
    try:
        if isinstance(value, bool):  # an integer to Python alone
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"estimator: {name} must be {expected}, got {value!r}") from None


def as_iterations(value: Any) -> int | None:
    """Take a number of iterations; None is the network's own."""
    return None if value is None else as_integer("iterations", value, "an integer")


def as_time(name: str, value: Any) -> int:
    """Take a time, integer microseconds."""
    time = as_integer(name, value, "integer microseconds")
    if abs(time) > MAX_TIME:
        raise ValueError(f"estimator: {name} must be within +-{MAX_TIME} us, got {time} us")
    return time


def as_exposure(name: str, value: Any) -> int | None:
    """Take a duration, integer microseconds; None where it is unknown."""
    if value is None:
        return None
    duration = as_time(name, value)
    if duration < 0:
        raise ValueError(f"estimator: {name} must not be negative, got {duration} us")
    return duration


def as_flow_init(flow: Any, height: int, width: int, count: int | None = None) -> Tensor | None:
    """Flow to start from as [B, 2, H, W] float32; ``count``: B, None where it has no such axis."""
    if flow is None:
        return None
    shape = [2, height, width] if count is None else [count, 2, height, width]
    try:
        flow = torch.as_tensor(flow, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"estimator: flow_init must be numbers of shape {shape}, "
            f"got {type(flow).__name__} ({reason})"
        ) from error
    if list(flow.shape) != shape:
        raise ValueError(f"estimator: flow_init must have shape {shape}, got {list(flow.shape)}")
    return flow if count is not None else flow.unsqueeze(0)


def check_flow_init(flow: Tensor | None) -> None:
    """Refuse flow [B, 2, H, W] to start from that is beyond doubt in another unit than px.

    One on a GPU is not looked at: it would be waited for.
    """
    if flow is None or not flow.is_cpu:
        return
    height, width = flow.shape[-2:]
    most = float(torch.nan_to_num(flow.detach(), nan=0.0, posinf=0.0, neginf=0.0).abs().max())
    limit = MOST_FLOW * max(height, width)
    if most > limit:
        raise ValueError(
            f"estimator: flow_init must be px of an image of {width} x {height} px, expected at "
            f"most {MOST_FLOW} times its longer side, {limit} px; got {most:g} px"
        )


def as_choice(name: str, value: Any) -> bool | None:
    """Take True, False or None."""
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"estimator: {name} must be True, False or None, got {value!r}")
    return None if value is None else bool(value)


def is_torch(frame0: Any, frame1: Any, events: Any) -> bool:
    """Whether a caller gave tensors, and so gets them: as frames, or without these as events."""
    frames = [frame for frame in (frame0, frame1) if frame is not None]
    if frames:
        return any(isinstance(frame, Tensor) for frame in frames)
    if isinstance(events, Mapping):
        return any(isinstance(value, Tensor) for value in events.values())
    return isinstance(events, tuple) and any(isinstance(value, Tensor) for value in events)
