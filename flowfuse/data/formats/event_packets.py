"""Events in messages event_camera_msgs/EventPacket: what a topic of a ROS bag has.

A message holds a stretch of a camera's stream in one of these encodings::

    evt3         Prophesee EVT 3.0; the state of the decoder goes on from message to message
    libcaer      64-bit events of iniVation cameras, behind the base of their time
    libcaer_cmp  16-bit words like those of EVT 3.0, with x and y exchanged; each message for itself
    mono         64-bit events with nanoseconds since the base of their time

Messages are indexed by one pass over the topic; then a time interval reads those that it touches.

Times of ``evt3`` and ``mono`` are the camera's own, which mostly begin at 0. They are moved to the
clock of ROS by one constant for the whole topic: the median, over all messages, of the stamp of the
header minus the time of the first event.

Source of the encodings: the description and the public decoders of ros-event-camera.
"""

from __future__ import annotations

import struct
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowfuse.data.formats import prophesee_words
from flowfuse.data.formats.base import EventFile, UnsortedError, off_sensor_hint
from flowfuse.data.formats.prophesee_raw import decode_evt3
from flowfuse.data.formats.prophesee_words import Columns, DecoderState, hold
from flowfuse.events import Events

# The second is the name of the same message before 2023.
PACKET_TYPES = ("event_camera_msgs/msg/EventPacket", "event_array_msgs/msg/EventArray")
_OWN_CLOCK = ("evt3", "mono")  # encodings whose times are the camera's own
_MOST_DRIFT = 1000  # us between the clocks, from the beginning to the end of a topic
_LIBCAER_WRAP = 1 << 31  # us


@dataclass(frozen=True)
class Packet:
    """The fields of a message.

    Attributes:
        stamp: of the header, microseconds.
        height, width: of the sensor, px.
        number: counts the messages of the camera.
        time_base: of the events, nanoseconds.
        encoding: as above.
        data: the events.
    """

    stamp: int
    height: int
    width: int
    number: int
    time_base: int
    encoding: str
    data: bytes


def parse_packet(message: bytes, ros2: bool) -> Packet:
    """Parse a message as ROS 1 or as ROS 2 (CDR) writes it.

    Raises:
        ValueError, struct.error: it is none, or is cut off.
    """
    reader = _Fields(message, ros2)
    if not ros2:
        reader.number("I")  # the header's own count
    seconds, nanoseconds = reader.number("I"), reader.number("I")
    reader.octets()  # frame_id
    height, width = reader.number("I"), reader.number("I")
    number, time_base = reader.number("Q"), reader.number("Q")
    encoding = reader.octets().rstrip(b"\0").decode("latin-1")
    if reader.number("B"):
        raise ValueError("little-endian events expected, found is_bigendian")
    data = reader.octets()
    stamp = seconds * 1_000_000 + nanoseconds // 1000
    return Packet(stamp, height, width, number, time_base, encoding, data)


class _Fields:
    """The fields of a message, one after the other; CDR aligns numbers to their size."""

    def __init__(self, message: bytes, ros2: bool) -> None:
        if ros2 and message[1:2] != b"\x01":
            raise ValueError("little-endian CDR expected")
        # Alignment counts from behind the kind of encoding.
        self._message, self._aligned = message[4:] if ros2 else message, ros2
        self._place = 0

    def number(self, kind: str) -> int:
        size = struct.calcsize(kind)
        if self._aligned:
            self._place += -self._place % size
        (value,) = struct.unpack_from(f"<{kind}", self._message, self._place)
        self._place += size
        return int(value)

    def octets(self) -> bytes:
        length = self.number("I")
        found = self._message[self._place : self._place + length]
        if len(found) < length:
            raise ValueError(f"{length} bytes expected, found {len(found)}")
        self._place += length
        return found


def decode_libcaer(data: bytes, time_base: int) -> Columns:
    """Decode 64-bit events of iniVation cameras.

    Bits 63-32 are the time in microseconds, after 2^31 again 0; 31-17 the column, 16-2 the row, 1
    the polarity.

    Args:
        data: a multiple of 8 bytes.
        time_base: nanoseconds.

    Returns:
        x, y, t, p, t int64 microseconds.
    """
    rows = np.frombuffer(data, [("word", "<u4"), ("t", "<i4")])
    low, word = rows["t"].astype(np.int64), rows["word"]
    # A step back by more than half of the range is an overflow; a smaller one is not.
    wraps = np.cumsum(np.diff(low, prepend=low[:1]) < -_LIBCAER_WRAP // 2)
    t = (time_base + 1000 * (low + wraps * _LIBCAER_WRAP)) // 1000
    x, y = (word >> 17).astype(np.int32), (word >> 2 & 0x7FFF).astype(np.int32)
    return x, y, t, (word >> 1 & 1).astype(np.uint8)


def decode_mono(data: bytes, time_base: int) -> Columns:
    """Decode 64-bit events: bit 63 polarity, 62-48 row, 47-32 column, 31-0 nanoseconds.

    Args and returns as of :func:`decode_libcaer`.
    """
    rows = np.frombuffer(data, [("t", "<u4"), ("x", "<u2"), ("y", "<u2")])
    y, t = rows["y"], (time_base + rows["t"].astype(np.int64)) // 1000
    return rows["x"].astype(np.int32), (y & 0x7FFF).astype(np.int32), t, (y >> 15).astype(np.uint8)


def decode_libcaer_cmp(data: bytes, time_base: int) -> Columns:
    """Decode 16-bit words, each message for itself.

    Bits 15-12 are the type. 0 and 1: upper and lower 12 bits of the time in microseconds. 2: bits
    10-0 are the column. 3: an event, bit 11 its polarity, bits 10-0 its row. 4: the same of the
    vectors that follow. 5: a vector of 8 pixels from that row on; the next one starts behind it.

    Args:
        data: a multiple of 2 bytes.
        time_base: nanoseconds.

    Returns:
        As of :func:`decode_libcaer`.
    """
    words = np.frombuffer(data, "<u2")
    if not len(words):
        none = np.empty(0, np.int32)
        return none, none, np.empty(0, np.int64), np.empty(0, np.uint8)
    kind, value = words >> 12, (words & 0xFFF).astype(np.int64)
    since = hold(kind == 0, value, 0) << 12 | hold(kind == 1, value, 0)
    t = (time_base + 1000 * since) // 1000
    x = hold(kind == 2, value & 0x7FF, 0)
    is_base, length = kind == 4, np.where(kind == 5, 8, 0)
    polarity = hold(is_base, value >> 11, 0)
    passed = np.cumsum(length)
    base = hold(is_base, (value & 0x7FF) - passed, 0) + passed - length
    fired = np.where(kind == 3, 1, np.where(kind == 5, value & 0xFF, 0))
    row, bit = np.nonzero(fired[:, None] >> np.arange(8) & 1)
    single = kind[row] == 3
    y = np.where(single, value[row] & 0x7FF, base[row] + bit)
    p = np.where(single, value[row] >> 11, polarity[row])
    return x[row].astype(np.int32), y.astype(np.int32), t[row], p.astype(np.uint8)


_STATELESS = {
    "libcaer": (8, decode_libcaer),
    "libcaer_cmp": (2, decode_libcaer_cmp),
    "mono": (8, decode_mono),
}


class TopicEvents(EventFile):
    """The events of one topic of a bag, indexed by its messages.

    Args:
        path: of the bag.
        bag: a :class:`flowfuse.data.formats.ros_bag.Bag`, open.
        topic: of events.
    """

    def __init__(self, path: Path, bag: Any, topic: str) -> None:
        super().__init__(path)
        self._bag, self._topic = bag, topic
        self._size: tuple[int, int] | None = None  # height, width
        self._fault: str | None = None
        self._bounds = np.empty((0, 2), np.int64)  # us, first and last event of each message

    @abstractmethod
    def _read_messages(self, first: int, last: int) -> list[Columns]:
        """x, y, t, p of at least the rows [first, last) of ``_bounds``; at least one."""

    def _note_bounds(self, bounds: list[tuple[int, int]], t: np.ndarray, recorded: int) -> None:
        """Note the times (us) of the next message, which has events, and whether they go back."""
        unsorted = (t[1:] < t[:-1]).any() or (bounds and t[0] < bounds[-1][1])
        if unsorted and self._fault is None:
            self._fault = (
                f"{self.path}: the events of {self._topic} must be sorted by time; the message "
                f"recorded at {recorded} ns, {t[0]} to {t[-1]} us, is not, or begins before "
                "the one before it ends"
            )
        bounds.append((int(t[0]), int(t[-1])))

    def check_order(self) -> None:
        if self._fault is not None:
            raise UnsortedError(self._fault)

    @property
    def time_range(self) -> tuple[int, int] | None:
        return (int(self._bounds[0, 0]), int(self._bounds[-1, 1])) if len(self._bounds) else None

    @property
    def sensor_size(self) -> tuple[int, int] | None:
        return self._size

    def coordinate_extent(self) -> tuple[int, int]:
        largest = np.zeros(2, int)
        for x, y, _, _ in self.stream():
            if len(x):
                largest = np.maximum(largest, (x.max(), y.max()))
        return int(largest[1]) + 1, int(largest[0]) + 1

    def window(self, t0: int, t1: int, height: int, width: int) -> Events:
        first = int(np.searchsorted(self._bounds[:, 1], t0, side="left"))
        last = int(np.searchsorted(self._bounds[:, 0], t1, side="left"))
        if first >= last:
            return Events.empty(height, width)
        parts = self._read_messages(first, last)
        x, y, t, p = (np.concatenate(column) for column in zip(*parts, strict=True))
        inside = (t >= t0) & (t < t1)
        x, y, t, p = (column[inside] for column in (x, y, t, p))
        try:
            return Events(x, y, t, p, height=height, width=width)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: {error} (topic {self._topic}, indices count from the first event at "
                f"or after {t0} us){off_sensor_hint(x, y, height, width)}"
            ) from error


class PacketEvents(TopicEvents):
    """The events of one topic of EventPackets.

    Args:
        path: of the bag.
        bag: a :class:`flowfuse.data.formats.ros_bag.Bag`, open.
        topic: of EventPackets.

    Raises:
        ValueError: a message is damaged; names it.
    """

    def __init__(self, path: Path, bag: Any, topic: str) -> None:
        super().__init__(path, bag, topic)
        self._recorded: list[int] = []  # ns, of each message
        self._states: list[DecoderState] = []  # before it
        self._holding: list[int] = []  # the messages with events
        self._encoding = ""
        bounds: list[tuple[int, int]] = []
        delays: list[int] = []
        state, number, missing, untimed = DecoderState(), None, 0, 0
        for _, time, message in bag.messages(topic):
            packet = self._parse(message, time)
            if number is not None and packet.number > number + 1:
                missing += packet.number - number - 1
            number = packet.number
            self._recorded.append(time)
            self._states.append(state)
            (_, _, t, _), after = self._decode(packet, time, state)
            if packet.encoding == "evt3":
                words = np.frombuffer(packet.data, "<u2")
                untimed += prophesee_words.count_untimed(decode_evt3, words, state)
            state = after
            if len(t):
                self._note_bounds(bounds, t, time)
                self._holding.append(len(self._recorded) - 1)
                delays.append(packet.stamp - int(t[0]))
        if untimed:
            warnings.warn(
                f"{path}: {untimed} events of {topic} stand before the first time and are left out",
                stacklevel=5,
            )
        if missing:
            warnings.warn(
                f"{path}: {missing} messages of {topic} are missing by their numbers, and their "
                "events with them",
                stacklevel=5,
            )
        if len(self._recorded) < bag.count(topic):
            warnings.warn(
                f"{path}: {len(self._recorded)} messages of {topic} are found, but the bag counts "
                f"{bag.count(topic)}; is it damaged?",
                stacklevel=5,
            )
        self._offset = self._find_offset(delays)
        self._bounds = np.array(bounds, np.int64).reshape(-1, 2) + self._offset

    def stream(self) -> Iterator[Columns]:
        return self._columns(0, len(self._recorded))

    def _read_messages(self, first: int, last: int) -> list[Columns]:
        return list(self._columns(self._holding[first], self._holding[last - 1] + 1))

    def triggers(self) -> np.ndarray:
        if self._encoding != "evt3":
            return super().triggers()
        parts = [np.empty(0, prophesee_words.TRIGGER)]
        messages = self._bag.messages(self._topic)
        for (_, time, message), state in zip(messages, self._states, strict=True):
            words = np.frombuffer(self._parse(message, time).data, "<u2")
            parts.append(prophesee_words.triggers_evt3(words, state))
        found = np.concatenate(parts)
        found["t"] += self._offset
        return found

    def _columns(self, first: int, last: int) -> Iterator[Columns]:
        """x, y, t, p of each of the messages [first, last), and of a few beside."""
        span = self._recorded[first:last]
        if not span:
            return
        # Several may have been recorded at one time: reading begins with their first.
        begin = self._recorded.index(span[0])
        state = self._states[begin]
        for _, time, message in self._bag.messages(self._topic, span[0], span[-1] + 1):
            (x, y, t, p), state = self._decode(self._parse(message, time), time, state)
            yield x, y, t + self._offset, p

    def _parse(self, message: bytes, time: int) -> Packet:
        try:
            packet = parse_packet(message, self._bag.is_ros2)
        except (struct.error, ValueError) as error:
            raise ValueError(
                f"{self.path}: the message of {self._topic} recorded at {time} ns is no event "
                f"packet ({error})"
            ) from error
        if packet.encoding != "evt3" and packet.encoding not in _STATELESS:
            raise ValueError(
                f"{self.path}: {self._topic} has encoding {packet.encoding!r}, expected one of "
                f"evt3, {', '.join(_STATELESS)}"
            )
        if self._encoding and packet.encoding != self._encoding:
            raise ValueError(
                f"{self.path}: {self._topic} has encoding {packet.encoding!r} in the message "
                f"recorded at {time} ns, {self._encoding!r} before"
            )
        self._encoding = packet.encoding
        if min(packet.height, packet.width) > 0:
            size = packet.height, packet.width
            if self._size not in (None, size):
                raise ValueError(
                    f"{self.path}: {self._topic} is {size[1]} x {size[0]} px in the message "
                    f"recorded at {time} ns, {self._size} (height, width) before"
                )
            self._size = size
        return packet

    def _decode(
        self, packet: Packet, time: int, state: DecoderState
    ) -> tuple[Columns, DecoderState]:
        width = 2 if packet.encoding == "evt3" else _STATELESS[packet.encoding][0]
        if len(packet.data) % width:
            raise ValueError(
                f"{self.path}: the message of {self._topic} recorded at {time} ns has "
                f"{len(packet.data)} bytes of {packet.encoding}, expected a multiple of {width}"
            )
        if packet.encoding == "evt3":
            return decode_evt3(np.frombuffer(packet.data, "<u2"), state)
        return _STATELESS[packet.encoding][1](packet.data, packet.time_base), state

    def _find_offset(self, delays: list[int]) -> int:
        """What moves the camera's own times to the clock of ROS, microseconds."""
        if self._encoding not in _OWN_CLOCK or not delays:
            return 0
        part = -(-len(delays) // 10)
        drift = float(np.median(delays[-part:]) - np.median(delays[:part]))
        if abs(drift) > _MOST_DRIFT and self._fault is None:
            warnings.warn(
                f"{self.path}: from the beginning to the end of {self._topic}, the camera's clock "
                f"{'loses' if drift > 0 else 'gains'} {abs(drift):.0f} us against that of ROS; one "
                "constant offset is used",
                stacklevel=6,
            )
        return round(float(np.median(delays)))
