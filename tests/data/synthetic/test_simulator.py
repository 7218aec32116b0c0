from __future__ import annotations

import numpy as np
import pytest
import torch

from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.simulator import SensorConfig, simulate_events, stream_events


def one_pixel(log: list[float], times: list[int], config: SensorConfig):
    frames = np.exp(np.array(log, dtype=np.float64)).reshape(-1, 1, 1)
    return simulate_events(frames, times, config)


def ideal(threshold: float = 0.2, **changes) -> SensorConfig:
    # The offset must be positive; this one shifts the log of intensities near 1 by a millionth.
    return SensorConfig.noiseless(threshold, log_offset=1e-6, random_reference=False, **changes)


def video(rng: np.random.Generator, frames: int = 12, size: tuple[int, int] = (9, 13)):
    walk = np.cumsum(rng.normal(0, 0.3, (frames, *size)), axis=0)
    return np.exp(walk - 1.5).astype(np.float32), np.cumsum(rng.integers(50, 3000, frames))


def test_one_pixel_by_hand():
    # Up from 0 to 1 in 1 ms: levels 0.3, 0.6, 0.9. Down to 0.05 in 1 ms: levels 0.6 and 0.3, after
    # (1 - 0.6) / 0.95 and (1 - 0.3) / 0.95 ms; level 0 is not reached.
    events = one_pixel([0, 1, 0.05], [0, 1000, 2000], ideal(0.3))
    assert events.p.tolist() == [1, 1, 1, 0, 0]
    # Times are floored to 1 us, and a float32 logarithm may fall on the other side of a full one.
    np.testing.assert_allclose(events.t, [300, 600, 900, 1421, 1736], atol=1)


def test_thresholds_differ_by_polarity():
    config = SensorConfig.noiseless(
        log_offset=1e-6, random_reference=False, threshold_on=0.45, threshold_off=0.15
    )
    events = one_pixel([0, 1, 0], [0, 1000, 2000], config)
    # ON at 0.45 and 0.9, then OFF at 0.75, 0.6, .. 0.15; the last one, at 0, is a tie of rounding.
    assert events.p.tolist()[:7] == [1, 1, 0, 0, 0, 0, 0]
    assert len(events) in (7, 8)


@pytest.mark.parametrize("random_reference", [False, True])
def test_events_add_up_to_the_change_of_log_intensity(random_reference):
    frames, times = video(np.random.default_rng(0))
    config = SensorConfig.noiseless(0.2, random_reference=random_reference)
    events = simulate_events(frames, times, config)
    total = np.zeros(frames.shape[1:])
    np.add.at(total, (events.y, events.x), np.where(events.p, 0.2, -0.2))
    change = np.log(frames[-1] + config.log_offset) - np.log(frames[0] + config.log_offset)
    # What is left is less than one threshold at the end, and at the start if levels are anywhere.
    bound = 0.4 if random_reference else 0.2
    assert np.abs(total - change).max() < bound + 1e-5  # float32 sums
    assert (np.diff(events.t) >= 0).all()
    assert events.t[0] >= times[0] and events.t[-1] <= times[-1]


def test_same_events_however_the_video_is_fed():
    frames, times = video(np.random.default_rng(1))
    config = SensorConfig(shot_noise_hz=50, hot_pixel_fraction=0.02, refractory_us=200)
    whole = simulate_events(frames, times, config, seed=3)
    assert len(whole) > 200
    for chunk in (1, 5):
        parts = list(stream_events(iter(frames), iter(times), config, 3, chunk=chunk))
        for name in "xytp":
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name))
    other = simulate_events(frames, times, config, seed=4)
    assert len(other) != len(whole) or (other.t != whole.t).any()


def test_refractory_time():
    # Ten crossings 100 us apart; blind for 250 us after each event that is kept.
    events = one_pixel([0, 1.001], [0, 1001], ideal(0.1, refractory_us=250.0))
    np.testing.assert_allclose(events.t, [100, 400, 700, 1000], atol=1)
    # The same across steps: the state is carried over.
    log, times = [0.13 * i for i in range(8)], [130 * i for i in range(8)]
    split = one_pixel(log, times, ideal(0.1, refractory_us=250.0))
    np.testing.assert_allclose(split.t, [100, 400, 700], atol=1)


def test_leak_fires_on_events_at_its_rate():
    config = ideal(0.2, leak_hz=10.0)
    events = simulate_events(np.ones((11, 4, 5)), np.arange(11) * 100_000, config)
    # One second at 10 Hz; the tenth event falls on the very end.
    counts = np.bincount(events.y.astype(int) * 5 + events.x, minlength=20)
    assert set(counts) <= {9, 10} and events.p.all()


def test_photoreceptor_is_slower_in_the_dark():
    def half_time(bright: float) -> float:
        # A step of the log by 1 after 1 us; the event at 0.5 tells how fast the pixel follows.
        times = np.concatenate(([0, 1], np.arange(50, 60_000, 50)))
        frames = np.full((len(times), 1, 1), bright)
        frames[0] /= np.e
        config = SensorConfig.noiseless(
            0.5, log_offset=1e-9, random_reference=False, cutoff_hz=50.0, reference_intensity=1.0
        )
        return float(simulate_events(frames, times, config).t[0])

    constant = 1e6 / (2 * np.pi * 50)
    # Within a step of the low-pass (50 us).
    assert half_time(1.0) == pytest.approx(constant * np.log(2), abs=50)
    assert half_time(0.5) == pytest.approx(2 * constant * np.log(2), abs=50)


def test_shot_noise_and_hot_pixels():
    def noise(intensity: float) -> int:
        config = SensorConfig.noiseless(
            shot_noise_hz=5.0, hot_pixel_fraction=0.0, reference_intensity=0.2
        )
        frames = np.full((2, 40, 50), intensity)
        return len(simulate_events(frames, [0, 1_000_000], config))

    # 2000 pixels for 1 s, Poisson: five standard deviations.
    assert noise(1.0) == pytest.approx(10_000, abs=500)
    assert noise(0.0) == pytest.approx(40_000, abs=1000)
    config = SensorConfig.noiseless(hot_pixel_fraction=0.01, hot_pixel_hz=500.0)
    events = simulate_events(np.ones((2, 40, 50)), [0, 1_000_000], config)
    pixels = np.unique(events.y.astype(int) * 50 + events.x)
    assert 5 <= len(pixels) <= 45  # 20 expected, five standard deviations
    assert len(events) > 100 * len(pixels)


@pytest.mark.parametrize(
    ("frames", "times", "message"),
    [
        (np.ones((2, 3, 3), np.uint8), [0, 1], "LINEAR"),
        (np.ones((2, 3)), [0, 1], r"\[H, W\]"),
        ([np.ones((3, 3)), np.ones((3, 4))], [0, 1], "frame 1 must be"),
        (np.ones((3, 3, 3)), [0, 1], "differ in number"),
        (np.ones((2, 3, 3)), [0, 1, 2], "differ in number"),
        (np.ones((2, 3, 3)), [5, 5], "increase"),
        (np.ones((2, 3, 3)), [-5, 5], "negative"),
        (np.full((2, 3, 3), np.nan), [0, 1], "finite"),
        (-np.ones((2, 3, 3)), [0, 1], "not negative"),
        (np.ones((0, 3, 3)), [], "no frame"),
    ],
)
def test_bad_videos_are_named(frames, times, message):
    with pytest.raises(ValueError, match=message):
        simulate_events(frames, times)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold_on": 0.0},
        {"log_offset": -1.0},
        {"leak_hz": -1.0},
        {"cutoff_hz": 0.0},
        {"hot_pixel_fraction": 1.5},
    ],
)
def test_bad_sensors_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SensorConfig(**change)


def test_single_frame_and_single_pixel_give_no_events():
    assert len(simulate_events(np.ones((1, 1, 1)), [7], ideal())) == 0


def test_srgb_decoding():
    # sRGB code 188 is half of the light: 0.7372549 -> 0.5029 (IEC 61966-2-1).
    linear = srgb_to_linear(np.array([0, 188, 255], dtype=np.uint8))
    np.testing.assert_allclose(linear, [0, 0.5029, 1], atol=1e-4)
    assert linear.dtype == np.float32


def test_real_video(shared_data):
    cv2 = pytest.importorskip("cv2")
    folder = shared_data / "gopro240"
    paths = sorted(folder.glob("*.png"))[:4]
    frames = [srgb_to_linear(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE)) for p in paths]
    times = [round(i * 1e6 / 240) for i in range(len(frames))]
    events = simulate_events((torch.from_numpy(f) for f in frames), times)
    assert (events.height, events.width) == frames[0].shape
    assert len(events) > 1000
