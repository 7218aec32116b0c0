"""Events and frames seen through another camera: looked up in maps from pixel to pixel.

Events and frames need opposite maps. An event at a raw pixel goes to the float position that the
*forward* map holds there; a pixel of a new image takes its value from the float position that the
*backward* map holds there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from flowfuse.data.formats.base import EventFile, FrameSource
from flowfuse.events import Events

_INVERSION_ERROR = 0.02  # px, less than the 1/32 px that cv2.remap interpolates at
_INVERSION_STEPS = 30
_LEAST_BLUR = 0.1  # px: below, smoothing changes next to nothing
_FAR = 30_000.0  # px, outside of every image


class RemappedEvents(EventFile):
    """The events of a file at the positions that a map gives their pixels.

    Events that leave the image are dropped; the rest have float coordinates.

    Args:
        source: with integer coordinates.
        forward: [H, W, 2] float32: the new (x, y) of each pixel of the sensor, px.
        height, width: size of the new image, px; None = that of the sensor.
    """

    def __init__(
        self,
        source: EventFile,
        forward: np.ndarray,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__(source.path)
        self.source = source
        self.forward = forward
        self.sensor_height, self.sensor_width = forward.shape[:2]
        self._size = (height or self.sensor_height, width or self.sensor_width)
        stated = source.sensor_size
        if stated is not None and tuple(stated) != (self.sensor_height, self.sensor_width):
            raise ValueError(
                f"{source.path} is of {stated[1]} x {stated[0]} px, but the calibration of the "
                f"event camera is of {self.sensor_width} x {self.sensor_height} px"
            )

    @property
    def time_range(self) -> tuple[int, int] | None:
        return self.source.time_range

    @property
    def sensor_size(self) -> tuple[int, int]:
        return self._size

    def coordinate_extent(self) -> tuple[int, int]:
        return self._size

    def window(self, t0: int, t1: int, height: int, width: int) -> Events:
        events = self.source.window(t0, t1, self.sensor_height, self.sensor_width)
        if events.x.dtype.kind == "f" and len(events):
            raise ValueError(
                f"{self.path}: the coordinates are fractional, so these events seem to be "
                "undistorted already; expected raw pixels, or leave the calibration away"
            )
        position = self.forward[events.y, events.x] if len(events) else np.empty((0, 2), np.float32)
        x, y = position.T
        # NaN compares false. Closer than 1 px: an event has a share in some pixel.
        inside = (x > -1) & (x < width) & (y > -1) & (y < height)
        return Events(
            x[inside], y[inside], events.t[inside], events.p[inside], height=height, width=width
        )


class RemappedFrames(FrameSource):
    """Frames whose pixels are taken, bilinearly, from where a map says.

    Beyond its border a frame goes on as at the border; where the map is NaN, it is black.

    Where the map makes frames smaller, they are smoothed first.

    Args:
        source: frames of any size.
        backward: [H, W, 2] float32: for each pixel of the new image, (x, y) in the frame, px.
        size: (height, width) that the frames must have, or None.
        backward_at: gives the map of each frame by its index, where they differ; ``backward`` is
            then that of frame 0.
    """

    def __init__(
        self,
        source: FrameSource,
        backward: np.ndarray,
        size: tuple[int, int] | None = None,
        backward_at: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.source, self._size = source, size
        self.times, self.exposures = source.times, source.exposures
        self._backward_at = backward_at
        self._set_map(backward)

    def _set_map(self, backward: np.ndarray) -> None:
        row, column = (side // 2 for side in backward.shape[:2])
        right = min(column + 1, backward.shape[1] - 1)
        self._step = float(np.linalg.norm(backward[row, right] - backward[row, column]))
        self._nowhere = np.isnan(backward).any(axis=2)
        # cv2.remap keeps whole pixels in 16 bits, and knows no NaN.
        position = np.clip(np.nan_to_num(backward, nan=-_FAR), -_FAR, _FAR).astype(np.float32)
        self._x, self._y = (np.ascontiguousarray(part) for part in np.moveaxis(position, 2, 0))

    @property
    def files(self) -> list[Path]:
        return self.source.files

    def read(self, index: int) -> np.ndarray:
        frame = self.source.read(index)
        if self._size is not None and frame.shape[:2] != tuple(self._size):
            raise ValueError(
                f"{self.source.name(index)} is {frame.shape[1]} x {frame.shape[0]} px, but the "
                f"calibration of the frame camera is of {self._size[1]} x {self._size[0]} px"
            )
        if self._backward_at is not None:
            self._set_map(self._backward_at(index))
        frame = smooth_to_shrink(frame, self._step)
        frame = cv2.remap(
            frame, self._x, self._y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        frame[self._nowhere] = 0
        return frame

    def name(self, index: int) -> str:
        return self.source.name(index)


def smooth_to_shrink(image: np.ndarray, step: float) -> np.ndarray:
    """Smooth an image that is to be looked up every ``step`` px: finer texture would alias.

    Args:
        image: [H, W] or [H, W, 3].
        step: px; up to about 1 (or NaN, unknown) the image stays as it is.
    """
    blur = (step - 1) / 2
    return cv2.GaussianBlur(image, (0, 0), blur) if blur > _LEAST_BLUR else image


def invert_map(forward: np.ndarray) -> np.ndarray:
    """Invert a map from pixels to positions in an image of the same size.

    Fixed-point iteration: the position is moved by what is missing, which converges for any map
    whose Jacobian is near the identity, as undistortion's is.

    Args:
        forward: [H, W, 2] float32, (x, y) of each pixel.

    Returns:
        [H, W, 2] float32: for each position, the pixel (x, y) that goes there; NaN where none does.
    """
    height, width = forward.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    target = np.stack((x, y), axis=2)
    found = target.copy()
    for _ in range(_INVERSION_STEPS):
        reached = _sample(forward, found)
        found += target - reached
    error = np.abs(target - _sample(forward, found)).max(axis=2)
    inside = (found > -0.5).all(axis=2) & (found < (width - 0.5, height - 0.5)).all(axis=2)
    found[~(inside & (error < _INVERSION_ERROR))] = np.nan
    return found


def _sample(image: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[H, W, 2] at [H, W, 2] positions, bilinear, going on linearly outside of the image.

    cv2.remap works with steps of 1/32 px, too coarse for an iteration.
    """
    height, width = image.shape[:2]
    corner = np.clip(np.floor(position).astype(int), 0, (width - 2, height - 2))
    share = (position - corner)[..., None].astype(image.dtype)  # [H, W, 2, 1]
    (column, row), (right, down) = np.moveaxis(corner, 2, 0), np.moveaxis(share, 2, 0)
    top = image[row, column] * (1 - right) + image[row, column + 1] * right
    bottom = image[row + 1, column] * (1 - right) + image[row + 1, column + 1] * right
    return top * (1 - down) + bottom * down
