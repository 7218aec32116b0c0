"""flowfuse-infer --tracks and --event-flow."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from infer_cases import HEIGHT, WIDTH

from flowfuse.cli.infer import main
from flowfuse.cli.infer_motion import read_points
from flowfuse.data.opening import open_recording
from flowfuse.data.recording_writer import write_recording
from flowfuse.estimator import load
from flowfuse.events import Events


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "rec"
    rng = np.random.default_rng(0)
    events = Events(
        rng.integers(0, WIDTH, 2000), rng.integers(0, HEIGHT, 2000),
        np.sort(rng.integers(0, 130_000, 2000)), rng.integers(0, 2, 2000),
        height=HEIGHT, width=WIDTH,
    )  # fmt: skip
    frames = rng.integers(0, 256, (4, HEIGHT, WIDTH), np.uint8)
    write_recording(path, events, frames, 5_000 + 40_000 * np.arange(4))
    return path


@pytest.fixture
def run(checkpoint, recording, tmp_path):
    def call(*arguments: object) -> int:
        given = [recording, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--threads", 1]
        given += ["--device", "cpu", "--max-pictures", 0, "--no-video", *arguments]
        return main([str(argument) for argument in given])

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def tracks(path: Path) -> list[tuple[int, int, float, float, str]]:
    with open(path, newline="") as file:
        return [
            (int(r["id"]), int(r["t_us"]), float(r["x"]), float(r["y"]), r["lost"])
            for r in csv.DictReader(file)
        ]


def result_of(recording: Path, checkpoint: Path, index: int):
    opened = open_recording(recording)
    t0, t1 = map(int, opened.frame_times[index : index + 2])
    frames = opened.frame(index), opened.frame(index + 1)
    return load(checkpoint)(*frames, opened.events(0, t1), t0=t0, t1=t1)


def test_tracks_of_given_points(run, recording, checkpoint, tmp_path, capsys):
    points = tmp_path / "points.csv"
    points.write_text("x, y\n12,8.5  # the middle\n\n27.0,19.0\n")
    assert run("--tracks", points) == 0
    found = tracks(tmp_path / "out" / "tracks.csv")
    assert found[:2] == [(0, 5_000, 12.0, 8.5, ""), (1, 5_000, 27.0, 19.0, "")]
    place = np.array([[12.0, 8.5]])
    for index in range(3):
        place = result_of(recording, checkpoint, index).track(place, 1.0)
        t1 = 45_000 + 40_000 * index
        (row,) = (row for row in found if row[:2] == (0, t1))
        assert np.allclose(row[2:4], place[0], atol=1e-3)
        if row[4]:
            assert row[4] == "left"
            break
    assert f"tracks: {tmp_path / 'out' / 'tracks.csv'}" in capsys.readouterr().out


def test_tracks_go_through_what_is_done_already(run, tmp_path):
    points = tmp_path / "points.csv"
    points.write_text("14,10\n")
    assert run() == 0
    before = (tmp_path / "out" / "flow" / "000001.flo").read_bytes()
    assert run("--tracks", points) == 0
    file = tmp_path / "out" / "tracks.csv"
    assert {5_000, 45_000} <= {t for _, t, *_ in tracks(file)}
    assert (tmp_path / "out" / "flow" / "000001.flo").read_bytes() == before
    assert run("--tracks", points, "--overwrite", "--pairs", "0:1") == 0
    assert [t for _, t, *_ in tracks(file)] == [5_000, 45_000]
    assert run("--tracks", "auto") == 0 and file.read_text().startswith("id,t_us,x,y,lost\n")


def test_the_velocity_of_every_event(run, recording, checkpoint, tmp_path, capsys):
    assert run("--event-flow") == 0
    out = tmp_path / "out" / "event_flow"
    assert sorted(path.name for path in out.iterdir()) == [f"00000{i}.npz" for i in range(3)]
    found, result = np.load(out / "000001.npz"), result_of(recording, checkpoint, 1)
    events = open_recording(recording).events(45_000, 85_000)
    assert np.array_equal(found["t"], events.t) and np.array_equal(found["x"], events.x)
    assert np.array_equal(found["velocity"], result.velocity_at_events(events))
    assert np.array_equal(found["flow"], result.at_events(events))
    (out / "000001.npz").unlink()
    capsys.readouterr()
    assert run("--event-flow") == 0
    assert "1 estimated, 2 were there already" in capsys.readouterr().out
    assert (out / "000001.npz").is_file()
    assert run("--overwrite") == 0 and not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3;4\n", "points.csv, line 2: 'x,y' in px expected, found '3;4'"),
        ("1,nan\n", "line 1: finite numbers expected, found '1,nan'"),
        ("x,y\n", "no point found"),
    ],
)
def test_wrong_points(run, tmp_path, capsys, text, message):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_points(tmp_path / "points.csv")
    assert run("--tracks", tmp_path / "points.csv") == 1
    assert message in capsys.readouterr().err
    assert run("--tracks", tmp_path / "none.csv") == 1
    assert "no such file of points" in capsys.readouterr().err


def test_points_outside_of_the_image_are_named(run, tmp_path, capsys):
    points = tmp_path / "points.csv"
    points.write_text("1,2\n-3,4.5\n27,19\n28,0\n")
    assert run("--tracks", points, "--pairs", "0:1") == 0
    assert (
        f"warning: --tracks {points}: 2 of 4 points outside of the image: (-3, 4.5), (28, 0); "
        "expected x from 0 to 27, y from 0 to 19 px\n"
    ) in capsys.readouterr().err
    points.write_text("500,2\n" * 7)
    assert run("--tracks", points, "--overwrite") == 1
    told = f"error: --tracks {points}: 7 of 7 points outside of the image: (500, 2), (500, 2), "
    assert told in capsys.readouterr().err


def test_neither_belongs_to_a_submission(capsys):
    assert main(["root", "--submission", "out.zip", "--event-flow"]) == 2
    assert "leave out --event-flow" in capsys.readouterr().err
