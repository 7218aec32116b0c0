"""Light and events between two images, along a known flow."""

from __future__ import annotations

import numpy as np
from evaluation_cases import texture

from flowfuse.data.synthetic import interpolation
from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.simulator import SensorConfig


def test_light_between_images_follows_the_flow() -> None:
    wide = texture(48, 80)
    frame0, frame1 = wide[:, 8:72], wide[:, 4:68]  # the texture moves 4 px to the right
    flow = np.zeros((2, 48, 64), np.float32)
    flow[0] = 4
    valid = np.ones((48, 64), bool)
    flow[:, 10:13, 20:23], valid[10:13, 20:23] = 1e10, False  # unknown: as around it
    between = interpolation.Interpolator(frame0, frame1, flow, valid)
    assert (between.flow[0] == 4).all()
    for tau, left in ((-0.5, 10), (0, 8), (0.25, 7), (0.5, 6), (1, 4)):
        inner = slice(8, -8)  # before image 0, nobody knows what was beyond its border
        expected = srgb_to_linear(wide[:, left : left + 64])[:, inner]
        # 1e-3: OpenCV's cubic sampling has places in steps of 1/32 px.
        assert np.allclose(between(tau)[:, inner], expected, atol=1e-3), tau
    entering = srgb_to_linear(wide[:, 6:70])[:, :2]
    assert np.allclose(between(0.5)[:, :2], entering, atol=1e-3)


def test_uncovered_places_show_image_1() -> None:
    background = texture()
    frames = [background.copy(), background.copy()]
    frames[0][16:32, 10:26] = 250  # a square that moves 8 px to the right
    frames[1][16:32, 18:34] = 250
    flow = np.zeros((2, 48, 64), np.float32)
    flow[0, 16:32, 10:26] = 8
    between = interpolation.Interpolator(*frames, flow, np.ones((48, 64), bool))
    middle = between(0.5)
    bright = srgb_to_linear(np.uint8([250]))[0]
    assert np.allclose(middle[17:31, 15:29], bright, atol=0.02)  # the square, without its rim
    uncovered, covered = (slice(17, 31), slice(11, 13)), (slice(17, 31), slice(31, 40))
    still = srgb_to_linear(background)
    assert np.allclose(middle[covered], still[covered], atol=0.02)
    # Between the square's old and new place the nearest known flow may be either's.
    assert np.abs(middle[uncovered] - bright).min() > 0.1


def test_events_show_the_motion() -> None:
    frames = [np.full((32, 48), 40, np.uint8) for _ in range(2)]
    frames[0][:, 10:] = 200
    frames[1][:, 16:] = 200  # an edge, dark on its left, moves 6 px to the right
    flow = np.zeros((2, 32, 48), np.float32)
    flow[0] = 6
    window = {"t0": 10_000, "t1": 20_000, "sensor": SensorConfig.noiseless()}
    events = interpolation.simulate_between(*frames, flow, np.ones((32, 48), bool), **window)
    assert len(events) and not events.p.any()  # it only gets darker
    assert events.t.min() >= 5_000 and events.t.max() <= 20_000
    assert set(np.unique(events.x)) == set(range(7, 16))  # half an interval before image 0, too
    passed = events.t[events.x == 13].mean()
    assert 15_000 <= passed <= 16_667  # the edge is at 13 + 0 .. 1 px
    still = interpolation.simulate_between(
        *frames[:1] * 2, 0 * flow, np.ones((32, 48), bool), **window
    )
    assert len(still) == 0
