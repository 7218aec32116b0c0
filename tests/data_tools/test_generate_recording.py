from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest

from flowfuse.data.opening import open_recording
from flowfuse.data.synthetic.scenes import generate_scene

SCRIPT = Path(__file__).resolve().parents[2] / "data_tools" / "generate_recording.py"


def run(*argv: str) -> int:
    spec = importlib.util.spec_from_file_location("generate_recording", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(list(argv))


def test_recording_holds_the_scene(tmp_path, capsys):
    out = tmp_path / "scene"
    argv = (str(out), "--preset", "slow", "--seed", "5", "--size", "48x32", "--frames", "3")
    assert run(*argv, "--times", "0.5", "--max-step", "1") == 0
    scene = generate_scene(5, "slow", 32, 48, frames=3)
    recording = open_recording(out)
    assert (recording.height, recording.width) == (32, 48)
    np.testing.assert_array_equal(recording.frame_times, scene.frame_times)
    np.testing.assert_array_equal(np.diff(recording.exposures).ravel(), scene.exposures)
    np.testing.assert_array_equal(recording.frame(1), scene.frames[1])
    window = scene.t0, scene.t1
    assert len(recording.events(*window)) == len(scene.events.slice_time(*window))
    flow, valid = recording.ground_truth(1)
    expected = scene.ground_truth(2.0, start=1.0)
    np.testing.assert_array_equal(np.asarray(flow), expected[0].numpy())
    assert np.asarray(valid).all() and expected[1].all()
    halfway, _ = recording.ground_truth_at(0, 0.5)
    np.testing.assert_array_equal(np.asarray(halfway), scene.flow_at(0.5).numpy())
    assert run(str(tmp_path / "gpu"), "--device", "cuda:77") == 1
    assert "cuda:77" in capsys.readouterr().err and not (tmp_path / "gpu").exists()
    # It does not write over what is there.
    assert run(*argv) == 1
    assert "expected a new or empty directory" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "(default: 320x240)" in text and "(default: 0.25,0.5,0.75)" in text
    assert text.count("(default: ") == 9


def test_the_former_name_of_an_option_works_with_a_notice(tmp_path, capsys):
    module = runpy.run_path(str(SCRIPT))
    parser = module["build_parser"]()
    former = parser.parse_args([str(tmp_path), "--truth-format", "npz"])
    assert "--truth-format is now called --ground-truth-format" in capsys.readouterr().err
    assert former == parser.parse_args([str(tmp_path), "--ground-truth-format", "npz"])
    assert capsys.readouterr().err == ""
