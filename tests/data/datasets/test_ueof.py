"""UEOF: a scene in its layout, and a named error for each fault."""

from __future__ import annotations

import cv2
import h5py
import numpy as np
import pytest

from flowfuse.data.opening import open_recording
from flowfuse.io.flow import write_flow
from flowfuse.visualization import write_image

HEIGHT, WIDTH = 24, 32


@pytest.fixture
def scene(tmp_path):
    """Three images 33.333 ms apart, as the shallow scenes have them."""
    path = tmp_path / "ueof" / "shallow" / "scene1"
    for name in ("gt_flow", "images"):
        (path / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 70_000, 2000))
    x, y = rng.integers(0, WIDTH, 2000), rng.integers(0, HEIGHT, 2000)
    with h5py.File(path / "events.h5", "w") as file:
        file["events"] = np.stack((t, x, y, rng.integers(0, 2, 2000)), axis=1).astype(np.uint32)
    for i in range(3):
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        write_image(path / "images" / f"{i:05d}.png", image)
    for i in range(2):
        flow = np.full((2, HEIGHT, WIDTH), i + 1, np.float32)
        flow[:, 3, 4] = 0
        write_flow(path / "gt_flow" / f"{i:05d}.flo", flow)
    (path / "image_timestamps.txt").write_text("0.0\n33.333\n66.667\n")
    return path


def test_images_events_and_flow(scene):
    recording = open_recording(scene)
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    assert recording.frame_times.tolist() == [0, 33_333, 66_667]
    assert len(recording.events(0, 70_000)) == 2000
    flow, valid = recording.ground_truth_at(1, 1.0)
    assert flow[:, 0, 0].tolist() == [2, 2]
    assert not valid[3, 4] and valid.sum() == valid.size - 1  # no flow there, not a still pixel
    assert recording.ground_truth_at(1, 0.5) is None and recording.ground_truth_at(2, 1.0) is None
    assert recording.has_ground_truth(1) and not recording.has_ground_truth(2)
    with pytest.raises(ValueError, match=r"sequences of UEOF; .*shallow/scene1"):
        open_recording(scene.parent.parent)


def test_comments_of_times_and_frames_of_16_bits(scene):
    (scene / "image_timestamps.txt").write_text("# ms\n0.0\n33.333  # second\n\n66.667\n")
    image = np.full((HEIGHT, WIDTH), 12_345, np.uint16)
    cv2.imwrite(str(scene / "images" / "00001.png"), image)
    recording = open_recording(scene)
    assert recording.frame_times.tolist() == [0, 33_333, 66_667]
    with pytest.warns(UserWarning, match=r"00001.png and .* up to 12345: 14 bits are assumed"):
        frame = recording.frame(1)
    expected = np.rint(image * (65535 / 16383))
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n1\n", "2 times for 3 images"),
        ("0\n2\n1\n", "times must increase, found 1000 us after 2000 us"),
        ("0\n1\nx\n", "line 3: a time in milliseconds expected, found 'x'"),
        ("0\n1\n1e300\n", "line 3: a time in milliseconds expected, found '1e300'"),
    ],
)
def test_faults(scene, text, message):
    (scene / "image_timestamps.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_recording(scene)
    with pytest.raises(ValueError, match=r"00000.flo is 3 x 2 px"):
        (scene / "image_timestamps.txt").write_text("0\n1\n2\n")
        write_flow(scene / "gt_flow" / "00000.flo", np.zeros((2, 2, 3), np.float32))
        open_recording(scene).ground_truth_at(0, 1.0)
