"""BlinkFlow: a sequence in its layout, and a named error for each fault."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flowfuse.cli.infer import main
from flowfuse.data.datasets.blinkflow import SIZE
from flowfuse.data.datasets.dsec.writer import write_raw_events
from flowfuse.data.opening import open_recording
from flowfuse.events import Events

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sequence(tmp_path):
    path = tmp_path / "blinkflow" / "training" / "E-Tartan" / "01"
    for name in ("events_left", "forward_flow"):
        (path / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 200_000, 4000))
    x, y = rng.integers(0, SIZE[1], 4000), rng.integers(0, SIZE[0], 4000)
    events = Events(x, y, t, rng.integers(0, 2, 4000), height=SIZE[0], width=SIZE[1])
    write_raw_events(path / "events_left" / "events.h5", events, 0)
    (path / "config.yaml").write_text("duration: 0.2\nfps: 20\n")
    for number in range(1, 4):
        flow = np.zeros((*SIZE, 3), np.float32)
        flow[..., 0], flow[..., 2] = number, 1
        flow[0, 0] = np.nan
        np.save(path / "forward_flow" / f"{number:06d}.npy", flow)
    return path


def test_intervals_with_ground_truth(sequence):
    recording = open_recording(sequence)
    assert (recording.height, recording.width) == SIZE and not recording.has_frames
    assert recording.ground_truth_intervals.tolist() == [
        [50_000, 100_000], [100_000, 150_000], [150_000, 200_000],
    ]  # fmt: skip
    flow, valid = recording.ground_truth_at(1, 1.0)
    assert flow[0, 5, 5] == 2 and not flow[1, 5, 5] and valid.sum() == valid.size - 1
    assert recording.ground_truth_at(1, 0.5) is None and recording.ground_truth_at(3, 1.0) is None
    (sequence / "config.yaml").unlink()  # one second at 10 Hz
    assert len(open_recording(sequence).ground_truth_intervals) == 9


def test_from_files_to_the_number(sequence, tmp_path, capsys):
    out = tmp_path / "out"
    given = [sequence, "-o", out, "--pairs", "0:1", "--no-video", "--max-pictures", 0]
    given += ["--iterations", 1]
    assert main([str(word) for word in given]) == 0
    assert "1 time interval of 640 x 480 px: 1 estimated" in capsys.readouterr().out
    found = json.loads((out / "metrics.json").read_text())
    assert found["average"]["zero_flow"]["per_pixel"]["epe"] == pytest.approx(1)
    assert found["average"]["photometric_error"] is None
    assert found["pairs"][0]["t0_us"] == 50_000
    given[given.index("0:1")] = "5:6"
    assert main([str(word) for word in given]) == 1
    assert "no interval with ground truth in the range asked for" in capsys.readouterr().err


def test_the_folder_above_names_its_sequences(sequence):
    root = sequence.parent.parent.parent
    with pytest.raises(ValueError, match=r"sequences of BlinkFlow; .*training/E-Tartan/01"):
        open_recording(root)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", b"duration: 1", "numbers duration and fps are expected"),
        ("config.yaml", b"duration: 1\nfps: 0", "must be positive"),
        ("forward_flow/000001.npy", b"x", "not a readable .npy"),
        ("forward_flow/000001.npy", None, r"shape \[480, 640, 3\] expected, found \[2, 3\]"),
    ],
)
def test_faults(sequence, name, content, message):
    if content is None:
        np.save(sequence / name, np.zeros((2, 3)))
    else:
        (sequence / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_recording(sequence).ground_truth_at(0, 1.0)
