from __future__ import annotations

import numpy as np
import pytest
import torch

from flowfuse.data.synthetic.layers import Plane
from flowfuse.data.synthetic.motion import LayerMotion, RampCurve
from flowfuse.data.synthetic.presets import PRESETS, SceneConfig
from flowfuse.data.synthetic.rendering import (
    Clock,
    EventView,
    capture,
    draw_view,
    plan_instants,
    point_spread,
)
from flowfuse.data.synthetic.scenes import generate_scene
from flowfuse.data.synthetic.simulator import EventSensor, SensorConfig
from flowfuse.data.synthetic.textures import make_texture
from flowfuse.events import Events

H, W = 40, 56


def test_point_spread_without_blur_is_linear_interpolation():
    first, weights = point_spread(2.0, 0.0)
    assert first == 2 and weights.tolist() == [1.0]
    first, weights = point_spread(-1.25, 0.0)
    assert first == -2
    np.testing.assert_allclose(weights, (0.25, 0.75))


@pytest.mark.parametrize(("shift", "blur"), [(0.0, 0.8), (1.3, 0.4), (-2.6, 0.1)])
def test_point_spread_has_the_moments_of_a_shifted_gaussian(shift, blur):
    first, weights = point_spread(shift, blur)
    taps = first + np.arange(len(weights))
    assert weights.sum() == pytest.approx(1) and weights.min() >= 0
    # It ends at three deviations; that takes some thousandths.
    assert weights @ taps == pytest.approx(shift, abs=5e-3)
    # Against the integral itself, of a hat function times the density.
    x = np.linspace(-8, 8, 160_001)
    density = np.exp(-0.5 * ((x - shift) / blur) ** 2) / (blur * np.sqrt(2 * np.pi))
    hats = np.maximum(1 - np.abs(x - taps[:, None]), 0)
    np.testing.assert_allclose(weights, (hats * density).sum(1) * 1e-4, atol=3e-3)


def test_a_view_shifts_a_picture_by_hand():
    view = EventView(shift=(2.0, -1.0))
    assert view.margin == 2
    scene = torch.arange(7 * 8).reshape(1, 7, 8).float()  # 3 x 4 pixels and the margin
    seen = view.watch(scene)
    # Pixel (0, 0) of the image is (2, 2) with the margin; it shows what is 2 px to the left and one
    # below, (0, 3): row 3, column 0.
    assert seen.shape == (1, 3, 4) and seen[0, 0, 0] == 3 * 8
    torch.testing.assert_close(seen[0], scene[0, 3:6, :4])
    torch.testing.assert_close(
        EventView(blur=0.7).watch(torch.ones(2, 12, 13)).std(), torch.zeros(())
    )


def late_starter() -> list[Plane]:
    """A background that stands still until tau = 0.2, then moves by 6 px per interval."""
    texture = make_texture(np.random.default_rng(0), 96, 96, contrast=3.0, brightness=0.3)
    velocity = np.array(((0.0, 0, 0, 0), (6.0, 2.0, 0, 0)))
    curve = RampCurve(np.array((0.2, 0.3)), velocity)
    return [Plane(texture, LayerMotion(curve, np.zeros(2), np.array((20.0, 20.0))))]


def watch(view: EventView) -> tuple[Events, np.ndarray, Clock]:
    clock = Clock(5000, 10_000, np.array((1000, 1000)), view.delay_us)
    instants = np.unique(np.concatenate((np.arange(-3000, 19_000, 100), clock.watched)))
    instants = np.unique(np.concatenate((instants, clock.exposure_bounds.ravel())))
    sensor = EventSensor(H, W, SensorConfig.noiseless(0.1, random_reference=False), 0)
    events, signals = capture(late_starter(), instants, clock, None, sensor, view)
    return events, signals, clock


def counts(events: Events) -> np.ndarray:
    total = np.zeros((H, W), dtype=int)
    np.add.at(total, (events.y, events.x), 1)
    return total


def test_the_event_camera_sees_a_shifted_scene_and_frames_do_not():
    aligned, frames, _ = watch(EventView())
    shifted, same_frames, _ = watch(EventView(shift=(3.0, -2.0)))
    # Rows and columns that both see. No border effect: what comes in is really there.
    np.testing.assert_array_equal(counts(shifted)[:-2, 3:], counts(aligned)[2:, :-3])
    np.testing.assert_allclose(same_frames, frames, atol=1e-4)
    blurred, _, _ = watch(EventView(blur=0.8))
    assert len(blurred) < 0.98 * len(aligned)


@pytest.mark.parametrize("delay", [-1500, 2000])
def test_time_stamps_are_late_or_early(delay):
    aligned, frames, _ = watch(EventView())
    moved, same_frames, clock = watch(EventView(delay_us=delay))
    np.testing.assert_array_equal(same_frames, frames)
    assert moved.t.min() >= clock.start and moved.t.max() <= clock.end
    # Nothing moves before tau = 0.2, so that both sensors start alike; one stops earlier.
    last = clock.end - abs(delay)
    before = aligned.slice_time(0, last - max(delay, 0))
    after = moved.slice_time(0, last - max(delay, 0) + delay)
    assert len(before) > 1000
    np.testing.assert_array_equal(after.t, before.t + delay)
    np.testing.assert_array_equal(after.x, before.x)


def test_instants_cover_what_either_camera_sees():
    for delay in (-1500, 0, 2000):
        clock = Clock(5000, 10_000, np.array((9000, 9000)), delay)
        instants = plan_instants(late_starter(), H, W, clock, 1.0, None)
        assert (instants[0], instants[-1]) == clock.rendered
        assert set(clock.watched) <= set(instants.tolist())
        assert instants[0] <= clock.exposure_bounds.min()
        assert instants[-1] >= clock.exposure_bounds.max()


def test_views_are_drawn_as_asked():
    def views(split: str, config: SceneConfig) -> list[EventView]:
        return [draw_view(np.random.default_rng(seed), config, split) for seed in range(1000)]

    drawn = [view for view in views("train", PRESETS["fast"]) if view != EventView()]
    # Four standard deviations of 1000 draws at 0.2.
    assert 150 <= len(drawn) <= 250
    shifts = np.array([np.hypot(*view.shift) for view in drawn])
    delays = np.array([view.delay_us for view in drawn])
    assert shifts.max() <= 3 and np.abs(delays).max() <= 3000
    # The cube root of a third, 0.69, are below 1 px and 1 ms.
    assert 0.55 < np.mean(shifts < 1) < 0.82 and 0.55 < np.mean(np.abs(delays) < 1000) < 0.82
    assert (delays > 0).any() and (delays < 0).any()
    assert all(0 <= view.blur <= 0.8 for view in drawn)
    assert set(views("test", PRESETS["fast"])) == {EventView()}
    asked = SceneConfig((4.0, 8.0), test_misaligned_share=1.0, misaligned_share=0.0)
    assert EventView() not in views("test", asked)
    assert set(views("train", asked)) == {EventView()}


def test_a_misaligned_scene_has_the_same_truth():
    plain = SceneConfig((4.0, 8.0), misaligned_share=0.0, readout_share=0.0)
    other = SceneConfig((4.0, 8.0), misaligned_share=1.0, view_shift=(2.0, 3.0), readout_share=1.0)
    aligned, misaligned = (generate_scene(3, config, H, W) for config in (plain, other))
    assert np.hypot(*misaligned.view.shift) >= 2 and misaligned.readout.batch_us >= 10
    torch.testing.assert_close(misaligned.flow_at(1.0), aligned.flow_at(1.0), rtol=0, atol=0)
    # A rounding error of the render may turn a grey level.
    assert np.abs(misaligned.frames.astype(int) - aligned.frames).max() <= 1
    assert len(misaligned.events) and (counts(misaligned.events) != counts(aligned.events)).any()
    assert (misaligned.events.t % misaligned.readout.batch_us == 0).all()
