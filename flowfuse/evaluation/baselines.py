"""What networks are compared with: OpenCV's DIS and Farneback on the frames, and zero flow."""

from __future__ import annotations

import cv2
import numpy as np

DIS, FARNEBACK, ZERO = "DIS", "Farneback", "zero"
BASELINES = (DIS, FARNEBACK, ZERO)


def dense_inverse_search(frame0: np.ndarray, frame1: np.ndarray) -> np.ndarray:
    """OpenCV's DIS flow, medium preset: two uint8 [H, W] -> [2, H, W] px."""
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return method.calc(frame0, frame1, None).transpose(2, 0, 1)


def farneback(frame0: np.ndarray, frame1: np.ndarray) -> np.ndarray:
    """OpenCV's Farneback flow: two uint8 [H, W] -> [2, H, W] px.

    The larger of the two neighbourhoods that OpenCV's manual names, and five levels: a motion of
    60 px is 4 px at the coarsest.
    """
    flow = cv2.calcOpticalFlowFarneback(
        frame0, frame1, None, pyr_scale=0.5, levels=5, winsize=15, iterations=3,
        poly_n=7, poly_sigma=1.5, flags=0,
    )  # fmt: skip
    return flow.transpose(2, 0, 1)


def baseline_flows(frame0: np.ndarray, frame1: np.ndarray) -> dict[str, np.ndarray]:
    """The flow of every baseline: two uint8 [H, W] -> name -> [2, H, W] px."""
    return {
        DIS: dense_inverse_search(frame0, frame1),
        FARNEBACK: farneback(frame0, frame1),
        ZERO: np.zeros((2, *frame0.shape), np.float32),
    }
