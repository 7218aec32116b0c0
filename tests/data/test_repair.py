"""Recordings whose times go back, or that have events off the sensor, in every format."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from tool_cases import load_tool

from flowfuse.data.formats import columns as columns_module
from flowfuse.data.formats.event_writer import write_event_parts
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.registry import open_event_file
from flowfuse.data.repair import find_parts, put_in_order
from flowfuse.events import Events

HEIGHT, WIDTH = 6, 8


def columns(times):
    count = len(times)
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, WIDTH, count).astype(np.uint16),
        "y": rng.integers(0, HEIGHT, count).astype(np.uint16),
        "t": np.asarray(times),
        "p": rng.integers(0, 2, count).astype(np.uint8),
    }


def write(path, found):
    """Columns as they are, in whatever order, in the format of a name."""
    if path.suffix == ".npz":
        np.savez(path, **found)
    elif path.suffix == ".csv":
        rows = zip(*(found[name].tolist() for name in "txyp"), strict=True)
        path.write_text("".join(f"{t / 1e6:.6f},{x},{y},{p}\n" for t, x, y, p in rows))
    else:
        data = b"% evt 2.0\n% geometry 8x6\n"
        for t, x, y, p in zip(*(found[name].tolist() for name in "txyp"), strict=True):
            data += struct.pack("<I", 8 << 28 | t >> 6)
            data += struct.pack("<I", int(p) << 28 | (t & 63) << 22 | x << 11 | y)
        path.write_bytes(data)
    (path.parent / "sensor.txt").write_text(f"{WIDTH} {HEIGHT}\n")
    return path


def read_all(recording):
    return recording.events(0, 2**40)


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_an_overflow_is_continued_and_told(tmp_path, suffix):
    true = np.arange(2**32 - 5_000_000, 2**32 + 5_000_000, 2000)
    found = columns(true % 2**32)
    write(tmp_path / f"events{suffix}", found)
    with pytest.warns(UserWarning, match=r"overflowed: of 2\^32 us \(71.6 min\) at event 2500"):
        recording = open_recording(tmp_path)
    events = read_all(recording)
    np.testing.assert_array_equal(events.t, true)
    np.testing.assert_array_equal(events.x, found["x"])
    window = recording.events(2**32 - 4000, 2**32 + 4000)
    np.testing.assert_array_equal(window.t, true[(true >= 2**32 - 4000) & (true < 2**32 + 4000)])


def test_a_signed_counter_that_begins_below_zero(tmp_path):
    t = np.arange(-(2**31) + 5, -(2**31) + 50_000, 10, dtype=np.int32)
    write(tmp_path / "events.npz", columns(t))
    with pytest.warns(UserWarning, match=r"2\^32 us \(71.6 min\) are added"):
        recording = open_recording(tmp_path)
    assert recording.event_range == (2**31 + 5, int(t[-1]) + 2**32)
    assert len(read_all(recording)) == len(t)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".raw"])
def test_joined_recordings_are_refused_kept_and_split(tmp_path, suffix, capsys):
    times = np.concatenate((np.arange(0, 100_000, 50), np.arange(20, 60_000, 50)))
    found = columns(times)
    path = write(tmp_path / f"events{suffix}", found)
    with pytest.raises(ValueError, match=r"part 2 has the events \[2000, 3200\).*--part.*--split"):
        open_recording(tmp_path)
    events = read_all(open_recording(tmp_path, part=2))
    for name in "xytp":
        np.testing.assert_array_equal(getattr(events, name), found[name][2000:])
    with pytest.raises(ValueError, match="part 3 was asked for, but the file has 2"):
        open_recording(tmp_path, part=3)
    convert = load_tool("convert")
    assert convert.main([str(path), str(tmp_path / "out.npz")]) == 1
    assert "2 recordings were joined" in capsys.readouterr().err
    assert convert.main([str(path), str(tmp_path / "out.npz"), "--split"]) == 0
    assert [len(np.load(tmp_path / f"out-{i}.npz")["t"]) for i in (1, 2)] == [2000, 1200]
    assert convert.main([str(tmp_path), str(tmp_path / "out.npz"), "--split"]) == 1
    assert "--split takes a file of events" in capsys.readouterr().err
    assert len(find_parts(open_event_file(path, check=False)).parts) == 2


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".raw"])
def test_single_events_are_named_and_dropped(tmp_path, suffix):
    found = columns(np.arange(0, 100_000, 50))
    found["t"][700] = 34_949  # after 34,950
    found["x"][900] = 1500
    write(tmp_path / f"events{suffix}", found)
    with pytest.raises(ValueError, match=r"34949 us after 34950 us.*--repair drops it"):
        open_recording(tmp_path)
    with pytest.warns(UserWarning) as told:
        recording = open_recording(tmp_path, repair=True)
    assert "dropped 1 out of order (the first: event 700 has 34949 us" in str(told[0].message)
    assert "1 off the sensor (the first: event 900, 1500," in str(told[0].message)
    kept = np.delete(np.arange(2000), [700, 900])
    events = read_all(recording)
    for name in "xytp":
        np.testing.assert_array_equal(getattr(events, name), found[name][kept])


def test_a_fault_is_told_once(tmp_path):
    times = np.concatenate((np.arange(0, 50_000, 10), np.arange(0, 50_000, 10)))
    for name in ("joined.npz", "joined.csv"):
        with pytest.raises(ValueError, match="2 recordings were joined") as caught:
            open_recording(write(tmp_path / name, columns(times)))
        assert str(caught.value).count("were joined") == 1


def test_an_event_off_the_sensor_is_named(tmp_path):
    found = columns(np.arange(0, 100_000, 50))
    found["x"][900] = 1500
    write(tmp_path / "events.npz", found)
    with pytest.raises(ValueError, match=r"x\[900\] = 1500 .* 1 of 2000 .* --repair drops such"):
        read_all(open_recording(tmp_path))
    found["x"][:] = 9
    write(tmp_path / "events.npz", found)
    with pytest.raises(ValueError, match="2000 of 2000 events are off the sensor: is its size"):
        read_all(open_recording(tmp_path))
    found["x"], found["y"] = np.arange(2000) % HEIGHT, np.arange(2000) % WIDTH
    write(tmp_path / "events.npz", found)
    with pytest.raises(ValueError, match="none is if x and y are swapped"):
        read_all(open_recording(tmp_path))


def test_negative_times_are_named_and_dropped(tmp_path):
    write(tmp_path / "events.npz", columns(np.arange(-100, 1000, 10)))
    with pytest.raises(ValueError, match=r"must not be negative, got t\[0\] = -100 us; --repair"):
        open_recording(tmp_path)
    with pytest.warns(UserWarning, match="dropped 10 with negative times, of 110 events"):
        assert len(read_all(open_recording(tmp_path, repair=True))) == 100


def test_large_files_are_looked_at_in_some_places(tmp_path, monkeypatch):
    monkeypatch.setattr(columns_module, "_LOOK_AT_ALL", 1000)
    monkeypatch.setattr(columns_module, "_LOOK_AT_SOME", 16)
    path = write(tmp_path / "events.npz", columns(np.arange(0, 500_000, 100)))
    seen = []
    original = columns_module.find_order
    monkeypatch.setattr(
        columns_module, "find_order", lambda *args: seen.append(args[0]) or original(*args)
    )
    assert len(read_all(open_recording(path))) == 5000 and not seen
    joined = np.concatenate((np.arange(0, 300_000, 100), np.arange(0, 200_000, 100)))
    with pytest.raises(ValueError, match="2 recordings were joined"):
        open_recording(write(path, columns(joined)))
    # A step back between the places shows when it is read.
    times = np.arange(0, 500_000, 100)
    times[2501] = 0
    recording = open_recording(write(path, columns(times)))
    with pytest.raises(ValueError, match="t is not sorted: event 2501 has 0 us after 250000 us"):
        read_all(recording)


def test_nothing_to_repair(tmp_path):
    events = Events([1, 2], [1, 1], [5, 6], [0, 1], height=HEIGHT, width=WIDTH)
    write_event_parts(tmp_path / "events.h5", [events], (HEIGHT, WIDTH))
    with pytest.warns(UserWarning, match="--repair found nothing to drop, of 2 events"):
        assert len(read_all(open_recording(tmp_path / "events.h5", repair=True))) == 2
    with pytest.warns(UserWarning, match="found nothing"):
        file = put_in_order(open_event_file(tmp_path / "events.h5", check=False), repair=True)
    assert file.sensor_size == (HEIGHT, WIDTH) and file.time_range == (5, 6)


def test_fractional_positions_survive_a_repair(tmp_path):
    found = columns(np.arange(0, 10_000, 50))
    found["x"] = found["x"] + 0.25
    found["t"][9] = 0
    write(tmp_path / "events.npz", found)
    with pytest.warns(UserWarning, match="dropped 1 out of order"):
        events = read_all(open_recording(tmp_path, repair=True))
    assert events.x.dtype == np.float32
    np.testing.assert_array_equal(events.x, np.delete(found["x"], 9).astype(np.float32))


def test_too_many_events_off_the_sensor_are_no_accidents(tmp_path):
    x = np.arange(2000) % 80
    np.savez(tmp_path / "events.npz", x=x, y=0 * x, t=np.arange(2000), p=x % 2)
    (tmp_path / "sensor.txt").write_text("40 4")
    with pytest.raises(
        ValueError, match="1000 of 2000 events are off the sensor of 40 x 4 px, too"
    ):
        open_recording(tmp_path, repair=True)


def test_frames_left_out_keep_the_ground_truth_of_the_others(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(12, 2)
    flow = [np.full((2, 8, 12), index, np.float32) for index in range(4)]
    spans = 1000 * np.stack((np.arange(1, 6), np.arange(1, 6) + 1), axis=1)
    write_recording(tmp_path / "rec", None, images, 1000 * np.arange(1, 6), spans, flow)
    lines = (tmp_path / "rec/images.txt").read_text().splitlines()
    lines[2] = lines[1].split()[0] + " " + lines[2].split()[1]
    (tmp_path / "rec/images.txt").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="--repair left out 1 of 5 frames"):
        recording = open_recording(tmp_path / "rec", repair=True)
    assert [int(recording.frame(i)[0, 0]) for i in range(4)] == [0, 1, 3, 4]
    assert recording.exposures[:, 0].tolist() == [1000, 2000, 4000, 5000]
    found = [recording.ground_truth(i) for i in range(4)]
    assert found[0][0][0, 0, 0] == 0 and found[2][0][0, 0, 0] == 3
    # Flow leads to the frame left out, and not to the one that follows now.
    assert found[1] is None and found[3] is None
    assert [recording.has_ground_truth(i) for i in range(4)] == [True, False, True, False]
