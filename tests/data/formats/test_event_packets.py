"""EventPackets in ROS bags of every storage, encoded word by word; skipped without rosbags."""

from __future__ import annotations

import shutil
import struct
from itertools import pairwise

import numpy as np
import pytest
from container_cases import HEIGHT, START, WIDTH, check, make_events
from hypothesis import given, settings
from hypothesis import strategies as st
from packet_cases import SENSOR, TOPIC, PacketWriter

from flowfuse.data.formats.event_packets import (
    decode_libcaer,
    decode_libcaer_cmp,
    decode_mono,
    parse_packet,
)
from flowfuse.data.formats.ros_bag import Bag
from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file


def encode(encoding, events, first):
    """The bytes of events, and their base of time in nanoseconds."""
    words = []
    if encoding == "evt3":
        for x, y, t, p in events:
            t -= SENSOR
            words += [0x8000 | t >> 12 & 0xFFF, 0x6000 | t & 0xFFF, y, 0x2000 | p << 11 | x]
        return np.array(words, "<u2").tobytes(), 99
    base = events[0][2] if events else first
    if encoding == "libcaer_cmp":
        for number, (x, y, t, p) in enumerate(events):
            words += [(t - base) >> 12, 0x1000 | (t - base) & 0xFFF, 0x2000 | x]
            back = min(y, number % 8)
            single = [0x3000 | p << 11 | y]
            words += single if number % 2 else [0x4000 | p << 11 | y - back, 0x5000 | 1 << back]
        return np.array(words, "<u2").tobytes(), 1000 * base + 18
    if encoding == "libcaer":
        if len(events) > 100:  # the time overflows within the packet
            base = events[len(events) // 2][2] - (1 << 31)
        pack = [
            struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, (t - base) % (1 << 31))
            for x, y, t, p in events
        ]
        return b"".join(pack), 1000 * base + 18
    base -= SENSOR
    pack = [
        struct.pack("<IHH", 1000 * (t - SENSOR - base), x, y | p << 15) for x, y, t, p in events
    ]
    return b"".join(pack), 1000 * base


ENDS = [0, 1, 3, 3, 400, 400, 650, 900]  # messages of one, no and many events


def write_bag(path, storage, encoding, rows):
    writer = PacketWriter(path, storage)
    for number, (first, last) in enumerate(pairwise(ENDS)):
        part = rows[first:last]
        stamp = part[0][2] if part else rows[first][2]
        data, base = encode(encoding, part, rows[first][2])
        writer.write(stamp, number, base, encoding, data)
    writer.bag.close()
    return path


@pytest.fixture(scope="module")
def rows():
    events = make_events()
    columns = events.x, events.y, events.t, events.p
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(
    ("storage", "encoding"),
    [
        ("bag", "evt3"),
        ("db3", "libcaer"),
        ("mcap", "libcaer_cmp"),
        ("db3", "mono"),
        ("mcap", "evt3"),
    ],
)
def test_packets(tmp_path, rows, storage, encoding):
    path = write_bag(tmp_path / ("a.bag" if storage == "bag" else "a"), storage, encoding, rows)
    recording = open_recording(path)
    assert not recording.has_frames
    check(recording, make_events())
    assert open_event_file(path).coordinate_extent() == (HEIGHT, WIDTH)


def test_a_single_file_and_a_bag_without_its_metadata(tmp_path, rows):
    path = write_bag(tmp_path / "a", "mcap", "libcaer_cmp", rows)
    (file,) = path.glob("*.mcap")
    check(open_recording(file), make_events())
    metadata = path / "metadata.yaml"
    text = metadata.read_text()
    assert "storage_identifier: mcap" in text
    metadata.write_text(text.replace("storage_identifier: mcap", "storage_identifier: ''"))
    with pytest.warns(UserWarning, match=r"metadata.yaml is not used .* but 1 files beside it"):
        check(open_recording(path), make_events())
    shutil.copy(file, tmp_path / "short.mcap")
    (tmp_path / "short.mcap").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"short.mcap: not a readable ROS bag, is it truncated"):
        open_recording(tmp_path / "short.mcap")


def test_messages_that_only_the_index_knows_are_told(tmp_path, monkeypatch, rows):
    path = write_bag(tmp_path / "a", "mcap", "libcaer_cmp", rows)
    monkeypatch.setattr(Bag, "messages", lambda *given: iter(()))  # as of a damaged one
    with pytest.warns(UserWarning, match="0 messages of .* are found, but the bag counts 7"):
        opened = open_event_file(path)
    assert opened.time_range is None and opened.coordinate_extent() == (1, 1)


def test_triggers_are_on_the_clock_of_ros(tmp_path):
    writer = PacketWriter(tmp_path / "a.bag", "bag")
    words = [0x8001, 0x6002, 3, 0x2804, 0xA701, 0x6005, 0xA700]
    writer.write(START, 0, 0, "evt3", np.array(words[:5], "<u2").tobytes())
    writer.write(START + 1, 1, 0, "evt3", np.array(words[5:], "<u2").tobytes())
    writer.bag.close()
    file = open_event_file(tmp_path / "a.bag")
    assert file.triggers().tolist() == [(START, 1, 7), (START + 3, 0, 7)]
    window = file.window(START, START + 1, HEIGHT, WIDTH)
    assert (window.x.tolist(), window.y.tolist(), window.p.tolist()) == ([4], [3], [1])


def test_events_before_the_first_time_are_counted(tmp_path):
    writer = PacketWriter(tmp_path / "a.bag", "bag")
    writer.write(START, 0, 0, "evt3", np.array([3, 0x2004], "<u2").tobytes())
    words = [0x2005, 0x8001, 0x6000, 0x2006]
    writer.write(START + 9, 1, 0, "evt3", np.array(words, "<u2").tobytes())
    writer.bag.close()
    with pytest.warns(UserWarning, match="2 events of .* stand before the first time and are left"):
        file = open_event_file(tmp_path / "a.bag")
    window = file.window(0, 2 * START, HEIGHT, WIDTH)
    assert (window.x.tolist(), window.y.tolist()) == ([6], [3])


def test_lost_messages_and_clocks_that_drift_are_told(tmp_path):
    writer = PacketWriter(tmp_path / "a.bag", "bag")
    for number in range(20):
        words = [0x8000 | number, 0x6000, 3, 0x2004]
        stamp = START + number * 4096 + number * 200  # the camera's clock is 5 % slow
        writer.write(stamp, number + 6 * (number > 3), 0, "evt3", np.array(words, "<u2").tobytes())
    writer.bag.close()
    with pytest.warns(UserWarning) as caught:
        file = open_event_file(tmp_path / "a.bag")
    told = [str(warning.message) for warning in caught]
    assert any(f"6 messages of {TOPIC} are missing by their numbers" in text for text in told)
    assert any("the camera's clock loses 3600 us against that of ROS" in text for text in told)
    # The offset is the median: that of message 9.5.
    assert file.time_range == (START + 1900, START + 1900 + 19 * 4096)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (("evt4", b""), {}, "has encoding 'evt4', expected one of evt3, libcaer"),
        (("evt3", b"abc"), {}, "has 3 bytes of evt3, expected a multiple of 2"),
        (("libcaer", b"abc"), {}, "has 3 bytes of libcaer, expected a multiple of 8"),
        (("evt3", b""), {"big": True}, "is no event packet .*found is_bigendian"),
        (("mono", b""), {}, "has encoding 'mono' in the message recorded at .*'evt3' before"),
        (("evt3", b""), {"size": (3, 4)}, "is 4 x 3 px in the message"),
        (("evt3", struct.pack("<4H", 0x8000, 0x6000, 1, 0x2000)), {}, "must be sorted by time"),
    ],
)
def test_faults_of_packets(tmp_path, fields, options, message):
    writer = PacketWriter(tmp_path / "a.bag", "bag")
    if "expected" not in message:
        data = struct.pack("<4H", 0x8001, 0x6000, 1, 0x2000)
        writer.write(START, 0, 0, "evt3", data)
    writer.write(START + 50_000, 1, 0, *fields, **options)
    writer.bag.close()
    with pytest.raises(ValueError, match=message) as caught:
        open_event_file(tmp_path / "a.bag")
    assert str(caught.value).startswith(str(tmp_path / "a.bag"))


def test_words_by_hand():
    def rows_of(columns):
        return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]

    words = [
        0x2005, 0x3802,  # ON at (5, 2), at the base itself
        0x0001, 0x1003, 0x4807, 0x5081, 0x5001,  # ON in rows 7, 14 and 15, 4099 us later
        0x2006, 0x3000,  # OFF at (6, 0)
    ]  # fmt: skip
    found = decode_libcaer_cmp(np.array(words, "<u2").tobytes(), 5_000_999)
    assert rows_of(found) == [
        (5, 2, 5000, 1), (5, 7, 9099, 1), (5, 14, 9099, 1), (5, 15, 9099, 1), (6, 0, 9099, 0),
    ]  # fmt: skip
    data = struct.pack("<IiIi", 9 << 17 | 4 << 2 | 2, 2**31 - 1, 8 << 17 | 3 << 2, 5)
    assert rows_of(decode_libcaer(data, 2000)) == [(9, 4, 2**31 + 1, 1), (8, 3, 2**31 + 7, 0)]
    data = struct.pack("<IHH", 3999, 9, 0x8004)
    assert rows_of(decode_mono(data, 1)) == [(9, 4, 4, 1)]
    for decode in (decode_libcaer, decode_libcaer_cmp, decode_mono):
        assert rows_of(decode(b"", 5)) == []


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=120), ros2=st.booleans())
def test_any_message_is_a_packet_or_a_named_fault(data, ros2):
    try:
        packet = parse_packet(data, ros2)
    except (ValueError, struct.error):
        return
    assert len(packet.data) <= len(data)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=128).map(lambda data: data[: len(data) // 8 * 8]))
def test_any_words_give_events(data):
    for decode in (decode_libcaer, decode_libcaer_cmp, decode_mono):
        x, y, t, p = decode(data, 2**50)
        assert len(x) == len(y) == len(t) == len(p)
        assert set(p.tolist()) <= {0, 1} and (x >= 0).all() and (y >= 0).all()
