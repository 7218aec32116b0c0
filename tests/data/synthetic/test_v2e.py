from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flowfuse.data.synthetic.presets import PRESETS, find_preset
from flowfuse.data.synthetic.scenes import generate_scene
from flowfuse.data.synthetic.simulator import SensorConfig, like_v2e, simulate_events
from flowfuse.data.synthetic.v2e import V2eConfig, V2eSensor, lin_log
from flowfuse.events import Events

IDEAL = {"threshold_spread": 0.0, "cutoff_hz": None, "shot_noise_hz": 0.0, "leak_hz": 0.0}


def watch(
    levels: np.ndarray, times: np.ndarray, *, parts: int = 1, size: int = 1, **changes
) -> Events:
    """What size x size pixels fire that all see the given levels."""
    sensor = V2eSensor(size, size, V2eConfig(**(IDEAL | changes)), 0)
    pictures = torch.tensor(levels, dtype=torch.float32)[:, None, None].expand(-1, size, size)
    spans = np.array_split(np.arange(len(times)), parts)
    return Events.concatenate([sensor.observe(pictures[span], times[span]) for span in spans])


def test_the_curve_by_hand():
    levels = torch.tensor((0.0, 10 / 255, 20 / 255, 1.0, 2.0))
    expected = (0, math.log(20) / 2, math.log(20), math.log(255), math.log(510))
    np.testing.assert_allclose(lin_log(levels).numpy(), expected, rtol=1e-6)


def test_events_are_spread_evenly_over_a_step():
    # Up by 1.02 at once: 5.1 thresholds of 0.2, and up to one more or less by the level before.
    rise = watch(np.array((0.2, 0.2 * math.exp(1.02))), np.array((1000, 2000)))
    count = len(rise)
    assert count in (4, 5, 6) and rise.p.all()
    np.testing.assert_array_equal(rise.t, [1000 + 1000 * k // count for k in range(1, count + 1)])
    fall = watch(np.array((0.4, 0.4 * math.exp(-1.02))), np.array((1000, 2000)), threshold_off=0.5)
    assert len(fall) in (1, 2, 3) and not fall.p.any()
    assert len(watch(np.full(3, 0.3), np.array((1, 2, 3)))) == 0


def test_the_low_pass_follows_by_a_share_of_the_distance():
    levels, times = np.array((0.25, 1.0)), np.array((0, 500))
    fine = {"threshold_on": 0.05, "threshold_off": 0.05, "size": 40}

    def mean(levels: np.ndarray, cutoff: float | None) -> float:
        return len(watch(levels, times, cutoff_hz=cutoff, **fine)) / 1600

    # Of c thresholds c - 1/2 are seen: levels begin anywhere within a threshold to both sides.
    # The distance is log 4 = 1.3863; at white, 2 pi 100 Hz over 500 us is a share of 0.3142.
    assert mean(levels, None) == pytest.approx(1.3863 / 0.05 - 0.5, abs=0.05)
    assert mean(levels, 100.0) == pytest.approx(0.3142 * 1.3863 / 0.05 - 0.5, abs=0.05)
    # A quarter of white has (63.75 + 20) / 275 of the bandwidth. It begins at 15.94 units, in the
    # linear part: the distance is log(63.75) - 15.94 log(20) / 20 = 1.7678.
    share = 0.3142 * 83.75 / 275
    assert mean(levels / 4, 100.0) == pytest.approx(share * 1.7678 / 0.05 - 0.5, abs=0.05)


def test_thresholds_are_spread():
    levels, times = np.array((0.1, 0.1 * math.exp(3.0))), np.array((0, 1000))
    even = watch(levels, times, size=40)
    uneven = watch(levels, times, size=40, threshold_spread=0.05)
    counts = [np.bincount(e.y.astype(int) * 40 + e.x, minlength=1600) for e in (even, uneven)]
    # 3 / 0.2 = 15 events or one less, by the level before; with thresholds of 0.15 to 0.25 within
    # one deviation 12 to 20.
    assert counts[0].std() < 0.6 and 2.5 < counts[1].std()
    assert np.median(counts[1]) == pytest.approx(15, abs=1)


def test_leak_fires_on_events():
    times = np.arange(0, 1_000_001, 10_000)
    events = watch(np.full(len(times), 0.3), times, size=10, leak_hz=7.0)
    # 7 thresholds in a second, of which half a one is not seen: levels begin anywhere.
    assert events.p.all() and len(events) / 100 == pytest.approx(6.5, abs=0.3)


def test_noise_is_stronger_in_the_dark():
    times = np.arange(0, 1_000_001, 5_000)
    dark, white = (
        watch(np.full(len(times), level), times, size=30, shot_noise_hz=4.0) for level in (0, 1)
    )
    # 900 pixels for a second: 3600 and 900 events, whose deviations are 60 and 30.
    assert abs(len(dark) - 3600) < 300 and abs(len(white) - 900) < 150
    assert abs(dark.p.mean() - 0.5) < 0.05


def test_a_pixel_rests_after_an_event():
    times = np.arange(0, 20_001, 500)
    levels = 0.3 * np.exp(np.sin(times / 1500))
    events = watch(levels, times, refractory_us=400.0, threshold_on=0.05, threshold_off=0.05)
    every = watch(levels, times, threshold_on=0.05, threshold_off=0.05)
    assert np.diff(events.t).min() >= 399 and np.diff(every.t).min() < 200  # whole us
    assert 10 < len(events) < len(every)


def test_how_instants_are_divided_changes_nothing():
    times = np.arange(0, 30_001, 500)
    levels = 0.3 * np.exp(np.sin(times / 1500))
    noisy = {"cutoff_hz": 200.0, "shot_noise_hz": 50.0, "leak_hz": 1.0, "threshold_spread": 0.03}
    whole, parts = (watch(levels, times, parts=n, size=6, **noisy) for n in (1, 7))
    assert len(whole) > 100 and (np.diff(whole.t) >= 0).all()
    for name in ("x", "y", "t", "p"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold_on": 0.0}, "threshold_on must be positive, got 0"),
        ({"leak_hz": -1.0}, "leak_hz must not be negative, got -1"),
        ({"cutoff_hz": 0.0}, "cutoff_hz must be positive or None, got 0"),
    ],
)
def test_bad_properties_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        V2eConfig(**change)


def test_a_sensor_like_another():
    config = like_v2e(SensorConfig(threshold_on=0.1, cutoff_hz=71.0, shot_noise_hz=0.5))
    # Diffuse white has 275 / (0.2 * 255 + 20) = 275 / 71 of the bandwidth at 0.2.
    assert config.cutoff_hz == pytest.approx(275) and config.shot_noise_hz == 2
    assert config.threshold_spread == 0.025 and config.threshold_on == 0.1
    assert like_v2e(SensorConfig(cutoff_hz=None)).cutoff_hz is None
    # d log(I + offset) / dI at I = 0 is the slope of the linear part.
    slope = (lin_log(torch.tensor(0.01)) - lin_log(torch.tensor(0.0))) / 0.01
    assert 1 / config.log_offset == pytest.approx(float(slope), rel=1e-5)


def test_a_preset_before_the_other_sensor():
    assert find_preset("fast@v2e").sensor == "v2e" and find_preset("fast") is PRESETS["fast"]
    with pytest.raises(ValueError, match=r"'fast@esim': no sensor 'esim', expected one of default"):
        find_preset("fast@esim")
    with pytest.raises(ValueError, match="no scene preset 'quick'"):
        find_preset("quick@v2e")
    usual, other = (generate_scene(1, name, 32, 40) for name in ("slow", "slow@v2e"))
    np.testing.assert_array_equal(usual.frames, other.frames)
    assert torch.equal(usual.flow_at(1.0), other.flow_at(1.0))
    assert isinstance(other.sensor, V2eConfig) and len(other.events) > 100
    assert len(usual.events) != len(other.events)
    assert 0.2 < len(other.events) / len(usual.events) < 5
    # Nearly all edges that fire in one fire in the other.
    images = []
    for scene in (usual, other):
        images.append(np.zeros((32, 40)))
        np.add.at(images[-1], (scene.events.y, scene.events.x), scene.events.p * 2.0 - 1)
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.6


def test_videos_can_be_watched_by_it():
    levels = np.array((0.2, 0.2 * math.exp(1.02)), np.float32)
    frames = np.broadcast_to(levels[:, None, None], (2, 3, 4)).copy()
    events = simulate_events(frames, [0, 1000], V2eConfig(**IDEAL))
    assert len(events) / 12 == pytest.approx(5, abs=1) and events.width == 4
