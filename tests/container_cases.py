"""Events and images that files of several streams hold, and how a recording of them is checked."""

from __future__ import annotations

import numpy as np

from flowfuse.events import Events

HEIGHT, WIDTH, START = 12, 16, 1_600_000_000_000_000
FRAME_TIMES = [START + 1000 * i for i in (5, 25, 45)]


def make_events():
    rng = np.random.default_rng(0)
    t = START + np.sort(rng.integers(0, 60_000, 900))
    x, y = rng.integers(0, WIDTH, 900), rng.integers(0, HEIGHT, 900)
    return Events(x, y, t, rng.integers(0, 2, 900), height=HEIGHT, width=WIDTH)


def images():
    return np.random.default_rng(1).integers(0, 256, (3, HEIGHT, WIDTH)).astype(np.uint8)


def check(recording, events):
    """Events, sizes and windows are those that were written."""
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    assert recording.event_range == (events.t[0], events.t[-1])
    exact = int(events.t[300])
    for t0, t1 in [
        (0, 2 * START),
        (START + 10_000, START + 31_000),
        (exact, exact + 1),
        (exact, exact),
        (exact, exact - 9),
        (0, START),
        (START + 59_000, START + 90_000),
    ]:
        window, expected = recording.events(t0, t1), events.slice_time(t0, t1)
        for column in "xytp":
            np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))
