"""flowfuse-live from the command line to what it shows, on a small recording."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from infer_cases import HEIGHT, WIDTH

from flowfuse.cli import live, live_views
from flowfuse.cli.live import main
from flowfuse.cli.live_figures import Trails, draw_shot, track_colour
from flowfuse.cli.live_report import Rates, Shot, explain_no_results
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.events import Events
from flowfuse.live_sources.base import LiveFrame, SourceLostError
from flowfuse.result import Result
from flowfuse.stream.policy import StreamStats
from flowfuse.tracking import TrackStep


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "rec"
    rng = np.random.default_rng(0)
    events = Events(
        rng.integers(0, WIDTH, 3000), rng.integers(0, HEIGHT, 3000),
        np.sort(rng.integers(0, 200_000, 3000)), rng.integers(0, 2, 3000),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip
    frames = rng.integers(0, 256, (4, HEIGHT, WIDTH), np.uint8)
    write_recording(path, events, frames, 10_000 + 50_000 * np.arange(4))
    return path


@pytest.fixture
def run(checkpoint):
    def call(*arguments: object) -> int:
        given = ["--checkpoint", checkpoint, "--threads", 1, "--device", "cpu", *arguments]
        return main([str(argument) for argument in given])

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_every_frame_pair_as_json_and_what_came_in_is_kept(run, recording, tmp_path, capsys):
    kept = tmp_path / "kept"
    options = ("--view", "json", "--speed", 0, "--policy", "all", "--record", kept)
    assert run(recording, *options) == 0
    printed = capsys.readouterr()
    found = rows(printed.out)
    starts = [10_000, 60_000, 110_000]
    assert [(row["t0_us"], row["t1_us"]) for row in found] == [(t, t + 50_000) for t in starts]
    assert all(row["from"] == ["frames", "events"] for row in found)
    assert all(row["latency_s"] > 0 and row["tracks"] >= 0 for row in found)
    assert "3 results in" in printed.err and "nothing was lost" in printed.err
    assert f"recorded: {kept} (3000 events, 4 frames)" in printed.err
    again, before = open_recording(kept), open_recording(recording)
    assert np.array_equal(again.events(0, 10**6).t, before.events(0, 10**6).t)
    assert np.array_equal(again.frame(3), before.frame(3))


def test_fixed_intervals_as_text(run, recording, capsys):
    options = ("--speed", 0, "--policy", "all", "--interval", "20ms", "--every", "40ms")
    assert run(recording, *options, "--tracks", 0) == 0
    printed = capsys.readouterr()
    assert "mean motion" in printed.out and "results/s" in printed.out
    assert "5 results in" in printed.err
    # One interval happens to begin at a frame, within the slack.
    assert "4 from events, 1 from frame0 and events" in printed.err


def test_overlapping_intervals_share_what_they_can(run, recording, capsys):
    options = ("--speed", 0, "--policy", "all", "--interval", "40ms", "--every", "20ms")
    kept = ("--scale-tolerance", 0.9, "--warm-start", "on", "--warm-iterations", 1)
    assert run(recording, *options, *kept, "--view", "json") == 0
    printed = capsys.readouterr()
    starts = [row["t0_us"] for row in rows(printed.out)]
    assert len(starts) > 5 and set(np.diff(starts)) == {20_000}
    assert "nothing was lost" in printed.err


def test_losses_are_told(run, recording, capsys):
    options = ("--view", "none", "--interval", "5ms", "--memory", 400)
    assert run(recording, "--speed", 0, "--policy", "latest", *options) == 0
    assert "intervals skipped" in capsys.readouterr().err


def test_no_results_have_a_reason(run, recording, capsys):
    options = ("--speed", 0, "--policy", "all", "--view", "none", "--interval", "1s")
    assert run(recording, *options) == 0
    told = capsys.readouterr().err
    assert "0 results in" in told
    found = re.search(r"flowfuse-live: no results: the events span (\S+) ms, less than", told)
    assert found and 199 < float(found[1]) <= 200, told
    assert "one interval of 1000 ms; choose a shorter --interval" in told


@pytest.mark.parametrize(
    "stats, length, came, reason",
    [
        (StreamStats(), None, None, "neither an event nor a frame came"),
        (StreamStats(events=9, frames=1), None, (0, 9), "frame to frame needs two of them, got 1"),
        (StreamStats(events=9, frames=2), None, (0, 9), "before the events up to the second frame"),
        (StreamStats(frames=5), 20_000, None, "no event came, and intervals of 20 ms begin"),
        (StreamStats(events=2), 11, (90, 99), "span 0.01 ms, less than one interval of 0.011 ms"),
        (StreamStats(events=2), 10, (90, 99), "before an interval of 0.01 ms was estimated"),
    ],
)
def test_each_reason(stats, length, came, reason):
    assert reason in explain_no_results(stats, length, came)


def test_as_fast_as_possible_loses_nothing(run, recording, capsys):
    assert run(recording, "--speed", 0, "--view", "none", "--interval", "5ms", "--tracks", 0) == 0
    told = capsys.readouterr().err
    assert "39 results in" in told and "nothing was lost" in told


def test_it_stops_after_some_seconds(run, recording, capsys):
    assert run(recording, "--speed", 1e-4, "--seconds", 0.2, "--view", "none") == 0
    assert "0 results in" in capsys.readouterr().err


class LostCamera:
    """Gives a frame pair with events, and is gone."""

    name, height, width, has_frames = "camera", HEIGHT, WIDTH, True

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    def packets(self):
        for t in (1_000, 21_000):
            yield Events([1, 2], [3, 4], [t - 500, t], [1, 0], height=HEIGHT, width=WIDTH)
            yield LiveFrame(np.full((HEIGHT, WIDTH), 9, np.uint8), t)
        raise self._fault

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (SourceLostError("camera is gone: unplugged"), "unplugged; what was made so far is kept"),
        (ValueError("camera: nonsense came"), "error: camera: nonsense came"),
    ],
)
def test_a_source_that_disappears(run, monkeypatch, capsys, tmp_path, fault, message):
    monkeypatch.setattr(live, "open_source", lambda name, speed: LostCamera(fault))
    kept = tmp_path / "kept"
    assert run("dv:", "--view", "json", "--record", kept) == 1
    printed = capsys.readouterr()
    assert message in printed.err and "1 results in" in printed.err
    assert [row["t1_us"] for row in rows(printed.out)] == [21_000]
    assert len(open_recording(kept).frame_times) == 2


def test_ctrl_c_at_any_time(checkpoint, recording, tmp_path):
    """A camera that never ends, here a very slow replay: all that came is kept."""
    kept = tmp_path / "kept"
    program = "import sys; from flowfuse.cli.live import command; command()"
    arguments = [recording, "--checkpoint", checkpoint, "--speed", "0.02", "--record", kept]
    arguments += ["--view", "json", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["t0_us"] == 10_000
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in told
    assert "results in" in told and "recorded:" in told
    assert 0 < len(open_recording(kept).events(0, 10**6)) < 3000


def known_shot(frame: bool = True, step: TrackStep | None = None) -> Shot:
    points = torch.full((1, 1, 2, HEIGHT, WIDTH), 2.0)
    blank = torch.zeros(1, 2, HEIGHT, WIDTH)
    result = Result(points, blank, blank, t0=0, t1=50, modalities=("events",), as_torch=False)
    events = Events([3], [4], [5], [1], height=HEIGHT, width=WIDTH)
    image = np.full((HEIGHT, WIDTH), 100, np.uint8) if frame else None
    return Shot(result, image, image, events, step, Rates(10.0, 2e6, 0.083, 7, 2))


def a_step(places: list[tuple[float, float]], first: bool) -> TrackStep:
    ids = np.arange(len(places))
    points = np.array(places, np.float32)
    new = (ids, points) if first else (ids[:0], points[:0])
    return TrackStep(0, 50, ids, points, *new, {})


def test_a_picture_of_everything():
    trails = Trails()
    trails.update(a_step([(5.0, 5.0), (20.0, 9.0)], first=True))
    step = a_step([(9.0, 5.0), (24.0, 9.0)], first=False)
    trails.update(step)
    assert [len(places) for places in trails.lines().values()] == [3, 3]
    picture = draw_shot(known_shot(step=step), trails)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.std() > 20
    assert (picture == track_colour(0)).all(axis=2).any(), "the first track is drawn"
    plain = draw_shot(known_shot(frame=False), None)
    assert plain.shape[1] < picture.shape[1]
    trails.update(a_step([(9.0, 5.0)], first=False))
    assert list(trails.lines()) == [0], "what is lost is forgotten"


def test_rates_in_a_line():
    assert known_shot().rates.line() == (
        "10.0 results/s, 2e+06 events/s, latency 83 ms, 2 intervals skipped, 7 events dropped"
    )


class Windows:
    """What the view needs of cv2; a key is pressed when the second picture is shown."""

    WINDOW_NORMAL = WINDOW_KEEPRATIO = WND_PROP_VISIBLE = 0
    error = RuntimeError

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []

    def imshow(self, title: str, picture: np.ndarray) -> None:
        self.shown.append(picture)

    def waitKey(self, milliseconds: int) -> int:  # noqa: N802 - OpenCV's name
        return ord("q") if len(self.shown) == 2 else -1

    def getWindowProperty(self, title: str, which: int) -> float:  # noqa: N802
        return 1.0

    def __getattr__(self, name: str):
        return lambda *arguments: None


def test_a_window(monkeypatch, run, recording):
    windows = Windows()
    monkeypatch.setattr(live_views, "cv2", windows)
    options = ("--speed", 0, "--policy", "all", "--interval", "10ms", "--view", "window")
    assert run(recording, *options) == 0
    assert len(windows.shown) == 2, "the key ends the run"
    assert windows.shown[0].flags["C_CONTIGUOUS"]


def test_no_window_is_told(run, recording, monkeypatch, capsys):
    def refuse(*arguments):
        raise live_views.cv2.error("not implemented")

    monkeypatch.setattr(live_views.cv2, "namedWindow", refuse)
    assert run(recording, "--view", "window") == 1
    assert "install opencv-python in its place, or take --view rerun" in capsys.readouterr().err


def test_a_stream_for_rerun(run, recording, tmp_path):
    pytest.importorskip("rerun")
    output = tmp_path / "live.rrd"
    options = ("--view", "rerun", "--output", output, "--speed", 0, "--policy", "all")
    assert run(recording, *options) == 0
    data = output.read_bytes()
    assert data.startswith(b"RRF") and len(data) > 5_000
    # What rerun reads in it: three results.
    command = [sys.executable, "-m", "rerun", "rrd", "print", str(output)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pictures = ("events", "flow", "boundary", "uncertainty", "tracks/frame")
    columns = {name: "EncodedImage:blob" for name in pictures}
    columns |= {f"rates/{name}": "Scalars:scalars" for name in live_views._RATES}
    columns["tracks/lines"] = "LineStrips2D:strips"
    for name, column in columns.items():
        chunks = [line for line in printed.splitlines() if f" - /{name} - " in line]
        rows = sum(int(re.search(r"with (\d+) row", line)[1]) for line in chunks)
        assert rows == 3 and all(column in line for line in chunks), name


def test_rerun_is_missing(run, recording, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert run(recording, "--view", "rerun") == 1
    assert 'pip install rerun-sdk, or "flowfuse[view]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rec", "--interval", "20"), "--interval '20': expected a time of at least 1us"),
        (("rec", "--every", "x"), "--every 'x': expected a time"),
        (("rec", "--threads", "0"), "--threads must be at least 1, got 0"),
        (("rec", "--threads", "5000"), "--threads must be at most 1024, got 5000"),
        (("rec", "--warm-iterations", "0"), "--warm-iterations must be at least 1, got 0"),
        (("rec", "--scale-tolerance", "1"), "--scale-tolerance must be in [0, 1), got 1.0"),
        (("rec", "--warm-start", "perhaps"), "warm-start"),
        (("rec", "--tracks", "-1"), "--tracks must not be negative, got -1"),
        (("rec", "--seconds", "0"), "--seconds must be positive, got 0"),
        (("rec", "-o", "x.rrd"), "--output belongs to --view rerun"),
        (("rec", "-o", "x.png", "--view", "rerun"), "--output must name a .rrd, got 'x.png'"),
        (("rec", "--policy", "none"), "policy"),
        ((), "usage: flowfuse-live"),
        ((), "error: no arguments, expected a source: flowfuse-live RECORDING, or"),
        (("rec", "--tolerance", "10s"), "--tolerance must be less than 1s: a clock that jumps"),
        (("rec", "--tolerance", "1s"), "began anew; got '1s'"),
        (("rec", "--tolerance", "10"), "--tolerance '10': expected a time such as 50ms, or 0"),
        (("rec", "--offset", "x"), "--offset 'x': expected a time such as 3ms, or -3ms"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    assert main(list(arguments)) == 2
    assert message in capsys.readouterr().err


def test_help_names_the_sources(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in ("dv://HOST:PORT", "metavision:", "webcam:", "--record", "--speed"):
        assert name in printed


def test_no_thread_is_left(run, recording):
    run(recording, "--speed", 0, "--view", "none")
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        names = [thread.name for thread in threading.enumerate()]
        if not any(name.startswith("flowfuse") for name in names):
            return
        time.sleep(0.01)
    pytest.fail(f"threads of the run are left: {names}")
