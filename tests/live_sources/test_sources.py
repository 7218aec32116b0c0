"""Cameras and network streams: opened by name, read, lost, and missing packages told."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import flowfuse
from flowfuse.events import Events
from flowfuse.live_sources import dv_camera, opening, webcam
from flowfuse.live_sources.base import LiveFrame, SourceLostError
from flowfuse.live_sources.dv_camera import DvSource
from flowfuse.live_sources.metavision import MetavisionSource
from flowfuse.live_sources.opening import open_source
from flowfuse.live_sources.replay import Replay
from flowfuse.live_sources.webcam import WebcamSource

HEIGHT, WIDTH = 16, 24
DV_EVENT = np.dtype([("timestamp", "i8"), ("x", "i2"), ("y", "i2"), ("polarity", "i1")])


class DvReader:
    """A camera as dv-processing has it: batches, then the end, or a fault."""

    def __init__(self, batches=(), frames=(), fault: bool = False, size=(WIDTH, HEIGHT)) -> None:
        self._batches, self._frames, self._fault = list(batches), list(frames), fault
        self._has = bool(batches), bool(frames)
        self.getEventResolution = self.getFrameResolution = lambda: size

    def isEventStreamAvailable(self) -> bool:  # noqa: N802 - its names
        return self._has[0]

    def isFrameStreamAvailable(self) -> bool:  # noqa: N802
        return self._has[1]

    def isRunning(self) -> bool:  # noqa: N802
        if self._fault and not self._batches:
            raise RuntimeError("device disconnected\nin some function")
        return bool(self._batches or self._frames)

    def getNextEventBatch(self):  # noqa: N802
        if not self._batches:
            return None
        array = self._batches.pop(0)
        return SimpleNamespace(size=lambda: len(array), numpy=lambda: array)

    def getNextFrame(self):  # noqa: N802
        return self._frames.pop(0) if self._frames else None

    def getCameraName(self) -> str:  # noqa: N802
        return "DAVIS346_7"


def dv_events(*times: int) -> np.ndarray:
    return np.array([(t, t % WIDTH, 3, 1) for t in times], DV_EVENT)


def dv_frame(start: int, exposure: int, channels: int = 1) -> SimpleNamespace:
    image = np.zeros((HEIGHT, WIDTH, channels), np.uint8)
    image[..., 0] = 200
    return SimpleNamespace(image=image, timestamp=start, exposure=timedelta(microseconds=exposure))


def test_events_and_frames_of_dv_processing():
    frames = [dv_frame(1_000, 500), dv_frame(2_000, -1, channels=3)]
    source = DvSource([DvReader([dv_events(1, 2), dv_events(), dv_events(3)], frames)], "camera")
    assert (source.height, source.width, source.has_frames) == (HEIGHT, WIDTH, True)
    packets = list(source.packets())
    found = Events.concatenate([packet for packet in packets if isinstance(packet, Events)])
    assert found.t.tolist() == [1, 2, 3] and found.x.tolist() == [1, 2, 3]
    gray, colour = (packet for packet in packets if isinstance(packet, LiveFrame))
    assert (gray.t, gray.exposure, gray.image.shape) == (1_250, 500, (HEIGHT, WIDTH))
    assert (colour.t, colour.exposure) == (2_000, None)
    assert colour.image[0, 0].tolist() == [0, 0, 200], "RGB"


def test_a_camera_that_is_pulled_out():
    packets = DvSource([DvReader([dv_events(1)], fault=True)], "the camera").packets()
    assert next(packets).t.tolist() == [1]
    with pytest.raises(SourceLostError, match=r"the camera is gone: device disconnected$"):
        next(packets)


def test_what_dv_processing_does_not_give():
    with pytest.raises(ValueError, match="camera: has no stream of events"):
        DvSource([DvReader(frames=[dv_frame(0, 1)])], "camera")
    sizes = DvReader([dv_events(1)]), DvReader(frames=[dv_frame(0, 1)], size=(640, 480))
    with pytest.raises(ValueError, match="one size, got 24 x 16 and 640 x 480 px"):
        DvSource(sizes, "camera")


def test_cameras_are_found_by_their_number(monkeypatch):
    cameras = [SimpleNamespace(serialNumber=number) for number in ("7", "8")]
    opened = []

    def open_one(descriptor):
        opened.append(descriptor.serialNumber)
        if descriptor.serialNumber == "8":
            raise RuntimeError("busy\nin some function")
        return DvReader([dv_events(1)])

    camera = SimpleNamespace(discover=lambda: cameras, open=open_one)
    monkeypatch.setattr(
        dv_camera, "_package", lambda: SimpleNamespace(io=SimpleNamespace(camera=camera))
    )
    assert open_source("dv:").name == open_source("dv:7").name == "camera DAVIS346_7"
    assert opened == ["7", "7"]
    with pytest.raises(FileNotFoundError, match=r"dv:9: no camera with .*'9'.*\(found: 7, 8\)"):
        open_source("dv:9")
    with pytest.raises(FileNotFoundError, match=r"dv:8: the camera cannot be opened \(busy\)"):
        open_source("dv:8")


SENDER = """
import sys, time
import dv_processing as dv

stream = dv.io.Stream.EventStream(0, "events", "camera", (24, 16))
writer = dv.io.NetworkWriter("127.0.0.1", int(sys.argv[1]), stream)
print("ready", flush=True)
for first in range(0, 10**6, 10):
    store = dv.EventStore()
    for t in range(first, first + 3):
        store.push_back(t, t % 24, 3, True)
    writer.writeEvents(store)
    time.sleep(0.01)
"""


@contextmanager
def sender(port: int) -> Iterator[None]:
    """A process that sends events; it is killed at the end of the block."""
    arguments = [sys.executable, "-c", SENDER, str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


def test_a_network_stream_that_is_killed_and_begins_again():
    pytest.importorskip("dv_processing")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with sender(port):
            source = open_source(f"dv://127.0.0.1:{port}")
            packets = source.packets()
            found = next(packets)
            assert len(found) == 3 and found.x.tolist() == (found.t % WIDTH).tolist()
            assert (source.height, source.width) == (HEIGHT, WIDTH)
        for _ in packets:  # what was under way, then the end
            pass
    with pytest.raises(ConnectionError, match=rf"dv://127.0.0.1:{port}: nobody sends there \(conn"):
        open_source(f"dv://127.0.0.1:{port}")


class EventsIterator:
    """As metavision_core.event_io has it: one buffer, used again."""

    def __init__(self, input_path: str, mode: str, delta_t: int) -> None:
        if input_path == "gone":
            raise OSError("no camera")
        self._fault = input_path == "lost"

    def get_size(self) -> tuple[int, int]:
        return HEIGHT, WIDTH

    def __iter__(self):
        kind = np.dtype([("x", "u2"), ("y", "u2"), ("p", "i2"), ("t", "i8")])
        buffer = np.zeros(2, kind)
        for start in (10, 20):
            buffer["t"] = start, start + 1
            yield buffer
            yield buffer[:0]
        if self._fault:
            raise RuntimeError("transfer failed")


def test_events_of_metavision(monkeypatch):
    module = SimpleNamespace(EventsIterator=EventsIterator)
    monkeypatch.setitem(sys.modules, "metavision_core", SimpleNamespace(event_io=module))
    monkeypatch.setitem(sys.modules, "metavision_core.event_io", module)
    source = open_source("metavision:")
    assert isinstance(source, MetavisionSource) and not source.has_frames
    assert [packet.t.tolist() for packet in list(source.packets())] == [[10, 11], [20, 21]]
    with pytest.raises(SourceLostError, match="metavision:lost is gone: transfer failed"):
        list(open_source("metavision:lost").packets())
    with pytest.raises(FileNotFoundError, match=r"metavision:gone: no such .*\(no camera\)"):
        open_source("metavision:gone")


class Capture:
    """cv2.VideoCapture of a picture that moves."""

    def __init__(self, camera) -> None:
        self._there, self._count = camera == 3, 0

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self._there

    def read(self):
        self._count += 1
        if self._count > 6:
            return False, None
        noise = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
        return True, np.roll(cv2.GaussianBlur(noise, (0, 0), 2), self._count, axis=1)

    def release(self) -> None:
        self._there = False


def test_a_webcam_with_simulated_events(monkeypatch):
    monkeypatch.setattr(webcam.cv2, "VideoCapture", Capture)
    source = WebcamSource(3, width=35)
    assert (source.height, source.width, source.has_frames) == (20, 35, True)
    packets = []
    with pytest.raises(SourceLostError, match="webcam:3 gives no more images"):
        for packet in source.packets():
            packets.append(packet)
    frames = [packet for packet in packets if isinstance(packet, LiveFrame)]
    assert len(frames) == 5 and all(frame.image.shape == (20, 35, 3) for frame in frames)
    times = [frame.t for frame in frames]
    assert times == sorted(set(times))
    events = Events.concatenate([packet for packet in packets if isinstance(packet, Events)])
    assert len(events) > 50 and times[0] <= events.t[0] and events.t[-1] <= times[-1]
    with pytest.raises(FileNotFoundError, match="webcam:0: OpenCV finds no camera there"):
        open_source("webcam:")


def test_a_webcam_that_is_not_there_is_told_in_one_line(capfd):
    level = cv2.utils.logging.getLogLevel()
    expected = r"webcam:97: .* no camera there \(/dev/video\*: .*; expected the number of a camera"
    with pytest.raises(FileNotFoundError, match=expected):
        open_source("webcam:97")
    assert capfd.readouterr() == ("", "") and cv2.utils.logging.getLogLevel() == level


def test_a_recording_by_its_path():
    source = open_source(str(flowfuse.sample_recording()), speed=3.0)
    assert isinstance(source, Replay) and source.speed == 3.0 and source.has_frames
    with pytest.raises(FileNotFoundError):
        open_source("/no/such/recording")


@pytest.mark.parametrize(
    "name", ["dv://host", "dv://host:0", "dv://:5", "dv://h:70000", "dv://h:5+"]
)
def test_wrong_addresses(name):
    with pytest.raises(ValueError, match=r"expected dv://HOST:PORT, or dv://HOST:PORT\+PORT"):
        open_source(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dv:", r'pip install dv-processing, or "flowfuse\[cameras\]"'),
        ("dv://localhost:5000", "pip install dv-processing"),
        ("metavision:", "install the Metavision SDK or OpenEB"),
    ],
)
def test_missing_packages_are_named(monkeypatch, name, message):
    def missing(package):
        raise ImportError(package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=message):
        opening.open_source(name)
