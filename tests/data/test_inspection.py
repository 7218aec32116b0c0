"""Statistics of recordings by hand, known time offsets, and both tools on real data."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from tool_cases import load_tool

from flowfuse.data.inspection import (
    TimeOffset,
    count_events,
    estimate_drift,
    estimate_offset,
    usable_pairs,
)
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.data.synthetic.simulator import SensorConfig, simulate_events
from flowfuse.events import Events

HEIGHT, WIDTH = 40, 56


def write_events_alone(path, x, y, t, p):
    write_recording(path, Events(x, y, t, p, height=12, width=16), None, None)
    return open_recording(path)


def test_statistics_by_hand(tmp_path):
    # Two events at each of 30 pixels in 0 to 30 ms, none up to 95 ms, then a pixel that fires on.
    t = np.concatenate((np.arange(60) * 500, 95_000 + np.arange(100) * 10))
    x = np.concatenate((np.arange(60) % 10, np.full(100, 13)))
    y = np.concatenate((np.arange(60) % 30 // 10, np.full(100, 7)))
    p = np.concatenate((np.ones(60), np.zeros(100))).astype(int)
    found = count_events(write_events_alone(tmp_path / "r", x, y, t, p))
    assert (found.count, found.start, found.last, found.fault) == (160, 0, 95_990, None)
    assert found.positive == pytest.approx(60 / 160)
    assert found.per_bin.tolist() == [20, 20, 20, 0, 0, 0, 0, 0, 0, 100]
    assert found.gaps() == [(30_000, 90_000)]
    assert found.counts[7, 13] == 100 and found.counts[:3, :10].tolist() == [[2] * 10] * 3
    assert found.hot_pixels().tolist() == [[13, 7]]


def test_faults_are_told_not_raised(tmp_path, capsys):
    path = tmp_path / "events.csv"
    path.write_text("0.1 1 1 1\n0.05 1 1 0\n")
    (tmp_path / "sensor.txt").write_text("16 12\n")
    with pytest.raises(ValueError, match=r"line 2: times must be sorted.*--repair drops it"):
        open_recording(tmp_path)
    path.write_text("0.1 1 1 1\n2000000000 1 1 0\n")
    assert "are the units right" in count_events(open_recording(tmp_path)).fault
    assert load_tool("inspect_recording").main([str(tmp_path)]) == 0
    assert "events: NOT USABLE" in capsys.readouterr().out


def moving_texture(count, speed):
    """[count, H, W] float intensities of a texture that moves to the right, px per image."""
    rng = np.random.default_rng(3)
    texture = cv2.GaussianBlur(rng.random((HEIGHT, 4 * WIDTH)).astype(np.float32), (0, 0), 1.5)
    texture = 0.1 + 0.8 * (texture - texture.min()) / (texture.max() - texture.min())
    return np.stack(
        [
            cv2.getRectSubPix(texture, (WIDTH, HEIGHT), (2 * WIDTH - speed * i, HEIGHT / 2))
            for i in range(count)
        ]
    )


@pytest.fixture(scope="module")
def moving():
    """Events of 120 ms of motion, and a frame each 20 ms."""
    images = moving_texture(121, 0.1)
    events = simulate_events(images, 1000 * np.arange(121), SensorConfig.noiseless(0.03))
    frames = np.rint(255 * images[10:111:20]).astype(np.uint8)
    return events, frames, 10_000 + 20_000 * np.arange(6)


@pytest.mark.parametrize("offset", [0, 6000, -8000])
def test_the_offset_of_the_clocks_is_found(tmp_path, moving, offset):
    events, frames, times = moving
    write_recording(tmp_path / "r", events, frames, times - offset)
    found = estimate_offset(open_recording(tmp_path / "r"), reach=15_000)
    # Events lag behind the light by about half a threshold: 0.015 here, where the texture changes
    # by about 0.015 in a millisecond.
    assert 0 < found.offset - offset < 2000
    assert found.correlation > 0.6 and found.pairs >= 2
    assert found.as_given <= found.correlation + 1e-9
    assert found.is_evident == (offset != 0)  # the lag alone is no offset of the clocks


@pytest.mark.parametrize(("offset", "drift"), [(3000, 0.04), (-2000, 0.0)])
def test_the_drift_of_the_clocks_is_found(tmp_path, capsys, offset, drift):
    images = moving_texture(121, 0.1)
    events = simulate_events(images, 1000 * np.arange(121), SensorConfig.noiseless(0.03))
    frames = np.rint(255 * images[10:111:10]).astype(np.uint8)
    true = 10_000 + 10_000 * np.arange(11)
    stated = np.rint((true - true[0]) / (1 + drift)).astype(np.int64) + true[0] - offset
    write_recording(tmp_path / "r", events, frames, stated)
    found = estimate_drift(open_recording(tmp_path / "r"), reach=9000)
    assert abs(found.offset - offset - 600) < 900  # events lag behind by about half a threshold
    assert abs(found.drift - drift) < 0.015 and found.stretches >= 4
    assert (found.drift == 0) == (drift == 0)
    # Applied as it is printed, it brings the clocks together.
    tool = load_tool("inspect_recording")
    assert tool.main([str(tmp_path / "r"), "--estimate-offset", "--reach", "9"]) == 0
    out = capsys.readouterr().out
    assert f"apply it with {found.option}" in out
    assert ("a drift of" in out) == (drift != 0)
    option = found.option.removeprefix("--time-offset=")
    recording = open_recording(tmp_path / "r", time_offset=option)
    assert np.abs(recording.frame_times - true).max() < 1800


def test_no_offset_can_be_estimated(tmp_path, capsys):
    write_events_alone(tmp_path / "r", [1], [1], [5], [1])
    assert load_tool("inspect_recording").main([str(tmp_path / "r"), "--estimate-offset"]) == 0
    assert "offset of the clocks: there are no frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("as_given", "correlation", "evident"),
    [
        (0.10, 0.45, False),  # 0.38 in z
        (0.10, 0.47, True),
        (0.815, 0.899, False),  # slider_depth
        (0.80, 0.91, True),
        (0.96, 0.998, False),  # 0.04 in r
        (0.94, 0.995, True),
        (-0.2, 0.2, True),
        (1.0, 1.0, False),
        (np.nan, np.nan, False),
    ],
)
def test_what_is_evident(as_given, correlation, evident):
    assert TimeOffset(5000.0, correlation, as_given, 3, 50_000).is_evident is evident


def test_pairs_without_their_events_are_the_reason(tmp_path, capsys):
    """The events cover less than nine tenths of the time between the only two frames."""
    rng = np.random.default_rng(0)
    events = Events(
        rng.integers(0, 32, 500), rng.integers(0, 24, 500), np.sort(rng.integers(0, 80_000, 500)),
        rng.integers(0, 2, 500), height=24, width=32,
    )  # fmt: skip
    frames = rng.integers(0, 256, (2, 24, 32), np.uint8)
    write_recording(tmp_path / "r", events, frames, [0, 100_000])
    recording = open_recording(tmp_path / "r")
    assert usable_pairs(recording, 0, 4) == []
    write_recording(tmp_path / "covered", events, frames, [0, 85_000])
    assert usable_pairs(open_recording(tmp_path / "covered"), 50_000, 4) == [0]
    tool = load_tool("inspect_recording")
    assert tool.main([str(tmp_path / "r"), "--estimate-offset"]) == 0
    reason = "unknown, no two successive frames lie in the time of the events: nothing can be"
    printed = capsys.readouterr().out
    assert f"time offset: {reason}" in printed and f"offset of the clocks: {reason}" in printed


def test_nothing_to_compare(tmp_path):
    recording = write_events_alone(tmp_path / "r", [1], [1], [5], [1])
    assert np.isnan(estimate_offset(recording).offset)


def test_inspection_of_a_recording(tmp_path, moving, capsys):
    events, frames, times = moving
    write_recording(tmp_path / "r", events, frames, times, exposures=np.full(6, 2000))
    tool = load_tool("inspect_recording")
    argv = [str(tmp_path / "r"), "--reach", "10", "--sheet", str(tmp_path / "sheet.png")]
    assert tool.main(argv) == 0
    out = capsys.readouterr().out
    for part in (
        "frames: 6, from 0.010000 to 0.110000 s",
        "every 20.000 ms",
        "exposures of 2.000 to 2.000 ms",
        f"events: {len(events)}",
        "events cover 100.0 % of the time of the frames",
        "time offset: none is evident (correlation 1.00 as given",
    ):
        assert part in out
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None and sheet.shape[1] > 3 * WIDTH and sheet.std() > 20
    assert tool.main([str(tmp_path / "none")]) == 1
    assert "no such recording" in capsys.readouterr().err
    write_recording(tmp_path / "late", events, frames, times - 6000)
    assert tool.main([str(tmp_path / "late"), "--reach", "15"]) == 0
    assert "time offset: add +7" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool.main([])
    assert "name a recording, or --events or --frames" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / "r"), "--reach", "-5"])
    assert "--reach: expected a whole number of at least 1, got '-5'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / "r"), "--reach", "1001"])
    assert "--reach: expected at most 1000 ms, got 1001" in capsys.readouterr().err


def test_inspection_of_slider_depth(shared_data, capsys):
    tool = load_tool("inspect_recording")
    assert tool.main([str(shared_data / "slider_depth")]) == 0
    out = capsys.readouterr().out
    assert "frames: 6" in out and "events: 50000" in out
    # A real DAVIS has one clock: frame times and events agree to a fraction of the interval.
    assert "time offset: none is evident" in out
    assert abs(float(out.split("at best ")[1].split("at ")[1].split(" ms")[0])) < 10


def test_simulated_events_of_a_folder(tmp_path, capsys):
    images = np.rint(255 * moving_texture(12, 0.5)).astype(np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / f"{index}.png"), image)
    (folder / "._0.png").write_bytes(b"as macOS leaves it")
    tool = load_tool("simulate_events")
    good = [str(folder), str(tmp_path / "out"), "--rate", "200", "--noiseless"]
    assert tool.main(good) == 0
    text = capsys.readouterr()
    assert "12 frames" in text.out and text.err == ""
    recording = open_recording(tmp_path / "out")
    np.testing.assert_array_equal(recording.frame_times, 5000 * np.arange(12))
    np.testing.assert_array_equal(recording.frame(7), images[7])
    events = recording.events(0, 55_001)
    assert len(events) > 500 and 0 < events.p.mean() < 1
    found = estimate_offset(recording, reach=10_000)
    assert found.as_given > 0.5
    # The same again, and other faults.
    for argv, message in [
        (good, "expected a new or empty directory"),
        ([str(folder), str(tmp_path / "b")], "times of these images are unknown"),
        ([str(tmp_path), str(tmp_path / "b"), "--rate", "9"], f"{tmp_path}: no images in this"),
        ([str(folder), str(tmp_path / "b"), "--rate", "-1"], "--rate must be in"),
        ([str(folder), str(tmp_path / "b"), "--rate", "1e-13"], "--rate must be in"),
        ([str(folder), str(tmp_path / "b"), "--rate", "9", "--threshold", "0"], "threshold_on"),
    ]:
        assert tool.main(argv) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_large_motion_is_warned_of(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(np.rint(255 * moving_texture(3, 6.0)).astype(np.uint8)):
        cv2.imwrite(str(folder / f"{index}.png"), image)
    (folder / "timestamps.txt").write_text("0\n0.1\n0.2\n")
    assert load_tool("simulate_events").main([str(folder), str(tmp_path / "out")]) == 0
    error = capsys.readouterr().err
    assert "px from frame to frame where it is fastest; above 2 px" in error
