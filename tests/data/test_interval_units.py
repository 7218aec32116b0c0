"""Intervals that are asked for in another unit than microseconds."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from dsec_cases import write

from flowfuse import open_recording
from flowfuse.data.datasets.dsec.sequence import open_sequence
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events

FIRST, LAST = 5_000, 250_000  # us


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("units") / "rec"
    t = np.linspace(FIRST, LAST, 200).astype(np.int64)
    write_recording(path, Events(t % 8, t % 6, t, t % 2, height=6, width=8), None, None)
    return open_recording(path)


@pytest.mark.parametrize(
    "t0, t1, unit, meant",
    [
        (0.01, 0.03, "seconds", "[10000, 30000) us"),
        (0, 1, "seconds", "[0, 1000000) us"),
        (10.5, 30.25, "milliseconds", "[10500, 30250) us"),
        (30_000_000, 50_000_000, "nanoseconds", "[30000, 50000) us"),
        (np.float32(20.5), np.float32(40), "milliseconds", "[20500, 40000) us"),
    ],
)
def test_the_unit_is_guessed(recording, t0, t1, unit, meant):
    with pytest.warns(UserWarning, match="none in") as told:
        assert not len(recording.events(t0, t1))
    text = str(told[0].message)
    assert f"were these {unit}, it would be {meant}: all times are integer microseconds" in text
    assert f"go from {FIRST} to {LAST} us" in text and told[0].filename == __file__


@pytest.mark.parametrize(
    "t0, t1",
    [
        (FIRST, LAST), (0, 1_000), (0, FIRST), (LAST + 1, 2 * LAST), (LAST + 9, LAST + 19),
        (float(FIRST), 9_000.0), (FIRST + 0.5, 90_000.25), (5, 5), (-50, -10),
    ],
)  # fmt: skip
def test_what_can_be_meant_brings_no_warning(recording, t0, t1):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recording.events(t0, t1)


def test_what_is_no_time_is_refused(recording):
    with pytest.raises(ValueError, match="events: t1 must be a time in microseconds, got nan"):
        recording.events(0, float("nan"))


def test_a_sequence_of_dsec_guesses_too(tmp_path):
    sequence = open_sequence(write(tmp_path))
    first, last = sequence.event_range
    with pytest.warns(UserWarning, match="were these seconds"):
        assert not len(sequence.events(first * 1e-6 + 0.001, last * 1e-6))
