from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np

from flowfuse.data.datasets.dsec.sequence import open_sequence
from flowfuse.data.synthetic.presets import find_preset
from flowfuse.data.synthetic.scenes import generate_scene

SCRIPT = Path(__file__).resolve().parents[2] / "data_tools" / "write_dsec.py"


def run(*argv: str) -> int:
    spec = importlib.util.spec_from_file_location("write_dsec", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(list(argv))


def test_sequence_holds_the_scene(tmp_path, capsys):
    argv = [str(tmp_path), "thun_00_a", "--preset", "slow", "--seed", "5", "--size", "48x32"]
    argv += ["--image-size", "96x64", "--frames", "7", "--max-step", "1", "--layout", "per_file"]
    assert run(*argv) == 0
    assert "thun_00_a: 7 frames, " in capsys.readouterr().out
    preset = replace(find_preset("slow"), interval_ms=(50.0, 50.0))
    scene = generate_scene(5, preset, 32, 48, frames=7)
    sequence = open_sequence(tmp_path / "thun_00_a")
    assert (sequence.height, sequence.width) == (32, 48)
    np.testing.assert_array_equal(np.diff(sequence.frame_times), np.diff(scene.frame_times))
    np.testing.assert_array_equal(np.diff(sequence.exposures).ravel(), scene.exposures)
    # The rates of DSEC, and events of a whole interval before the first map.
    assert set(np.diff(sequence.frame_times)) == {50_000}
    assert sequence.frame_pairs == [(2, 4), (4, 6)]
    assert sequence.event_range[0] < sequence.frame_times[0]
    flow, valid = sequence.ground_truth(2)
    expected, _, occluded = (part.numpy() for part in scene.ground_truth(4.0, start=2.0))
    assert np.abs(flow - expected)[:, valid].max() <= 0.5 / 128 + 1e-5
    assert not valid[:4].any() and 0.5 < valid.mean() < 1
    np.testing.assert_array_equal(valid[4:], ~occluded[4:])
    # It does not write over what is there.
    assert run(*argv) == 1
    assert "this sequence exists already" in capsys.readouterr().err
    assert run(str(tmp_path), "thun_01_a", "--device", "cuda:77") == 1
    assert "cuda:77" in capsys.readouterr().err
    assert run(str(tmp_path), "thun_01_a", "--frames", "4") == 1
    assert (
        "--frames must be at least 5 for a flow map with events before it, got 4"
        in capsys.readouterr().err
    )
