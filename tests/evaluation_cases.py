"""Folders of images and recordings with ground truth, small ones, that tests write."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events
from flowfuse.io.flow import write_flow
from flowfuse.visualization import write_image

SIZE = (24, 32)
FACTS = {
    "t0_us": 0,
    "t1_us": 50_000,
    "rate_rad_s": [0.0, 0.5, 0.0],
    "calib": [200.0, 200.0, 15.5, 11.5, 0.0, 0.0, 0.0, 0.0, 0.0],
}


def texture(height: int = 48, width: int = 64) -> np.ndarray:
    noise = np.random.default_rng(1).random((height, width), np.float32)
    smooth = cv2.GaussianBlur(noise, None, 1.5)
    return cv2.normalize(smooth, None, 30, 220, cv2.NORM_MINMAX).astype(np.uint8)


def image_folder(tmp_path: Path, flow: np.ndarray) -> Path:
    folder = tmp_path / "moved"
    folder.mkdir()
    wide = texture(64, 100)
    write_image(folder / "frame09.png", wide[:, 8:88])
    write_image(folder / "frame10.png", wide[:, 6:86])
    write_image(folder / "overview.png", wide)
    write_flow(folder / "flow9.flo", flow)
    return folder


def noise_events(count: int = 400) -> Events:
    rng = np.random.default_rng(0)
    return Events(
        x=rng.integers(0, SIZE[1], count).astype(np.uint16),
        y=rng.integers(0, SIZE[0], count).astype(np.uint16),
        t=np.sort(rng.integers(0, 50_000, count)),
        p=rng.integers(0, 2, count).astype(np.uint8),
        height=SIZE[0],
        width=SIZE[1],
    )


def make_recordings(root: Path) -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (2, *SIZE), dtype=np.uint8)
    flow, valid = np.ones((2, *SIZE), np.float32), np.ones(SIZE, bool)
    write_recording(root / "a/pair", noise_events(), list(frames), [10_000, 50_000])
    (root / "a/pair/flow").mkdir()
    write_flow(root / "a/pair/flow/000000.flo", flow, valid)
    write_recording(root / "b", noise_events(), None, None)
    write_flow(root / "b/flow.flo", flow, valid)
    (root / "b/meta.json").write_text(json.dumps(FACTS))
