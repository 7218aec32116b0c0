"""What is wrong between events and frames is named, and nothing where nothing is."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from tool_cases import load_tool

import flowfuse
from flowfuse.data.diagnosis import compare_clocks, compare_geometry, find_cause, guess_unit
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events

SAMPLE = Path(flowfuse.__file__).parent / "sample"


def altered(path, change, frames=True):
    """The shipped recording with its events changed: x, y, t, p int64, height, width."""
    if frames:
        shutil.copytree(SAMPLE, path, ignore=shutil.ignore_patterns("flow*", "events.h5"))
    else:
        path.mkdir()
    with h5py.File(SAMPLE / "events.h5") as file:
        columns = {name: file[f"events/{name}"][:].astype(np.int64) for name in "xytp"}
        height, width = (int(file.attrs[name]) for name in ("height", "width"))
    (path / "sensor.txt").write_text(f"{width} {height}\n")
    np.savez(path / "events.npz", **change(columns, height, width))
    return path


def swapped(columns, height, width):
    seen = columns["x"] < height
    columns = {name: values[seen] for name, values in columns.items()}
    return {**columns, "x": columns["y"], "y": columns["x"]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda c, h, w: {**c, "p": 1 - c["p"]},
            "polarity is inverted (ON and OFF exchanged) or the frames are in reverse order: ",
        ),
        (lambda c, h, w: {**c, "x": w - 1 - c["x"]}, "x is mirrored: "),
        (lambda c, h, w: {**c, "y": h - 1 - c["y"]}, "y is mirrored: "),
        (
            lambda c, h, w: {**c, "x": w - 1 - c["x"], "y": h - 1 - c["y"], "p": 1 - c["p"]},
            "x and y are mirrored and polarity is inverted",
        ),
        (swapped, "x and y are swapped"),
        (
            lambda c, h, w: {**c, "x": c["x"] // 2, "y": c["y"] // 2},
            "x and y are half as large: ",
        ),
        (lambda c, h, w: {**c, "t": 1000 * c["t"]}, "1000 times too long (correlation 0.8"),
        (lambda c, h, w: {**c, "t": c["t"] // 1000}, "1000 times too short (correlation 0.8"),
        (lambda c, h, w: {**c, "t": c["t"] + 10**15}, "different clocks (correlation 0.9"),
    ],
    ids=["inverted", "x", "y", "all", "swapped", "half", "ns", "ms", "clock"],
)
def test_every_cause_is_named(tmp_path, capsys, change, told):
    path = altered(tmp_path / "r", change)
    assert told in find_cause(open_recording(path))
    assert load_tool("inspect_recording").main([str(path)]) == 0
    out = capsys.readouterr().out
    assert f"likely cause of trouble: {told}" in out or ("likely cause" in out and told in out)
    assert "time offset: add" not in out


@pytest.mark.parametrize("before", [0, 40_000], ids=["between", "and history"])
@pytest.mark.parametrize("sign", [1, -1], ids=["good", "mirrored"])
def test_two_frames_and_their_events_are_enough(tmp_path, before, sign):
    """The events of [t0, t1) end before the second frame."""
    whole = open_recording(SAMPLE)
    t0, t1 = map(int, whole.frame_times[1:3])
    events = whole.events(max(0, t0 - before), t1)
    x = events.x if sign > 0 else whole.width - 1 - events.x
    events = Events(x, events.y, events.t, events.p, height=whole.height, width=whole.width)
    write_recording(tmp_path / "r", events, [whole.frame(1), whole.frame(2)], [t0, t1])
    told = find_cause(open_recording(tmp_path / "r"))
    assert told is None if sign > 0 else told.startswith("x is mirrored: ")
    advice = "; correct the recording, or use --frames-only until then"
    assert told is None or told.endswith(f"as given (1 pair){advice}")


def test_events_that_are_late_are_told(tmp_path):
    path = altered(tmp_path / "r", lambda c, h, w: {**c, "t": c["t"] + 15_000})
    told = find_cause(open_recording(path))
    assert told.startswith("the clocks of frames and events differ")
    assert "--time-offset=" in told


def test_events_late_by_a_frame_of_steady_motion_are_told(shared_data):
    """Such events still explain half of what the frames show."""
    path = shared_data / "real_flow/pan_tilt/every_1"
    told = find_cause(open_recording(path, time_offset="-50ms"))
    assert told.startswith("the clocks of frames and events differ")
    assert ", 0.4" in told, "of the correlation as given"


def test_times_of_frames_in_another_unit_are_named(tmp_path):
    path = altered(tmp_path / "r", lambda c, h, w: c)
    rows = [line.split() for line in (path / "images.txt").read_text().splitlines()]
    text = "".join(f"{round(float(time) * 1e6)} {name}\n" for time, name in rows)
    (path / "images.txt").write_text(text)
    told = find_cause(open_recording(path))
    assert "or those of the frames are 10^6 times too long: a text of times has seconds" in told


def test_nothing_is_found_in_good_recordings(shared_data):
    folders = [SAMPLE, shared_data / "slider_depth"]
    folders += sorted((shared_data / "real_flow" / "pan_tilt").glob("*"))
    for folder in folders:
        recording = open_recording(folder)
        assert find_cause(recording) is None, folder
        assert guess_unit(recording) is None, folder
    for folder in sorted((shared_data / "real_flow" / "rotation").glob("*")):
        assert find_cause(open_recording(folder)) is None, folder


def test_the_shipped_recording_is_good():
    recording = open_recording(SAMPLE)
    geometry = compare_geometry(recording)
    assert geometry.cause == "" and geometry.as_given > 0.8 and not geometry.is_evident
    assert compare_clocks(recording).describe() is None and find_cause(recording) is None


def test_the_clock_that_is_named_can_be_applied(tmp_path):
    path = altered(tmp_path / "r", lambda c, h, w: {**c, "t": c["t"] + 10**9})
    clocks = compare_clocks(open_recording(path))
    recording = open_recording(path, time_offset=f"{clocks.offset}us")
    assert find_cause(recording) is None and compare_geometry(recording).as_given > 0.8


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (1000, "1000 times too long (nanoseconds where microseconds are expected"),
        (10**6, "10^6 times too long (microseconds in text"),
        (0.001, "beyond any camera: the times may be 1000 times too short"),
    ],
)
def test_units_of_events_alone(tmp_path, capsys, factor, told):
    def scaled(c, h, w):
        return {**c, "t": (c["t"] * factor).astype(np.int64)}

    path = altered(tmp_path / "r", scaled, frames=False)
    assert told in find_cause(open_recording(path))
    assert load_tool("inspect_recording").main([str(path)]) == 0
    assert told in capsys.readouterr().out


def test_noise_of_a_still_camera_is_no_unit(tmp_path):
    rng = np.random.default_rng(0)
    count = 20_000
    columns = {"x": rng.integers(0, 64, count), "y": rng.integers(0, 48, count)}
    columns |= {"t": np.sort(rng.integers(0, 10**8, count)), "p": rng.integers(0, 2, count)}
    np.savez(tmp_path / "events.npz", **columns)
    (tmp_path / "sensor.txt").write_text("64 48\n")
    assert guess_unit(open_recording(tmp_path)) is None


def test_too_few_events_say_nothing(tmp_path):
    np.savez(tmp_path / "events.npz", x=[1, 2], y=[1, 1], t=[5, 6], p=[0, 1])
    (tmp_path / "sensor.txt").write_text("64 48\n")
    assert find_cause(open_recording(tmp_path)) is None
