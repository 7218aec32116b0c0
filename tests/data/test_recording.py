"""Plain recordings: windows of every format, frames, truth, and a named error for each fault."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import warnings

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfuse.data.formats.event_writer import write_events
from flowfuse.data.formats.frames import read_image
from flowfuse.data.formats.hdf5_events import Hdf5Events
from flowfuse.data.formats.text import TextEvents, TextIndex
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.registry import open_event_file
from flowfuse.events import Events

HEIGHT, WIDTH, OFFSET = 12, 16, 1_000_000
FORMATS = [
    "flat.h5",
    "root.h5",
    "seconds.h5",
    "dsec.h5",
    "stored.npz",
    "packed.npz",
    "blank.txt",
    "comma.csv",
]


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    count = 3000
    t = OFFSET + np.sort(rng.integers(0, 40_000, count))  # many events share a time
    x, y = rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count)
    return Events(
        x.astype(np.uint16),
        y.astype(np.uint16),
        t,
        rng.integers(0, 2, count),
        height=HEIGHT,
        width=WIDTH,
    )


def write_dsec(path, events, offset):
    """The layout and the codec of DSEC."""
    import hdf5plugin

    t = events.t - offset
    codec = {"chunks": (256,), **hdf5plugin.Blosc(cname="zstd")}
    with h5py.File(path, "w") as file:
        for name, values, kind in [
            ("x", events.x, "u2"),
            ("y", events.y, "u2"),
            ("t", t, "u4"),
            ("p", events.p, "u1"),
        ]:
            file.create_dataset(f"events/{name}", data=values.astype(kind), **codec)
        file["ms_to_idx"] = np.searchsorted(t, np.arange(t[-1] // 1000 + 1) * 1000).astype("u8")
        file["t_offset"] = offset


def write_format(path, events):
    columns = {"x": events.x, "y": events.y, "t": events.t, "p": events.p}
    if path.name == "flat.h5":
        write_events(path, events)
    elif path.name == "dsec.h5":
        write_dsec(path, events, OFFSET)
    elif path.suffix == ".h5":
        seconds = path.name == "seconds.h5"
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values / 1e6 if seconds and name == "t" else values
    elif path.suffix == ".npz":
        save = np.savez if path.name == "stored.npz" else np.savez_compressed
        save(path, **{**columns, "t": events.t if path.name == "stored.npz" else events.t / 1e6})
    else:
        mark = "," if path.suffix == ".csv" else " "
        lines = ["timestamp,x,y,polarity" if mark == "," else "# a comment"]
        lines += [
            f"{t / 1e6:.6f}{mark}{x}{mark}{y}{mark}{p}"
            for x, y, t, p in zip(events.x, events.y, events.t, events.p, strict=True)
        ]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.filterwarnings("ignore:.*is compressed and is unpacked")
@pytest.mark.parametrize("name", FORMATS)
def test_windows_are_slices_of_the_whole(tmp_path, events, name):
    file = open_event_file(write_format(tmp_path / name, events))
    if isinstance(file, TextEvents):
        file._index.block_bytes = 500  # windows then span several blocks
    assert file.time_range == (events.t[0], events.t[-1])
    assert file.coordinate_extent() == (HEIGHT, WIDTH)
    exact = int(events.t[700])  # a window that starts and ends on events
    for t0, t1 in [
        (0, 2 * OFFSET),
        (OFFSET + 5000, OFFSET + 15000),
        (exact, exact + 1),
        (exact, exact),
        (exact, exact - 9),
        (0, OFFSET),
        (2 * OFFSET, 3 * OFFSET),
        (exact, int(events.t[900])),
        (OFFSET + 39_500, OFFSET + 60_000),
    ]:
        window, expected = file.window(t0, t1, HEIGHT, WIDTH), events.slice_time(t0, t1)
        for column in "xytp":
            np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))
    assert os.listdir(tmp_path) == [name]  # nothing is written beside the user's file


@pytest.mark.parametrize("name", ["flat.h5", "dsec.h5"])
def test_hdf5_windows_read_their_chunks_only(tmp_path, monkeypatch, name):
    count, chunk = 200_000, 1 << 12
    t = np.arange(count) * 5  # 200 events per millisecond
    with h5py.File(tmp_path / name, "w") as file:
        for column, values in {"x": t % WIDTH, "y": t % HEIGHT, "t": t, "p": t % 2}.items():
            file.create_dataset(column, data=values, chunks=(chunk,))
        if name == "dsec.h5":
            file["ms_to_idx"] = np.arange(0, count, 200)
    read, original = [], h5py.Dataset.__getitem__

    def get(self, key, *rest):
        value = original(self, key, *rest)
        read.append(np.size(value))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", get)
    events = open_event_file(tmp_path / name)
    assert sum(read) < 10
    for _ in range(2):
        read.clear()
        window = events.window(500_300, 502_300, HEIGHT, WIDTH)
        assert window.t[0] == 500_300 and len(window) == 400
        if name == "dsec.h5":  # t of whole milliseconds and of one event on each side
            assert sum(read) == 3 * 400 + 600 + 2 + 4
        else:  # t of a block of four chunks; the first time the beginnings of log2(13) blocks
            assert 0 <= sum(read) - 3 * 400 - 4 * chunk <= 4
    assert name == "dsec.h5" or sum(read) == 3 * 400 + 4 * chunk


@pytest.mark.parametrize("name", ["flat.h5", "dsec.h5", "short.h5", "stored.npz"])
def test_windows_across_chunks_and_blocks(tmp_path, monkeypatch, events, name):
    monkeypatch.setattr("flowfuse.data.formats.block_times._LEAST_BLOCK", 100)
    path = tmp_path / name
    if name == "flat.h5":
        with h5py.File(path, "w") as file:
            for column in "xytp":
                file.create_dataset(column, data=getattr(events, column), chunks=(64,))
    elif name == "short.h5":  # a table that ends before the events do
        write_dsec(path, events, OFFSET)
        with h5py.File(path, "a") as file:
            table = file["ms_to_idx"][:11]
            del file["ms_to_idx"]
            file["ms_to_idx"] = table
    else:
        write_format(path, events)
    file = open_event_file(path)
    borders = events.t[[0, 63, 64, 127, 128, 255, 256, 1000, 2999]]
    rng = np.random.default_rng(2)
    for t0, t1 in [
        *((int(t) + a, int(t) + a + span) for t in borders for a in (-1, 0, 1) for span in (0, 1)),
        *np.sort(rng.integers(OFFSET - 3000, OFFSET + 43_000, (60, 2)), axis=1).tolist(),
        (0, 10**9), (OFFSET + 40_000, 10**9), (0, 5), (OFFSET + 10_000, OFFSET + 11_000),
    ]:  # fmt: skip
        window, expected = file.window(t0, t1, HEIGHT, WIDTH), events.slice_time(t0, t1)
        for column in "xytp":
            np.testing.assert_array_equal(getattr(window, column), getattr(expected, column))


@pytest.mark.parametrize("name", ["flat.h5", "dsec.h5"])
def test_hdf5_files_stay_open_per_process_and_close_with_their_owner(tmp_path, events, name):
    path = write_format(tmp_path / name, events)
    file = open_event_file(path)
    window = (OFFSET + 5000, OFFSET + 9000, HEIGHT, WIDTH)
    expected = file.window(*window)
    copy = pickle.loads(pickle.dumps(file))
    assert file._handle.process == os.getpid() and copy._handle.process is None
    np.testing.assert_array_equal(copy.window(*window).t, expected.t)
    del file, copy
    with h5py.File(path, "a") as again:  # refused while it is open for reading
        times = again["events/t"][()]
        del again["events/t"]
        again["events/t"] = times[::-1].copy()
    with pytest.raises(ValueError, match=r"t\[0\]"):
        open_event_file(path)


def test_text_windows_read_their_blocks_only(tmp_path, monkeypatch, events):
    path = write_format(tmp_path / "blank.txt", events)
    index = TextIndex(path, block_bytes=1000)
    assert index.time_range == (events.t[0], events.t[-1])
    read, original = [], TextIndex._parse

    def parse(self, text, line):
        read.append(text)
        return original(self, text, line)

    monkeypatch.setattr(TextIndex, "_parse", parse)
    _, (x, *_) = index.read(OFFSET + 5000, OFFSET + 6000)
    # The window's lines, and at most one block before and one after it.
    assert sum(map(len, read)) <= 24 * len(x) + 2 * 1100


def test_a_long_text_file_does_not_fill_memory(tmp_path):
    line = "0.000001 1 1 1\n"
    path = tmp_path / "events.txt"
    path.write_text(line * 200_000)  # 3 MB of text, 6.4 MB of float64 rows
    tracemalloc.start()
    index = TextIndex(path, block_bytes=1 << 14)
    assert index.time_range == (1, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # a block of 16 KiB and its parsed copies are 0.2 MB


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1 1 1 1\n0.2 1 1\n", r"line 2: 4 columns \(t x y p\) expected, found 3: '0.2 1 1'"),
        ("0.1 1 1 1\n0.2 1", "line 2: .* found 2.*is the file truncated"),
        ("1 1 1\n" * 3, "line 1: 4 columns"),
        ("# c\n\n0.1 1 1 1\n0.1 a 1 1\n", "line 4: x must be a number, found 'a'"),
        ("x y t p\n1 1 0.1 1\n", "line 1: columns t x y p .* found 'x y t p'"),
        ("0.2 1 1 1\n0.1 1 1 1\n", "line 2: times must be sorted, found 100000 us after 200000"),
        ("0.1 1 nan 1\n", "line 1: all values must be finite, found t x y p = 0.1 1 nan 1"),
        ("0.1 1 1 1\n0.2 1 1 2\n", "line 2: p must be in .* found t x y p = 0.2 1 1 2"),
        ("0.1 1 1 0\n0.2 1 1 -1\n", "polarities 0 and -1 are both used, by line 2"),
        ("-0.1 1 1 1\n", "line 1: t must not be negative"),
        ("0.1 1 -1 1\n", "line 1: x and y must not lie outside"),
        ("1e300 1 1 1\n", "line 1: t must be in seconds and fit"),
        ("1" * 5000, "columns t x y p|more than 4096|4 columns"),
    ],
)
def test_faults_of_text_name_the_line(tmp_path, text, message):
    path = tmp_path / "events.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_event_file(path).window(0, 10**6, 4, 4)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("start", ["", "# a comment\n", "t x y p\n", "\n"])
def test_a_byte_order_mark_is_passed_over(tmp_path, start):
    for name, text in (
        ("events.txt", f"{start}0.1 1 1 1\n0.2 2 1 0\n"),
        ("timestamps.txt", "0\n0.1\n0.2\n"),
        ("sensor.txt", f"{WIDTH} {HEIGHT}\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    save_images(tmp_path / "images", list(frames()))
    recording = open_recording(tmp_path)
    assert recording.frame_times.tolist() == [0, 100_000, 200_000]
    events = recording.events(0, 10**6)
    assert events.t.tolist() == [100_000, 200_000] and events.x.tolist() == [1, 2]


def test_line_numbers_count_from_the_start_in_later_blocks(tmp_path):
    path = tmp_path / "events.txt"
    path.write_text("0.1 1 1 1\n" * 500 + "0.0 1 1 1\n")
    with pytest.raises(ValueError, match="line 501: times must be sorted"):
        _ = TextIndex(path, block_bytes=100).time_range


# The fixture's directory serves all examples: each overwrites the file.
SHARED = [HealthCheck.function_scoped_fixture]


@settings(max_examples=80, deadline=None, suppress_health_check=SHARED)
@given(
    data=st.binary(max_size=60)
    | st.text("0123456789.,-#% \ntxypnae", max_size=80).map(str.encode)
    | st.lists(st.sampled_from(["0.1 1 1 1", "0.2,3,3,0", "# c", "", "0.2 1", "t x y p"])).map(
        lambda lines: "\n".join(lines).encode()
    ),
    block=st.integers(1, 30),
)
def test_any_text_gives_events_or_a_value_error(tmp_path, data, block):
    path = tmp_path / "events.txt"
    path.write_bytes(data)
    index = TextIndex(path, block_bytes=block)
    try:
        _, columns = index.read(0, 10**9)
    except ValueError as error:
        assert str(path) in str(error)
        return
    Events(*columns)


def save_h5(path, **columns):
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values


GOOD = {"x": [1, 2], "y": [1, 1], "t": [5, 6], "p": [0, 1]}


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": None}, r"missing \['p'\]"),
        ({"x": [1]}, "same length, got x has 1, y has 2"),
        ({"x": [[1, 2]]}, r"x must be numbers of shape \[N\], got int64 of \[1, 2\]"),
        ({"t": [6, 5]}, "sorted"),
        ({"t": [-6, 5]}, r"t must not be negative, got t\[0\] = -6 us"),
        ({"t": [np.nan, 1.0]}, "t must be finite"),
        ({"x": [1.0, np.nan]}, r"x must be finite, got x\[1\] = nan"),
        ({"x": [1, 9]}, r"x\[1\] = 9 lies outside .*count from event 0 of the file"),
        ({"p": [0, 3]}, r"p\[1\] = 3"),
    ],
)
def test_faults_of_binary_files(tmp_path, suffix, changes, message):
    columns = {name: values for name, values in {**GOOD, **changes}.items() if values is not None}
    path = tmp_path / f"events{suffix}"
    (save_h5 if suffix == ".h5" else np.savez)(path, **columns)
    with pytest.raises(ValueError, match=message) as caught:
        open_event_file(path).window(0, 10**7, 4, 4)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("name", ["flat.h5", "dsec.h5", "stored.npz", "packed.npz"])
@pytest.mark.filterwarnings("ignore:.*is compressed and is unpacked")
def test_truncated_binary_files(tmp_path, events, name):
    path = write_format(tmp_path / name, events)
    for kept in (0, 5, 1000, path.stat().st_size - 50):
        path.write_bytes(path.read_bytes()[:kept] if kept else b"")
        with pytest.raises(ValueError, match="truncated"):
            open_event_file(path).window(0, 2 * OFFSET, HEIGHT, WIDTH)
        write_format(path, events)


def test_other_faults_of_event_files(tmp_path, events, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such event file"):
        open_event_file(tmp_path / "events.txt")
    (tmp_path / "events.bin").touch()
    with pytest.raises(ValueError, match=r"unknown event format '.bin'"):
        open_event_file(tmp_path / "events.bin")
    np.savez(tmp_path / "a.npz", **{**GOOD, "p": np.array([{}, {}], object)})
    with pytest.raises(ValueError, match="Python objects"):
        open_event_file(tmp_path / "a.npz")
    path = write_format(tmp_path / "dsec.h5", events)
    with h5py.File(path, "a") as file:
        file["ms_to_idx"][6:20] = 0
    with pytest.raises(ValueError, match="ms_to_idx"):
        open_event_file(path).window(OFFSET + 5000, OFFSET + 9000, HEIGHT, WIDTH)
    for suffix, save in ((".h5", save_h5), (".npz", np.savez)):
        save(tmp_path / f"back{suffix}", **{**GOOD, "t": [7, 5]})
        with pytest.raises(ValueError, match=r"back.*t\[0\] = 7 us and t\[-1\] = 5 us"):
            open_event_file(tmp_path / f"back{suffix}")
    for height in ("tall", [4, 5], 0, np.nan):
        save_h5(tmp_path / "sized.h5", **GOOD)
        with h5py.File(tmp_path / "sized.h5", "a") as file:
            file.attrs["height"], file.attrs["width"] = height, 4
        with pytest.raises(ValueError, match=r"sized.h5: the attribute height must be one"):
            open_recording(tmp_path / "sized.h5")
    for extra, message in (
        ({"t_offset": [1, 2]}, r"t_offset must be integers of shape \[\]"),
        ({"t_offset": "soon"}, r"t_offset must be integers of shape \[\]"),
        ({"ms_to_idx": 5}, r"ms_to_idx must be integers of shape \[M\]"),
    ):
        save_h5(tmp_path / "extra.h5", **GOOD, **extra)
        with pytest.raises(ValueError, match=rf"extra.h5: {message}"):
            open_event_file(tmp_path / "extra.h5")
    monkeypatch.setattr("flowfuse.data.formats.hdf5.register_codecs", lambda: False)
    path.write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="hdf5plugin, which is not installed"):
        Hdf5Events(path)


def test_npz_that_leads_before_its_beginning(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **GOOD)
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\5\6") + 17] += 64  # where the directory begins, and with it all members
    path.write_bytes(data)
    with pytest.raises((OSError, ValueError), match=r"a\.npz: "):
        open_event_file(path)


def test_empty_event_files(tmp_path):
    none = Events.empty(HEIGHT, WIDTH)
    for name in [*FORMATS[:3], "stored.npz", "blank.txt", "comma.csv"]:
        file = open_event_file(write_format(tmp_path / name, none))
        assert file.time_range is None and len(file.window(0, 10, HEIGHT, WIDTH)) == 0


# Recordings: events, frames and truth together


def frames(count=3, channels=()):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, HEIGHT, WIDTH, *channels)).astype(np.uint8)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_write_and_open(tmp_path, events, channels):
    images, times = frames(3, channels), np.array([OFFSET, OFFSET + 9_999, OFFSET + 20_001])
    flow = np.arange(2 * 2 * HEIGHT * WIDTH, dtype=np.float32).reshape(2, 2, HEIGHT, WIDTH)
    valid = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3 > 0
    write_recording(
        tmp_path / "r",
        events,
        images,
        times,
        exposures=np.array([100, 201, 300]),
        flow=flow,
        flow_at={0.25: [(flow[0], valid), None], 1 / 3: flow},
    )
    recording = open_recording(tmp_path / "r")
    assert (recording.height, recording.width) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(recording.frame_times, times)
    assert recording.exposures[1].tolist() == [OFFSET + 9_899, OFFSET + 10_100]
    for index in range(3):
        np.testing.assert_array_equal(recording.frame(index), images[index])
    assert recording.time_range == (OFFSET, events.t[-1])
    assert recording.event_range == (events.t[0], events.t[-1])
    assert [path.parent.name for path in recording.frame_files] == ["images"] * 3
    assert len(recording.events(OFFSET, OFFSET + 9_999)) == len(
        events.slice_time(OFFSET, OFFSET + 9_999)
    )
    np.testing.assert_array_equal(recording.ground_truth(1)[0], flow[1])
    assert recording.ground_truth(2) is None and recording.ground_truth_at(1, 0.25) is None
    assert recording.ground_truth_times == (0.25, 1 / 3)
    partly, mask = recording.ground_truth_at(0, 0.25)
    np.testing.assert_array_equal(mask, valid)
    np.testing.assert_array_equal(partly, np.where(valid, flow[0], 0))
    assert (
        recording.ground_truth_at(0, 1 / 3) is not None
        and recording.ground_truth_at(0, 0.5) is None
    )
    assert os.listdir(tmp_path) == ["r"]


def test_a_failed_write_leaves_nothing(tmp_path, events, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("flowfuse.data.recording_writer.write_flow", full)
    with pytest.raises(OSError, match="No space left"):
        write_recording(tmp_path / "r", events, frames(), [0, 1, 2], flow=np.zeros((2, 2, 12, 16)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_times": [0, 1]}, "2 frame_times for 3 frames"),
        ({"frame_times": [0, 2, 1]}, "frame_times must be increasing integer"),
        ({"frame_times": [0.0, 1.0, 2.0]}, "frame_times must be increasing integer"),
        ({"frames": [frames()[0], frames()[0], frames()[0, 1:]]}, r"frame 2 is \[11, 16\]"),
        ({"frames": frames().astype(float)}, "must be uint8"),
        ({"frames": frames()[:, 1:]}, "events of 16 x 12 px with frames of 16 x 11"),
        ({"exposures": np.zeros((2, 2), int)}, "exposures must be integers of shape"),
        ({"flow": np.zeros((3, 2, 12, 16))}, "flow: 3 flow fields for 3 frames"),
        ({"flow_at": {1.5: []}}, "tau must lie in"),
        ({"frames": None, "frame_times": None, "events": None}, "neither events nor frames"),
    ],
)
def test_faults_of_writing(tmp_path, events, changes, message):
    given = {"events": events, "frames": frames(), "frame_times": [0, 1, 2]}
    with pytest.raises(ValueError, match=message):
        write_recording(tmp_path / "r", **{**given, **changes})
    assert os.listdir(tmp_path) == []


def test_writing_never_overwrites(tmp_path, events):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="exists already"):
        write_recording(tmp_path, events, None, None)


def save_images(directory, images, pattern="{}.png"):
    directory.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        cv2.imwrite(str(directory / pattern.format(index)), image)


def test_image_directories_in_every_layout(tmp_path):
    images = frames(11)
    save_images(tmp_path / "a" / "images", images, "frame_{}.png")  # frame_10 sorts after frame_9
    times = "".join(f"{i / 100}\n" for i in range(11))
    (tmp_path / "a" / "timestamps.txt").write_text("# seconds\n" + times)
    save_images(tmp_path / "b", images)
    (tmp_path / "b" / "times.txt").write_text(times)
    save_images(tmp_path / "c", images)
    (tmp_path / "c" / "timestamps.txt").write_text(
        "".join(f"{i / 100} {i}.png\n" for i in range(11))
    )
    opened = [open_recording(tmp_path / name) for name in "abc"]
    opened.append(open_recording(frames=tmp_path / "c", times=tmp_path / "b" / "times.txt"))
    for recording in opened:
        np.testing.assert_array_equal(recording.frame_times, np.arange(11) * 10_000)
        np.testing.assert_array_equal(recording.frame(10), images[10])
        assert not recording.has_events and len(recording.events(0, 10**6)) == 0


def test_frame_times_that_are_not_those_of_mid_exposure(tmp_path):
    save_images(tmp_path, frames(3))
    (tmp_path / "times.txt").write_text("0\n0.05\n0.1\n")
    # A driver's stamps of the shutter's opening, or closing; short exposures hardly matter.
    for start, end, told in ((0, 0.02, "after"), (-0.02, 0, "before"), (0, 0.001, "")):
        spans = "".join(f"{t + start} {t + end}\n" for t in (0, 0.05, 0.1))
        (tmp_path / "exposures.txt").write_text(spans)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_recording(tmp_path)
        assert [str(w.message) for w in caught] == bool(told) * [
            f"{tmp_path / 'exposures.txt'}: exposures are centred 10000 us (median) {told} the "
            "times of the frames, which are taken as mid-exposure; correct one of them"
        ]


def test_given_times_replace_those_of_a_list(tmp_path):
    save_images(tmp_path, frames(2))
    (tmp_path / "images.txt").write_text("0 0.png\n0.1 1.png\n")
    other = tmp_path / "exact.txt"
    other.write_text("0.002\n0.102\n")
    assert open_recording(tmp_path).frame_times.tolist() == [0, 100_000]
    assert open_recording(tmp_path, times=other).frame_times.tolist() == [2_000, 102_000]
    other.write_text("0.002\n")
    with pytest.raises(ValueError, match=r"exact.txt: 1 times for 2 images of .*images.txt"):
        open_recording(tmp_path, times=other)


@pytest.mark.parametrize("name", ["events.h5", "events.txt", "events.aedat4"])
def test_event_files_that_lead_nowhere_are_not_taken_for_none(tmp_path, name):
    write_recording(tmp_path / "r", None, frames(), [0, 1, 2])
    path = tmp_path / "r" / name
    for target in ("gone", name):  # the second is a loop
        path.symlink_to(target)
        with pytest.raises(FileNotFoundError, match=f"{name}: is a link that leads nowhere"):
            open_recording(tmp_path / "r")
        path.unlink()


def test_a_directory_is_no_event_file(tmp_path):
    write_recording(tmp_path / "r", None, frames(), [0, 1, 2])
    (tmp_path / "r" / "events.h5").mkdir()
    with pytest.raises(ValueError, match=r"events.h5: is a directory, expected an event file"):
        open_recording(tmp_path / "r")
    with pytest.raises(ValueError, match=r"r: is a directory, expected an event file"):
        open_recording(tmp_path / "r", events=tmp_path / "r")


def test_events_without_frames(tmp_path, events):
    write_format(tmp_path / "events.csv", events).rename(tmp_path / "events.txt")
    with pytest.warns(UserWarning, match="size is not stated; 16 x 12 px is taken"):
        assert open_recording(tmp_path).height == HEIGHT
    (tmp_path / "sensor.txt").write_text("20 30\n")
    recording = open_recording(tmp_path)
    assert (recording.height, recording.width, recording.has_frames) == (30, 20, False)
    assert recording.events(0, 2 * OFFSET).height == 30
    with pytest.raises(IndexError, match="0 frames"):
        recording.frame(0)
    write_events(tmp_path / "more.h5", events)
    assert open_recording(tmp_path / "more.h5").width == WIDTH
    with pytest.raises(ValueError, match=r"more.h5 is 16 x 12 px, but .*sensor.txt is 20 x 30 px"):
        open_recording(tmp_path, events=tmp_path / "more.h5")


def test_image_values(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 128, 257, 65535]], np.uint16))
    assert read_image(tmp_path / "a.png").tolist() == [[0, 0, 1, 255]]
    cv2.imwrite(str(tmp_path / "b.png"), np.array([[[1, 2, 3, 9]]], np.uint8))  # BGRA
    assert read_image(tmp_path / "b.png").tolist() == [[[3, 2, 1]]]
    for name in ("c.png", "c.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((50, 50), np.uint8))
        data = (tmp_path / name).read_bytes()
        for kept in (0, 20, len(data) - 8):
            (tmp_path / name).write_bytes(data[:kept])
            with pytest.raises(ValueError, match=rf"{name}: (truncated|not an image)"):
                read_image(tmp_path / name)


def test_video(tmp_path):
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 20, (32, 24))
    images = np.repeat(np.arange(6, dtype=np.uint8) * 40, HEIGHT * WIDTH * 12).reshape(6, 24, 32, 3)
    for image in images:
        writer.write(image)
    writer.release()
    recording = open_recording(path)
    assert recording.frame_times.tolist() == [0, 50_000, 100_000, 150_000, 200_000, 250_000]
    for index in (0, 1, 4, 3, 5, 0):  # forward, jump, back
        # FFV1 is lossless; the conversion to and from YUV costs up to 2 grey levels.
        assert np.abs(recording.frame(index).astype(int) - 40 * index).max() <= 2
    (tmp_path / "timestamps.txt").write_text("0\n0.1\n")
    with pytest.raises(ValueError, match="2 frame times for 6 frames"):
        open_recording(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"cannot open this video|no frame of this video"):
        open_recording(path)
    path = path.rename(tmp_path / "video\udcff.avi")
    with pytest.raises(ValueError, match=r"video\\udcff.avi': OpenCV opens only names .* UTF-8"):
        open_recording(path)


def test_faults_of_recordings(tmp_path, events):
    with pytest.raises(ValueError, match="open_recording: nothing to open, expected a path"):
        open_recording()
    with pytest.raises(FileNotFoundError, match="no such recording"):
        open_recording(tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"neither events .* nor frames .*; name them \(events, frames\)"
    ):
        open_recording(tmp_path)
    images = list(frames())
    save_images(tmp_path, [images[0], images[1][:-1], images[2]])
    with pytest.raises(FileNotFoundError, match="times of these images are unknown"):
        open_recording(tmp_path)
    listing = tmp_path / "images.txt"
    for text, message in [
        ("0.1 0.png\n0.1 1.png\n", "line 2: times must increase"),
        ("-1 0.png\n", "line 1: negative time"),
        ("a 0.png\n", "line 1: a time in seconds expected first, found 'a'"),
        ("1e17 0.png\n", "line 1: a time in seconds expected first, found '1e17'"),
        ("0 0.png\n0.1\n", "line 2: found 1 columns, the lines before have 2"),
        ("", "no frame time found"),
        ("0\n", "lines of 't path' expected"),
    ]:
        listing.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_recording(tmp_path)
    listing.write_text("0 9.png\n")
    with pytest.raises(FileNotFoundError, match=r"9.png: no such image"):
        open_recording(tmp_path)
    listing.write_text("0 0.png\n0.1 1.png\n")
    with pytest.raises(ValueError, match=r"1.png is 16 x 11 px, but .*0.png is 16 x 12 px"):
        open_recording(tmp_path).frame(1)
    (tmp_path / "exposures.txt").write_text("0 0.01\n")
    with pytest.raises(ValueError, match="1 exposures for 2 frames"):
        open_recording(tmp_path)
    (tmp_path / "exposures.txt").write_text("0 0.01\n0.1 1e18\n")
    with pytest.raises(ValueError, match="line 2: 'start end' in seconds expected"):
        open_recording(tmp_path)
    (tmp_path / "exposures.txt").write_text("0 0.01\n0.1 0.09\n")
    with pytest.raises(ValueError, match="line 2: the exposure ends before it starts"):
        open_recording(tmp_path)
    (tmp_path / "exposures.txt").unlink()
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "frame1.flo").touch()
    with pytest.warns(UserWarning, match="'frame1.flo'; expected names like 000000.flo"):
        open_recording(tmp_path)
    (tmp_path / "flow" / "frame1.flo").unlink()
    (tmp_path / "flow" / "._000000.flo").touch()  # as macOS leaves them
    (tmp_path / "flow_at").mkdir()
    (tmp_path / "flow_at" / ".DS_Store").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_recording(tmp_path)
    (tmp_path / "sensor.txt").write_text("20")
    with pytest.raises(ValueError, match="'width height' in px expected, found '20'"):
        open_recording(tmp_path)
    write_format(tmp_path / "events.csv", events)
    write_events(tmp_path / "events.h5", events)
    with pytest.raises(ValueError, match=r"several event files \(events.h5, events.csv\)"):
        open_recording(tmp_path)


def test_slider_depth(shared_data):
    recording = open_recording(shared_data / "slider_depth")
    assert (recording.height, recording.width, len(recording.frame_times)) == (180, 240, 6)
    assert recording.frame_times[1] == 38_766 and recording.exposures is None
    everything = recording.events(0, 10**6)
    assert len(everything) == 50_000 and recording.time_range == (0, 193_827)
    t0, t1 = recording.frame_times[1:3]
    np.testing.assert_array_equal(recording.events(t0, t1).t, everything.slice_time(t0, t1).t)
    assert recording.frame(5).shape == (180, 240) and recording.ground_truth(0) is None


def test_frames_without_events(shared_data):
    recording = open_recording(shared_data / "gopro240")
    assert len(recording.frame_times) == 20 and not recording.has_events
    assert recording.frame(0).shape == (recording.height, recording.width, 3)
