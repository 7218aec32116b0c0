"""replay.py: a recording comes in order, and in its own time."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events
from flowfuse.live_sources.base import LiveFrame, SourceLostError
from flowfuse.live_sources.replay import Replay

HEIGHT, WIDTH = 16, 24
TIMES = np.array([5_000, 25_000, 45_000])


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("replay") / "rec"
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 50_000, 500))
    events = Events(
        rng.integers(0, WIDTH, 500), rng.integers(0, HEIGHT, 500), t, rng.integers(0, 2, 500),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip
    frames = rng.integers(0, 256, (3, HEIGHT, WIDTH), np.uint8)
    write_recording(path, events, frames, TIMES, exposures=np.full(3, 4_000))
    return open_recording(path)


def test_everything_comes_in_order(recording):
    packets = list(Replay(recording, speed=0, packet=7_000).packets())
    frames = [packet for packet in packets if isinstance(packet, LiveFrame)]
    assert [frame.t for frame in frames] == TIMES.tolist()
    assert all(frame.exposure == 4_000 for frame in frames)
    assert np.array_equal(frames[1].image, recording.frame(1))
    events = Events.concatenate([packet for packet in packets if isinstance(packet, Events)])
    assert np.array_equal(events.t, recording.events(0, 10**6).t)
    # A frame comes at the end of its exposure: after the events before, before those after.
    now = 0
    for packet in packets:
        if isinstance(packet, LiveFrame):
            assert now <= packet.t + 2_000 <= now + 7_000
        else:
            assert packet.t[0] >= now
            now = int(packet.t[-1])


def test_its_own_time(recording):
    began = time.monotonic()
    list(Replay(recording, speed=0.5).packets())
    assert time.monotonic() - began >= 0.045 / 0.5


@pytest.mark.parametrize("speed", [1e-6, 1e-14])  # the latter waits longer than a lock can
def test_it_can_be_closed_while_it_waits(recording, speed):
    replay = Replay(recording, speed=speed)
    threading.Timer(0.05, replay.close).start()
    assert list(replay.packets()) == []


def test_a_recording_that_vanishes(recording, monkeypatch):
    replay = Replay(recording, speed=0)
    packets = replay.packets()
    next(packets)

    def fail(*arguments):
        raise OSError("the disk is gone")

    monkeypatch.setattr(recording, "events", fail)
    with pytest.raises(SourceLostError, match="cannot be read any more: the disk is gone"):
        list(packets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": -1}, "speed must be a number >= 0, got -1"),
        ({"speed": float("nan")}, "speed must be"),
        ({"packet": 0}, "packet must be at least 1 us, got 0"),
    ],
)
def test_wrong_options(recording, options, message):
    with pytest.raises(ValueError, match=message):
        Replay(recording, **options)
