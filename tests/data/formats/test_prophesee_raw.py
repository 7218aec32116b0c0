"""Prophesee .raw: words by hand, blocks of any size, an independent encoder, faults."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.data.formats.prophesee_raw import DecoderState, RawEvents, decode_evt2, decode_evt3
from flowfuse.data.opening import open_recording

HEADERS = {
    "2.1": b"% format EVT21;endianness=little;height=480;width=640\n% end\n",
    "2.1 legacy": b"% evt 2.1\n% geometry 640x480\n% end\n",
    "4": b"% format EVT4;height=480;width=640\n% end\n",
    "2": b"% date 2024-01-01 10:00:00\n% evt 2.0\n% geometry 640x480\n% end\n",
    "3": b"% date 2024-01-01 10:00:00\n% evt 3.0\n% format EVT3;height=480;width=640\n% end\n",
}


def rows(columns):
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


def test_evt2_words_by_hand():
    words = [
        0x1 << 28 | 5 << 11 | 7,  # an event before any time: left out
        0x8 << 28 | 3,  # upper bits 3: 192 us
        0x0 << 28 | 10 << 22 | 100 << 11 | 200,  # OFF at 202 us
        0x1 << 28 | 63 << 22 | 2047 << 11 | 0,  # ON at 255 us
        0xA << 28 | 123,  # a trigger
        0x8 << 28 | 4,
        0x1 << 28 | 0 << 22 | 1 << 11 | 2,  # 256 us
    ]
    columns, state = decode_evt2(np.array(words, np.uint32), DecoderState())
    assert rows(columns) == [(100, 200, 202, 0), (2047, 0, 255, 1), (1, 2, 256, 1)]
    assert (state.high, state.loops) == (4, 0)
    # The 28 upper bits wrap around.
    words = [0x8 << 28 | 0xFFFFFFF, 0x1 << 28, 0x8 << 28 | 0, 0x1 << 28]
    columns, state = decode_evt2(np.array(words, np.uint32), state)
    assert columns[2].tolist() == [0xFFFFFFF << 6, 1 << 34] and state.loops == 1


EVT3_WORDS = [
    0x2000 | 9,  # an event before any time: left out
    0x8000 | 2,  # 8192 us
    0x6000 | 5,
    0x0000 | 300,  # row 300
    0x2000 | 0x800 | 20,  # ON at column 20, 8197 us
    0x2000 | 21,  # OFF
    0x3000 | 0x800 | 100,  # vectors of ON from column 100 on
    0x4000 | 0b100000000011,  # 100, 101, 111
    0x5000 | 0xF00 | 0b10000001,  # 112, 119: the upper four bits mean nothing
    0xE000 | 77,  # an extension
    0x4000 | 1,  # 120
    0x8000 | 2,  # repeated: the lower bits stay
    0x2000 | 1,  # 8197 us
    0x8000 | 3,  # the lower bits start at 0
    0x0000 | 301,
    0x2000 | 2,  # 12288 us
    0x8000 | 0xFFF,
    0x8000 | 1,  # wrapped around
    0x6000 | 4,
    0x2000 | 3,
]
EVT3_EVENTS = [
    (20, 300, 8197, 1),
    (21, 300, 8197, 0),
    (100, 300, 8197, 1),
    (101, 300, 8197, 1),
    (111, 300, 8197, 1),
    (112, 300, 8197, 1),
    (119, 300, 8197, 1),
    (120, 300, 8197, 1),
    (1, 300, 8197, 0),
    (2, 301, 12288, 0),
    (3, 301, (1 << 24) + 4096 + 4, 0),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_evt3_words_by_hand_in_blocks_of_any_size(size):
    state, found = DecoderState(), []
    words = np.array(EVT3_WORDS, np.uint16)
    for first in range(0, len(words), size):
        columns, state = decode_evt3(words[first : first + size], state)
        found += rows(columns)
    assert found == EVT3_EVENTS
    assert rows(decode_evt3(words[:0], state)[0]) == []


def encode(kind, events):
    """Encode sorted events (x, y, t, p) one by one: each states all of its time and place."""
    words = []
    for number, (x, y, t, p) in enumerate(events):
        place = (t & 63) << 22 | x << 11 | y
        if kind == "2":
            words += [0x8 << 28 | t >> 6, p << 28 | place]
        elif kind == "3":
            words += [0x8000 | t >> 12 & 0xFFF, 0x6000 | t & 0xFFF, y, 0x2000 | p << 11 | x]
        elif kind == "4":
            words.append(0xE << 28 | t >> 6)
            # Single events and vectors of one pixel by turns, the latter from a column before it.
            back = min(x, number % 32)
            single = [(0xA | p) << 28 | place]
            words += single if number % 2 else [(0xC | p) << 28 | place - (back << 11), 1 << back]
        else:
            back = min(x, number % 32)
            halves = [(0x8 << 28 | t >> 6, 0), (p << 28 | place - (back << 11), 1 << back)]
            swapped = kind == "2.1 legacy"
            words += [low << 32 | up if swapped else up << 32 | low for up, low in halves]
    width = {"2": 4, "3": 2, "4": 4}.get(kind, 8)
    return b"".join(word.to_bytes(width, "little") for word in words)


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    t = 5000 + np.sort(rng.integers(0, 40_000_000, 3000))  # more than two wraps of EVT 3.0
    columns = rng.integers(0, 640, 3000), rng.integers(0, 480, 3000), t, rng.integers(0, 2, 3000)
    return [tuple(int(v) for v in row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("kind", HEADERS)
def test_windows_are_slices_of_the_whole(tmp_path, events, kind):
    path = tmp_path / "events.raw"
    path.write_bytes(HEADERS[kind] + encode(kind, events))
    recording = open_recording(path)
    assert (recording.height, recording.width) == (480, 640) and not recording.has_frames
    assert recording.event_range == (events[0][2], events[-1][2])
    small = RawEvents(path, block_bytes=1000)
    extent = max(e[1] for e in events) + 1, max(e[0] for e in events) + 1
    assert small.coordinate_extent() == extent
    exact = events[700][2]
    for t0, t1 in [(0, 10**9), (exact, exact + 1), (exact, exact), (2**24 - 9, 2**24 + 90_000)]:
        window = small.window(t0, t1, 480, 640)
        expected = [e for e in events if t0 <= e[2] < t1]
        assert rows((window.x, window.y, window.t, window.p)) == expected
        assert len(recording.events(t0, t1)) == len(expected)


def test_another_decoder_of_evt2_agrees(tmp_path, events):
    expelliarmus = pytest.importorskip("expelliarmus")
    path = tmp_path / "events.raw"
    path.write_bytes(HEADERS["2"] + encode("2", events))
    other = expelliarmus.Wizard(encoding="evt2").read(str(path))
    assert rows(other[name] for name in "xytp") == events


def test_another_decoder_of_evt3_agrees(tmp_path, events):
    evt3 = pytest.importorskip("evt3")
    path = tmp_path / "events.raw"
    # Up to the first wrap, which evt3 finds only in streams without pauses, as cameras send them;
    # and the words by hand up to a repeated time, which sets back its lower bits.
    first = [event for event in events if event[2] < 1 << 24]
    words = np.array(EVT3_WORDS[:11], np.uint16).tobytes()
    for content, expected in ((encode("3", first), first), (words, EVT3_EVENTS[:8])):
        path.write_bytes(HEADERS["3"] + content)
        other = evt3.decode_file(str(path))
        assert rows(np.asarray(getattr(other, name)) for name in "xytp") == expected


@pytest.mark.parametrize("kind", HEADERS)
def test_a_word_cut_off_at_the_end_is_told(tmp_path, events, kind):
    path = tmp_path / "events.raw"
    content = HEADERS[kind] + encode(kind, events[:5])
    width = {"2": 4, "3": 2, "4": 4}.get(kind, 8)
    path.write_bytes(content[:-1])
    with pytest.warns(UserWarning, match=rf"events.raw: .* last word has {width - 1} of {width} b"):
        file = RawEvents(path)
    assert file.time_range == (events[0][2], events[3][2])
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RawEvents(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a Prophesee .raw file, it has no header"),
        (b"\x00\x01\x02", "not a Prophesee .raw file"),
        (b"% evt 3.0", "a header line without an end; is the file truncated"),
        (b"% evt 2.2\n% end\n", r"encoding 'EVT2.2', expected EVT2, EVT21, EVT3 or EVT4"),
        (b"% format EVT21;endianness=big\n% end\n", "endianness 'big', expected little"),
        (b"% format HISTO3D;height=1;width=2\n% end\n", "encoding 'HISTO3D'"),
        (b"% date today\n% end\n", r"encoding 'EVT\?'"),
        (b"% evt 3.0\n% endianness big\n% end\n", "endianness 'big', expected little"),
    ],
)
def test_faults_of_headers(tmp_path, content, message):
    path = tmp_path / "events.raw"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        RawEvents(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.filterwarnings("ignore:.*its last word has")
@pytest.mark.parametrize("first", [0x8125, 0x8A25, 0x8025])
def test_a_first_word_that_begins_like_a_header_line(tmp_path, first):
    words = [first, 0x6001, 0x0003, 0x2000 | 0x800 | 7]
    header = b"% evt 3.0\n% geometry 640x480\n"
    path = tmp_path / "events.raw"
    for end in (b"", b"\n"):  # a byte 0x0a may follow somewhere
        path.write_bytes(header + np.array(words, "<u2").tobytes() + end)
        events = open_recording(path).events(0, 2**40)
        assert (events.x.tolist(), events.y.tolist()) == ([7], [3])
        assert events.t.tolist() == [(words[0] & 0xFFF) << 12 | 1]


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (b"% plugin_name hal_plugin_gen3_fx3", (480, 640)),
        (b"% plugin_name hal_plugin_imx636_evk4", (720, 1280)),
        (b"% sensor_generation 4.1", (720, 1280)),
        (b"% sensor_name GenX320", (320, 320)),
    ],
)
def test_the_sensor_of_a_header_without_geometry(tmp_path, line, size):
    path = tmp_path / "events.raw"
    path.write_bytes(b"% evt 2.0\n" + line + b"\n% end\n" + encode("2", [(1, 1, 500, 1)]))
    recording = open_recording(path)
    assert (recording.height, recording.width) == size


def test_an_overflow_that_may_be_a_reset_is_told(tmp_path):
    """EVT 3.0 counts to 16.8 s: after a pause, a new recording looks like an overflow."""
    path = tmp_path / "events.raw"
    events = [(1, 1, time, 1) for time in (14_000_000, 16_700_000, 17_000_000)]
    path.write_bytes(HEADERS["3"] + encode("3", events))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 0.3 s without events are none
        assert open_recording(path).event_range == (14_000_000, 17_000_000)
    path.write_bytes(HEADERS["3"] + encode("3", [events[0], events[2]]))
    with pytest.warns(
        UserWarning, match=r"at event 1 the clock of 24 bits goes back, .* split the"
    ):
        assert open_recording(path).event_range == (14_000_000, 17_000_000)


def test_faults_of_events(tmp_path):
    path = tmp_path / "events.raw"
    path.write_bytes(HEADERS["2"] + encode("2", [(1, 1, 500, 1), (2, 2, 400, 0)]))
    with pytest.raises(
        ValueError, match=r"has 400 us after 500 us; 1 of 2 events .* --repair drops it"
    ):
        open_recording(path).events(0, 1000)
    path.write_bytes(HEADERS["2"] + encode("2", [(1, 1, 500, 1), (700, 2, 600, 0)]))
    with pytest.raises(ValueError, match=r"x\[1\] = 700 lies outside the sensor"):
        open_recording(path).events(0, 1000)
    path.write_bytes(HEADERS["3"])
    assert open_recording(path).event_range is None


@pytest.mark.filterwarnings("ignore:.*before the first time", "ignore:.*its last word has")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(sorted(HEADERS)),
    data=st.binary(max_size=200),
    block=st.sampled_from([8, 16, 64]),
)
def test_any_words_give_events_or_a_value_error(tmp_path, kind, data, block):
    path = tmp_path / "events.raw"
    path.write_bytes(HEADERS[kind] + data)
    try:
        whole = RawEvents(path).window(0, 2**60, 2048, 2080)
        parts = RawEvents(path, block_bytes=block).window(0, 2**60, 2048, 2080)
        triggers = RawEvents(path).triggers()
        np.testing.assert_array_equal(triggers, RawEvents(path, block_bytes=block).triggers())
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert rows((whole.x, whole.t)) == rows((parts.x, parts.t))
