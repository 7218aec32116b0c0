"""Events simulated between two images whose flow is known.

The images are up to tens of px apart, too far for an event simulator, so the light between them is
interpolated along the ground truth, at constant velocity, in steps of half a pixel. That is what an
event camera does: it sees the true motion. But it makes the events ideal in ways that real ones are
not: nothing but the motion changes the light, velocities are constant (so there is no ground truth
about the path, and none is measured), and what is hidden in one of the images is guessed. Before
frame 0 the motion is continued backwards at the same velocity, since most folders have no ground
truth there.

Hence the rows that see frames only are measured on images that others made, untouched; those that
see events tell how the network gets along with such textures and flow fields, not with a real
sensor.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.simulator import SensorConfig, simulate_events
from flowfuse.events import Events

HISTORY = 0.5  # of an interval before frame 0: a slice, for networks of two slices or more
STEP = 0.5  # px
SEED = 7  # of the sensor's noise
# Gray levels (1 = white, gamma-encoded) by which an image differs from the next one, warped back by
# the ground truth: how fast a pixel loses against others that move to the same place, and how fast
# what it shows in the next image is no longer believed.
RIVALRY, TRUST = 0.02, 0.05
LEAST_COVER = 0.25  # of a pixel by what moves there; below, it is a hole


def simulate_between(
    frame0: np.ndarray,
    frame1: np.ndarray,
    flow: np.ndarray,
    valid: np.ndarray,
    *,
    t0: int,
    t1: int,
    sensor: SensorConfig | None = None,
) -> Events:
    """Simulate what an event camera would see between two images, and shortly before the first.

    Args:
        frame0, frame1: uint8 [H, W] or [H, W, 3], sRGB.
        flow: [2, H, W] px, from image 0 to image 1.
        valid: [H, W] bool; elsewhere the nearest valid flow is taken.
        t0, t1: times of the images, us.
        sensor: default :class:`SensorConfig`, a good sensor in daylight.

    Returns:
        Events from t0 - HISTORY (t1 - t0) to t1.
    """
    between = Interpolator(frame0, frame1, flow, valid)
    largest = float(np.hypot(*between.flow).max())
    count = max(math.ceil((1 + HISTORY) * largest / STEP), 24)
    times = np.linspace(t0 - HISTORY * (t1 - t0), t1, count + 1).round().astype(np.int64)
    light = (between((time - t0) / (t1 - t0)) for time in times.tolist())
    return simulate_events(light, times, sensor, SEED)


class Interpolator:
    """Light between two images, along a known flow.

    Args: see :func:`simulate_between`.

    Attributes:
        flow: [2, H, W] px, known everywhere.
    """

    def __init__(
        self, frame0: np.ndarray, frame1: np.ndarray, flow: np.ndarray, valid: np.ndarray
    ) -> None:
        self.flow = _fill(np.asarray(flow, np.float32), valid)
        self._light = [_luma(srgb_to_linear(frame)) for frame in (frame0, frame1)]
        height, width = valid.shape
        self._grid = np.stack(
            np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        )
        target = self._grid + self.flow
        shades = [_luma(frame.astype(np.float32) / 255) for frame in (frame0, frame1)]
        differs = np.abs(shades[0] - _sample(shades[1], target)).astype(np.float64)
        limits = np.array((width - 1, height - 1))[:, None, None]
        stays = ((target >= 0) & (target <= limits)).all(axis=0)
        self._rank = np.exp(-differs / RIVALRY)
        self._trust = np.exp(-differs / TRUST) * stays

    def __call__(self, tau: float) -> np.ndarray:
        """Light at tau, [H, W] float32, linear, >= 0; 0 = image 0, 1 = image 1, < 0 = before.

        The flow is carried to tau (where several surfaces meet, the one that both images show
        wins), then both images are sampled along it: carrying the light itself would blur it
        whenever it lies between pixels, and the blur would come and go as events.
        """
        cover, *carried = _splat(
            self._grid + tau * self.flow,
            (np.ones_like(self._rank), *(self._rank * v for v in (1, *self.flow, self._trust))),
        )
        known = cover >= LEAST_COVER
        weight, u, v, trust = (np.where(known, values, 0) for values in carried)
        weight = np.where(known, weight, 1)
        flow = _fill(np.stack((u, v)) / weight, known).astype(np.float32)
        # A hole shows what image 0 hides, so image 1 alone knows it; before image 0, nobody does.
        share0 = np.where(known, 1 - tau, 0) if tau > 0 else np.ones_like(weight)
        share1 = np.where(known, tau * trust / weight, 1) if tau > 0 else np.zeros_like(weight)
        light0 = _sample(self._light[0], self._grid - np.float32(tau) * flow)
        light1 = _sample(self._light[1], self._grid + np.float32(1 - tau) * flow)
        total = share0 + share1
        share1 = np.where(total > 0, share1 / np.where(total > 0, total, 1), 1)
        return ((1 - share1) * light0 + share1 * light1).astype(np.float32)


def _luma(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _sample(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[H, W] at places [2, H, W] px, bicubic within the limits of the four nearest pixels.

    Bilinear sampling would blur the more, the farther a place is from pixels; bicubic sampling
    alone overshoots at edges. To an event sensor, which sees ratios, both are changes of light.
    """
    square = np.ones((2, 2), np.uint8)
    corner = np.floor(places)
    low, high = (
        cv2.remap(
            extreme(image, square, anchor=(0, 0)), *corner, cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for extreme in (cv2.erode, cv2.dilate)
    )  # fmt: skip
    cubic = cv2.remap(image, *places, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(cubic, low, high)


def _fill(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[C, H, W] with the value of the nearest known pixel at the others."""
    if known.all():
        return values
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest = np.zeros(labels.max() + 1, np.int64)
    nearest[labels[known]] = np.flatnonzero(known)
    return values.reshape(len(values), -1)[:, nearest[labels]]


def _splat(places: np.ndarray, values: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """Add values [H, W] up at places [2, H, W], bilinearly; votes outside are dropped."""
    height, width = places.shape[1:]
    left, top = np.floor(places).astype(np.int64)
    sums = [np.zeros(height * width) for _ in values]
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - np.abs(places[0] - column)) * (1 - np.abs(places[1] - row))
            hit = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row * width + column)[hit]
            for total, value in zip(sums, values, strict=True):
                total += np.bincount(index, (weight * value)[hit], height * width)
    return [total.reshape(height, width) for total in sums]
