"""Any camera that OpenCV opens, with events from the simulator: for who has no event camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from flowfuse.data.synthetic.camera import srgb_to_linear
from flowfuse.data.synthetic.simulator import EventSensor, SensorConfig
from flowfuse.io.images import as_gray
from flowfuse.io.opencv import quiet_opencv
from flowfuse.live_sources.base import LiveFrame, Packet, SourceLostError

WIDTH = 320  # px


class WebcamSource:
    """Frames of a camera, and the events that an event camera might have seen between them.

    The light is taken to change linearly from frame to frame, so these events know no more than the
    frames, and motion of more than about a pixel a frame makes wrong ones. It shows how things
    work; for measuring, use an event camera.

    Args:
        camera: number of the camera, or an address or a file that OpenCV opens.
        width: px; wider images are reduced to it.
        seed: of the simulated sensor.

    Raises:
        FileNotFoundError: there is no such camera.
    """

    def __init__(self, camera: int | str = 0, *, width: int = WIDTH, seed: int = 0) -> None:
        self.name = f"webcam:{camera}"
        with quiet_opencv():
            self._capture = cv2.VideoCapture(camera)
            read, image = self._capture.read() if self._capture.isOpened() else (False, None)
        if not read or image is None:
            self._capture.release()
            here = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
            raise FileNotFoundError(
                f"{self.name}: OpenCV finds no camera there (/dev/video*: {here}); expected the "
                "number of a camera, such as webcam:0, an address or a file"
            )
        scale = min(1.0, width / image.shape[1])
        self.height, self.width = (max(16, round(side * scale)) for side in image.shape[:2])
        self.has_frames = True
        # Sparse noise, and a threshold as of cameras in daylight.
        self._sensor = EventSensor(self.height, self.width, SensorConfig(), seed)
        self._closed = threading.Event()

    def packets(self) -> Iterator[Packet]:
        began, last = time.monotonic(), -1
        try:
            while not self._closed.is_set():
                read, image = self._capture.read()
                if not read or image is None:
                    raise SourceLostError(f"{self.name} gives no more images")
                t = max(last + 1, round((time.monotonic() - began) * 1e6))
                last = t
                if image.shape[:2] != (self.height, self.width):
                    image = cv2.resize(
                        image, (self.width, self.height), interpolation=cv2.INTER_AREA
                    )
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                light = torch.from_numpy(srgb_to_linear(as_gray(image)))[None]
                events = self._sensor.observe(light, np.array([t]))
                if len(events):
                    yield events
                yield LiveFrame(image, t)
        finally:
            self._capture.release()

    def close(self) -> None:
        self._closed.set()
