"""MultiFlow: samples in its layout, ground truth at any tau, and a named error for each fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from flowfuse.cli.infer import main
from flowfuse.data.datasets.multiflow import MultiFlowRecording
from flowfuse.data.formats.event_writer import write_events
from flowfuse.data.opening import open_recording
from flowfuse.events import Events
from flowfuse.visualization import write_image

pytestmark = pytest.mark.usefixtures("one_thread")
HEIGHT, WIDTH = 24, 32
TIMES = range(410_000, 900_001, 10_000)


def path_of(tau: float) -> np.ndarray:
    """A curved motion, [2, H, W] px, of degree 3 in tau."""
    x = np.arange(WIDTH) / WIDTH
    u = 6 * tau - 3 * tau**2 + np.broadcast_to(x, (HEIGHT, WIDTH)) * tau**3
    return np.stack((u, 2 * tau**3 - tau + 0 * u)).astype(np.float32)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("multiflow") / "train" / "seq_0"
    for name in ("events", "flow", "images"):
        (path / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 1_000_000, 3000))
    x, y = rng.integers(0, WIDTH, 3000), rng.integers(0, HEIGHT, 3000)
    events = Events(x, y, t, rng.integers(0, 2, 3000), height=HEIGHT, width=WIDTH)
    write_events(path / "events" / "events.h5", events)
    for time in (400_000, 650_000, 900_000):
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        write_image(path / "images" / f"{time:07d}.png", image)
    for time in TIMES:
        with h5py.File(path / "flow" / f"{time:07d}.h5", "w") as file:
            file["flow"] = np.moveaxis(path_of((time - 400_000) / 500_000), 0, 2)
    return path


def test_one_pair_with_ground_truth_at_any_tau(sample):
    recording = open_recording(sample)
    assert isinstance(recording, MultiFlowRecording)
    assert recording.frame_pairs == [(0, 2)] and recording.ground_truth_step == 2
    assert recording.frame_times.tolist() == [400_000, 650_000, 900_000]
    assert recording.event_range[0] < 400_000  # history
    # At the times of files theirs, to the bit; else on a curve, in float32.
    for tau, error in ((1.0, 0), (0.5, 0), (0.02, 0), (0.513, 1e-4), (0.005, 1e-3)):
        flow, valid = recording.ground_truth_at(0, tau)
        assert flow.dtype == np.float32 and valid.all()
        assert np.abs(flow - path_of(tau)).max() <= error + 1e-6, tau
    assert recording.ground_truth_at(1, 1.0) is None and recording.ground_truth_at(0, 0) is None
    assert recording.ground_truth_times == pytest.approx((0.2, 0.4, 0.6, 0.8), abs=0.03)
    assert recording.control_points().shape == (8, 2, HEIGHT, WIDTH)


def test_images_of_12_bits(sample, tmp_path):
    copy = Path(shutil.copytree(sample, tmp_path / "sample"))
    images = {time: np.full((HEIGHT, WIDTH), time // 230, np.uint16) for time in (400_000, 900_000)}
    (copy / "images" / "0650000.png").unlink()
    for time, image in images.items():
        assert cv2.imwrite(str(copy / "images" / f"{time:07d}.png"), image)
    with pytest.warns(UserWarning, match=r"0900000.png and .* up to 3913: 12 bits are assumed"):
        frame = open_recording(copy).frame(0)
    np.testing.assert_array_equal(frame, np.rint(images[400_000] * (65535 / 4095)))


def test_from_files_to_the_number(sample, tmp_path, capsys):
    out = tmp_path / "out"
    given = [sample, "-o", out, "--times", "0.25,0.5,0.75", "--no-video", "--max-pictures", 0]
    assert main([str(word) for word in given]) == 0
    assert "TEPE (EPE between the frames): " in capsys.readouterr().out
    found = json.loads((out / "metrics.json").read_text())["average"]
    magnitudes = [np.hypot(*path_of(tau)).mean() for tau in (0.25, 0.5, 0.75)]
    zero = [found["flow_at"][str(t)]["zero_flow"]["per_pixel"]["epe"] for t in (0.25, 0.5, 0.75)]
    assert zero == pytest.approx(magnitudes, rel=1e-5)
    tepe = [found["flow_at"][str(t)]["flow"]["per_pixel"]["epe"] for t in (0.25, 0.5, 0.75)]
    assert found["trajectory"]["tepe"] == pytest.approx(np.mean(tepe), rel=1e-5)


def test_the_folder_above_names_its_samples(sample):
    with pytest.raises(ValueError, match=r"holds sequences of MultiFlow; .*train/seq_0"):
        open_recording(sample.parent.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "images/0400000.png").unlink(), "0400000.png: no such image"),
        (lambda p: (p / "images/0400000.png").rename(p / "images/a.png"), "time in microseconds"),
        (lambda p: (p / "flow/0500000.h5").rename(p / "flow/b.h5"), "time in microseconds"),
        (lambda p: (p / "flow/0900000.h5").write_bytes(b"x"), "cannot be read as HDF5"),
        (lambda p: (p / "flow/0900000.h5").write_bytes(other_flow(p)), "flow of shape "),
    ],
)
def test_faults(sample, tmp_path, change, message):
    path = shutil.copytree(sample, tmp_path / "seq")
    change(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_recording(path).ground_truth_at(0, 1.0)


def other_flow(path) -> bytes:
    with h5py.File(path / "other.h5", "w") as file:
        file["flow"] = np.zeros((2, HEIGHT, WIDTH))
    return (path / "other.h5").read_bytes()
