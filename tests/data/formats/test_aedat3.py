"""AEDAT 3.1: packets packed by hand, events and frames, overflow, triggers, damage."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.data.opening import open_recording
from flowfuse.data.registry import open_event_file

HEIGHT, WIDTH = 180, 240
HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DAVIS240C\r\n#-Source 0: DVS128\r\n"
    b"#Start-Time: 2017-01-30 14:39:45 (TZ+0100)\r\n#!END-HEADER\r\n"
)
OVERFLOW = 1 << 31


def packet(kind, size, records, base=0, source=1, count=None):
    count = len(records) if count is None else count
    head = struct.pack("<hhiiiiii", kind, source, size, 4, base // OVERFLOW, 99, count, 7)
    return head + b"".join(records)


def polarity(x, y, t, p, valid=1):
    return struct.pack("<Ii", x << 17 | y << 2 | p << 1 | valid, t % OVERFLOW)


def frame(image, start, end, valid=1):
    """Gray or colour of 16 bits."""
    channels = 1 if image.ndim == 2 else image.shape[2]
    height, width = image.shape[:2]
    info = channels << 1 | valid
    head = struct.pack("<I8i", info, 1, 2, start % OVERFLOW, end % OVERFLOW, width, height, 0, 0)
    return head + image.astype("<u2").tobytes()


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    t = OVERFLOW - 20_000 + np.sort(rng.integers(0, 40_000, 900))
    columns = rng.integers(0, WIDTH, 900), rng.integers(0, HEIGHT, 900), t, rng.integers(0, 2, 900)
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


def images():
    return np.random.default_rng(1).integers(0, 1 << 16, (2, HEIGHT, WIDTH))


def rows(window):
    columns = (window.x, window.y, window.t, window.p)
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


def write(path, events):
    parts = [HEADER]
    before = [event for event in events if event[2] < OVERFLOW]
    behind = [event for event in events if event[2] >= OVERFLOW]
    invalid = polarity(1000, 1000, 5, 1, valid=0)
    parts.append(packet(1, 8, [polarity(*event) for event in before[:200]]))
    first, second = images()
    parts.append(packet(2, 36 + 2 * first.size, [frame(first, OVERFLOW - 9000, OVERFLOW - 7000)]))
    parts.append(packet(3, 36, [bytes(36), bytes(36)]))  # IMU
    parts.append(packet(1, 8, [invalid, *(polarity(*event) for event in before[200:])]))
    parts.append(packet(1, 8, [invalid], OVERFLOW))
    record = frame(second, OVERFLOW + 1000, OVERFLOW + 1501)
    parts.append(packet(2, 36 + 2 * second.size, [record], OVERFLOW))
    parts.append(packet(1, 8, [polarity(*event) for event in behind], OVERFLOW))
    special = [struct.pack("<Ii", kind << 1 | 1, 5 + kind) for kind in (0, 2, 3, 9)]
    parts.append(packet(0, 8, special, OVERFLOW))
    path.write_bytes(b"".join(parts))
    return path


def test_events_and_frames(tmp_path, events):
    path = write(tmp_path / "a.aedat", events)
    recording = open_recording(path)
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    assert recording.event_range == (events[0][2], events[-1][2])
    exact = events[300][2]
    for t0, t1 in [(0, 2**40), (OVERFLOW - 500, OVERFLOW + 500), (exact, exact + 1), (9, 8)]:
        expected = [event for event in events if t0 <= event[2] < t1]
        assert rows(recording.events(t0, t1)) == expected
    assert recording.frame_times.tolist() == [OVERFLOW - 8000, OVERFLOW + 1250]
    assert recording.exposures[1].tolist() == [OVERFLOW + 1000, OVERFLOW + 1501]
    for index, image in enumerate(images()):
        found = recording.frame(index)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, image)
    file = open_event_file(path)
    assert file.triggers().tolist() == [(OVERFLOW + 7, 1, 0), (OVERFLOW + 8, 0, 0)]
    extent = max(e[1] for e in events) + 1, max(e[0] for e in events) + 1
    assert file.coordinate_extent() == extent


def test_colour_and_frames_that_are_not_valid(tmp_path):
    colour = np.full((4, 5, 4), (0, 257 * 3, 65535, 9))
    records = [frame(colour, 1, 3), frame(colour, 2, 4, valid=0), frame(colour[..., :3], 8, 8)]
    size = len(records[0])
    path = tmp_path / "a.aedat"
    records = [record.ljust(size, b"\0") for record in records]
    path.write_bytes(HEADER + packet(2, size, records))
    recording = open_recording(path)
    assert not recording.has_events and recording.frame_times.tolist() == [2, 8]
    for index in (0, 1):
        expected = np.full((4, 5, 3), (0, 257 * 3, 65535))
        np.testing.assert_array_equal(recording.frame(index), expected)


def test_the_first_source_is_taken(tmp_path):
    path = tmp_path / "a.aedat"
    records = [polarity(1, 2, 3, 1)]
    path.write_bytes(
        HEADER + packet(1, 8, [polarity(5, 5, 9, 0)], source=2) + packet(1, 8, records)
    )
    with pytest.warns(UserWarning, match=r"source 1 \(DAVIS240C\) is taken, of 1, 2"):
        file = open_event_file(path)
    assert rows(file.window(0, 99, HEIGHT, WIDTH)) == [(1, 2, 3, 1)]


def test_a_cut_file_says_what_is_lost(tmp_path, events):
    path = tmp_path / "a.aedat"
    whole = HEADER + packet(1, 8, [polarity(*event) for event in events[:10]])
    path.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match="truncated, 3 of 10 events of the last packet are lost"):
        file = open_event_file(path)
    assert rows(file.window(0, 2**40, HEIGHT, WIDTH)) == events[:7]
    path.write_bytes(whole + bytes(10))
    with pytest.warns(UserWarning, match="truncated, a packet's header is cut off"):
        open_event_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER.replace(b"3.1", b"3.0"), "AEDAT version 3.0, expected 3.1"),
        (packet(1, 0, [b""]), "1 events of type 1 with 0 bytes and overflow 0; is the file dam"),
        (packet(1, 8, [], count=-1), "the packet at byte .* has -1 events of type 1"),
        (packet(2, 8, [bytes(8)]), "1 events of type 2 with 8 bytes"),
        (packet(1, 8, [polarity(1, 1, 9, 1), polarity(1, 1, 8, 1)]), "event 1 has 8 us after 9"),
        (packet(1, 8, [polarity(240, 1, 9, 1)]), r"x\[0\] = 240 lies outside the sensor"),
    ],
)
def test_faults(tmp_path, content, message):
    path = tmp_path / "a.aedat"
    path.write_bytes(content if content.startswith(b"#") else HEADER + content)
    with pytest.raises(ValueError, match=message) as caught:
        open_event_file(path).window(0, 100, HEIGHT, WIDTH)
    assert str(caught.value).startswith(str(path))


def test_faults_of_frames(tmp_path):
    path, image = tmp_path / "a.aedat", np.zeros((2, 3))
    path.write_bytes(HEADER + packet(2, 48, [frame(image, 9, 8)]))
    with pytest.raises(ValueError, match="frame 0: the exposure ends before it starts"):
        open_recording(path)
    path.write_bytes(HEADER + packet(2, 48, [frame(image, 1, 3), frame(image, 1, 3)]))
    with pytest.raises(ValueError, match=r"must increase, frame 1: .* has 2 us after 2"):
        open_recording(path)
    path.write_bytes(HEADER + packet(2, 46, [frame(image, 1, 3)[:-2]]))
    with pytest.raises(ValueError, match="frame 0: 3 x 2 px of 1 channels do not fit its 46 byt"):
        open_recording(path)


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_data_or_an_error_that_names_the_file(tmp_path, data):
    path = tmp_path / "a.aedat"
    image = np.arange(20).reshape(4, 5)
    content = HEADER + packet(1, 8, [polarity(i % 5, i % 4, 9 * i, i % 2) for i in range(12)])
    content += packet(2, 76, [frame(image, 5, 9), frame(image, 15, 19)])
    place = data.draw(st.integers(len(HEADER) - 5, len(content)))
    noise = data.draw(st.binary(max_size=9))
    path.write_bytes(content[:place] + noise + content[place + len(noise) :])
    try:
        recording = open_recording(path)
        recording.events(0, 2**60)
        for index in range(len(recording.frame_times)):
            recording.frame(index)
    except ValueError as error:
        assert str(path) in str(error)
