"""ROS bags (ROS 1 .bag; ROS 2 directories, .db3, .mcap), read by rosbags: events and images.

Messages of events are indexed by one pass over the topic; then a window reads those that it
touches. Their events are read from the raw bytes: a message object would make a Python object of
every event.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from heapq import merge
from itertools import takewhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flowfuse.data.formats.base import (
    EVENTS,
    FRAMES,
    EventFile,
    Format,
    FrameSource,
    StatedTimes,
    starts_with,
)
from flowfuse.data.formats.event_packets import PACKET_TYPES, PacketEvents, TopicEvents
from flowfuse.data.formats.frames import decode_image
from flowfuse.data.formats.prophesee_words import Columns

ARRAY_TYPES = ("dvs_msgs/msg/EventArray", "prophesee_event_msgs/msg/EventArray")
EVENT_TYPES = (*ARRAY_TYPES, *PACKET_TYPES)
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")

_NAMES = ["x", "y", "seconds", "nanoseconds", "polarity"]


def _event_type(offsets: list[int], size: int) -> np.dtype:
    fields: Any = {"names": _NAMES, "formats": ["<u2", "<u2", "<u4", "<u4", "u1"]}
    fields |= {"offsets": offsets, "itemsize": size}
    return np.dtype(fields)


# ROS 1 packs without gaps. ROS 2 (CDR) aligns every number to its size, from the end of the header
# on: the first event starts at a multiple of 4, the others 2 after one.
_ROS1_EVENT = _event_type([0, 2, 4, 8, 12], 13)
_ROS2_FIRST = _event_type([0, 2, 4, 8, 12], 14)
_ROS2_EVENT = _event_type([0, 2, 6, 10, 14], 16)

_STAMP = 4  # bytes before a header's time: its number in ROS 1, the kind of encoding in ROS 2

# Values per pixel, and how OpenCV makes them gray or RGB. It names a mosaic by the second row and
# column, ROS by the first.
_ENCODINGS = {
    "mono8": (1, None),
    "8UC1": (1, None),
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono16": (1, None),
    "16UC1": (1, None),
    "rgb16": (3, None),
    "bgr16": (3, cv2.COLOR_BGR2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
}
for _mosaic, _code in (
    ("rggb", cv2.COLOR_BayerBG2RGB),
    ("bggr", cv2.COLOR_BayerRG2RGB),
    ("gbrg", cv2.COLOR_BayerGR2RGB),
    ("grbg", cv2.COLOR_BayerGB2RGB),
):
    _ENCODINGS |= {f"bayer_{_mosaic}8": (1, _code), f"bayer_{_mosaic}16": (1, _code)}


class _Reader:
    """The files of a bag, open.

    Messages are not defined by what the bag says of them, which a writer may put in words that
    rosbags does not parse, but by the standard types of ROS: no other is decoded by rosbags.

    Args:
        path: a file, or a directory with metadata.yaml.
    """

    def __init__(self, path: Path) -> None:
        from rosbags import rosbag1, rosbag2
        from rosbags.typesys import Stores, get_typestore

        self.is2 = path.suffix != ".bag"
        self._types = get_typestore(Stores.ROS2_HUMBLE if self.is2 else Stores.ROS1_NOETIC)
        self._readers: list[Any] = []
        try:
            self._readers = [rosbag2.Reader(path) if self.is2 else rosbag1.Reader(path)]
            self._readers[0].open()
        except rosbag2.ReaderError as error:
            # Some writers leave a metadata.yaml that names no storage, or the wrong one.
            files = sorted(p for p in _visible(path) if p.suffix in (".mcap", ".db3"))
            if not files:
                raise
            warnings.warn(
                f"{path}: metadata.yaml is not used ({error}), but {len(files)} files beside it",
                stacklevel=7,
            )
            self._readers = [rosbag2.Reader(file) for file in files]
            for reader in self._readers:
                reader.open()
        self.connections = [c for reader in self._readers for c in reader.connections]

    def messages(
        self, topic: str, start: int | None, stop: int | None
    ) -> Iterator[tuple[Any, int, bytes]]:
        """Connection, time of recording (ns) and bytes of messages, by time."""
        parts = []
        for reader in self._readers:
            chosen = [c for c in reader.connections if c.topic == topic]
            if chosen:
                parts.append(reader.messages(chosen, start=start, stop=stop))
        return merge(*parts, key=lambda message: message[1])

    def deserialize(self, data: bytes, kind: str) -> Any:
        """A message of a standard type as an object."""
        decode = self._types.deserialize_cdr if self.is2 else self._types.deserialize_ros1
        return decode(data, kind)


def _visible(path: Path) -> list[Path]:
    """What is in a directory, but for hidden files; nothing where it is a file."""
    return [p for p in path.iterdir() if not p.name.startswith(".")] if path.is_dir() else []


class Bag:
    """A bag opened in this process: a forked one must not share its place in the file.

    Args:
        path: a file of ROS 1 or ROS 2, or a directory with metadata.yaml.

    Raises:
        ModuleNotFoundError: rosbags is not installed.
        ValueError: the bag is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, _Reader] | None = None
        self.get()

    def get(self) -> _Reader:
        """The reader."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def _open(self) -> _Reader:
        try:
            import rosbags.highlevel  # noqa: F401 -- whether all of rosbags is there
        except ImportError as error:
            raise ModuleNotFoundError(
                f"{self.path}: ROS bags are read by rosbags, which is not installed: "
                "pip install rosbags"
            ) from error
        try:
            return _Reader(self.path)
        except Exception as error:  # rosbags has no common base of what it raises
            raise ValueError(
                f"{self.path}: not a readable ROS bag, is it truncated? ({error})"
            ) from error

    @property
    def is_ros2(self) -> bool:
        """Whether messages are in CDR."""
        return self.get().is2

    def topics(self, types: tuple[str, ...]) -> list[str]:
        """The topics of these types that have messages, sorted."""
        connections = self.get().connections
        return sorted({c.topic for c in connections if c.msgtype in types and c.msgcount})

    def describe_topics(self) -> str:
        """All topics with their types and how many messages they have."""
        found = {c.topic: (c.msgtype, 0) for c in self.get().connections}
        for connection in self.get().connections:
            kind, count = found[connection.topic]
            found[connection.topic] = kind, count + connection.msgcount
        named = [f"{topic} ({kind}, {count} messages)" for topic, (kind, count) in found.items()]
        return ", ".join(sorted(named)) or "no topic at all"

    def kind(self, topic: str) -> str:
        """The type of a topic's messages."""
        return next(str(c.msgtype) for c in self.get().connections if c.topic == topic)

    def count(self, topic: str) -> int:
        """How many messages of a topic the bag itself counts."""
        return sum(c.msgcount for c in self.get().connections if c.topic == topic)

    def messages(
        self, topic: str, start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Any, int, bytes]]:
        """Connection, time of recording (ns) and bytes of messages recorded in [start, stop).

        Raises:
            ValueError: the bag is damaged.
        """
        messages = self.get().messages(topic, start, stop)
        while True:
            try:
                message = next(messages, None)
            except Exception as error:  # rosbags has no common base of what it raises
                raise ValueError(
                    f"{self.path}: topic {topic} cannot be read, is the bag damaged? ({error})"
                ) from error
            if message is None:
                return
            yield message


class BagEvents(TopicEvents):
    """The events of one topic of event arrays."""

    def __init__(self, path: Path, bag: Bag, topic: str) -> None:
        super().__init__(path, bag, topic)
        times: list[int] = []
        bounds: list[tuple[int, int]] = []
        for _, time, data in self._bag.messages(self._topic):
            size, (_, _, t, _) = self._parse(data)
            self._size = size if min(size) > 0 else self._size
            if len(t):
                self._note_bounds(bounds, t, time)
                times.append(time)
        self._times = np.array(times, np.int64)  # ns, of recording
        self._bounds = np.array(bounds, np.int64).reshape(-1, 2)

    def stream(self) -> Iterator[Columns]:
        for _, _, data in self._bag.messages(self._topic):
            yield self._parse(data)[1]

    def _read_messages(self, first: int, last: int) -> list[Columns]:
        # Messages are looked up by their time of recording.
        span = self._times[first:last]
        found = self._bag.messages(self._topic, int(span.min()), int(span.max()) + 1)
        return [self._parse(data)[1] for _, _, data in found]

    def _parse(self, data: bytes) -> tuple[tuple[int, int], Columns]:
        """(height, width), and x, y, t (us), p of a message."""
        try:
            size, rows = _parse_events(data, self._bag.is_ros2)
        except (struct.error, ValueError) as error:
            raise ValueError(
                f"{self.path}: a message of {self._topic} is no event array ({error})"
            ) from error
        t = rows["seconds"].astype(np.int64) * 1_000_000 + rows["nanoseconds"] // 1000
        return size, (rows["x"], rows["y"], t, rows["polarity"])


def _parse_events(data: bytes, ros2: bool) -> tuple[tuple[int, int], np.ndarray]:
    """(height, width) and the records of an event array, header and all."""
    if ros2 and data[1:2] != b"\x01":
        raise ValueError("little-endian CDR expected")
    base = 4 if ros2 else 0  # alignment counts from behind the kind of encoding
    place = base + (8 if ros2 else 12)  # behind the header's time (and, in ROS 1, its number)
    (length,) = struct.unpack_from("<I", data, place)
    place += 4 + length
    if ros2:
        place += (base - place) % 4
    height, width, count = struct.unpack_from("<III", data, place)
    place += 12
    # The last event of CDR has no gap behind it.
    needed = max(0, 16 * count - 3) if ros2 else 13 * count
    if len(data) - place < needed:
        raise ValueError(f"{count} events in {len(data) - place} bytes, {needed} expected")
    if not ros2 or not count:
        return (height, width), np.frombuffer(data, _ROS1_EVENT, count, place)
    padded = data + b"\0"
    first = np.frombuffer(padded, _ROS2_FIRST, 1, place)
    others = np.frombuffer(padded, _ROS2_EVENT, count - 1, place + _ROS2_FIRST.itemsize)
    rows = np.empty(count, _ROS1_EVENT)
    for name in _NAMES:
        rows[name][:1], rows[name][1:] = first[name], others[name]
    return (height, width), rows


class BagFrames(FrameSource):
    """The images of one topic: of the camera of the events where names tell, else the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bag = Bag(path)
        events = (self._bag.topics(EVENT_TYPES) or [""])[0]
        self._topic = _choose_topic(self._bag, IMAGE_TYPES, events)
        stamps, recorded = [], []
        for _, time, data in self._bag.messages(self._topic):
            seconds, nanoseconds = struct.unpack_from("<II", data, _STAMP)
            stamps.append(seconds * 1_000_000 + nanoseconds // 1000)
            recorded.append(time)
        self.times, self._recorded = np.array(stamps, np.int64), recorded

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def read(self, index: int) -> np.ndarray:
        time = self._recorded[index]
        # Several may have been recorded at one time: the one meant is counted from their first.
        among = index - self._recorded.index(time)
        found = list(self._bag.messages(self._topic, time, time + 1))
        connection, _, data = found[among]
        message = self._bag.get().deserialize(data, connection.msgtype)
        if connection.msgtype.endswith("CompressedImage"):
            return decode_image(self.name(index), bytes(message.data))
        channels, conversion = self._encoding(index, message.encoding)
        rows = np.frombuffer(message.data, np.uint8)
        kind: np.dtype = np.dtype("u1")
        if message.encoding.endswith(("16", "16UC1")):
            kind = np.dtype(">u2" if message.is_bigendian else "<u2")
        length = message.width * channels * kind.itemsize
        if message.step < length or len(rows) != message.step * message.height:
            raise ValueError(
                f"{self.name(index)}: {len(rows)} bytes do not hold {message.height} rows of "
                f"{message.width} px in {message.encoding}"
            )
        image = rows.reshape(message.height, message.step)[:, :length]
        image = np.ascontiguousarray(image).view(kind).astype(kind.newbyteorder("="), copy=False)
        if channels > 1:
            image = image.reshape(message.height, message.width, channels)
        return image if conversion is None else cv2.cvtColor(image, conversion)

    def name(self, index: int) -> str:
        return f"{self.path}, {self._topic}, image {index}"

    def _encoding(self, index: int, encoding: str) -> tuple[int, int | None]:
        if encoding not in _ENCODINGS:
            known = ", ".join(_ENCODINGS)
            raise ValueError(f"{self.name(index)}: encoding {encoding!r}, expected one of {known}")
        return _ENCODINGS[encoding]


def _choose_topic(bag: Bag, types: tuple[str, ...], beside: str) -> str:
    """The topic whose name begins most like ``beside``; the others are named in a warning."""
    topics = bag.topics(types)
    if not topics:
        kinds = " or ".join(types)
        raise ValueError(f"{bag.path}: a topic of {kinds} expected, found {bag.describe_topics()}")
    # The longest common beginning, in parts of the name: /davis/left/events, /davis/left/image_raw.
    names = beside.split("/")
    chosen = max(topics, key=lambda topic: _common_parts(topic.split("/"), names))
    if len(topics) > 1:
        warnings.warn(
            f"{bag.path}: topic {chosen} is taken, of {', '.join(topics)}; a bag of the topics "
            "wanted (rosbags-convert --include-topic) chooses others",
            stacklevel=4,
        )
    return chosen


def _common_parts(first: list[str], second: list[str]) -> int:
    """How many parts two names have in common from their beginning on."""
    same = (a == b for a, b in zip(first, second, strict=False))
    return sum(1 for _ in takewhile(bool, same))


class RosBagFormat(Format):
    """Bags of ROS 1, and the directories and single files of ROS 2."""

    name = "ROS bag"
    suffixes = (".bag", ".mcap", ".db3")
    holds = (EVENTS, FRAMES)
    rank = 60

    def recognizes(self, path: Path) -> bool:
        return is_ros2_bag(path) or starts_with(path, b"#ROSBAG")  # others by their suffixes

    def contents(self, path: Path) -> tuple[bool, bool]:
        bag = Bag(path)
        found = bool(bag.topics(EVENT_TYPES)), bool(bag.topics(IMAGE_TYPES))
        if not any(found):
            kinds = ", ".join((*EVENT_TYPES, *IMAGE_TYPES))
            raise ValueError(
                f"{path}: no topic with messages that can be read; found {bag.describe_topics()}; "
                f"expected {kinds}"
            )
        return found

    def open_events(self, path: Path) -> EventFile:
        bag = Bag(path)
        topic = _choose_topic(bag, EVENT_TYPES, "")
        if bag.kind(topic) in PACKET_TYPES:
            return PacketEvents(path, bag, topic)
        return BagEvents(path, bag, topic)

    def open_frames(self, path: Path, times: Path | StatedTimes | None = None) -> FrameSource:
        return BagFrames(path)


FORMAT = RosBagFormat()


def is_ros2_bag(path: Path) -> bool:
    """Whether a directory is a bag of ROS 2."""
    meta = path / "metadata.yaml"
    return meta.is_file() and "rosbag2_bagfile_information" in meta.read_text(errors="replace")
