"""A frame pair that a caller gives: checked as a whole, and made a network's inputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowfuse.estimator.arguments import as_exposure, as_interval
from flowfuse.estimator.event_times import check_times
from flowfuse.estimator.frame_checks import as_frame
from flowfuse.estimator.late_start import late_start, shows_history
from flowfuse.events import Events
from flowfuse.inputs import Exposures, ModelInputs, input_interval, prepare_inputs, slice_times
from flowfuse.model import ModelConfig
from flowfuse.model.flowfuse import MINIMUM_SIZE
from flowfuse.result import as_events

# What a result was made from, by the number of frames.
FRAMES_USED: tuple[tuple[str, ...], ...] = ((), ("frame0",), ("frames",))


class PreparedPair(NamedTuple):
    """A frame pair that was checked.

    Attributes:
        inputs: of the network, without a batch axis.
        times: t0 and t1, us.
        start: when the network starts, us: t0, or a slice later, see
            :mod:`flowfuse.estimator.late_start`.
        modalities: what the estimate is made from, as :class:`~flowfuse.result.Result` tells it.
    """

    inputs: ModelInputs
    times: tuple[int, int]
    start: int
    modalities: tuple[str, ...]


def prepare_pair(
    config: ModelConfig,
    device: torch.device,
    *,
    frames: tuple[Any, Any],
    events: Any,
    times: tuple[Any, Any],
    exposures: tuple[Any, Any],
    history: Any,
    may_start_late: bool,
) -> PreparedPair:
    """Check a frame pair and make its inputs.

    Args:
        config: of the network that they are for.
        device: where the inputs are made.
        frames, events, times, exposures, history: as of a call of the estimator, which documents
            them.
        may_start_late: whether the first events may serve as history where there is none.

    Raises:
        ValueError: naming the argument, what was found and what was expected.
    """
    t0, t1 = as_interval(*times)
    if history is not None and not isinstance(history, (bool, np.bool_)):
        raise ValueError(f"estimator: history must be True, False or None, got {history!r}")
    told = history is not None
    durations = as_exposure("exposure0", exposures[0]), as_exposure("exposure1", exposures[1])
    images = [as_frame("frame0", frames[0]), as_frame("frame1", frames[1])]
    shown = _frames_shown(config, images)
    if frames[0] is None and frames[1] is not None:
        warnings.warn(
            "estimator: frame1 without frame0 tells nothing, and is not used", stacklevel=4
        )
    if len(shown) < 2:
        durations = None, None
    _check_exposures(durations, t1 - t0)
    given = as_events(events)
    height, width = _size(images, given)
    used = _used_events(given, input_interval(t0, t1, config.slices, *durations), height, width)
    within = len(used.slice_time(t0, t1))
    has_events = within > 0
    if given is not None:
        check_times(given, t0, t1, all_used=len(used) == len(given))
        if not told:
            history = len(given) > 0 and int(given.t[0]) < t0
    _check_modalities(config, len(shown) == 2, has_events, (t0, t1))
    start = t0
    if len(shown) < 2 or not config.frames:
        if not told:  # a stray event before t0 is no history
            before = len(used.slice_time(slice_times(t0, t1, config.slices)[0], t0))
            history = shows_history(before, within, config.slices)
        if may_start_late and not history:
            start = late_start(used, t0, t1, config.slices)
    if start > t0:
        # A single frame shows t0, not the later start; without it, errors are smaller.
        shown, durations = [], (None, None)
    inputs = prepare_inputs(
        shown[0] if shown else None,
        shown[1] if len(shown) == 2 else None,
        used,
        t0=start,
        t1=t1,
        spec=config.input_spec,
        exposures=durations,
        history=start > t0 or history,
        device=device,
    )
    return PreparedPair(inputs, (t0, t1), start, modalities_used(config, len(shown), has_events))


def modalities_used(config: ModelConfig, frames: int, has_events: bool) -> tuple[str, ...]:
    """What a result says it was made from, of so many frames, and events or none."""
    used = FRAMES_USED[frames if config.frames else 0]
    return used + ("events",) * (has_events and config.events)


def _frames_shown(config: ModelConfig, frames: Sequence[Tensor | None]) -> list[Tensor]:
    """The frames that the network is shown: both, frame 0 if it can use it alone, or none."""
    shown = [frame for frame in frames if frame is not None]
    one_is_enough = config.weighs_evidence and frames[0] is not None
    return shown if len(shown) == 2 or one_is_enough else []


def _check_exposures(exposures: Exposures, duration: int) -> None:
    """Exposures of one camera do not overlap, and they are centred at t0 and t1."""
    for name, exposure in zip(("exposure0", "exposure1"), exposures, strict=True):
        if exposure is not None and exposure > 2 * duration:
            raise ValueError(
                f"estimator: {name} must be at most 2 (t1 - t0) = {2 * duration} us, "
                f"got {exposure} us"
            )


def _used_events(
    events: Events | None, interval: tuple[int, int], height: int, width: int
) -> Events:
    """The events that any input needs, checked against the image size."""
    if events is None:
        return Events.empty(height, width)
    used = events.slice_time(*interval)
    return Events(used.x, used.y, used.t, used.p, height=height, width=width)


def _check_modalities(
    config: ModelConfig, has_frames: bool, has_events: bool, times: tuple[int, int]
) -> None:
    if not (has_frames or has_events):
        raise ValueError(
            "estimator: flow needs both frames, or events in the time interval; got no frame "
            f"pair, and no event in [{times[0]}, {times[1]}) us"
        )
    if not (has_frames and config.frames) and not (has_events and config.events):
        kind = "frames" if config.frames else "events"
        raise ValueError(f"estimator: this network uses {kind} only, and none were given")


def _size(frames: Sequence[Tensor | None], events: Events | None) -> tuple[int, int]:
    """Height and width on which all inputs agree."""
    sizes = {f"frame{i}": tuple(f.shape[:2]) for i, f in enumerate(frames) if f is not None}
    if events is not None and events.height is not None and events.width is not None:
        sizes["events"] = (events.height, events.width)
    if not sizes:
        if events is None:
            raise ValueError("estimator: frames and events are None; give both frames, or events")
        raise ValueError(
            "estimator: without frames the sensor size must be known; "
            "give Events(x, y, t, p, height=, width=)"
        )
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} is {w} x {h}" for name, (h, w) in sizes.items())
        raise ValueError(f"estimator: frames and events must have one size in px, got {found}")
    height, width = next(iter(sizes.values()))
    if min(height, width) < MINIMUM_SIZE:
        raise ValueError(
            f"events must come from a sensor of at least {MINIMUM_SIZE} x {MINIMUM_SIZE} px, "
            f"got {width} x {height}"
        )
    return height, width
