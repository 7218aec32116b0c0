from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from flowfuse.data.datasets.mvsec.recording import open_mvsec
from flowfuse.data.synthetic.scenes import generate_scene

SCRIPT = Path(__file__).resolve().parents[2] / "data_tools" / "write_mvsec.py"
ARGUMENTS = ("--seed", "5", "--width", "48", "--height", "32", "--frames", "4")


def run(*argv: str) -> int:
    spec = importlib.util.spec_from_file_location("write_mvsec", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(list(argv))


def test_sequence_holds_the_scene(tmp_path, capsys):
    assert run(str(tmp_path / "sub" / "indoor_flying1"), *ARGUMENTS) == 0
    assert "indoor_flying1_data.hdf5: 4 frames, " in capsys.readouterr().out
    scene = generate_scene(5, "slow", 32, 48, frames=4)
    recording = open_mvsec(tmp_path / "sub" / "indoor_flying1_data.hdf5")
    assert (recording.height, recording.width) == (32, 48)
    np.testing.assert_array_equal(recording.frame_times, scene.frame_times)
    # Maps are 50 ms apart, whatever the frames do, and no map has the time of a frame.
    times = recording.maps.times
    assert set(np.diff(times)) == {50_000} and times[0] == scene.frame_times[0] + 1100
    assert not np.isin(times, scene.frame_times).any()
    places = (times - scene.t0) / (scene.t1 - scene.t0)
    expected = scene.ground_truth(float(places[1]), start=float(places[0]))[0].numpy()
    flow, valid = recording.maps.between(int(times[0]), int(times[1]))
    assert np.abs(flow - expected)[:, valid].max() < 1e-4


@pytest.mark.parametrize("present", ["_data.hdf5", "_gt.hdf5", "_gt_flow_dist.npz"])
def test_what_is_there_is_kept(tmp_path, capsys, present):
    path = tmp_path / f"outdoor_day1{present}"
    path.write_text("downloaded")
    assert run(str(tmp_path / "outdoor_day1"), *ARGUMENTS) == 1
    assert f"{path}: exists already" in capsys.readouterr().err
    assert path.read_text() == "downloaded" and list(tmp_path.iterdir()) == [path]


def test_too_few_frames(tmp_path, capsys):
    assert run(str(tmp_path / "a"), *ARGUMENTS[:-1], "3") == 1
    assert "frames must be at least 4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
