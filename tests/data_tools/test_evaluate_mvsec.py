from __future__ import annotations

import json

import numpy as np
import pytest
from tool_cases import load_tool

from flowfuse.data.datasets.mvsec.protocols import PROTOCOLS
from flowfuse.data.datasets.mvsec.recording import open_mvsec
from flowfuse.data.datasets.mvsec.writer import write_mvsec
from flowfuse.data.synthetic.scenes import generate_scene
from flowfuse.events import Events


@pytest.fixture(scope="module")
def tool():
    return load_tool("evaluate_mvsec")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Six frames of MVSEC's size, ground truth (3, 4) px per map of 50 ms."""
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 140_000, 3000))
    x, y = rng.integers(0, 346, 3000), rng.integers(0, 260, 3000)
    events = Events(x, y, t, rng.integers(0, 2, 3000), height=260, width=346)
    frames = rng.integers(0, 256, (6, 260, 346)).astype(np.uint8)
    maps = np.broadcast_to(np.array([3.0, 4.0])[:, None, None], (3, 2, 260, 346))
    prefix = tmp_path_factory.mktemp("mvsec") / "outdoor_day1"
    times = 20_000 + 25_000 * np.arange(6)
    return write_mvsec(prefix, events, frames, times, maps, [10_000, 60_000, 110_000])


def test_the_command(tool, path, tmp_path, capsys):
    out = tmp_path / "result.json"
    argv = [str(path), "--seconds", "0:1", "--stride", "2", "--device", "cpu", "-o", str(out)]
    assert tool.main(argv) == 0
    text = capsys.readouterr().out
    for part in (
        "protocol evflownet (other seconds), outdoor_day1, dt=1",
        "time intervals: 0.0 to 1.0 s after the first event or frame",
        "the top 190 rows of the crop; pixels with ground truth and events",
        "input: raw events and frames; the crop; one time interval in 2; model small",
        "2 time intervals",
    ):
        assert part in text
    result = json.loads(out.read_text())
    # Frames at 20, 45, 70, 95 ms lie in the truth; pairs 0 and 2; half of a map is (1.5, 2) px.
    zero = result["masks"]["events"]["zero flow"]
    assert result["windows"] == 2 and zero["per_frame"]["epe"] == pytest.approx(2.5, abs=1e-5)
    recording, counted = open_mvsec(path), 0
    for index in (0, 2):
        events = recording.events(*recording.frame_times[index : index + 2])
        x, y = events.x.astype(int) - 45, events.y.astype(int) - 2
        inside = (x >= 0) & (x < 256) & (y >= 0) & (y < 190)
        counted += len(set(zip(x[inside].tolist(), y[inside].tolist(), strict=True)))
    assert zero["valid_pixels"] == counted
    assert "conditions" in result and result["model"] == "small"


def test_events_alone_and_the_full_frame(tool, path, capsys, monkeypatch):
    slow = PROTOCOLS["eraft20"]
    monkeypatch.setitem(slow.starts, "outdoor_day1", (0, 1))
    argv = [str(path), "--protocol", "eraft20", "--input", "full", "--device", "cpu"]
    assert tool.main(argv) == 0
    text = capsys.readouterr().out
    assert "input: raw events alone, there are no frames then; the full frame" in text
    # 256 x 191 pixels with truth (rows below 193 of the frame, from row 2 on), 5 px in zero flow.
    assert "dense, zero flow  per frame          5.000       100.000" in text


def test_other_seconds_take_the_place_of_all_that_the_paper_names(tool, path):
    recording = open_mvsec(path)
    with pytest.raises(ValueError, match="no time interval of protocol dceiflow has ground truth"):
        tool.choose_protocol("dceiflow", recording.sequence, None).intervals(recording)
    protocol = tool.choose_protocol("dceiflow", recording.sequence, (0.03, 0.1))
    # Seconds count from the first event, at about 0 ms: frames at 45, 70 and 95 ms lie within.
    assert [window.index for window in protocol.intervals(recording)] == [1, 2]
    lines = "\n".join(protocol.describe(recording.sequence, 1))
    assert "(other seconds)" in lines and "time intervals: 0.03 to 0.1 s after" in lines
    elsewhere = tool.choose_protocol("eraft45", "outdoor_night1", (0.0, 9.0))
    assert not elsewhere.only_listed and elsewhere.full_rows == 193


def test_crop_of_events(tool):
    events = Events(
        [44, 45, 300, 301, 45], [2, 2, 257, 5, 258], range(5), [1] * 5, height=260, width=346
    )
    found = tool.crop_events(events, PROTOCOLS["evflownet"])
    assert found.x.tolist() == [0, 255] and found.y.tolist() == [0, 255]
    floating = Events([44.5, 300.9, 301.0], [2.0, 2, 2], [0, 1, 2], [1] * 3, height=260, width=346)
    found = tool.crop_events(floating, PROTOCOLS["evflownet"])
    np.testing.assert_allclose(found.x, [-0.5, 255.9], atol=1e-4)


def test_faults(tool, path, tmp_path, capsys):
    for argv, message in [
        ([str(tmp_path / "x_data.hdf5")], "no such file, expected <sequence>_data.hdf5"),
        ([str(path)], "no time interval of protocol evflownet has ground truth"),
        (
            [str(path), "--protocol", "dceiflow"],
            "no time interval of protocol dceiflow has ground truth",
        ),
        ([str(path), "--dt", "3"], "dt must be 1 or 4, got 3"),
        ([str(path), "--model", "none"], "none"),
        ([str(path), "-o", str(tmp_path)], f"{tmp_path}: cannot write"),
    ]:
        assert tool.main(argv) == 1
        error = capsys.readouterr().err
        assert (
            error.startswith("evaluate_mvsec: error: ")
            and message in error
            and error.count("\n") == 1
        )
    for argv in (["--seconds", "3:2"], ["--stride", "0"]):
        with pytest.raises(SystemExit):
            tool.main([str(path), *argv])
        assert "expected" in capsys.readouterr().err


def test_write_mvsec_writes_the_scene(tmp_path, capsys):
    tool = load_tool("write_mvsec")
    prefix = tmp_path / "new" / "indoor_flying9"
    argv = [str(prefix), "--seed", "5", "--frames", "4", "--width", "48", "--height", "32"]
    assert tool.main(argv) == 0
    scene = generate_scene(5, "slow", 32, 48, frames=4)
    recording = open_mvsec(f"{prefix}_data.hdf5")
    np.testing.assert_array_equal(recording.frame_times, scene.frame_times)
    np.testing.assert_array_equal(recording.frame(2), scene.frames[2])
    assert len(recording.events(scene.t0, scene.t1)) == len(
        scene.events.slice_time(scene.t0, scene.t1)
    )
    # From frame 1 to 2 through the halves of two maps: exact up to the nearest-neighbour look-up
    # and the bend of the path, where nothing gets covered.
    flow, valid = recording.ground_truth(1)
    ground_truth, known, occluded = (part.numpy() for part in scene.ground_truth(2.0, start=1.0))
    error = np.hypot(*(flow - ground_truth))[valid & known & ~occluded]
    assert valid.mean() > 0.5 and np.median(error) < 0.1
    assert recording.ground_truth(0) is None  # the maps begin after frame 0
    assert tool.main([f"{prefix}b", "--frames", "3"]) == 1
    assert "frames must be at least 4" in capsys.readouterr().err


def test_an_interval_without_events_is_left_out(tool, tmp_path, capsys, monkeypatch):
    """Flow maps without frames: nothing happens in the second one."""
    t = np.concatenate((np.arange(10_000, 60_000, 100), np.arange(110_000, 140_000, 100)))
    events = Events(t % 346, t // 100 % 260, t, t // 100 % 2, height=260, width=346)
    frames = np.zeros((6, 260, 346), np.uint8)
    maps = np.broadcast_to(np.array([3.0, 4.0])[:, None, None], (4, 2, 260, 346))
    times = 20_000 + 25_000 * np.arange(6)
    prefix = tmp_path / "outdoor_day1"
    path = write_mvsec(prefix, events, frames, times, maps, [10_000, 60_000, 110_000, 140_000])
    monkeypatch.setitem(PROTOCOLS["eraft20"].starts, "outdoor_day1", (0, 3))
    out = tmp_path / "result.json"
    argv = [str(path), "--protocol", "eraft20", "--device", "cpu", "-o", str(out)]
    assert tool.main(argv) == 0
    told = capsys.readouterr()
    assert "1 of 3 time intervals have no event" in told.err and "60000 to 110000 us" in told.err
    assert "2 time intervals, 1 without events left out" in told.out
    result = json.loads(out.read_text())
    assert (result["windows"], result["empty"]) == (2, 1)
    monkeypatch.setitem(PROTOCOLS["eraft20"].starts, "outdoor_day1", (1, 2))
    assert tool.main(argv) == 1
    assert "no event in any of 1 time intervals" in capsys.readouterr().err
