"""features.py: slices of overlapping intervals are encoded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stream_cases import HEIGHT, SLICES, WIDTH, make_estimator, make_events

from flowfuse.events import Events
from flowfuse.inputs import slice_events, slice_times
from flowfuse.model.normalization import count_slice, scale_of
from flowfuse.stream.features import SliceFeatures

PART = 5_000  # us of a slice
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def estimator():
    return make_estimator()


def limits(number: int) -> list[int]:
    """Of the interval that begins so many slices after the first one."""
    t0 = (number + 1) * PART
    return slice_times(t0, t0 + SLICES * PART, SLICES)


def fresh(estimator, events: Events, times: list[int]) -> list:
    """The slices of an interval, encoded with its own scale."""
    config = estimator.model.config
    slices = slice_events(
        events, times[1], times[-1], slices=SLICES, bins=config.bins, height=HEIGHT, width=WIDTH
    )
    scale = scale_of([count_slice(one[None]) for one in slices])
    return [estimator.encode_slice(one, scale) for one in slices]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_new_slices_alone_are_encoded(estimator):
    events = make_events(0, 40_000, 4_000)
    features = SliceFeatures(estimator, HEIGHT, WIDTH, 0.5)
    first, total = features.encode(limits(0), events)
    assert all(map(same, first, fresh(estimator, events, limits(0)))) and features.reused == 0
    inside = events.slice_time(PART, 3 * PART)
    expected = np.zeros((HEIGHT, WIDTH))
    np.add.at(expected, (inside.y, inside.x), 2.0 * inside.p - 1)
    assert np.array_equal(total[0].numpy(), expected)
    # The next interval shares two of its three slices, whose events are not asked for.
    assert features.missing(limits(1)) == (3 * PART, 4 * PART)
    second, _ = features.encode(limits(1), events.slice_time(3 * PART, 4 * PART))
    assert second[0] is first[1] and second[1] is first[2] and features.reused == 2
    assert features.missing(limits(1)) == (4 * PART, 4 * PART)
    # Two further: one is shared.
    third, _ = features.encode(limits(3), events)
    assert third[0] is second[2] and features.reused == 3


def test_the_scale_is_kept_while_it_changes_little(estimator):
    """Three times as many events: magnitudes grow, and with them the scale."""
    calm, busy = make_events(0, 20_000, 1_500), make_events(20_000, 60_000, 30_000)
    events = Events.concatenate([calm, busy])
    features = SliceFeatures(estimator, HEIGHT, WIDTH, 0.3)
    first, _ = features.encode(limits(0), events)
    second, _ = features.encode(limits(1), events)
    assert second[0] is first[1]
    third, _ = features.encode(limits(3), events)
    assert features.reused == 2 and not same(third[0], second[2])
    assert all(map(same, third, fresh(estimator, events, limits(3))))


def test_slices_whose_events_have_changed_are_forgotten(estimator):
    events = make_events(0, 40_000, 4_000)
    features = SliceFeatures(estimator, HEIGHT, WIDTH, 0.5)
    features.encode(limits(0), events)
    features.forget_from(2 * PART + 1)
    assert features.missing(limits(0)) == (2 * PART, 3 * PART)
    features.forget_from(0)
    assert features.missing(limits(0)) == (0, 3 * PART)
