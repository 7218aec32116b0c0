"""Cameras of iniVation, and streams of the network, by dv-processing."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from flowfuse.events import Events
from flowfuse.live_sources.base import LiveFrame, Packet, SourceLostError

_PAUSE = 0.001  # s, when nothing has come
PACKAGE = "dv-processing"


class DvSource:
    """What one or more readers of dv-processing give.

    Args:
        readers: that give batches of events, frames or both; of one sensor.
        name: what messages call it.

    Raises:
        ValueError: none of them has events, or their sizes differ.
    """

    def __init__(self, readers: Sequence[Any], name: str) -> None:
        self.name = name
        self._events = [r for r in readers if r.isEventStreamAvailable()]
        self._frames = [r for r in readers if r.isFrameStreamAvailable()]
        self._readers = list(readers)
        if not self._events:
            raise ValueError(f"{name}: has no stream of events")
        sizes = {tuple(map(int, r.getEventResolution())) for r in self._events}
        sizes |= {tuple(map(int, r.getFrameResolution())) for r in self._frames}
        if len(sizes) > 1:
            found = " and ".join(f"{w} x {h}" for w, h in sorted(sizes))
            raise ValueError(f"{name}: events and frames must have one size, got {found} px")
        self.width, self.height = sizes.pop()
        self.has_frames = bool(self._frames)
        self._closed = threading.Event()

    def packets(self) -> Iterator[Packet]:
        while not self._closed.is_set():
            came = False
            try:
                for reader in self._events:
                    batch = reader.getNextEventBatch()
                    if batch is not None and batch.size():
                        came = True
                        yield _events_of(batch, self.height, self.width)
                for reader in self._frames:
                    frame = reader.getNextFrame()
                    if frame is not None:
                        came = True
                        yield _frame_of(frame)
                running = all(reader.isRunning() for reader in self._readers)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise SourceLostError(f"{self.name} is gone: {reason}") from error
            if not came:
                if not running:
                    return
                self._closed.wait(_PAUSE)

    def close(self) -> None:
        self._closed.set()


def open_camera(serial: str = "") -> DvSource:
    """Open a camera that is plugged in.

    Args:
        serial: its serial number; "": the first one found.

    Raises:
        ModuleNotFoundError: dv-processing is not installed.
        FileNotFoundError: there is no such camera; says which there are.
    """
    dv = _package()
    found = list(dv.io.camera.discover())
    numbers = [str(camera.serialNumber) for camera in found]
    chosen = [c for c, number in zip(found, numbers, strict=True) if serial in ("", number)]
    if not chosen:
        wanted = f"no camera with the serial number {serial!r}" if serial else "no camera"
        there = ", ".join(numbers) or "none"
        raise FileNotFoundError(f"dv:{serial}: {wanted} is plugged in (found: {there})")
    try:
        camera = dv.io.camera.open(chosen[0])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"dv:{serial}: the camera cannot be opened ({reason})") from error
    return DvSource([camera], f"camera {camera.getCameraName()}")


def open_network(host: str, ports: Sequence[int]) -> DvSource:
    """Open streams of the network, such as those of a DV module or of ``dv.io.NetworkWriter``.

    Args:
        host: address.
        ports: one for each stream.

    Raises:
        ModuleNotFoundError: dv-processing is not installed.
        ConnectionError: nobody sends there.
    """
    dv = _package()
    name = f"dv://{host}:{'+'.join(map(str, ports))}"
    try:
        readers = [dv.io.NetworkReader(host, port) for port in ports]
    except RuntimeError as error:
        reason = str(error).partition(" [")[0]  # behind it stands where in their sources
        raise ConnectionError(f"{name}: nobody sends there ({reason})") from error
    return DvSource(readers, name)


def _package() -> Any:
    try:
        return importlib.import_module("dv_processing")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"live cameras and network streams are read by {PACKAGE}, which is not installed: "
            f'pip install {PACKAGE}, or "flowfuse[cameras]"'
        ) from error


def _events_of(batch: Any, height: int, width: int) -> Events:
    found = np.array(batch.numpy())
    columns = (found[name] for name in ("x", "y", "timestamp", "polarity"))
    return Events(*columns, height=height, width=width)


def _frame_of(frame: Any) -> LiveFrame:
    image = np.array(frame.image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    elif image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    # The time stamp is the start of the exposure; a negative duration is an unknown one.
    exposure = max(0, round(frame.exposure.total_seconds() * 1e6))
    return LiveFrame(image, int(frame.timestamp) + exposure // 2, exposure or None)
