"""Axes and polarity that evidently differ between events and frames are told once."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from estimator_cases import FLAT, GOOD, make_events, make_model

import flowfuse
from flowfuse.estimator import Estimator
from flowfuse.estimator.alignment import MOST_LOOKS
from flowfuse.events import Events


@pytest.fixture(scope="module")
def pair():
    """Frames of 8 bits and the events between them, of the shipped recording."""
    recording = flowfuse.open_recording(flowfuse.sample_recording())
    t0, t1 = map(int, recording.frame_times[:2])
    return recording.frame(0), recording.frame(1), recording.events(t0, t1), t0, t1


def mirrored(events: Events) -> Events:
    x = events.width - 1 - events.x
    return Events(x, events.y, events.t, events.p, height=events.height, width=events.width)


def inverted(events: Events) -> Events:
    p = 1 - events.p
    return Events(events.x, events.y, events.t, p, height=events.height, width=events.width)


def told(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if "likely cause" in str(warning.message)]


@pytest.mark.parametrize(
    ("change", "cause"), [(mirrored, "x is mirrored"), (inverted, "polarity is inverted")]
)
def test_it_is_told_once(pair, change, cause):
    estimator = Estimator(make_model())
    frame0, frame1, events, t0, t1 = pair
    call = partial(estimator, frame0, frame1, change(events), t0=t0, t1=t1)
    (message,) = told(call)
    assert message.startswith(f"estimator: likely cause of wrong flow: {cause}")
    assert message.endswith("as given (1 pair)")
    assert told(call) == []


@pytest.mark.parametrize(
    "shape",
    [
        lambda frame: frame,
        lambda frame: frame[..., None],
        lambda frame: np.float32(frame) / 255,
        lambda frame: frame * np.uint16(257),
        lambda frame: torch.from_numpy(np.repeat(frame[..., None], 3, axis=2)),
        lambda frame: (torch.from_numpy(frame) / 255).requires_grad_(),
        lambda frame: (torch.from_numpy(frame) / 255).bfloat16(),
    ],
)
def test_frames_of_every_kind(pair, shape):
    frame0, frame1, events, t0, t1 = pair
    gray = [frame if frame.ndim == 2 else frame[..., 1] for frame in (frame0, frame1)]
    frames = [shape(np.ascontiguousarray(frame)) for frame in gray]
    batch = Estimator(make_model()).estimate_batch
    for change, count in ((mirrored, 1), (lambda events: events, 0)):
        estimate = partial(batch, frames[:1], frames[1:], [change(events)], t0=[t0], t1=[t1])
        assert len(told(estimate)) == count


def test_exchanged_frames_are_a_cause_that_is_named(pair):
    frame0, frame1, events, t0, t1 = pair
    (message,) = told(partial(Estimator(make_model()), frame1, frame0, events, t0=t0, t1=t1))
    assert "(ON and OFF exchanged) or the frames are in reverse order: the events then" in message


def test_good_pairs_end_the_looks_and_others_do_not(pair):
    frame0, frame1, events, t0, t1 = pair
    estimator = Estimator(make_model())
    assert told(lambda: estimator(FLAT, FLAT, make_events(20_000, 60_000), **GOOD)) == []
    assert len(told(lambda: estimator(frame0, frame1, mirrored(events), t0=t0, t1=t1))) == 1
    estimator = Estimator(make_model())
    assert told(lambda: estimator(frame0, frame1, events, t0=t0, t1=t1)) == []
    assert told(lambda: estimator(frame0, frame1, mirrored(events), t0=t0, t1=t1)) == []
    estimator = Estimator(make_model())
    for _ in range(MOST_LOOKS):
        assert told(lambda: estimator(FLAT, FLAT, make_events(20_000, 60_000), **GOOD)) == []
    assert told(lambda: estimator(frame0, frame1, mirrored(events), t0=t0, t1=t1)) == []


def test_it_can_be_switched_off(pair):
    frame0, frame1, events, t0, t1 = pair
    estimator = Estimator(make_model())
    estimator.check_alignment = False
    assert told(lambda: estimator(frame0, frame1, mirrored(events), t0=t0, t1=t1)) == []
