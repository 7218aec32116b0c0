"""Turning cameras: ground truth by hand, by a reference, and a named error for each fault."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from flowfuse.data.datasets.rotation import RotationRecording, integrate
from flowfuse.data.opening import open_recording
from flowfuse.evaluation.rotation import rotation_flow
from flowfuse.visualization import write_image

HEIGHT, WIDTH = 24, 32
LENS = [40.0, 41.0, 15.2, 11.8, -0.2, 0.05, 0.001, -0.002, 0.0]
RATE = (0.3, -0.8, 1.5)  # rad/s


@pytest.fixture
def sequence(tmp_path):
    """As the Event Camera Dataset unpacks, with three frames 100 ms apart."""
    path = tmp_path / "poster_rotation"
    (path / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
        write_image(path / "images" / f"frame_{i:08d}.png", image)
    names = "".join(f"{i / 10} images/frame_{i:08d}.png\n" for i in range(3))
    (path / "images.txt").write_text(names)
    t = np.sort(rng.uniform(0, 0.2, 2000))
    lines = (f"{s:.6f} {rng.integers(WIDTH)} {rng.integers(HEIGHT)} {rng.integers(2)}" for s in t)
    (path / "events.txt").write_text("\n".join(lines) + "\n")
    (path / "calib.txt").write_text(" ".join(map(str, LENS)))
    rates = " ".join(map(str, RATE))
    (path / "imu.txt").write_text("".join(f"{i / 1000} 0 0 9.8 {rates}\n" for i in range(-5, 210)))
    return path


def test_a_quarter_turn_by_hand():
    """About z, which is forward: x (right) comes from where y (down) is."""
    times, rates = np.array([0, 1_000_000]), np.array([[0, 0, np.pi / 2]] * 2)
    turned = integrate(np.arange(0, 1_000_001, 20_000), np.repeat(rates[:1], 51, 0), 0, 1_000_000)
    assert np.array([1, 0, 0]) @ turned == pytest.approx([0, -1, 0], abs=1e-9)
    assert integrate(times, rates, 0, 1_000_000) is None  # a gap
    assert integrate(times, rates, 500_000, 1_500_000) is None


def test_constant_rates_agree_with_the_closed_form(sequence):
    recording = open_recording(sequence)
    assert isinstance(recording, RotationRecording) and recording.has_events
    for tau in (0.5, 1.0):
        flow, valid = recording.ground_truth_at(0, tau)
        expected = rotation_flow({"rate_rad_s": RATE, "calib": LENS}, tau * 0.1, HEIGHT, WIDTH)
        assert valid.mean() > 0.99
        # 2e-3 px: the closed form inverts the lens to 1e-3 px.
        assert np.abs(flow - expected)[:, valid].max() < 2e-3
    assert recording.ground_truth_at(2, 1.0) is None
    (sequence / "imu.txt").write_text("0 0 0 0 0 0 0\n0.04 0 0 0 0 0 0\n")
    assert open_recording(sequence).ground_truth_at(0, 1.0) is None  # not covered


def test_given_rates_and_another_gyroscope(sequence):
    expected, _ = open_recording(sequence).ground_truth_at(0, 1.0)
    x, y, z = RATE
    turned = sequence.rename(sequence.with_name("mine"))
    lines = "".join(f"{i / 100} {z} {x} {y}\n" for i in range(30))
    (turned / "rates.txt").write_text(lines)
    (turned / "R_imu.txt").write_text("0 1 0\n0 0 1\n1 0 0\n")
    found, _ = open_recording(turned).ground_truth_at(0, 1.0)
    assert np.abs(found - expected).max() < 1e-4


def test_events_without_frames_have_intervals(sequence):
    (sequence / "images.txt").unlink()
    shutil.rmtree(sequence / "images")
    (sequence / "sensor.txt").write_text(f"{WIDTH} {HEIGHT}\n")
    recording = open_recording(sequence)
    first = recording.event_range[0]
    expected = [[first + k * 50_000, first + (k + 1) * 50_000] for k in (1, 2)]
    assert recording.ground_truth_intervals.tolist() == expected
    flow, valid = recording.ground_truth_at(1, 1.0)
    closed = rotation_flow({"rate_rad_s": RATE, "calib": LENS}, 0.05, HEIGHT, WIDTH)
    assert np.abs(flow - closed)[:, valid].max() < 2e-3
    assert recording.has_ground_truth(1) and recording.ground_truth_at(2, 1.0) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("calib.txt", "1 2 3", "k3 expected, found 3 numbers"),
        ("calib.txt", "a", "k3 expected, found 0 numbers"),
        ("imu.txt", "0 1 2\n", "expected, found 3 columns"),
        ("imu.txt", "", "lines 't a\\[3\\] g\\[3\\]' expected"),
        ("imu.txt", "1 0 0 0 0 0 0\n1 0 0 0 0 0 0\n", "line 2: times must increase"),
        ("R_imu.txt", "1 0 0\n0 1 0\n0 0 2\n", "a rotation, 3 x 3, expected"),
    ],
)
def test_faults(sequence, name, text, message):
    (sequence / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        open_recording(sequence)
