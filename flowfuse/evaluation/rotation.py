"""Ground truth of a camera that does nothing but turn: its flow needs no depth."""

from __future__ import annotations

import cv2
import numpy as np

LENS_STEPS = 30  # until the ray of a pixel is known to 1e-3 px


def rotation_flow(facts: dict, seconds: float, height: int, width: int) -> np.ndarray:
    """Flow [2, H, W] px of a camera with a distorting lens that turns at a constant rate.

    Args:
        facts: "rate_rad_s" [3], and "calib": fx, fy, cx, cy, k1, k2, p1, p2, k3.
        seconds: duration.
        height, width: px.
    """
    fx, fy, cx, cy, *lens = facts["calib"]
    camera, lens = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), np.array(lens)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    pixels = np.stack((x.ravel(), y.ravel()), axis=1)
    rays = np.stack(((pixels[:, 0] - cx) / fx, (pixels[:, 1] - cy) / fy, np.ones(len(pixels))), 1)
    still = np.zeros(3)
    for _ in range(LENS_STEPS):
        seen, _ = cv2.projectPoints(rays, still, still, camera, lens)
        rays[:, :2] += (pixels - seen[:, 0]) / (fx, fy)
    # The scene turns against the camera.
    angle = -np.array(facts["rate_rad_s"]) * seconds
    moved, _ = cv2.projectPoints(rays, angle, still, camera, lens)
    return (moved[:, 0] - pixels).T.reshape(2, height, width).astype(np.float32)
